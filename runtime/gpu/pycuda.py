"""CUDA's driver API through pycuda, the only file that names it. It has no graphs: kernels are launched one by one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import pycuda.driver as cu

from aivsreal.runtime.errors import BackendError, GpuMemoryError
from aivsreal.runtime.gpu.calls import Argument, Dim3, Gpu

_NUMPY: dict[type[Any], Any] = {ctypes.c_void_p: np.uintp, ctypes.c_int: np.int32, ctypes.c_float: np.float32}


class PycudaDriver:
    """A `cuda.Driver`. pycuda frees what its objects hold when they die, so they are kept here by their handles.

    Raises:
        BackendError: there is no NVIDIA driver or no such GPU.
    """

    has_graphs = False

    def __init__(self, device: int = 0) -> None:
        with _errors():
            cu.init()
            count = cu.Device.count()
            if device >= count:
                raise BackendError(f"there is no GPU {device}: the driver finds {count}; run nvidia-smi")
            chosen = cu.Device(device)
            attribute = cu.device_attribute
            cuda = cu.get_driver_version()
            self.name = f"pycuda {version('pycuda')}"
            self.gpu = Gpu(
                name=chosen.name(),
                capability=chosen.compute_capability(),
                multiprocessors=chosen.get_attribute(attribute.MULTIPROCESSOR_COUNT),
                memory_bytes=chosen.total_memory(),
                shares_memory=bool(chosen.get_attribute(attribute.INTEGRATED)),
                cuda=(cuda // 1000, cuda % 1000 // 10),
            )
            self._context = chosen.retain_primary_context()  # the one that TensorRT uses too
        self._kept: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        with _errors():
            self._context.push()
        try:
            yield
        finally:
            # pycuda ends the process where a context is left on a thread's stack.
            cu.Context.pop()

    def allocate(self, size: int) -> int:
        with _errors():
            return self._keep(memory := cu.mem_alloc(size), int(memory))

    def free(self, address: int) -> None:
        with _errors():
            self._kept.pop(address).free()

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        flags = cu.host_alloc_flags
        with _errors():
            array = cu.pagelocked_empty(size, np.uint8, mem_flags=flags.DEVICEMAP | flags.PORTABLE)
            return self._keep(array, array.ctypes.data), int(array.base.get_device_pointer())

    def free_pinned(self, address: int) -> None:
        with _errors():
            self._kept.pop(address).base.free()

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        with _errors():
            cu.memcpy_htod_async(target, _memory(source, size), self._kept[stream])

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        with _errors():
            cu.memcpy_dtoh_async(_memory(target, size), source, self._kept[stream])

    def create_stream(self) -> int:
        with _errors():
            stream = cu.Stream(1)  # CU_STREAM_NON_BLOCKING
            return self._keep(stream, stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._kept[stream]

    def synchronize(self, stream: int) -> None:
        with _errors():
            self._kept[stream].synchronize()

    def compile(self, source: bytes) -> bytes:
        from pycuda.compiler import compile as compiled  # with nvcc, which pycuda was built beside

        with _errors():
            arch = "sm_{}{}".format(*self.gpu.capability)
            code: bytes = compiled(source.decode(), no_extern_c=True, arch=arch, options=["-std=c++17"])
            return code

    def load_module(self, image: bytes) -> int:
        with _errors():
            module = cu.module_from_buffer(image)
            return self._keep(module, id(module))

    def unload_module(self, module: int) -> None:
        del self._kept[module]

    def function(self, module: int, name: str) -> int:
        with _errors():
            function = self._kept[module].get_function(name)
            return self._keep(function, id(function))

    def launch(self, function: int, grid: Dim3, block: Dim3, stream: int, arguments: Sequence[Argument]) -> None:
        values = [_NUMPY[type(argument)](argument.value or 0) for argument in arguments]
        with _errors():
            self._kept[function](*values, grid=grid, block=block, stream=self._kept[stream])

    def begin_capture(self, stream: int) -> None:
        raise BackendError("pycuda has no CUDA graphs: run pip install 'aivsreal[tensorrt]' for cuda-python")

    def end_capture(self, stream: int) -> int:
        raise AssertionError("nothing is recorded")

    def abandon_capture(self, stream: int) -> None:
        raise AssertionError("nothing is recorded")

    def launch_graph(self, graph: int, stream: int) -> None:
        raise AssertionError("there is no graph")

    def destroy_graph(self, graph: int) -> None:
        raise AssertionError("there is no graph")

    def close(self) -> None:
        with self.current():
            self._kept.clear()  # functions, which go with their module, are the rest
        with _errors():
            self._context.detach()

    def _keep(self, held: Any, handle: int) -> int:
        self._kept[handle] = held
        return handle


def _memory(address: int, size: int) -> Any:
    memory: Any = (ctypes.c_ubyte * size).from_address(address)
    return np.frombuffer(memory, dtype=np.uint8)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except cu.MemoryError:
        raise GpuMemoryError("pycuda: the GPU's memory is full; try a smaller --batch-size") from None
    except cu.Error as error:
        raise BackendError(f"pycuda: {error}; run nvidia-smi to see the GPU's state") from None
