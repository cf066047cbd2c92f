"""Turn checkpoints into bundles: ONNX and what devices run. Needs the extra `export`."""

if __name__ != "aivsreal.export":
    raise ImportError("write aivsreal.export: the repository root is on sys.path")

import aivsreal.runtime  # noqa: F401  # opts out of what dependencies report, before one is imported
