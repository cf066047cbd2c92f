"""The graphs of a bundle, FP32, half and INT8, and how far they may differ."""
