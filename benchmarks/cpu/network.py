"""The network alone on this CPU: each backend and batch size, and every backend against ONNX Runtime in FP32, in turns.

Legend: B image in a batch; S input size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from statistics import fmean
from time import perf_counter, process_time
from typing import Any

from aivsreal.benchmarks.timing import Timing, ratio, rounded, timed
from aivsreal.runtime.backends.choose import INT8, cpu_openers, measured, open_backend, probe_squares
from aivsreal.runtime.backends.protocol import Backend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError

CPU_BACKENDS = ("onnx", "openvino", "onnx-int8", "openvino-int8", "torch")
REFERENCE = "onnx"
PAIR_BATCH, ROUND_S = 16, 0.5
FASTEST_RATIO = 1.8  # of the fastest backend, where the processor multiplies bfloat16 or bytes by itself

Row = dict[str, Any]


def network_rows(bundle: Bundle, backends: Sequence[str], batches: Sequence[int], seconds: float) -> Iterator[Row]:
    """A row for each backend and batch size; one for a backend that cannot run, with the reason."""
    for name in backends:
        try:
            backend = opened_on_cpu(bundle, name)
        except BackendError as error:
            yield {"what": "network", "backend": name, "not_measured": str(error)}
            continue
        with closing(backend):
            for batch in batches:
                run = runner(backend, bundle, batch)
                timing, cpu_ms = _timed_with_cpu(run, seconds)
                yield {
                    "what": "network", "backend": backend.name, "precision": backend.precision, "batch": batch,
                    **timing.to_json(), "images_per_s": round(1000 * batch / timing.p50_ms, 1),
                    "cpu_ms_per_image": round(cpu_ms / batch, 2),
                }  # fmt: skip


def paired_rows(bundle: Bundle, backends: Sequence[str], rounds: int) -> Iterator[Row]:
    """Each backend against `REFERENCE` at batch 16, in turns: how many times as fast, and how it differs.

    Where one can use what the processor has for bfloat16 or INT8, the fastest is held to `FASTEST_RATIO`.
    """
    opened: dict[str, Backend] = {}
    try:
        for name in (REFERENCE, *(name for name in backends if name != REFERENCE)):
            try:
                opened[name] = opened_on_cpu(bundle, name)
            except BackendError as error:
                if name == REFERENCE:  # there is nothing to compare with
                    yield {"what": "paired", "backend": name, "not_measured": str(error)}
                    return
                continue  # `network_rows` says why
        runs = {name: runner(backend, bundle, PAIR_BATCH) for name, backend in opened.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                spent = _ms_a_run(run, ROUND_S)
                if turn:
                    times[name].append(spent / PAIR_BATCH)
        differ = measured(opened, bundle)
        ratios = {name: ratio(times[REFERENCE], spent) for name, spent in times.items()}
        fastest = max(ratios, key=lambda name: ratios[name][0])
        can = {one.precision for one in opened.values()} & {"bf16", "int8"}
        bound = {"bound": FASTEST_RATIO, "holds": ratios[fastest][0] >= FASTEST_RATIO} if can else {}
        for name, backend in opened.items():
            seen = differ[name]
            yield {
                "what": "paired", "backend": backend.name, "precision": backend.precision, "batch": PAIR_BATCH,
                "rounds": rounds, "ms_per_image": round(sorted(times[name])[rounds // 2], 3),
                "times_as_fast_as_onnx_fp32": rounded(ratios[name]), **(bound if name == fastest else {}),
                "p_ai_difference": {"mean": round(seen.mean_difference, 5), "max": round(seen.max_difference, 5)},
            }  # fmt: skip
    finally:
        for backend in opened.values():
            backend.close()


def opened_on_cpu(bundle: Bundle, name: str) -> Backend:
    """A backend by its name here, which says FP32 or INT8 where `--backend onnx` takes what is faster.

    Raises:
        BackendError: it cannot run here, or the bundle has no such network.
    """
    openers = cpu_openers(bundle, None)
    if name in openers:
        return openers[name]()
    if name.endswith(INT8):
        raise BackendError("the bundle has no INT8 network, or this CPU gains nothing by it: aivsreal-export --int8")
    return open_backend(bundle, name)[0]


def runner(backend: Backend, bundle: Bundle, batch: int) -> Callable[[], object]:
    """Runs the backend on a batch of squares, normalising included."""
    squares = probe_squares(bundle.manifest.spec.size, 8)
    chosen = [squares[index % len(squares)] for index in range(batch)]
    return lambda: backend.run(chosen)


def _timed_with_cpu(run: Callable[[], object], seconds: float) -> tuple[Timing, float]:
    """Latency, and processor milliseconds of a run, of the same runs: those of the warm-up are not in it."""
    spent_ms: list[float] = []

    def counted() -> None:
        begun = process_time()
        run()
        spent_ms.append((process_time() - begun) * 1000)

    timing = timed(counted, seconds)
    return timing, fmean(spent_ms[-timing.count :])


def _ms_a_run(run: Callable[[], object], seconds: float) -> float:
    begun, count = perf_counter(), 0
    while count == 0 or perf_counter() - begun < seconds:
        run()
        count += 1
    return (perf_counter() - begun) * 1000 / count
