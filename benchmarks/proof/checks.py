"""The checks of a GPU that no other command makes: kernel against Pillow, labels, leaks, threads, and why RTX refuses.

Each prints one JSON object and ends with 0 where its claim holds, with 1 where it does not.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.benchmarks.proof.gpu import KernelRun, kernel_run
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import AivsrealError, BackendError
from aivsreal.runtime.gpu import driver as cuda
from aivsreal.runtime.gpu.backend import TensorrtBackend
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import DeviceBuffer, Graph, Stream
from aivsreal.runtime.gpu.executor import Floats
from aivsreal.runtime.preprocess import PixelsHWC, batch_from_pixels
from aivsreal.runtime.spec import Geometry, PreprocessSpec, ResizeFilter

EDGES = ((1, 1), (1, 4000), (4000, 1), (2, 3), (223, 225), (224, 224), (256, 256), (257, 511), (4000, 3000))
NEAR = 0.05  # of p_ai to a bound: so near, rounding may tell a label
SAME_LOGIT = 0.02  # of two runs of one half engine: kernels for other batch sizes sum in another order
GROWN_MIB = (32, 96)  # on the GPU and in the process, from first to last: what allocators keep back
_WARM_UP = 0.1  # of the batches: until then memory may grow


@click.group()
def main() -> None:
    """Checks of a GPU: one JSON object each on standard output."""


def _tell(what: str, holds: bool, **facts: object) -> None:
    row = {"benchmark": "gpu", "what": what, "batch": 0, **facts, "holds": holds, "machine": machine_facts()}
    print(json.dumps(row), flush=True)
    sys.exit(not holds)


def batch_of(
    run: KernelRun, pixels: Sequence[PixelsHWC], spec: PreprocessSpec, dtype: Floats, graph: bool
) -> npt.NDArray[np.floating[Any]]:
    """`batch_BCHW` as the kernel makes it; what it leaves out is NaN."""
    with run.placed(pixels, spec, dtype) as placed, ExitStack() as held:
        if graph:
            held.enter_context(Graph(run.driver, run.stream, placed.resize)).launch(run.stream)
        else:
            placed.resize()
        return placed.values()


def opened(binding: str | None) -> Driver:
    """The driver through that binding; None for the usual one.

    Raises:
        BackendError: it is not there.
    """
    if binding != "pycuda":
        return cuda.open_driver()
    try:
        from aivsreal.runtime.gpu.pycuda import PycudaDriver
    except ImportError as error:
        raise BackendError(f"pycuda does not load: {error}") from None
    return PycudaDriver()


@main.command()
@click.option("--sizes", type=click.IntRange(1), default=500, show_default=True, help="Images, each of another size.")
@click.option("--longest", type=click.IntRange(8), default=3000, show_default=True, help="Side of an image at most.")
@click.option("--binding", type=click.Choice(["pycuda"]), help="Of CUDA.  [default: the usual one]")
def kernel(sizes: int, longest: int, binding: str | None) -> None:
    """Compare the kernel with Pillow, value by value: launched and as a CUDA graph, in half and in FP32."""
    shipped = Bundle.open().manifest.spec
    specs: list[tuple[PreprocessSpec, Floats]] = [
        (shipped, np.float32),
        (replace(shipped, geometry=Geometry.SQUASH, filter=ResizeFilter.BILINEAR), np.float16),
        (replace(shipped, crop_fraction=1.0, filter=ResizeFilter.LANCZOS), np.float16),
        (replace(shipped, size=192, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), np.float32),
    ]
    values, wrong, worst = 0, 0, ""
    with kernel_run(opened(binding)) as run, ThreadPoolExecutor() as pool:
        for number, pixels in enumerate(_batches(sizes, longest)):
            for spec, dtype in ((shipped, np.float16), specs[number % len(specs)]):
                expected = np.concatenate(list(pool.map(lambda one, spec=spec: batch_from_pixels([one], spec), pixels)))
                graph = run.driver.has_graphs and number % 2 == 1
                differing = int((batch_of(run, pixels, spec, dtype, graph) != expected.astype(dtype)).sum())
                values, wrong = values + expected.size, wrong + differing
                if differing and not worst:
                    worst = f"{differing} values of {[one.shape for one in pixels]} with {spec} as {dtype.__name__}"
        facts = {"gpu": run.driver.gpu.name, "binding": run.driver.name, "kernel": run.kernel.origin}
        graphs = run.driver.has_graphs
    _tell(
        "kernel against Pillow", wrong == 0, sizes=sizes, values=values, differing_values=wrong, graphs=graphs,
        worst=worst, **facts,
    )  # fmt: skip


def _batches(sizes: int, longest: int) -> Iterator[list[PixelsHWC]]:
    """Noise of that many sizes, from a pixel to the longest side, in batches of 1 to 16."""
    rng = np.random.default_rng(0)
    shapes = [(min(height, longest), min(width, longest)) for height, width in EDGES]
    while len(shapes) < sizes:
        height, width = np.exp(rng.uniform(np.log(4), np.log(longest), 2)).astype(int)
        shapes.append((int(height), int(width)))
    noise = rng.integers(0, 256, (max(height * width for height, width in shapes), 3), dtype=np.uint8)
    begin = 0
    while begin < sizes:
        count = int(rng.integers(1, 17))
        some = shapes[begin : min(begin + count, sizes)]
        yield [noise[: height * width].reshape(height, width, 3) for height, width in some]
        begin += count


@main.command()
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bundle", help="With the bounds.  [default: the shipped one]")
def labels(first: Path, second: Path, bundle: str | None) -> None:
    """Compare two scans' JSON lines: labels may differ where p_ai is within 0.05 of a bound."""
    scans = [{row["path"]: row for row in map(json.loads, file.read_text().splitlines())} for file in (first, second)]
    points = Bundle.open(bundle).manifest.points
    bounds = {bound for point in points for bound in (point.ai_at_or_above, point.real_below)}
    both = [(row, scans[1][path]) for path, row in scans[0].items()]
    flips = [(a, b) for a, b in both if a["label"] != b["label"]]
    judged = [(a["p_ai"], b["p_ai"]) for a, b in both if a["p_ai"] is not None and b["p_ai"] is not None]
    far = [
        a["path"] for a, b in flips if None in (a["p_ai"], b["p_ai"]) or min(abs(a["p_ai"] - x) for x in bounds) > NEAR
    ]
    most = max((abs(p - q) for p, q in judged), default=0.0)
    _tell(
        "labels of a scan", bool(judged) and not far, gpu=_gpu_name(), images=len(both), judged=len(judged),
        flips=len(flips), flips_far_from_a_bound=far[:5], max_probability=round(most, 6),
    )  # fmt: skip


