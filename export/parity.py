"""How far two computations of the same network differ on reference images, and when that is too far.

Legend: B image; H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.images import pixels_from_file
from aivsreal.runtime.paths import image_paths
from aivsreal.runtime.preprocess import PixelsHWC

MAX_LOGIT_DIFFERENCE = 1e-3  # ONNX against PyTorch with the same weights
MAX_PROBABILITY_DIFFERENCE = 5e-3  # stored half weights against the trained FP32 ones
FLIP_MARGIN = 5e-3  # rounding may flip a label only this near p_ai 0.5
REFERENCE_COUNT = 256

LogitsB = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences of two computations on the same images."""

    images: int
    max_logit: float
    mean_logit: float
    max_probability: float
    mean_probability: float
    flips: int
    farthest_flip: float
    """How far from 0.5 the reference's p_ai of a flipped image lay at most."""

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values."""
        return asdict(self)


def parity(reference_B: LogitsB, other_B: LogitsB) -> Parity:
    """Compare logits of the same images.

    Raises:
        ExportError: a logit is not finite, or all are equal, which no trained network gives.
    """
    if reference_B.shape != other_B.shape or not (np.isfinite(reference_B).all() and np.isfinite(other_B).all()):
        raise ExportError("the network returned logits that are not finite or not one an image; nothing was written")
    if len(reference_B) > 1 and np.ptp(reference_B) == 0:
        raise ExportError("the network gives every reference image the same logit; nothing was written")
    logit_B = np.abs(reference_B.astype(np.float64) - other_B)
    p_B, q_B = (np.exp(-np.logaddexp(0.0, -values.astype(np.float64))) for values in (reference_B, other_B))
    flipped_B = (reference_B >= 0) != (other_B >= 0)
    return Parity(
        images=len(reference_B),
        max_logit=float(logit_B.max()),
        mean_logit=float(logit_B.mean()),
        max_probability=float(np.abs(p_B - q_B).max()),
        mean_probability=float(np.abs(p_B - q_B).mean()),
        flips=int(flipped_B.sum()),
        farthest_flip=float(np.abs(p_B[flipped_B] - 0.5).max(initial=0.0)),
    )


def check_same_weights(measured: Parity) -> None:
    """Refuse an ONNX graph that does not compute what PyTorch does.

    Raises:
        ExportError: past `MAX_LOGIT_DIFFERENCE`, or a label flipped.
    """
    if measured.max_logit > MAX_LOGIT_DIFFERENCE or measured.flips:
        raise ExportError(
            f"ONNX differs from PyTorch by {measured.max_logit:.2g} in logit (at most {MAX_LOGIT_DIFFERENCE:g}) "
            f"and flips {measured.flips} of {measured.images} labels; nothing was written"
        )


def check_rounding(measured: Parity) -> None:
    """Refuse half storage that changes verdicts.

    Raises:
        ExportError: past `MAX_PROBABILITY_DIFFERENCE`, or a flip beyond `FLIP_MARGIN`.
    """
    if measured.max_probability > MAX_PROBABILITY_DIFFERENCE or measured.farthest_flip > FLIP_MARGIN:
        raise ExportError(
            f"half weights move p_ai by {measured.max_probability:.2g} (at most {MAX_PROBABILITY_DIFFERENCE:g}); "
            "nothing was written"
        )


def reference_pixels(folder: Path | None, count: int = REFERENCE_COUNT) -> Iterator[PixelsHWC]:
    """Images for parity, one in memory at a time: spread evenly over a folder's files, or synthetic without a folder.

    Raises:
        ExportError: the folder holds no images.
        ImageError: one of them cannot be decoded.
    """
    if folder is None:
        yield from _synthetic(count)
        return
    paths = list(image_paths(folder)) if folder.is_dir() else []
    if not paths:
        raise ExportError(f"{folder}: no images for parity; give a folder of images with --reference")
    for index in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)):
        yield pixels_from_file(paths[index])


def _synthetic(count: int) -> Iterator[PixelsHWC]:
    """Slopes of colour with a rectangle and an ellipse under noise, of several sizes and always the same."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(64, 400, 2)
        y_H1, x_1W = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        turn = rng.uniform(0, 2 * np.pi)
        slope_HW = 0.5 + (np.cos(turn) * x_1W + np.sin(turn) * y_H1) / 3
        values_HWC = slope_HW[:, :, None] * rng.uniform(0, 255, 3)
        centre_x, centre_y, radius_x, radius_y = rng.uniform((-0.8, -0.8, 0.1, 0.1), (0.8, 0.8, 0.7, 0.7))
        values_HWC[(abs(x_1W - centre_y) < radius_y) & (abs(y_H1 - centre_x) < radius_x)] = rng.uniform(0, 255, 3)
        inside_HW = ((x_1W - centre_x) / radius_x) ** 2 + ((y_H1 - centre_y) / radius_y) ** 2 < 1
        values_HWC[inside_HW] = rng.uniform(0, 255, 3)
        values_HWC += rng.standard_normal((height, width, 3)) * rng.uniform(0, 60)
        yield np.clip(values_HWC, 0, 255).astype(np.uint8)
