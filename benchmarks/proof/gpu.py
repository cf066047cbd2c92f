"""The way to a verdict on a GPU, taken apart: kernel, engine, both as a graph, and from pixels to logits.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.timing import rate, timed
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT
from aivsreal.runtime.errors import AivsrealError, BackendError, MissingExtra
from aivsreal.runtime.gpu.backend import TensorrtBackend
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import DeviceBuffer, Graph, PinnedBuffer, Stream, open_driver
from aivsreal.runtime.gpu.engine import (
    fitting_engine,
    installed_libraries,
    kept_kernels,
    loaded_engine,
    tensors_from_engine,
)
from aivsreal.runtime.gpu.executor import Contexts, Floats
from aivsreal.runtime.gpu.kernel import PreprocessKernel, staging_from_pixels
from aivsreal.runtime.preprocess import PixelsHWC, batch_from_pixels
from aivsreal.runtime.spec import PreprocessSpec

Row = dict[str, Any]
OURS = ("kernel", "engine", "graph", "end to end")
# What must hold: the name of a claim, its bound, and whether the figure must stay below it.
CLAIMS = {
    "graph over engine, batch 64": (1.15, True),
    "graph over engine, batch 1": (1.2, True),
    "graph over torch.compile, throughput": (2.0, False),
    "differing values of the kernel": (0, True),
}


def photographs(count: int, width: int, height: int) -> list[PixelsHWC]:
    """Noise of that size: the work does not depend on what is seen. A few arrays, used again and again."""
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(min(count, 4))]
    return [made[index % len(made)] for index in range(count)]


class NotHere(BackendError):
    """What the engine is measured against is not installed, or does not run on this GPU: no fault of the engine."""


def measured(rows: Callable[[], Iterator[Row]], whats: Sequence[str], batches: Sequence[int]) -> Iterator[Row]:
    """What `rows` yields, then for everything of `whats` and `batches` that it did not, a row that says why."""
    done, why, more = set(), "did not come so far", {}
    try:
        for row in rows():
            done.add((row["what"], row["batch"]))
            yield row
    except (AivsrealError, RuntimeError) as error:  # PyTorch's own, for example of a full memory, are RuntimeErrors
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        more = {"not_here": True} if isinstance(error, NotHere) else {}
    for what in whats:
        for batch in batches:
            if (what, batch) not in done:
                yield {"what": what, "batch": batch, "not_measured": why, **more}


@dataclass(frozen=True, slots=True)
class KernelRun:
    """The kernel on a stream of its own."""

    driver: Driver
    stream: Stream
    kernel: PreprocessKernel

    @contextmanager
    def placed(self, pixels: Sequence[PixelsHWC], spec: PreprocessSpec, dtype: Floats) -> Iterator[Placed]:
        """Images on the GPU, in memory that is fresh, and the batch that the kernel makes of them."""
        driver, stream, plan = self.driver, self.stream, staging_from_pixels(pixels, spec)
        shape = (len(pixels), 3, spec.size, spec.size)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with ExitStack() as held:
            staging = held.enter_context(PinnedBuffer(driver, plan.size))
            staged = held.enter_context(DeviceBuffer(driver, plan.size))
            batch = held.enter_context(DeviceBuffer(driver, size))
            result = held.enter_context(PinnedBuffer(driver, size))
            plan.write(staging.view())
            result.view()[:] = 0xFF
            driver.upload(staged.handle, staging.handle, plan.size, stream.handle)
            driver.upload(batch.handle, result.handle, size, stream.handle)

            def resize() -> None:
                self.kernel.enqueue(staged.handle, batch.handle, len(pixels), spec=spec, dtype=dtype, stream=stream)

            def values() -> npt.NDArray[np.floating[Any]]:
                driver.download(result.handle, batch.handle, size, stream.handle)
                stream.synchronize()
                return result.view(dtype).reshape(shape).copy()

            yield Placed(batch, shape, resize, values)
            stream.synchronize()


@contextmanager
def kernel_run(driver: Driver) -> Iterator[KernelRun]:
    """The kernel on a driver, which is closed at the end."""
    with closing(driver), driver.current(), Stream(driver) as stream, closing(PreprocessKernel(driver)) as kernel:
        yield KernelRun(driver, stream, kernel)


@dataclass(frozen=True, slots=True)
class Placed:
    """Images that lie on the GPU."""

    batch: DeviceBuffer
    """What the kernel makes of them; NaN until then, and after that what it left out."""
    shape: tuple[int, ...]
    resize: Callable[[], None]
    """Puts the kernel's work on its way."""
    values: Callable[[], npt.NDArray[np.floating[Any]]]
    """Waits, and gives `batch_BCHW`."""


def ours(bundle: Bundle, batches: Sequence[int], size: tuple[int, int], seconds: float) -> Iterator[Row]:
    """A row for each of `OURS` and each batch size that the engine takes; without an engine, the kernel's rows.

    Raises:
        BackendError: there is no GPU, or, after the kernel's rows, no TensorRT, or no engine for them.
    """
    with kernel_run(open_driver()) as run:
        facts = {"gpu": run.driver.gpu.name, "binding": run.driver.name}
        engine: _Engine | None = None
        without: BackendError | None = None
        try:
            engine = _Engine(bundle, run.driver)
            facts |= {"engine": engine.card.file, "precision": engine.card.key.precision}
        except BackendError as error:
            without = error
        for batch in batches if engine is None else engine.taken(batches):
            pixels = photographs(batch, *size)
            with _steps(run, bundle.manifest.spec, engine, pixels) as (steps, differing):
                for what, step in steps.items():
                    figures = timed_step(step, run.stream.synchronize, batch, seconds)
                    row = {"what": what, "batch": batch, **facts, **figures}
                    yield {**row, "differing_values": differing} if what == "kernel" else row
        if without is not None:
            raise without
        assert engine is not None
        engine.contexts.close()
        engine = None
    with closing(TensorrtBackend(bundle)) as backend:
        for batch in batches:
            pixels = photographs(batch, *size)
            timing = timed(lambda pixels=pixels: backend.run(pixels), seconds)  # type: ignore[misc]
            yield {
                "what": "end to end", "batch": batch, **facts, **timing.to_json(),
                "images_per_s": round(batch * _threaded(backend, pixels, seconds), 1),
            }  # fmt: skip


