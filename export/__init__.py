"""Turn checkpoints into bundles: ONNX and what devices run. Needs the extra `export`."""

if __name__ != "aivsreal.export":
    raise ImportError("write aivsreal.export: the repository root is on sys.path")
