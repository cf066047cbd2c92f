"""Compare two things that were measured in turns: the ratio of their times with a bootstrap interval over the pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


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
    ratios = np.asarray(slower, dtype=np.float64) / np.asarray(faster, dtype=np.float64)
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(0, len(ratios), (DRAWS, len(ratios)))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    """For a line of results."""
    return [round(float(value), digits) for value in values]