def _gpu_name() -> str:
    try:
        with closing(cuda.open_driver()) as driver:
            return driver.gpu.name
    except BackendError:
        return ""


@main.command()
@click.option("--batches", type=click.IntRange(10), default=10_000, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01), default=60.0, show_default=True, help="At most.")
@click.option("--bundle", help="With an engine.  [default: the shipped one]")
@click.option("--kernel-alone", is_flag=True, help="Without an engine.")
def soak(batches: int, seconds: float, bundle: str | None, kernel_alone: bool) -> None:
    """Judge batches of eight again and again, and see whether memory grows."""
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 256, (*rng.integers(200, 500, 2), 3), dtype=np.uint8) for _ in range(64)]
    drawn = [[pool[index] for index in rng.integers(0, 64, 8)] for _ in range(50)]
    opened_bundle = Bundle.open(bundle)
    spec = opened_bundle.manifest.spec
    with ExitStack() as stack:
        if kernel_alone:
            run = stack.enter_context(kernel_run(cuda.open_driver()))

            def one(pixels: list[PixelsHWC]) -> object:
                return batch_of(run, pixels, spec, np.float16, run.driver.has_graphs)

        else:
            backend = stack.enter_context(closing(TensorrtBackend(opened_bundle)))

            def one(pixels: list[PixelsHWC]) -> object:
                return backend.run(pixels)

        before, begin, done = (0, 0), time.perf_counter(), 0
        while done < batches and time.perf_counter() - begin < seconds:
            if done == int(batches * _WARM_UP):
                before = _memory_mib()
            one(drawn[done % len(drawn)])
            done += 1
        took = time.perf_counter() - begin
        grown = tuple(after - was for was, after in zip(before, _memory_mib(), strict=True))
    enough = done > batches * _WARM_UP
    _tell(
        f"memory after many batches{' of the kernel alone' if kernel_alone else ''}",
        enough and all(size <= most for size, most in zip(grown, GROWN_MIB, strict=True)),
        gpu=_gpu_name(), batches=done, wanted=batches, gpu_mib_grown=grown[0], process_mib_grown=grown[1],
        images_per_s=round(8 * done / took, 1),
    )  # fmt: skip


