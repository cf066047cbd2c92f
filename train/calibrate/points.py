"""From labelled logits to a temperature and named operating points with an unsure band.

Both classes weigh the same in every rate here, and so does each source of a class, however many images it has: a
detector must be right on sources that nobody has seen, and a large one would hide ten small ones.

Legend: B image; T threshold. `target_B` is 1 for ai and 0 for real.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.verdict import LABELS, OperatingPoint, p_ai_from_logit
from aivsreal.train.evaluate.judging import too_few
from aivsreal.train.evaluate.logistic import logistic_weights
from aivsreal.train.evaluate.metrics import FloatB, Floats, TargetB, roc
from aivsreal.train.samples import weights_of

COLDEST, HOTTEST = 0.05, 20.0  # bounds of the temperature: classes that are separated perfectly have no minimum
FALSE_ALARMS = 0.01  # of `cautious`: at most this share of real images is called ai
MISSES = 0.05  # of `sensitive`: at most this share of AI images is called real
DEFAULT_ALARMS = 0.05  # of `balanced`, where it is the default: more would be a nuisance
BAND_ERROR = 0.5  # the band grows until the error outside is at most this share of the error without a band ...
LEAST_COVERAGE = 0.5  # ... but never so far that fewer images than this get an answer
_WIDTHS = 200  # bands that are tried for each point


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """An operating point and what it did to the images that it was chosen on."""

    point: OperatingPoint
    coverage: float
    """Share of images that are called real or ai, and not unsure; the mean of both classes, as all shares here."""
    miss_rate: float
    """Share of AI images called real."""
    error: float
    """Share of wrong answers among the images that got one."""
    error_without_band: float
    """The same where the point's threshold alone decides."""


def weights_alike(target_B: TargetB, source_B: Sequence[str]) -> Floats:
    """`weight_B`, 1 in sum: half for each class, in equal parts for its sources, in equal parts for their images."""
    return weights_of([(LABELS[target], source) for target, source in zip(target_B, source_B, strict=True)], power=0)


