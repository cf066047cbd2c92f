"""One lane to the GPU for a TensorRT engine: its stream, its buffers, and one CUDA graph per batch size.

Legend: B image in a batch; S input size; C channel (3, RGB).
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.bundle.manifest import INPUT
from aivsreal.runtime.cache import write_whole
from aivsreal.runtime.errors import BackendError, GpuMemoryError
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import DeviceBuffer, Graph, PinnedBuffer, Stream
from aivsreal.runtime.gpu.kernel import PreprocessKernel, staging_from_pixels
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import PreprocessSpec

# A scan has one batch size and what is left at its end; TensorRT keeps memory for the largest batch in each context.
MAX_PROGRAMS = 3
_LOG = logging.getLogger(__name__)

Floats = type[np.floating[Any]]
Outputs = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class EngineTensors:
    """What goes into an engine and comes out, as the engine says."""

    spec: PreprocessSpec
    input_dtype: Floats
    outputs: dict[str, tuple[Floats, tuple[int, ...]]]
    """Type and shape without the batch."""
    min_batch: int
    max_batch: int


class Contexts:
    """Makes the contexts of one engine; inside `with driver.current()`.

    TensorRT-RTX compiles its kernels when a context meets a batch size, in the background unless it is told to wait for
    them, and a graph that is recorded meanwhile would hold its slow ones for ever. What it compiled serves the other
    contexts too, and the next start: it is kept in a file, which TensorRT-RTX holds against library, GPU and driver.
    """

    def __init__(self, engine: Any, kept: Path | None) -> None:
        self._engine, self._kept = engine, kept
        self._config: Any = None
        self._compiled: Any = None
        config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        strategy = "dynamic_shapes_kernel_specialization_strategy"
        if not hasattr(config, strategy):  # as TensorRT's, which compiles when it builds
            return
        setattr(config, strategy, type(getattr(config, strategy)).EAGER)
        self._config, self._compiled = config, config.create_runtime_cache()
        self._before = b""
        with contextlib.suppress(OSError):  # the first start
            self._before = kept.read_bytes() if kept is not None else b""
        if self._before and not self._compiled.deserialize(self._before):
            self._before = b""
        config.set_runtime_cache(self._compiled)

    def new(self) -> Any:
        """Another context.

        Raises:
            GpuMemoryError: memory is full.
        """
        made = self._engine.create_execution_context(*([] if self._config is None else [self._config]))
        if made is None:
            # TensorRT says why only to its log. Nearly always it is memory, and then fewer images help.
            raise GpuMemoryError(
                "TensorRT gives no execution context, for what its message above says or a full memory"
            )
        return made

    def close(self) -> None:
        """Keep what was compiled; a full disk is no error. The contexts are closed by now."""
        if self._compiled is not None and self._kept is not None:
            content = bytes(self._compiled.serialize())
            if content != self._before:
                with contextlib.suppress(OSError):
                    write_whole(self._kept, content)
        self._engine = self._config = self._compiled = None


class _Program:
    """An engine's context for one batch size, and the graph of kernel and engine once it is recorded.

    A context each, because a recorded graph uses the context's memory for the shape that it was recorded with.
    """

    def __init__(self, contexts: Contexts) -> None:
        self.context = contexts.new()
        self.runs = 0
        self.graph: Graph | None = None

    def forget(self) -> None:
        """Drop the graph: an address in it has changed."""
        if self.graph is not None:
            self.graph.close()
        self.graph, self.runs = None, 0


class EngineSlot:
    """Used by one thread at a time, between `start` and `finish`; several slots overlap each other.

    Buffers grow to what was needed and stay. Where the GPU shares the host's memory, nothing is copied: the kernel
    reads the staging buffer and the engine writes the outputs in place.
    """

    def __init__(self, driver: Driver, kernel: PreprocessKernel, contexts: Contexts, tensors: EngineTensors) -> None:
        self._driver, self._kernel, self._contexts, self._tensors = driver, kernel, contexts, tensors
        self._shared = driver.gpu.shares_memory
        self._stream = Stream(driver)
        self._programs: OrderedDict[int, _Program] = OrderedDict()
        self._staging: PinnedBuffer | None = None
        self._staged: DeviceBuffer | None = None
        self._input: DeviceBuffer | None = None
        self._outputs: dict[str, PinnedBuffer] = {}
        self._computed: dict[str, DeviceBuffer] = {}
        self._capacity = 0
        self._running = (0, 0)
        self.without_graphs = "" if driver.has_graphs else f"{driver.name} has none"
        """Why kernel and engine are launched one by one; empty where they go as one graph."""

    def start(self, pixels: Sequence[PixelsHWC]) -> None:
        """Put a batch on its way and return; `finish` gives its outputs.

        Args:
            pixels: at most the engine's largest batch.

        Raises:
            GpuMemoryError: the batch does not fit; the slot is as good as new.
            BackendError: CUDA or TensorRT failed.
        """
        wanted = len(pixels)
        pixels = [*pixels, *[pixels[-1]] * (self._tensors.min_batch - wanted)]
        plan = staging_from_pixels(pixels, self._tensors.spec)
        try:
            self._reserve(len(pixels), plan.size)
            assert self._staging is not None
            plan.write(self._staging.view())
            if self._staged is not None:
                self._driver.upload(self._staged.handle, self._staging.handle, plan.size, self._stream.handle)
            self._enqueue(len(pixels))
        except BaseException:
            self._stream.synchronize()
            self._release()
            raise
        self._running = (wanted, len(pixels))

    def finish(self) -> Outputs:
        """Wait for the batch that was started, and give its outputs by name, float32."""
        wanted, images = self._running
        self._stream.synchronize()
        outputs = {}
        for name, (dtype, shape) in self._tensors.outputs.items():
            values = self._outputs[name].view(dtype)[: images * int(np.prod(shape))]
            outputs[name] = values.reshape(images, *shape)[:wanted].astype(np.float32)
        return outputs

    def close(self) -> None:
        """Give everything back."""
        self._stream.synchronize()
        self._release()
        self._stream.close()

    def _enqueue(self, images: int) -> None:
        program = self._program(images)
        if program.graph is None and program.runs == 1 and not self.without_graphs:
            # Not at the first run: TensorRT then still allocates and loads, which no recording allows.
            try:
                program.graph = Graph(self._driver, self._stream, lambda: self._launch(program, images))
            except GpuMemoryError:
                raise
            except BackendError as error:
                self.without_graphs = str(error)
                _LOG.warning("no CUDA graph: %s", error)
        program.runs += 1
        if program.graph is not None:
            program.graph.launch(self._stream)
        else:
            self._launch(program, images)

    def _launch(self, program: _Program, images: int) -> None:
        assert self._input is not None
        assert self._staging is not None
        staged = self._staged.handle if self._staged is not None else self._staging.device_address
        tensors, stream = self._tensors, self._stream
        self._kernel.enqueue(
            staged, self._input.handle, images, spec=tensors.spec, dtype=tensors.input_dtype, stream=stream
        )
        if not program.context.execute_async_v3(stream.handle):
            raise BackendError("TensorRT cannot run the engine; its message stands above")
        for name, computed in self._computed.items():
            dtype, shape = tensors.outputs[name]
            size = images * int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._driver.download(self._outputs[name].handle, computed.handle, size, stream.handle)

    def _program(self, images: int) -> _Program:
        program = self._programs.pop(images, None)
        if program is None:
            while len(self._programs) >= MAX_PROGRAMS:
                self._programs.popitem(last=False)[1].forget()
            program = _Program(self._contexts)
        self._programs[images] = program
        if program.runs == 0:
            assert self._input is not None
            shape = (images, 3, self._tensors.spec.size, self._tensors.spec.size)
            addresses = {INPUT: self._input.handle}
            for name, buffer in self._outputs.items():
                addresses[name] = self._computed[name].handle if name in self._computed else buffer.device_address
            if not program.context.set_input_shape(INPUT, shape):
                raise BackendError(f"the engine does not take a batch of {images}: build it again with aivsreal-export")
            for name, address in addresses.items():
                if not program.context.set_tensor_address(name, address):
                    raise BackendError(f"the engine has no tensor {name}: build it again with aivsreal-export")
        return program

    def _reserve(self, images: int, staging_size: int) -> None:
        """Make the buffers large enough; those that are replaced take the graphs with them."""
        if self._staging is None or self._staging.size < staging_size:
            self._forget_graphs()
            size = staging_size * 5 // 4  # images differ in size: not a new buffer for each that is a little larger
            self._staging = self._replaced(self._staging, PinnedBuffer, size)
            if not self._shared:
                self._staged = self._replaced(self._staged, DeviceBuffer, size)
        if self._capacity < images:
            self._forget_graphs()
            side = self._tensors.spec.size
            item = np.dtype(self._tensors.input_dtype).itemsize
            self._input = self._replaced(self._input, DeviceBuffer, images * 3 * side * side * item)
            for name, (dtype, shape) in self._tensors.outputs.items():
                size = images * int(np.prod(shape)) * np.dtype(dtype).itemsize
                self._outputs[name] = self._replaced(self._outputs.pop(name, None), PinnedBuffer, size)
                if not self._shared:
                    self._computed[name] = self._replaced(self._computed.pop(name, None), DeviceBuffer, size)
            self._capacity = images

    def _replaced(self, old: Any, kind: Any, size: int) -> Any:
        if old is not None:
            old.close()  # first, so that both need not fit at once
        return kind(self._driver, size)

    def _forget_graphs(self) -> None:
        for program in self._programs.values():
            program.forget()

    def _release(self) -> None:
        self._forget_graphs()
        self._programs.clear()
        held = [self._staging, self._staged, self._input, *self._outputs.values(), *self._computed.values()]
        for buffer in held:
            if buffer is not None:
                buffer.close()
        self._staging = self._staged = self._input = None
        self._outputs, self._computed, self._capacity = {}, {}, 0
