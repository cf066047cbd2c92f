"""The lean half: scan images with a bundle. Importing it needs numpy and Pillow, nothing else."""

if __name__ != "aivsreal.runtime":
    raise ImportError("write aivsreal.runtime: the repository root is on sys.path")
