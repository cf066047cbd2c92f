"""A fake CUDA driver for tests: it records calls, and fails on what a GPU would only punish now and then.

Device memory is host memory. What is put into a stream runs when the stream is waited for, in order, so what was read
or overwritten too early is wrong every time: a download's target holds NaN until then, and an upload's source must be
the same when it is at last copied. Any touch of memory that was freed or never allocated is an AssertionError, and
`check_empty` says what was not given back. The kernel is its own source compiled as C++ (`shim/`).
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aivsreal.runtime.errors import BackendError, GpuMemoryError
from aivsreal.runtime.gpu.calls import Argument, Dim3, Gpu

SHIM = Path(__file__).parent / "shim"
KERNELS = Path(__file__).resolve().parents[2] / "runtime" / "gpu"
FLAGS = ("-std=c++17", "-g", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
JETSON = Gpu("Orin", (8, 7), 16, 64 << 30, True, (12, 6))
CARD = Gpu("A10", (8, 6), 72, 24 << 30, False, (13, 0))


def compiled_shim(target: Path, *flags: str) -> Path:
    """The kernel as a host program or, with `-fPIC -shared`, as a library."""
    sources = [f"-I{KERNELS}", f"-I{SHIM}", str(SHIM / "preprocess_host.cpp")]
    result = subprocess.run(["g++", *FLAGS, *flags, *sources, "-o", str(target)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


class FakeDriver:
    """A `cuda.Driver`."""

    name = "fake"

    def __init__(self, kernel: Path, gpu: Gpu = CARD, has_graphs: bool = True, memory_bytes: int = 1 << 40) -> None:
        self.gpu, self.has_graphs, self.memory_bytes = gpu, has_graphs, memory_bytes
        self.calls: list[str] = []
        self.closed = False
        self.refuses_images: list[bytes] = []
        """Starts of modules that this driver cannot load, as one older than the compiler."""
        self._library = ctypes.CDLL(str(kernel))
        self._memory: dict[int, np.ndarray[Any, Any]] = {}
        self._kind: dict[int, str] = {}
        self._freed: list[np.ndarray[Any, Any]] = []  # kept, so that an address is never given out again
        self._queues: dict[int, list[Callable[[], None]]] = {}
        self._capturing: dict[int, list[Callable[[], None]]] = {}
        self._capturers: dict[int, int] = {}  # threads: only what the one that records does is forbidden
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._others: dict[int, str] = {}
        self._next = 1000
        self._current = threading.local()
        self._lock = threading.RLock()  # of the fake: a real driver is safe for threads too

    # What tests ask.

    def count(self, name: str) -> int:
        return Counter(self.calls)[name]

    def check_empty(self) -> None:
        held = [*self._kind.values(), *self._others.values(), *(f"stream {stream}" for stream in self._queues)]
        held += [f"graph {graph}" for graph in self._graphs]
        assert not held, f"not given back: {held}"
        assert self.closed, "the driver was not closed"

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """For whatever else works in a stream, such as a fake TensorRT."""
        with self._lock:
            self._enqueue(stream, work)

    def check_live(self, address: int, size: int) -> None:
        """Fails where some of that memory is not allocated."""
        for begin, memory in self._memory.items():
            if begin <= address and address + size <= begin + memory.nbytes:
                return
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated, or were freed")

    # What the runtime calls.

    @contextmanager
    def current(self) -> Iterator[None]:
        assert not self.closed
        self._current.depth = getattr(self._current, "depth", 0) + 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def allocate(self, size: int) -> int:
        return self._allocated("device", size)

    def free(self, address: int) -> None:
        self._free("device", address)

    def allocate_pinned(self, size: int) -> tuple[int, int]:
        address = self._allocated("pinned", size)
        return address, address

    def free_pinned(self, address: int) -> None:
        self._free("pinned", address)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        self._told("upload")
        self._check_place("device", target, size)
        before = self._bytes("pinned", source, size).copy()

        def work() -> None:
            now = self._bytes("pinned", source, size)
            assert (now == before).all(), "the source of an upload was written before the upload was done"
            self._bytes("device", target, size)[:] = now

        self._enqueue(stream, work)

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        self._told("download")
        self._check_place("device", source, size)
        self._check_place("pinned", target, size)

        def spoil() -> None:
            self._bytes("pinned", target, size)[:] = 0xFF  # NaN as half and as float

        def work() -> None:
            self._bytes("pinned", target, size)[:] = self._bytes("device", source, size)

        if stream not in self._capturing:
            spoil()
        self._enqueue(stream, work, spoil)

    def create_stream(self) -> int:
        self._told("create_stream")
        self._queues[handle := self._handle()] = []
        return handle

    def destroy_stream(self, stream: int) -> None:
        self._told("destroy_stream")
        assert not self._queues.pop(stream), "a stream was given back before its work was done"

    def synchronize(self, stream: int) -> None:
        self._told("synchronize")
        assert stream not in self._capturing, "a stream cannot be waited for while it is recorded"
        with self._lock:
            queue, self._queues[stream] = self._queues[stream], []
            for work in queue:
                work()

    def compile(self, source: bytes) -> bytes:
        self._told("compile")
        assert b"preprocess" in source
        return b"compiled"

    def load_module(self, image: bytes) -> int:
        self._told("load_module")
        if any(image.startswith(start) for start in self.refuses_images):
            raise BackendError("cuModuleLoadData failed with CUDA_ERROR_NO_BINARY_FOR_GPU")
        self._others[handle := self._handle()] = "module"
        return handle

    def unload_module(self, module: int) -> None:
        self._told("unload_module")
        assert self._others.pop(module) == "module"

    def function(self, module: int, name: str) -> int:
        self._told("function")
        assert (self._others[module], name) == ("module", "preprocess")
        return module

    def launch(self, function: int, grid: Dim3, block: Dim3, stream: int, arguments: Sequence[Argument]) -> None:
        self._told("launch")
        assert self._others[function] == "module"
        kinds = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3 + [ctypes.c_float] * 6
        assert [type(argument) for argument in arguments] == kinds
        staging, batch, size, half, rows, *affine = (argument.value for argument in arguments)
        assert grid == (-(-size // 32), -(-size // rows), grid[2])
        assert block == (256, 1, 1)
        numbers = (ctypes.c_float * 6)(*affine)

        def work() -> None:
            self._check_live(staging, 64 * grid[2])
            self._check_place("device", batch, grid[2] * 3 * size * size * (2 if half else 4))
            addresses = [ctypes.c_void_p(ctypes.addressof(numbers) + offset) for offset in (0, 12)]
            places = [ctypes.c_void_p(place) for place in (staging, batch)]
            self._library.run(*places, grid[2], size, half, rows, *addresses)

        self._enqueue(stream, work)

    def begin_capture(self, stream: int) -> None:
        self._told("begin_capture")
        assert self.has_graphs
        assert stream not in self._capturing
        self._capturing[stream] = []
        self._capturers[stream] = threading.get_ident()

    def end_capture(self, stream: int) -> int:
        self._told("end_capture")
        self._graphs[handle := self._handle()] = self._capturing.pop(stream)
        assert self._capturers[stream] == threading.get_ident(), "a recording was ended by another thread"
        return handle

    def abandon_capture(self, stream: int) -> None:
        self._told("abandon_capture")
        del self._capturing[stream]

    def launch_graph(self, graph: int, stream: int) -> None:
        self._told("launch_graph")
        for work in self._graphs[graph]:
            getattr(work, "first", lambda: None)()
            self._enqueue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        self._told("destroy_graph")
        del self._graphs[graph]

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    # How it does that.

    def _told(self, name: str) -> None:
        assert not self.closed, f"{name} after close"
        assert getattr(self._current, "depth", 0) > 0, f"{name} without a current context"
        self.calls.append(name)

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _allocated(self, kind: str, size: int) -> int:
        self._told(f"allocate_{kind}")
        recording = threading.get_ident() in {self._capturers[stream] for stream in self._capturing}
        assert not recording, "memory cannot be allocated while a stream is recorded"
        if sum(memory.nbytes for memory in self._memory.values()) + size > self.memory_bytes:
            raise GpuMemoryError(f"the fake's memory is full: {size} bytes do not fit")
        memory = np.full(size + 256, 0xFF, np.uint8)[: size + 255]
        begin = -memory.ctypes.data % 256  # as aligned as CUDA's
        memory = memory[begin : begin + size]
        self._memory[memory.ctypes.data], self._kind[memory.ctypes.data] = memory, kind
        return int(memory.ctypes.data)

    def _free(self, kind: str, address: int) -> None:
        self._told(f"free_{kind}")
        assert self._kind.pop(address, None) == kind, f"{address:#x} was freed twice, or is not {kind} memory"
        self._freed.append(self._memory.pop(address))
        # What still waits in a stream will find it gone.

    def _check_place(self, kind: str, address: int, size: int) -> None:
        """Device memory, or on a GPU that shares the host's memory pinned memory as well."""
        self.check_live(address, size)
        begin = max(begin for begin in self._memory if begin <= address)
        assert self._kind[begin] == kind or self.gpu.shares_memory, f"{address:#x} is not {kind} memory"

    def _check_live(self, address: int, size: int) -> None:
        self.check_live(address, size)

    def _bytes(self, kind: str, address: int, size: int) -> np.ndarray[Any, Any]:
        self._check_place(kind, address, size)
        begin = max(begin for begin in self._memory if begin <= address)
        return self._memory[begin][address - begin : address - begin + size]

    def _enqueue(self, stream: int, work: Callable[[], None], first: Callable[[], None] | None = None) -> None:
        assert stream in self._queues, "the stream was given back"
        if first is not None:
            work.first = first  # type: ignore[attr-defined]
        (self._capturing[stream] if stream in self._capturing else self._queues[stream]).append(work)
