"""From a logit to a verdict: calibrated probability, operating point, label and reason.

Legend: B image. `ai` is the positive class everywhere: `p_ai` near 1 means AI-generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

LABELS = ("real", "ai")  # in the order of the network's targets: 0, 1


class Label(str, Enum):
    """What a verdict says."""

    REAL = "real"
    AI = "ai"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where `p_ai` becomes a label: `ai` at or above the one bound, `real` below the other, `unsure` between.

    Raises:
        ValueError: the bounds are out of range or crossed.
    """

    name: str
    ai_at_or_above: float
    real_below: float
    false_alarm_rate: float | None = None
    """Share of real images called `ai` when it was measured; None where it was not."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.real_below <= self.ai_at_or_above <= 1.0:
            raise ValueError(
                f"operating point {self.name}: needs 0 <= real_below <= ai_at_or_above <= 1, "
                f"not {self.real_below} and {self.ai_at_or_above}"
            )

    def label(self, p_ai: float) -> Label:
        """The label of one calibrated probability."""
        if p_ai >= self.ai_at_or_above:
            return Label.AI
        return Label.REAL if p_ai < self.real_below else Label.UNSURE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one image."""

    label: Label
    p_ai: float
    """Calibrated probability that the image is AI-generated, 0 to 1."""
    logit: float
    """What the network said, before calibration."""
    reason: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """One scanned file: a verdict or the error that prevented it, never both."""

    path: Path
    verdict: Verdict | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if (self.verdict is None) == (self.error is None):
            raise ValueError("a scanned file has exactly one of verdict and error")


def p_ai_from_logit(logit: float, temperature: float) -> float:
    """`sigmoid(logit / temperature)` (Guo et al. 2017, arXiv:1706.04599), without overflow."""
    scaled = logit / temperature
    if scaled >= 0:
        return 1.0 / (1.0 + math.exp(-scaled))
    return math.exp(scaled) / (1.0 + math.exp(scaled))


def verdict_from_logit(logit: float, temperature: float, point: OperatingPoint) -> Verdict:
    """Calibrate and decide.

    Raises:
        ValueError: the logit is not finite: the backend computed nonsense, and no verdict may come of it.
    """
    if not math.isfinite(logit):
        raise ValueError(f"the network returned {logit}, which is no verdict")
    p_ai = p_ai_from_logit(logit, temperature)
    label = point.label(p_ai)
    bound = {
        Label.AI: f"p_ai {p_ai:.3f} is at or above {point.ai_at_or_above:.3f}",
        Label.REAL: f"p_ai {p_ai:.3f} is below {point.real_below:.3f}",
        Label.UNSURE: f"p_ai {p_ai:.3f} lies between {point.real_below:.3f} and {point.ai_at_or_above:.3f}",
    }[label]
    return Verdict(label, p_ai, logit, f"{bound} ({point.name})")
