"""CUDA's driver API through cuda-bindings (the package cuda-python), the only file that names it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cuda.bindings import driver as cu

from aivsreal.runtime.errors import BackendError, GpuMemoryError
from aivsreal.runtime.gpu.calls import Argument, Dim3, Gpu
from aivsreal.runtime.text import first_line

_HOST_FLAGS = cu.CU_MEMHOSTALLOC_PORTABLE | cu.CU_MEMHOSTALLOC_DEVICEMAP
_NON_BLOCKING = cu.CUstream_flags.CU_STREAM_NON_BLOCKING
# Other threads may allocate while one records; only what this thread does is part of it.
_CAPTURE_MODE = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class BindingsDriver:
    """A `cuda.Driver`.

    Raises:
        BackendError: there is no NVIDIA driver or no such GPU.
    """

    has_graphs = True

    def __init__(self, device: int = 0) -> None:
        try:
            _call(cu.cuInit, 0)
        except RuntimeError:  # cuda-bindings looks for libcuda.so.1 at the first call, and says so in many words
            raise BackendError("NVIDIA's driver is not installed: there is no libcuda.so.1") from None
        count = _call(cu.cuDeviceGetCount)
        if device >= count:
            raise BackendError(f"there is no GPU {device}: the driver finds {count}; run nvidia-smi")
        handle = _call(cu.cuDeviceGet, device)
        self.name = f"cuda-bindings {_version()}"
        self.gpu = _gpu(handle)
        self._device = handle
        self._context = _call(cu.cuDevicePrimaryCtxRetain, handle)  # the one that TensorRT uses too

    @contextmanager
    def current(self) -> Iterator[None]:
        _call(cu.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _call(cu.cuCtxPopCurrent)

    def allocate(self, size: int) -> int:
        return int(_call(cu.cuMemAlloc, size))

    def free(self, address: int) -> None:
        _call(cu.cuMemFree, address)

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        host = int(_call(cu.cuMemHostAlloc, size, _HOST_FLAGS))
        return host, int(_call(cu.cuMemHostGetDevicePointer, host, 0))

    def free_pinned(self, address: int) -> None:
        _call(cu.cuMemFreeHost, address)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        _call(cu.cuMemcpyHtoDAsync, target, source, size, stream)

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        _call(cu.cuMemcpyDtoHAsync, target, source, size, stream)

    def create_stream(self) -> int:
        return int(_call(cu.cuStreamCreate, _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        _call(cu.cuStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        _call(cu.cuStreamSynchronize, stream)

    def compile(self, source: bytes) -> bytes:
        return code_from_source(source, self.gpu.capability)

    def load_module(self, image: bytes) -> int:
        return int(_call(cu.cuModuleLoadData, image))

    def unload_module(self, module: int) -> None:
        _call(cu.cuModuleUnload, module)

    def function(self, module: int, name: str) -> int:
        return int(_call(cu.cuModuleGetFunction, module, name.encode()))

    def launch(self, function: int, grid: Dim3, block: Dim3, stream: int, arguments: Sequence[Argument]) -> None:
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        _call(cu.cuLaunchKernel, function, *grid, *block, 0, stream, ctypes.addressof(addresses), 0)

    def begin_capture(self, stream: int) -> None:
        _call(cu.cuStreamBeginCapture, stream, _CAPTURE_MODE)

    def end_capture(self, stream: int) -> int:
        graph = _call(cu.cuStreamEndCapture, stream)
        try:
            return int(_call(cu.cuGraphInstantiate, graph, 0))
        finally:
            _call(cu.cuGraphDestroy, graph)

    def abandon_capture(self, stream: int) -> None:
        # A capture that was broken on the way has no graph, and ends with the status that says so.
        status, graph = cu.cuStreamEndCapture(stream)
        if status == cu.CUresult.CUDA_SUCCESS and int(graph):
            _call(cu.cuGraphDestroy, graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        _call(cu.cuGraphLaunch, graph, stream)

    def destroy_graph(self, graph: int) -> None:
        _call(cu.cuGraphExecDestroy, graph)

    def close(self) -> None:
        _call(cu.cuDevicePrimaryCtxRelease, self._device)


def code_from_source(source: bytes, capability: tuple[int, int]) -> bytes:
    """Compile CUDA C++ with NVRTC for one compute capability; needs no GPU.

    Raises:
        BackendError: NVRTC is not installed, or does not know the GPU.
    """
    from cuda.bindings import nvrtc

    try:
        program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source, b"preprocess.cu", 0, [], []))
    except RuntimeError as error:
        raise BackendError(
            f"NVRTC is not installed ({first_line(error)}): "
            "run pip install 'cuda-python[all]', or install the CUDA toolkit"
        ) from None
    options = [b"--std=c++17", b"--gpu-architecture=sm_%d%d" % capability]
    try:
        _checked(nvrtc, nvrtc.nvrtcCompileProgram(program, len(options), options))
        code = bytes(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC cannot compile the kernel: {status.name}; update the CUDA toolkit")
    return values[0] if values else None


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    status, *values = function(*arguments)
    if status == cu.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if status == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise GpuMemoryError(f"{function.__name__}: the GPU's memory is full; try a smaller --batch-size")
    raise BackendError(f"{function.__name__} failed with {status.name}: run nvidia-smi to see the GPU's state")


def _gpu(device: Any) -> Gpu:
    attribute = cu.CUdevice_attribute
    prefix = "CU_DEVICE_ATTRIBUTE_"

    def asked(name: str) -> int:
        return int(_call(cu.cuDeviceGetAttribute, getattr(attribute, prefix + name), device))

    version = int(_call(cu.cuDriverGetVersion))
    return Gpu(
        name=_call(cu.cuDeviceGetName, 256, device).partition(b"\0")[0].decode(errors="replace"),
        capability=(asked("COMPUTE_CAPABILITY_MAJOR"), asked("COMPUTE_CAPABILITY_MINOR")),
        multiprocessors=asked("MULTIPROCESSOR_COUNT"),
        memory_bytes=int(_call(cu.cuDeviceTotalMem, device)),
        shares_memory=bool(asked("INTEGRATED")),
        cuda=(version // 1000, version % 1000 // 10),
    )


def _version() -> str:
    from importlib.metadata import version

    return version("cuda-bindings")
