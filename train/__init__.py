"""Train LeViT on real and AI images and write checkpoints. Needs the extra `train`."""

if __name__ != "aivsreal.train":
    raise ImportError("write aivsreal.train: the repository root is on sys.path")
