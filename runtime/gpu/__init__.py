"""CUDA and TensorRT."""
