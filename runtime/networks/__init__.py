"""The networks in PyTorch, as they are trained and as they are run: LeViT, and ViTs over the encoder of others."""
