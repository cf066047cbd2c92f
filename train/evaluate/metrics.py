"""How good `p_ai` or a logit separates the classes, and how sure that number is; `ai` (1) is the positive class.

Legend: B image; K distinct score, highest first; D bootstrap draw; N bin; T threshold of the ROC curve. `target_B` is 1
for ai and 0 for real. An image is called ai where its score is at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatB = npt.NDArray[np.floating]
TargetB = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

BINS = 15  # of the calibration error


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images whose `p_ai` lies in one bin: what was said, and what was so; both NaN where the bin is empty."""

    low: float
    high: float
    images: int
    p_ai_mean: float
    ai_share: float


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """The ROC curve from (0, 0) to (1, 1), one point for each distinct score; the first threshold is infinite."""

    fpr_T: Floats
    tpr_T: Floats
    threshold_T: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Images of each class at each distinct score: all that any measure here needs, for many draws at once."""

    score_K: Floats
    ai_DK: Floats
    real_DK: Floats

    @property
    def ai(self) -> float:
        return float(self.ai_DK[0].sum())  # the same in each draw, of images or of sources that weigh alike

    @property
    def real(self) -> float:
        return float(self.real_DK[0].sum())


def tally_of(target_B: TargetB, score_B: FloatB, weight_B: FloatB | None = None) -> Tally:
    if len(target_B) != len(score_B) or not np.isfinite(score_B).all():
        raise ValueError("each image needs one finite score")
    if not (target_B == 1).any() or not (target_B == 0).any():
        raise ValueError("this measure needs images of both classes")
    score_K, inverse_B = np.unique(-np.asarray(score_B, dtype=np.float64), return_inverse=True)
    weight_B = np.ones(len(target_B)) if weight_B is None else weight_B
    ai_K, real_K = (
        np.bincount(inverse_B[target_B == label], weight_B[target_B == label], minlength=len(score_K))
        for label in (1, 0)
    )
    return Tally(-score_K, ai_K[None].astype(np.float64), real_K[None].astype(np.float64))


def _auc(tally: Tally) -> Floats:
    above_DK = np.cumsum(tally.ai_DK, axis=1) - tally.ai_DK / 2
    area_D: Floats = (above_DK * tally.real_DK).sum(axis=1) / (tally.ai * tally.real)
    return area_D


def _average_precision(tally: Tally) -> Floats:
    """`sum_k (recall_k - recall_(k-1)) * precision_k` over the distinct scores, highest first, not interpolated."""
    ai_DK = np.cumsum(tally.ai_DK, axis=1)
    called_DK = ai_DK + np.cumsum(tally.real_DK, axis=1)
    # Where nothing is called yet no AI image is either; a weight may be far below 1.
    precision_DK = ai_DK / np.where(called_DK > 0, called_DK, 1.0)
    precision_D: Floats = (tally.ai_DK * precision_DK).sum(axis=1) / tally.ai
    return precision_D


def _tpr_at(fpr: float) -> Callable[[Tally], Floats]:
    """Highest share of AI images found where at most `fpr` of the real ones are called ai; no interpolation."""

    def tpr(tally: Tally) -> Floats:
        allowed_DK = np.cumsum(tally.real_DK, axis=1) <= fpr * tally.real + 1e-9
        share_D: Floats = (tally.ai_DK * allowed_DK).sum(axis=1) / tally.ai
        return share_D

    return tpr


def _rates(tally: Tally) -> tuple[Floats, Floats]:
    called_K = tally.score_K >= 0.5
    return tally.ai_DK[:, called_K].sum(axis=1), tally.real_DK[:, ~called_K].sum(axis=1)


def _accuracy(tally: Tally) -> Floats:
    """Share of images on the right side of `p_ai` 0.5."""
    ai_D, real_D = _rates(tally)
    return (ai_D + real_D) / (tally.ai + tally.real)


def _balanced_accuracy(tally: Tally) -> Floats:
    """Mean of that share over the two classes."""
    ai_D, real_D = _rates(tally)
    return (ai_D / tally.ai + real_D / tally.real) / 2


def _ece(tally: Tally) -> Floats:
    """Expected calibration error of `p_ai` in 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599, made binary).

    `sum_n (images_n / images) * |mean(target)_n - mean(p_ai)_n|`; bin n is `n/15 <= p_ai < (n+1)/15`, 1 in the last.
    """
    p_ai_K = _probabilities(tally.score_K)
    in_bin_KN = np.eye(BINS)[_bin_index(p_ai_K, BINS)]
    gap_DN = (tally.ai_DK * (1 - p_ai_K) - tally.real_DK * p_ai_K) @ in_bin_KN
    error_D: Floats = np.abs(gap_DN).sum(axis=1) / (tally.ai + tally.real)
    return error_D


def _probabilities(p_ai_B: FloatB) -> Floats:
    if p_ai_B.size and (p_ai_B.min() < 0 or p_ai_B.max() > 1):
        raise ValueError("p_ai must lie in 0..1; this looks like logits")
    return np.asarray(p_ai_B, dtype=np.float64)


def _bin_index(p_ai_B: Floats, bins: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.floor(p_ai_B * bins).astype(np.int64), bins - 1)


def auc(target_B: TargetB, score_B: FloatB) -> float:
    """Area under the ROC curve: the chance that an AI image scores above a real one, ties counting half.

    Raises:
        ValueError: a class is empty or a score is not finite; so do all measures here.
    """
    return value_of("auc", target_B, score_B)


def value_of(name: str, target_B: TargetB, score_B: FloatB, weight_B: FloatB | None = None) -> float:
    """One of `MEASURES`, of images that may differ in weight."""
    return float(MEASURES[name](tally_of(target_B, score_B, weight_B))[0])


def roc(target_B: TargetB, score_B: FloatB, weight_B: FloatB | None = None) -> Roc:
    """False and true positive rates at each distinct score, of images that may differ in weight."""
    tally = tally_of(target_B, score_B, weight_B)
    fpr_T, tpr_T = (
        np.concatenate([[0.0], np.cumsum(row_DK[0]) / total])
        for row_DK, total in ((tally.real_DK, tally.real), (tally.ai_DK, tally.ai))
    )
    return Roc(fpr_T, tpr_T, np.concatenate([[np.inf], tally.score_K]))


def reliability(target_B: TargetB, p_ai_B: FloatB, bins: int = BINS) -> list[ReliabilityBin]:
    """What was said against what was so, in bins of equal width over `p_ai`."""
    bin_B = _bin_index(_probabilities(p_ai_B), bins)
    count_N = np.bincount(bin_B, minlength=bins)
    said_N, was_N = (np.bincount(bin_B, weights=value_B, minlength=bins) for value_B in (p_ai_B, target_B))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        p_ai_N, share_N = said_N / count_N, was_N / count_N
    return [
        ReliabilityBin(n / bins, (n + 1) / bins, int(count_N[n]), float(p_ai_N[n]), float(share_N[n]))
        for n in range(bins)
    ]


MEASURES: dict[str, Callable[[Tally], Floats]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
    "average_precision": _average_precision,
    "tpr_at_1_fpr": _tpr_at(0.01),
    "tpr_at_5_fpr": _tpr_at(0.05),
    "ece": _ece,
}