def nll(target_B: TargetB, logit_B: FloatB, weight_B: Floats, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood `log(1 + exp(z)) - target * z` with `z = logit / temperature`."""
    scaled_B = np.asarray(logit_B, dtype=np.float64) / temperature
    return float(np.average(np.logaddexp(0.0, scaled_B) - target_B * scaled_B, weights=weight_B))


def temperature_from_logits(target_B: TargetB, logit_B: FloatB, weight_B: Floats) -> float:
    """The temperature with the least NLL (Guo et al. 2017, arXiv:1706.04599), between 0.05 and 20.

    The NLL is convex in `1 / temperature`, so it has one minimum and golden-section search on log T finds it.

    Raises:
        ValueError: a class is empty or a logit is not finite.
    """
    _check(target_B, logit_B)
    low, high = math.log(COLDEST), math.log(HOTTEST)
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if nll(target_B, logit_B, weight_B, math.exp(left)) < nll(target_B, logit_B, weight_B, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def offset_from_logits(target_B: TargetB, logit_B: FloatB, weight_B: Floats) -> float:
    """The `offset` that, with the best scale, has the least NLL of `sigmoid((logit - offset) / scale)` (Platt 1999).

    With classes that weigh the same the share of AI images in the data does not become a prior.

    Raises:
        ValueError: a class is empty, a logit is not finite, or higher logits do not mean ai.
    """
    _check(target_B, logit_B)
    inputs_B2 = np.column_stack([np.asarray(logit_B, dtype=np.float64), np.ones(len(target_B))])
    slope, shift = logistic_weights(inputs_B2, target_B, np.full(2, 1e-6), weight_B).tolist()
    if slope <= 0:
        raise ValueError("higher logits do not mean ai on these images: there is nothing to calibrate")
    return float(-shift / slope)


def doubts_of(real: int, ai: int, temperature: float) -> list[str]:
    """What a calibration cannot claim, in words; empty where there is nothing.

    Args:
        real: as of `too_few`.
        ai: the same.
        temperature: what was fitted.
    """
    doubts = too_few(real, ai, ", so no rate is stated")
    if not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        doubts.append(
            f"the temperature {temperature:.3g} stands at its bound: p_ai is no probability, because the images are "
            "told apart without a mistake, or not at all"
        )
    return doubts


def points_from_logits(
    target_B: TargetB, logit_B: FloatB, weight_B: Floats, temperature: float
) -> dict[str, MeasuredPoint]:
    """Three operating points over `p_ai = sigmoid(logit / temperature)`, each with an unsure band.

    - `balanced`: the threshold with the highest balanced accuracy, the band on both sides of it, even in logits; `ai`
      where at most 5 % of the real images are.
    - `cautious`: `ai` where at most 1 % of the real images are, the band below: it accuses last.
    - `sensitive`: `real` where at most 5 % of the AI images are, the band above: it clears last.

    Of the bands tried the narrowest is taken outside of which the error is at most half of that without a band; where
    more than half of the images would be unsure, the widest that leaves half of them an answer.

    Raises:
        ValueError: a class is empty or a logit is not finite.
    """
    _check(target_B, logit_B)
    scaled_B = np.asarray(logit_B, dtype=np.float64) / temperature
    curve = roc(target_B, scaled_B, weight_B)
    # A cut halfway between two scores: the images at either side keep their distance from it.
    ends = np.concatenate([[curve.threshold_T[1] + 1], curve.threshold_T[1:], [curve.threshold_T[-1] - 1]])
    cut_T = (ends[:-1] + ends[1:]) / 2
    best = float(cut_T[np.argmax(curve.tpr_T - curve.fpr_T)])
    few_alarms = float(cut_T[np.flatnonzero(curve.fpr_T <= FALSE_ALARMS + 1e-12)[-1]])
    few_misses = float(cut_T[np.flatnonzero(curve.tpr_T >= 1 - MISSES - 1e-12)[0]])
    nuisance = float(cut_T[np.flatnonzero(curve.fpr_T <= DEFAULT_ALARMS + 1e-12)[-1]])
    bands = {
        "balanced": (  # without a band first, as all begin
            (best - width, max(best + width, nuisance) if width else best) for width in _widths(np.abs(scaled_B - best))
        ),
        "cautious": ((few_alarms - width, few_alarms) for width in _widths(few_alarms - scaled_B)),
        "sensitive": ((few_misses, few_misses + width) for width in _widths(scaled_B - few_misses)),
    }
    return {name: _with_band(name, band, target_B, scaled_B, weight_B) for name, band in bands.items()}


def measured_point(
    name: str, bounds: tuple[float, float], target_B: TargetB, p_ai_B: Floats, weight_B: Floats
) -> MeasuredPoint:
    """What bounds do to labelled images; `error_without_band` is then that of these bounds too.

    Args:
        name: of the point.
        bounds: `p_ai` below the first is real, from the second on ai.
        target_B: the classes.
        p_ai_B: what was said.
        weight_B: of each image.
    """
    real_below, ai_from = bounds

    def shares(is_so_B: npt.NDArray[np.bool_]) -> list[float]:
        """Of the real images, and of the AI images."""
        return [float(np.average(is_so_B[target_B == label], weights=weight_B[target_B == label])) for label in (0, 1)]

    alarms, found = shares(p_ai_B >= ai_from)
    cleared, missed = shares(p_ai_B < real_below)
    answered = alarms + found + cleared + missed
    error = (alarms + missed) / answered if answered else 0.0
    point = OperatingPoint(name, ai_from, real_below, alarms)
    return MeasuredPoint(point, answered / 2, missed, error, error)


def _with_band(
    name: str, bands: Iterable[tuple[float, float]], target_B: TargetB, scaled_B: Floats, weight_B: Floats
) -> MeasuredPoint:
    p_ai_B = np.array([p_ai_from_logit(scaled, 1.0) for scaled in scaled_B.tolist()])  # as a scan says it
    chosen: MeasuredPoint | None = None
    bare_error = 0.0
    for low, high in bands:  # from no band at all to the widest
        bounds = p_ai_from_logit(low, 1.0), p_ai_from_logit(high, 1.0)
        tried = measured_point(name, bounds, target_B, p_ai_B, weight_B)
        if chosen is None:
            bare_error = tried.error
        elif tried.coverage < LEAST_COVERAGE:
            break
        chosen = MeasuredPoint(tried.point, tried.coverage, tried.miss_rate, tried.error, bare_error)
        if chosen.error <= BAND_ERROR * bare_error:
            break
    assert chosen is not None
    return chosen


def default_point_of(measured: Mapping[str, MeasuredPoint]) -> str:
    """`balanced` where it calls at most 5 % of the real images ai, else `cautious`."""
    alarms = measured["balanced"].point.false_alarm_rate
    return "balanced" if alarms is not None and alarms <= DEFAULT_ALARMS else "cautious"


def _widths(distance_B: Floats) -> list[float]:
    inside_B = np.unique(distance_B[distance_B > 0])
    if not len(inside_B):
        return [0.0]
    # Halfway between two images again, the last beyond them all; quantiles keep the work bounded for large sets.
    between_B = np.append((inside_B[:-1] + inside_B[1:]) / 2, inside_B[-1] + 1)
    quantiles = np.linspace(0, 1, min(_WIDTHS, len(between_B)))
    return [0.0, *np.quantile(between_B, quantiles, method="nearest").tolist()]


def _check(target_B: TargetB, logit_B: FloatB) -> None:
    if not (target_B == 1).any() or not (target_B == 0).any():
        raise ValueError("calibration needs images of both classes")
    if len(target_B) != len(logit_B) or not np.isfinite(logit_B).all():
        raise ValueError("each image needs one finite logit")
