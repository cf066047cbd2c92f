"""What runs the network: one file for each library, loaded when it is chosen."""

# onnx takes CUDA where it runs, else the CPU; the longer names run there or fail.
BACKENDS = ("auto", "tensorrt", "onnx", "onnx-cpu", "onnx-cuda", "onnx-tensorrt", "openvino", "torch")
