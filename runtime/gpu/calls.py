"""CUDA as far as aivsreal needs it: one small protocol of driver calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Union

Argument = Union[ctypes.c_void_p, ctypes.c_int, ctypes.c_float]  # noqa: UP007  Python 3.10 evaluates it
Dim3 = tuple[int, int, int]


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
