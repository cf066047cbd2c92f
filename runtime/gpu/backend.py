"""The TensorRT backend: batches through the slots of one engine.

Legend: B image in a batch; H, W image height and width; h, w cells of a map; C channel (3, RGB).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from aivsreal.runtime.bundle.engine_key import EngineCard
from aivsreal.runtime.bundle.folder import Bundle, no_maps
from aivsreal.runtime.bundle.manifest import LOGITS, MAP
from aivsreal.runtime.errors import CLOSED, BackendError, GpuMemoryError, MissingExtra
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import open_driver
from aivsreal.runtime.gpu.engine import (
    fitting_engine,
    installed_libraries,
    kept_kernels,
    loaded_engine,
    tensors_from_engine,
)
from aivsreal.runtime.gpu.executor import Contexts, EngineSlot, Outputs
from aivsreal.runtime.gpu.kernel import PreprocessKernel
from aivsreal.runtime.preprocess import PixelsHWC, Scores

SLOTS = 2  # while one computes, the other is filled and uploaded
SPLIT_FROM = 8  # images: from here on a batch goes in two halves, so that the one's upload hides behind the other
_LOG = logging.getLogger(__name__)


class TensorrtBackend:
    """The engine of a bundle that fits this GPU. Threads may share it: each batch takes a free slot.

    Args:
        driver: taken over and closed with the backend; None opens the one that is installed.

    Raises:
        MissingExtra: no TensorRT, or no CUDA binding, is installed.
        BackendError: there is no GPU, or the bundle has no engine that it can run.
        BundleError: the engine is not one for the manifest's preprocessing, or its card is damaged.
    """

    takes_squares = False  # its kernel crops and resizes

    def __init__(self, bundle: Bundle, driver: Driver | None = None) -> None:
        libraries = installed_libraries()
        if not libraries:
            raise MissingExtra("tensorrt", "tensorrt", "run TensorRT engines")
        self._driver = open_driver() if driver is None else driver
        self._bundle = bundle
        self._closing: list[Any] = [self._driver]
        self._slots: queue.LifoQueue[EngineSlot] = queue.LifoQueue()
        self._left, self._users, self._closed = threading.Condition(), 0, False
        try:
            kind, card = fitting_engine(bundle, libraries, self._driver.gpu)
            self.name, self.precision = kind.value, card.key.precision  # as the export read it back from the engine
            with self._driver.current():
                self._open(bundle, card, libraries[kind])
            self.detail = f"engine {card.file}, {self._driver.name}, kernel {self._kernel.origin}"
            side = bundle.manifest.spec.size
            for _ in range(2):  # loads and allocates, then records the graph of a single image
                self._run([np.zeros((side, side, 3), np.uint8)])
        except BaseException:
            self.close()
            raise
        if self.without_graphs:
            self.detail += f", no CUDA graphs: {self.without_graphs}"

    def _open(self, bundle: Bundle, card: EngineCard, trt: Any) -> None:
        self._engine, self._runtime = loaded_engine(bundle, card, trt)  # the engine needs its runtime alive
        self._tensors = tensors_from_engine(self._engine, bundle, card)
        self.has_maps = MAP in self._tensors.outputs
        self._limit = self._tensors.max_batch
        self._kernel = PreprocessKernel(self._driver)
        self._closing.insert(0, self._kernel)
        contexts = Contexts(self._engine, kept_kernels(card))
        self._closing.insert(0, contexts)
        for _ in range(SLOTS):
            slot = EngineSlot(self._driver, self._kernel, contexts, self._tensors)
            self._closing.insert(0, slot)
            self._slots.put(slot)

    @property
    def without_graphs(self) -> str:
        """Why kernel and engine are launched one by one; empty where they go as one CUDA graph."""
        return next((held.without_graphs for held in self._closing if isinstance(held, EngineSlot)), "")

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        """Scores of `pixels_HWC` of any sizes and in any number.

        Raises:
            GpuMemoryError: not even one image fits.
            BackendError: CUDA or TensorRT failed; or the engine gives no maps; or it is closed.
        """
        if maps and not self.has_maps:
            raise no_maps(self._bundle)
        with self._in_use():
            outputs = self._run(images)
        return Scores(outputs[LOGITS].reshape(-1), outputs[MAP] if maps else None)

    def close(self) -> None:
        """Give back all that it holds on the GPU, once no thread uses it; a second call does nothing."""
        with self._left:
            self._closed = True
            self._left.wait_for(lambda: not self._users)
        *held, driver = self._closing or [None]
        self._closing = []
        if driver is None:
            return
        try:
            with driver.current():
                for resource in held:
                    resource.close()
                # TensorRT's objects free their memory as they die: here, while the context is current.
                self._slots = queue.LifoQueue()
                held.clear()
                resource = None
                self._engine = None
                self._runtime = None
        finally:
            driver.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps it open: what the GPU works on must not be freed."""
        with self._left:
            if self._closed:
                raise BackendError(CLOSED)
            self._users += 1
        try:
            yield
        finally:
            with self._left:
                self._users -= 1
                self._left.notify_all()

    def _run(self, pixels: Sequence[PixelsHWC]) -> Outputs:
        """All outputs, in order. While a part computes, the next one is staged and uploaded where a slot is free."""
        if not pixels:
            return {name: np.empty((0, *shape), np.float32) for name, (_, shape) in self._tensors.outputs.items()}
        parts: list[Outputs] = []
        running: deque[EngineSlot] = deque()
        begin, size = 0, -(-len(pixels) // 2) if len(pixels) >= SPLIT_FROM else len(pixels)
        with self._driver.current():
            try:
                while begin < len(pixels) or running:
                    slot = self._taken(wait=not running) if begin < len(pixels) else None
                    if slot is not None:
                        part = pixels[begin : begin + min(size, self._limit)]
                        try:
                            slot.start(part)
                        except GpuMemoryError as error:
                            if running:
                                self._retire(slot)
                                parts.append(self._finished(running))
                            else:
                                self._slots.put(slot)
                                self._halve(len(part), error)
                            continue
                        except BaseException:
                            self._slots.put(slot)
                            raise
                        running.append(slot)
                        begin += len(part)
                    if slot is None or len(running) == SLOTS:
                        parts.append(self._finished(running))
            finally:
                while running:
                    self._finished(running)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _taken(self, wait: bool) -> EngineSlot | None:
        try:
            return self._slots.get(block=wait)
        except queue.Empty:
            return None

    def _finished(self, running: deque[EngineSlot]) -> Outputs:
        slot = running.popleft()
        try:
            return slot.finish()
        finally:
            self._slots.put(slot)

    def _retire(self, slot: EngineSlot) -> None:
        self._closing.remove(slot)
        slot.close()
        _LOG.warning("the GPU's memory is full: from here on upload and computation no longer overlap")

    def _halve(self, images: int, error: GpuMemoryError) -> None:
        if images == 1:
            raise GpuMemoryError(f"not even a single image can be judged: {error}; end other programs that use the GPU")
        self._limit = min(self._limit, images // 2)
        _LOG.warning("the GPU's memory is full: at most %d images at once from here on", self._limit)
