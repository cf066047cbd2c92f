"""Measures with intervals: images are drawn again and again, where sources weigh alike of sources that are drawn too.

Legend: B image; K distinct score; D draw of the bootstrap; P part of a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aivsreal.train.evaluate.metrics import MEASURES, FloatB, Floats, Tally, TargetB, tally_of

DRAWS = 1000
Z_95 = 1.959964  # of a normal distribution
_CELLS = 4_000_000  # draws x distinct scores that are held at once: 32 MB an array


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float


def measures(
    target_B: TargetB,
    p_ai_B: FloatB,
    names: Sequence[str] = tuple(MEASURES),
    *,
    draws: int = DRAWS,
    seed: int = 0,
    source_B: Sequence[str] | None = None,
) -> dict[str, Measure]:
    """Measures with 95 % percentile intervals of a bootstrap that keeps the number of images of each class.

    Of sources that weigh alike, sources are drawn with replacement first, and then the images of each: what is said of
    sources must hold for others too, and they differ more than their images do (Davison and Hinkley 1997, ch. 3.8).

    An image drawn with replacement is a draw from the empirical scores of its class, so one multinomial count for each
    distinct score stands for the whole resample (Efron and Tibshirani 1993, ch. 13). The ECE is a sum of absolute
    values and grows with noise: its interval lies a little high and may leave the value itself out.

    Args:
        names: keys of `MEASURES`; `p_ai_B` may be logits where no name needs probabilities.
        source_B: source of each image. Each source of a class then has the same weight, whatever its size: the macro
            average over sources. The accuracy becomes the mean of the sources' accuracies.
    """
    tally = tally_of(target_B, p_ai_B)
    strata = _strata(tally.score_K, target_B, p_ai_B, source_B)
    whole = _drawn(tally.score_K, strata, None, 1)
    rng = np.random.default_rng(seed)
    values: dict[str, list[Floats]] = {name: [] for name in names}
    chunk = max(1, _CELLS // len(tally.score_K))
    for start in range(0, draws, chunk):
        drawn = _drawn(tally.score_K, strata, rng, min(chunk, draws - start))
        for name in names:
            values[name].append(MEASURES[name](drawn))
    result = {}
    for name in names:
        low, high = np.percentile(np.concatenate(values[name]), [2.5, 97.5])
        result[name] = Measure(float(MEASURES[name](whole)[0]), float(low), float(high))
    return result


def share(is_so_B: npt.NDArray[np.bool_]) -> Measure:
    """Share of the images that are so, with the 95 % score interval of Wilson (1927), which has a width at 0 and 1."""
    images, value = len(is_so_B), float(is_so_B.mean())
    square = Z_95**2 / images
    middle = (value + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(value * (1 - value) / images + square / (4 * images)) / (1 + square)
    return Measure(value, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True, slots=True, eq=False)
class _Stratum:
    """Images that the bootstrap draws among themselves: all of a class, or of a source of it."""

    label: int
    images: int
    share_K: Floats
    weight: float
    """Of one image."""


def _strata(score_K: Floats, target_B: TargetB, score_B: FloatB, source_B: Sequence[str] | None) -> list[_Stratum]:
    at_B = np.searchsorted(-score_K, -np.asarray(score_B, dtype=np.float64))
    names_B = np.zeros(len(target_B), dtype=np.int64)
    if source_B is not None:
        names_B = np.unique(np.asarray(source_B), return_inverse=True)[1]
    strata = []
    for label in (1, 0):
        for name in np.unique(names_B[target_B == label]):
            inside_B = at_B[(target_B == label) & (names_B == name)]
            share_K = np.bincount(inside_B, minlength=len(score_K)) / len(inside_B)
            strata.append(_Stratum(label, len(inside_B), share_K, 1.0 if source_B is None else 1.0 / len(inside_B)))
    return strata


def _drawn(score_K: Floats, strata: Sequence[_Stratum], rng: np.random.Generator | None, draws: int) -> Tally:
    """A resample of each class's parts and of their images, or without `rng` the images themselves."""
    sums = {label: np.zeros((draws, len(score_K))) for label in (1, 0)}
    for label, sum_DK in sums.items():
        parts = [part for part in strata if part.label == label]
        if rng is not None:
            times_DP = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=draws)
        for at, part in enumerate(parts):
            if rng is None:
                sum_DK += part.weight * part.images * part.share_K
            else:
                sum_DK += part.weight * rng.multinomial(part.images * times_DP[:, at], part.share_K)
    return Tally(score_K, sums[1], sums[0])
