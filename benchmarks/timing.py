"""Time by the clock: warm up, run for some seconds, and say the percentiles and how they drifted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np

WARM_UP_SHARE = 1 / 6  # of the seconds that are then measured: LeViT's own 10 s before 60 s


@dataclass(frozen=True, slots=True)
class Timing:
    """Latencies of one thing done again and again."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    count: int
    drift: float
    """Median of the last hundred over that of the first hundred: above 1 the machine grew slower."""

    def to_json(self) -> dict[str, object]:
        """Rounded to a tenth of a microsecond."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def timed(run: Callable[[], object], seconds: float) -> Timing:
    """Latency of `run`, which returns only when its work is done."""
    _repeat(run, seconds * WARM_UP_SHARE)
    times_ms = np.array(_repeat(run, seconds))
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
    drift = np.median(times_ms[-100:]) / np.median(times_ms[:100])
    return Timing(float(p50), float(p90), float(p99), len(times_ms), float(drift))


def rate(run: Callable[[], object], wait: Callable[[], object], seconds: float, at_once: int = 20) -> float:
    """How often `run`, which only puts work on its way, is done in a second; `wait` ends when all of it is done."""
    run()
    wait()
    done, begin = 0, perf_counter()
    while perf_counter() - begin < seconds:
        for _ in range(at_once):
            run()
        wait()
        done += at_once
    return done / (perf_counter() - begin)


def _repeat(run: Callable[[], object], seconds: float) -> list[float]:
    times_ms: list[float] = []
    end = perf_counter() + seconds
    while not times_ms or perf_counter() < end:
        begin = perf_counter()
        run()
        times_ms.append((perf_counter() - begin) * 1000)
    return times_ms