class _Engine:
    """The engine of a bundle for this GPU; inside `with driver.current()`.

    Raises:
        BackendError: there is no TensorRT, or no engine for it and this GPU.
    """

    def __init__(self, bundle: Bundle, driver: Driver) -> None:
        libraries = installed_libraries()
        if not libraries:
            raise MissingExtra("tensorrt", "tensorrt", "run TensorRT engines")
        kind, self.card = fitting_engine(bundle, libraries, driver.gpu)
        self.engine, self._runtime = loaded_engine(bundle, self.card, libraries[kind])
        self.tensors = tensors_from_engine(self.engine, bundle, self.card)
        self.contexts = Contexts(self.engine, kept_kernels(self.card))

    def taken(self, batches: Sequence[int]) -> list[int]:
        """Those that it was built for."""
        return [batch for batch in batches if self.tensors.min_batch <= batch <= self.tensors.max_batch]


@contextmanager
def _steps(
    run: KernelRun, spec: PreprocessSpec, engine: _Engine | None, pixels: Sequence[PixelsHWC]
) -> Iterator[tuple[dict[str, Callable[[], None]], int]]:
    """Steps that only compute, on a batch that lies on the GPU; and how many values the kernel got wrong."""
    dtype: Floats = np.float16 if engine is None else engine.tensors.input_dtype
    with run.placed(pixels, spec, dtype) as placed, ExitStack() as held:
        placed.resize()
        differing = int((placed.values() != batch_from_pixels(pixels, spec).astype(dtype)).sum())
        steps = {"kernel": placed.resize}
        if engine is not None:
            infer = _inference(run, engine, placed, held)

            def both() -> None:
                placed.resize()
                infer()

            both()
            run.stream.synchronize()
            steps["engine"] = infer
            if run.driver.has_graphs:
                graph = held.enter_context(Graph(run.driver, run.stream, both))
                steps["graph"] = lambda: graph.launch(run.stream)
        yield steps, differing
        run.stream.synchronize()


def _inference(run: KernelRun, engine: _Engine, placed: Placed, held: ExitStack) -> Callable[[], None]:
    context = engine.contexts.new()
    context.set_input_shape(INPUT, placed.shape)
    context.set_tensor_address(INPUT, placed.batch.handle)
    for name, (dtype, one) in engine.tensors.outputs.items():
        size = placed.shape[0] * int(np.prod(one)) * np.dtype(dtype).itemsize
        context.set_tensor_address(name, held.enter_context(DeviceBuffer(run.driver, size)).handle)

    def infer() -> None:
        if not context.execute_async_v3(run.stream.handle):
            raise BackendError("TensorRT cannot run the engine; its message stands above")

    return infer


def timed_step(step: Callable[[], object], wait: Callable[[], object], batch: int, seconds: float) -> Row:
    """Latency of a step that only puts a batch's work on its way, and images a second of many of them."""

    def once() -> None:
        step()
        wait()

    per_s = batch * rate(step, wait, seconds)
    return {**timed(once, seconds).to_json(), "images_per_s": round(per_s, 1)}


def _threaded(backend: TensorrtBackend, pixels: list[PixelsHWC], seconds: float) -> float:
    """Batches a second from two threads, so that uploading overlaps computing as in a service."""
    with ThreadPoolExecutor(2) as pool:
        return rate(
            lambda: list(pool.map(backend.run, [pixels, pixels])), lambda: None, seconds, at_once=1
        ) * 2  # fmt: skip


def claims(rows: Sequence[Row]) -> list[Row]:
    """The figures that must hold, each with its bound; `holds` is None where one was not measured."""
    found = {(row["what"], row["batch"]): row for row in rows if "p50_ms" in row}

    def ratio(upper: tuple[str, int], lower: tuple[str, int], key: str) -> float | None:
        if upper not in found or lower not in found:
            return None
        return float(found[upper][key] / found[lower][key])

    compiled = [batch for what, batch in found if what == "torch.compile" and ("graph", batch) in found]
    gains = [ratio(("graph", batch), ("torch.compile", batch), "images_per_s") for batch in compiled]
    differing = [row["differing_values"] for row in found.values() if row["what"] == "kernel"]
    figures = {
        "graph over engine, batch 64": ratio(("graph", 64), ("engine", 64), "p50_ms"),
        "graph over engine, batch 1": ratio(("graph", 1), ("engine", 1), "p50_ms"),
        "graph over torch.compile, throughput": min((gain for gain in gains if gain is not None), default=None),
        "differing values of the kernel": float(sum(differing)) if differing else None,
    }
    judged = []
    for name, (bound, below) in CLAIMS.items():
        figure = figures[name]
        holds = None if figure is None else (figure <= bound if below else figure >= bound)
        shown = None if figure is None else round(figure, 3)
        judged.append({"what": f"claim: {name}", "batch": 0, "figure": shown, "bound": bound, "holds": holds})
    return judged
