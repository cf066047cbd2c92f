"""Train LeViT on real and AI images and write checkpoints. Needs the extra `train`."""

if __name__ != "aivsreal.train":
    raise ImportError("write aivsreal.train: the repository root is on sys.path")

import aivsreal.runtime  # noqa: F401  # opts out of what dependencies report, before one is imported
