"""Does a map name what moved the score: take away what it names first or last, and watch the probability.

Deletion and insertion are of Petsiuk et al. 2018 (arXiv:1806.07421), ROAD of Rong et al. 2022 (arXiv:2202.00449).
Legend: B image in a batch; C channel; H, W height and width; N share of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from aivsreal.runtime.preprocess import PixelsHWC

STEPS = 14  # of deletion and insertion
ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)
SWEEPS = 25  # of the relaxation: at most 1.7 grey levels from the solution on a smooth image, 0.014 on average
_NOISE = 0.01 * 255  # of ROAD, so that the fill cannot be told from its smoothness alone

FloatHW = npt.NDArray[np.float32]
Probabilities = Callable[[list[PixelsHWC]], npt.NDArray[np.float64]]
"""Probability of the class that the map speaks for, of each square."""


def ranked(map_HW: FloatHW) -> npt.NDArray[np.float64]:
    """`rank_HW` from 0, what the map names first, to 1; ties keep an arbitrary but fixed order."""
    order = np.argsort(-map_HW.ravel(), kind="stable")
    rank = np.empty(order.size)
    rank[order] = np.arange(order.size) / order.size
    return rank.reshape(map_HW.shape)


def deletion_and_insertion(square_HWC: PixelsHWC, map_HW: FloatHW, probabilities: Probabilities) -> tuple[float, float]:
    """Area under the probability as pixels are blurred away, most named first, and as they come back into a blur.

    A good map has a small deletion and a large insertion area; both lie between 0 and 1.
    """
    blurred_HWC = np.asarray(Image.fromarray(square_HWC).filter(ImageFilter.GaussianBlur(10)))
    rank_HW1 = ranked(map_HW)[:, :, None]
    shares_N = np.linspace(0, 1, STEPS + 1)
    deleted = [np.where(rank_HW1 < share, blurred_HWC, square_HWC) for share in shares_N]
    inserted = [np.where(rank_HW1 < share, square_HWC, blurred_HWC) for share in shares_N]
    p_N = probabilities(deleted + inserted)
    return _area(p_N[: STEPS + 1]), _area(p_N[STEPS + 1 :])


def road(square_HWC: PixelsHWC, map_HW: FloatHW, probabilities: Probabilities, rng: np.random.Generator) -> float:
    """How much more the probability falls when what the map names is taken away than when the rest is: half of that.

    Pixels are taken away by filling them from their neighbours, so that their absence itself tells nothing. Above 0
    the map is better than its reverse.
    """
    rank_HW = ranked(map_HW)
    gone = [rank_HW < share for share in ROAD_SHARES] + [rank_HW >= 1 - share for share in ROAD_SHARES]
    p_N = probabilities([filled(square_HWC, gone_HW, rng) for gone_HW in gone])
    first, last = p_N[: len(ROAD_SHARES)], p_N[len(ROAD_SHARES) :]
    return float((last - first).mean() / 2)


def filled(square_HWC: PixelsHWC, gone_HW: npt.NDArray[np.bool_], rng: np.random.Generator | None) -> PixelsHWC:
    """The square with what is gone replaced by the weighted mean of its eight neighbours, plus a little noise.

    It is ROAD's system of equations, started from a pyramid and relaxed, and not left to a sparse solver: that takes
    far longer where most of 50,000 pixels are gone.
    """
    known_HW1 = (~gone_HW)[:, :, None].astype(np.float32)
    known_HWC = square_HWC.astype(np.float32)
    value_HWC = _from_pyramid(known_HWC * known_HW1, known_HW1)
    for _ in range(SWEEPS):
        value_HWC = np.where(gone_HW[:, :, None], _neighbours(value_HWC), known_HWC)
    if rng is not None:
        value_HWC = value_HWC + gone_HW[:, :, None] * rng.normal(0, _NOISE, square_HWC.shape).astype(np.float32)
    return np.clip(np.rint(value_HWC), 0, 255).astype(np.uint8)


def _neighbours(value_HWC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1/6 of each neighbour beside and 1/12 of each across, and at the border what there is of them."""
    height, width = value_HWC.shape[:2]
    padded = np.pad(value_HWC, ((1, 1), (1, 1), (0, 0)))
    inside = np.pad(np.ones((height, width, 1), dtype=np.float32), ((1, 1), (1, 1), (0, 0)))
    total, weight = np.zeros_like(value_HWC), np.zeros((height, width, 1), dtype=np.float32)
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            if (down, right) == (1, 1):
                continue
            share = np.float32(1 / 6 if 1 in (down, right) else 1 / 12)
            total += share * padded[down : down + height, right : right + width]
            weight += share * inside[down : down + height, right : right + width]
    return np.asarray(total / weight, dtype=np.float32)


def _from_pyramid(sum_HWC: npt.NDArray[np.float32], weight_HW1: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each value, and where there is none the mean of the next larger neighbourhood that has one."""
    height, width = weight_HW1.shape[:2]
    mean_HWC = np.asarray(sum_HWC / np.maximum(weight_HW1, 1e-6), dtype=np.float32)
    if min(height, width) <= 1 or weight_HW1.all():
        return mean_HWC
    even = ((0, height % 2), (0, width % 2), (0, 0))
    halves = [
        np.pad(part, even).reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).sum(axis=(1, 3))
        for part in (sum_HWC, weight_HW1)
    ]
    coarse_HWC = _from_pyramid(*halves).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    filled_HWC: npt.NDArray[np.float32] = np.where(weight_HW1 > 0, mean_HWC, coarse_HWC)
    return filled_HWC


def _area(p_N: npt.NDArray[np.float64]) -> float:
    return float(((p_N[1:] + p_N[:-1]) / 2).mean())
