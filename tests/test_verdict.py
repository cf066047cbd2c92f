"""From logits to labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivsreal.runtime.verdict import Label, OperatingPoint, Scanned, p_ai_from_logit, verdict_from_logit

POINT = OperatingPoint("balanced", 0.7, 0.3)


@pytest.mark.parametrize(
    ("p_ai", "label"), [(0.7, Label.AI), (0.69, Label.UNSURE), (0.3, Label.UNSURE), (0.29, Label.REAL), (1.0, Label.AI)]
)
def test_the_upper_bound_belongs_to_ai_and_the_lower_to_unsure(p_ai: float, label: Label) -> None:
    assert POINT.label(p_ai) is label


def test_without_a_band_every_image_gets_an_answer() -> None:
    point = OperatingPoint("half", 0.5, 0.5)
    assert [point.label(p_ai) for p_ai in (0.0, 0.49999, 0.5, 1.0)] == [Label.REAL, Label.REAL, Label.AI, Label.AI]


@pytest.mark.parametrize(("ai", "real"), [(0.3, 0.7), (1.1, 0.5), (0.5, -0.1), (float("nan"), 0.1)])
def test_bounds_that_cross_or_leave_the_range_are_refused(ai: float, real: float) -> None:
    with pytest.raises(ValueError, match="operating point odd"):
        OperatingPoint("odd", ai, real)


@given(st.floats(-1e6, 1e6), st.floats(0.05, 20))
def test_a_probability_is_the_sigmoid_and_never_overflows(logit: float, temperature: float) -> None:
    p_ai = p_ai_from_logit(logit, temperature)
    assert 0.0 <= p_ai <= 1.0
    assert p_ai + p_ai_from_logit(-logit, temperature) == pytest.approx(1.0)
    if 1e-12 < p_ai < 1 - 1e-12:
        assert math.log(p_ai / (1 - p_ai)) == pytest.approx(logit / temperature, rel=1e-3, abs=1e-6)


def test_a_verdict_says_why() -> None:
    verdict = verdict_from_logit(2.0, 2.0, POINT)
    assert verdict.p_ai == pytest.approx(1 / (1 + math.exp(-1)))
    assert (verdict.label, verdict.logit) == (Label.AI, 2.0)
    assert verdict.reason == "p_ai 0.731 is at or above 0.700 (balanced)"


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), -float("inf")])
def test_nonsense_of_a_network_is_no_verdict(logit: float) -> None:
    with pytest.raises(ValueError, match="no verdict"):
        verdict_from_logit(logit, 1.0, POINT)


def test_a_scanned_file_has_a_verdict_or_an_error() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Scanned(Path("x.jpg"))
    with pytest.raises(ValueError, match="exactly one"):
        Scanned(Path("x.jpg"), verdict_from_logit(0.0, 1.0, POINT), "broken")
