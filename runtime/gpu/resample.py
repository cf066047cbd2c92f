"""Pillow's resampling weights in fixed point, for the CUDA kernel; `preprocess.py` lets Pillow itself do the work.

Legend: S output pixel along an axis; K weight; 2 the pair (first source pixel, how many).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.spec import ResizeFilter

BITS = 22  # Pillow's PRECISION_BITS for 8-bit channels
_CACHED_LENGTH = 16_384  # longer axes have tables of megabytes and are rare: they are made anew
_CHUNK = 1 << 20  # weights made at once, so that the longest axis of all needs no gigabytes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AxisWeights:
    """How one axis of an image becomes one of the input."""

    bounds_S2: npt.NDArray[np.int32]
    weights_SK: npt.NDArray[np.int32]
    """The first one belongs to the source pixel `first & ~3`; K is a multiple of 4; zero outside the bounds."""


def axis_weights(length: int, size: int, kernel: ResizeFilter) -> AxisWeights:
    """Weights that shrink or enlarge `length` source pixels to `size`, the same integers as in Pillow."""
    return _cached(length, size, kernel) if length <= _CACHED_LENGTH else _made(length, size, kernel)


def _made(length: int, size: int, kernel: ResizeFilter) -> AxisWeights:
    # Every step is Pillow's in its order (precompute_coeffs in src/libImaging/Resample.c): doubles round the same way.
    support, weigh = _KERNELS[kernel]
    scale = length / size
    stretch = max(scale, 1.0)
    reach = support * stretch
    centre_S = (np.arange(size) + 0.5) * scale
    first_S = np.maximum((centre_S - reach + 0.5).astype(np.int64), 0)
    count_S = np.minimum((centre_S + reach + 0.5).astype(np.int64), length) - first_S
    aligned_S = first_S & ~3
    taps = int((first_S + count_S - aligned_S).max() + 3) & ~3
    weights_SK = np.zeros((size, taps), np.int32)
    rows = max(1, _CHUNK // taps)
    for begin in range(0, size, rows):
        part = slice(begin, begin + rows)
        index_SK = np.arange(taps) + (aligned_S - first_S)[part, None]
        inside_SK = (index_SK >= 0) & (index_SK < count_S[part, None])
        distance_SK = (index_SK + first_S[part, None] - centre_S[part, None] + 0.5) * (1.0 / stretch)
        exact_SK = np.where(inside_SK, weigh(np.where(inside_SK, distance_SK, 0.0)), 0.0)
        # A running sum, as in Pillow's loop: numpy's own sum adds in pairs and rounds differently.
        sum_S1 = np.cumsum(exact_SK, axis=1)[:, -1:]
        np.divide(exact_SK, sum_S1, out=exact_SK, where=sum_S1 != 0.0)
        weights_SK[part] = np.trunc(exact_SK * (1 << BITS) + np.where(exact_SK < 0, -0.5, 0.5))
    return AxisWeights(np.stack([first_S, count_S], axis=1).astype(np.int32), weights_SK)


_cached = lru_cache(maxsize=64)(_made)


def _bilinear(x: Floats) -> Floats:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: Floats) -> Floats:
    a = -0.5
    x = np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(x: Floats) -> Floats:
    # math.sin is the C library's, as in Pillow; numpy's vectorised sine may differ in the last bit.
    flat = [_sinc(value) * _sinc(value / 3) if -3.0 <= value < 3.0 else 0.0 for value in x.ravel().tolist()]
    return np.array(flat).reshape(x.shape)


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


_KERNELS: dict[ResizeFilter, tuple[float, Callable[[Floats], Floats]]] = {
    ResizeFilter.BILINEAR: (1.0, _bilinear),
    ResizeFilter.BICUBIC: (2.0, _bicubic),
    ResizeFilter.LANCZOS: (3.0, _lanczos),
}
