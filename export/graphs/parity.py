"""How far two computations of the same network differ on reference images, and when that is too far.

Legend: B image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.explain import MAX_PARITY
from aivsreal.runtime.preprocess import LogitsB


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The most that two computations may differ; probabilities are calibrated `p_ai`."""

    max_probability: float
    mean_probability: float
    flip_margin: float
    """A label may flip only where the reference's p_ai is this near to the threshold that is crossed."""
    max_logit: float = math.inf


SAME_WEIGHTS = Tolerance(1e-4, 1e-5, 1e-4, MAX_PARITY)  # FP32 ONNX against PyTorch
STORED_WEIGHTS = Tolerance(5e-3, 5e-4, 5e-3)  # weights as stored, in half, against the trained ones
HALF = Tolerance(3e-2, 2e-3, 5e-2)  # FP16 arithmetic, in ONNX Runtime or an engine, against FP32
FULL_ENGINE = Tolerance(5e-3, 5e-4, 1e-2)  # an FP32 engine: TensorRT may round products to TF32


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences of two computations on the same images."""

    images: int
    max_logit: float
    mean_logit: float
    max_probability: float
    mean_probability: float
    flips: int
    """Images whose label differs at one threshold at least."""
    farthest_flip: float
    """How far the reference's p_ai of a flipped image lay from the threshold at most."""

    def to_json(self) -> dict[str, float]:
        """The figures as JSON values."""
        return asdict(self)


def thresholds(manifest: Manifest) -> tuple[float, ...]:
    """All probabilities at which a label of the bundle changes, and 0.5."""
    return tuple(
        sorted({0.5, *(bound for point in manifest.points for bound in (point.ai_at_or_above, point.real_below))})
    )


def parity(
    reference_B: LogitsB, other_B: LogitsB, temperature: float = 1.0, bounds: Iterable[float] = (0.5,)
) -> Parity:
    """Compare logits of the same images.

    Raises:
        ExportError: a logit is not finite, or all are equal, which no trained network gives.
    """
    if reference_B.shape != other_B.shape or not (np.isfinite(reference_B).all() and np.isfinite(other_B).all()):
        raise ExportError("the network returned logits that are not finite or not one an image; nothing was written")
    if len(reference_B) > 1 and np.ptp(reference_B) == 0:
        raise ExportError("the network gives every reference image the same logit; nothing was written")
    logit_B = np.abs(reference_B.astype(np.float64) - other_B)
    p_B, q_B = (
        np.exp(-np.logaddexp(0.0, -values.astype(np.float64) / temperature)) for values in (reference_B, other_B)
    )
    flipped_B = np.zeros(len(reference_B), dtype=bool)
    farthest = 0.0
    for bound in bounds:
        crossed_B = (p_B >= bound) != (q_B >= bound)
        flipped_B |= crossed_B
        farthest = max(farthest, float(np.abs(p_B[crossed_B] - bound).max(initial=0.0)))
    return Parity(
        images=len(reference_B),
        max_logit=float(logit_B.max()),
        mean_logit=float(logit_B.mean()),
        max_probability=float(np.abs(p_B - q_B).max()),
        mean_probability=float(np.abs(p_B - q_B).mean()),
        flips=int(flipped_B.sum()),
        farthest_flip=farthest,
    )


def check(what: str, measured: Parity, allowed: Tolerance) -> None:
    """Refuse a computation that differs too much.

    Raises:
        ExportError: it says what is past its tolerance.
    """
    figures = (
        ("logit differs by", measured.max_logit, allowed.max_logit),
        ("p_ai differs by", measured.max_probability, allowed.max_probability),
        ("p_ai differs on average by", measured.mean_probability, allowed.mean_probability),
        ("a label flips at a distance from the threshold of", measured.farthest_flip, allowed.flip_margin),
    )
    past = ", ".join(f"{name} {value:.2g} (at most {most:g})" for name, value, most in figures if value > most)
    if past:
        raise ExportError(f"{what}: {past}; {measured.flips} of {measured.images} labels flip; nothing was written")
