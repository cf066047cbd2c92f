"""CUDA as far as aivsreal needs it: one small protocol of driver calls, and what must be given back after use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar, Union

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import BackendError, MissingExtra

Argument = Union[ctypes.c_void_p, ctypes.c_int, ctypes.c_float]  # noqa: UP007  Python 3.10 evaluates it
Dim3 = tuple[int, int, int]
OwnedT = TypeVar("OwnedT", bound="Owned")


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU says of itself."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    shares_memory: bool
    """Whether it computes in the processor's own memory, as on a Jetson, so that nothing need be copied."""
    cuda: tuple[int, int]
    """The CUDA version that the driver was made for."""


class Driver(Protocol):
    """The driver API behind cuda-bindings or pycuda. Handles and addresses are integers, and every status is checked.

    All but `current` and `close` are called inside `with driver.current()`. Each raises a `BackendError` with CUDA's
    own name for what failed, and `GpuMemoryError` where memory is full.
    """

    name: str
    gpu: Gpu
    has_graphs: bool

    def current(self) -> AbstractContextManager[None]:
        """The GPU's context for the calling thread, and only as long as the `with` lasts."""

    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def allocate_pinned(self, size: int) -> tuple[int, int]:
        """Memory of the host that the GPU reads itself: its address here and its address there."""

    def free_pinned(self, address: int) -> None: ...
    def upload(self, target: int, source: int, size: int, stream: int) -> None: ...
    def download(self, target: int, source: int, size: int, stream: int) -> None: ...
    def create_stream(self) -> int: ...
    def destroy_stream(self, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def create_event(self) -> int: ...
    def destroy_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def elapsed_ms(self, begin: int, end: int) -> float:
        """Milliseconds between two recorded events; waits for the second."""

    def compile(self, source: bytes) -> bytes:
        """CUDA C++ to code for this GPU."""

    def load_module(self, image: bytes) -> int: ...
    def unload_module(self, module: int) -> None: ...
    def function(self, module: int, name: str) -> int: ...
    def launch(self, function: int, grid: Dim3, block: Dim3, stream: int, arguments: Sequence[Argument]) -> None: ...
    def begin_capture(self, stream: int) -> None: ...
    def end_capture(self, stream: int) -> int:
        """What was put into the stream since `begin_capture`, ready to be launched as one graph."""

    def abandon_capture(self, stream: int) -> None: ...
    def launch_graph(self, graph: int, stream: int) -> None: ...
    def destroy_graph(self, graph: int) -> None: ...
    def close(self) -> None:
        """Give back the context; the driver is not used after that."""


def open_driver(device: int = 0) -> Driver:
    """The driver through cuda-bindings, or through pycuda where that is the one installed.

    Raises:
        MissingExtra: neither is installed.
        BackendError: there is no NVIDIA driver or no such GPU.
    """
    try:
        from aivsreal.runtime.cuda_bindings import BindingsDriver
    except ModuleNotFoundError as error:
        missing = error.name or "cuda"
    else:
        return BindingsDriver(device)
    try:
        from aivsreal.runtime.cuda_pycuda import PycudaDriver
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(Owned):
    """Work that the GPU does in order, beside other streams."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver.create_stream(), driver.destroy_stream)
        self._driver = driver

    def synchronize(self) -> None:
        """Wait until all that was put into it is done."""
        self._driver.synchronize(self.handle)


class Event(Owned):
    """A point in a stream, to measure time between two of them."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver.create_event(), driver.destroy_event)


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
