"""CUDA's driver, through the package that is installed, and what must be given back after use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import BackendError, MissingExtra
from aivsreal.runtime.gpu.calls import Driver

OwnedT = TypeVar("OwnedT", bound="Owned")


def open_driver(device: int = 0) -> Driver:
    """The driver through cuda-bindings, or through pycuda where that is the one installed.

    Raises:
        MissingExtra: neither is installed.
        BackendError: there is no NVIDIA driver or no such GPU.
    """
    try:
        from aivsreal.runtime.gpu.bindings import BindingsDriver
    except ModuleNotFoundError as error:
        missing = error.name or "cuda"
    else:
        return BindingsDriver(device)
    try:
        from aivsreal.runtime.gpu.pycuda import PycudaDriver
    except ModuleNotFoundError:
        raise MissingExtra("tensorrt", missing, "compute on a GPU (pycuda, extra 'pycuda', would do too)") from None
    except ImportError as error:
        raise BackendError(f"pycuda is installed but does not load ({error}): install NVIDIA's driver") from None
    return PycudaDriver(device)


class Owned:
    """A handle that is given back once: by `close`, or at the end of a `with`."""

    def __init__(self, handle: int, release: Callable[[int], None]) -> None:
        self.handle = handle
        self._release: Callable[[int], None] | None = release

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        if self._release is not None:
            release, self._release = self._release, None
            release(self.handle)

    def __enter__(self: OwnedT) -> OwnedT:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(Owned):
    """Work that the GPU does in order, beside other streams."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver.create_stream(), driver.destroy_stream)
        self._driver = driver

    def synchronize(self) -> None:
        """Wait until all that was put into it is done."""
        self._driver.synchronize(self.handle)


class DeviceBuffer(Owned):
    """Memory of the GPU; `handle` is its address there."""

    def __init__(self, driver: Driver, size: int) -> None:
        super().__init__(driver.allocate(max(1, size)), driver.free)
        self.size = size


class PinnedBuffer(Owned):
    """Memory of the host that is copied without a detour, or read by the GPU in place at `device_address`."""

    def __init__(self, driver: Driver, size: int) -> None:
        host, self.device_address = driver.allocate_pinned(max(1, size))
        super().__init__(host, driver.free_pinned)
        self.size = size

    def view(self, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Its content as an array; do not keep it beyond `close`."""
        memory: Any = (ctypes.c_ubyte * self.size).from_address(self.handle)
        return np.frombuffer(memory, dtype=dtype)


class Module(Owned):
    """Compiled kernels."""

    def __init__(self, driver: Driver, image: bytes) -> None:
        super().__init__(driver.load_module(image), driver.unload_module)
        self._driver = driver

    def function(self, name: str) -> int:
        """The handle of a kernel."""
        return self._driver.function(self.handle, name)


class Graph(Owned):
    """What `enqueue` puts into a stream, recorded once and launched as a whole.

    Raises:
        BackendError: something that it does cannot be recorded; the stream is as before.
    """

    def __init__(self, driver: Driver, stream: Stream, enqueue: Callable[[], None]) -> None:
        driver.begin_capture(stream.handle)
        try:
            enqueue()
        except BaseException:
            driver.abandon_capture(stream.handle)
            raise
        super().__init__(driver.end_capture(stream.handle), driver.destroy_graph)
        self._driver = driver

    def launch(self, stream: Stream) -> None:
        """Put the whole of it into a stream."""
        self._driver.launch_graph(self.handle, stream.handle)