def _memory_mib() -> tuple[int, int]:
    """Used on the GPU, and resident in this process; 0 on the GPU where there is no nvidia-smi, as on a Jetson."""
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return int(told.stdout.split()[0]), resident
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return 0, resident


@main.command()
@click.option("--batches", type=click.IntRange(1), default=100, show_default=True, help="Of each of two threads.")
@click.option("--bundle", help="With an engine.  [default: the shipped one]")
def threads(batches: int, bundle: str | None) -> None:
    """Judge the same images from one thread, and from two that share the backend."""
    rng = np.random.default_rng(0)
    drawn = [
        [rng.integers(0, 256, (*rng.integers(100, 600, 2), 3), dtype=np.uint8) for _ in range(size)]
        for size in (1, 4, 8)
    ]
    with closing(TensorrtBackend(Bundle.open(bundle))) as backend:
        alone = [backend.run(pixels).logits_B for pixels in drawn]

        def worst(offset: int) -> float:
            numbers = [(number + offset) % len(drawn) for number in range(batches)]
            return max(float(np.abs(backend.run(drawn[number]).logits_B - alone[number]).max()) for number in numbers)

        with ThreadPoolExecutor(2) as pool:
            most = max(pool.map(worst, range(2)))
    _tell("two threads", most <= SAME_LOGIT, gpu=_gpu_name(), batches=2 * batches, max_logit_difference=most)


@main.command()
@click.argument("graph", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--target", default="CURRENT", show_default=True, help="A ComputeCapability's name, or portable.")
def probe(graph: Path, target: str) -> None:
    """Build, load and run a graph with TensorRT-RTX for a target, step by step: what it refuses, in its own words."""
    import tensorrt_rtx as trt

    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= 2:
                said.append(message.strip())

    steps, logger = {"version": trt.__version__, "target": target}, Logger()
    try:
        steps.update(_probed(trt, logger, graph.read_bytes(), target))
    except Exception as error:  # whatever a binding raises is the answer
        steps["raised"] = repr(error)
    _tell("TensorRT-RTX step by step", steps.get("runs") == "True", steps=steps, messages=said[-12:], gpu=_gpu_name())


def _probed(trt: Any, logger: Any, graph: bytes, target: str) -> Iterator[tuple[str, str]]:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    yield "parses", str(trt.OnnxParser(network, logger).parse(graph))
    config = builder.create_builder_config()
    if target != "portable":
        config.num_compute_capabilities = 1
        yield "takes the target", str(config.set_compute_capability(getattr(trt.ComputeCapability, target), 0))
    profile, given = builder.create_optimization_profile(), network.get_input(0)
    shape = tuple(given.shape)[1:]
    profile.set_shape(given.name, (1, *shape), (8, *shape), (64, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    yield "builds", str(plan is not None)
    if plan is None:
        return
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(bytes(plan))
    yield "loads", str(engine is not None)
    if engine is None:
        return
    with closing(cuda.open_driver()) as driver, driver.current(), Stream(driver) as stream, ExitStack() as held:
        context = engine.create_execution_context()
        yield "has a context", str(context is not None)
        context.set_input_shape(given.name, (8, *shape))
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            size = 4 * int(np.prod([8, *tuple(engine.get_tensor_shape(name))[1:]]))
            context.set_tensor_address(name, held.enter_context(DeviceBuffer(driver, size)).handle)
        begin = time.perf_counter()
        runs = bool(context.execute_async_v3(stream.handle))
        stream.synchronize()
        yield "runs", str(runs)
        yield "first run, s", f"{time.perf_counter() - begin:.2f}"
        if hasattr(context, "is_stream_capturable"):
            yield "says that it can be recorded", str(context.is_stream_capturable(stream.handle))
        with Graph(driver, stream, lambda: context.execute_async_v3(stream.handle)) as recorded:
            recorded.launch(stream)
            stream.synchronize()
        yield "a graph of it runs", "True"


def run() -> None:
    """The command: an error of ours is a line on standard error."""
    try:
        main()
    except AivsrealError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    run()
