"""Times by the clock, their percentiles and their drift; and what was measured in turns, compared by pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

WARM_UP_SHARE = 1 / 6  # of the seconds that are then measured: LeViT's own 10 s before 60 s
DRAWS = 2000  # of the bootstrap


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


def with_interval(
    values: Sequence[float] | npt.NDArray[np.float64], statistic: Callable[..., Any] = np.median
) -> tuple[float, float, float]:
    """A statistic of the values, and its 95 % bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    drawn = array[np.random.default_rng(0).integers(0, len(array), (DRAWS, len(array)))]
    low, high = np.quantile(statistic(drawn, axis=1), (0.025, 0.975))
    return float(statistic(array)), float(low), float(high)


def ratio(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long `slower` takes: median over the pairs, and its 95 % interval.

    Args:
        slower: one time a round.
        faster: of the other in the same rounds.

    Raises:
        ValueError: the rounds are not as many, or none.
    """
    if len(slower) != len(faster) or not slower:
        raise ValueError(f"pairs are needed, not {len(slower)} and {len(faster)} times")
    return with_interval(np.divide(slower, faster))


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    """For a line of results."""
    return [round(float(value), digits) for value in values]


def _repeat(run: Callable[[], object], seconds: float) -> list[float]:
    times_ms: list[float] = []
    end = perf_counter() + seconds
    while not times_ms or perf_counter() < end:
        begin = perf_counter()
        run()
        times_ms.append((perf_counter() - begin) * 1000)
    return times_ms
