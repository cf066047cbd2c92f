"""Two computations of one network are compared at every threshold, and refused past a written tolerance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aivsreal.export.graphs.parity import (
    HALF,
    SAME_WEIGHTS,
    STORED_WEIGHTS,
    Tolerance,
    check,
    parity,
    thresholds,
)
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.verdict import OperatingPoint


def _f(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_parity_counts_differences_and_flips() -> None:
    figures = parity(_f(1.0, -0.01, 3.0), _f(1.0, 0.01, 2.5))
    assert (figures.images, figures.flips) == (3, 1)
    assert figures.max_logit == pytest.approx(0.5)
    assert figures.mean_logit == pytest.approx(0.52 / 3)
    assert figures.farthest_flip == pytest.approx(0.0025, abs=1e-5)
    assert figures.max_probability == pytest.approx(1 / (1 + np.exp(-3)) - 1 / (1 + np.exp(-2.5)), abs=1e-6)


def test_a_flip_is_looked_for_at_every_threshold_and_after_calibration() -> None:
    reference_B, other_B = _f(2.0, -3.0), _f(2.4, -3.0)  # 0.731 and 0.769 at temperature 2
    assert parity(reference_B, other_B, 2.0).flips == 0
    found = parity(reference_B, other_B, 2.0, (0.5, 0.75))
    assert (found.flips, found.farthest_flip) == (1, pytest.approx(0.75 - 0.7311, abs=1e-4))
    assert parity(reference_B, other_B, 1.0, (0.5, 0.75)).flips == 0


def test_the_thresholds_are_those_of_the_operating_points() -> None:
    manifest = replace(Bundle.open().manifest, points=(OperatingPoint("balanced", 0.7, 0.3),), default_point="balanced")
    assert thresholds(manifest) == (0.3, 0.5, 0.7)


@pytest.mark.parametrize(
    ("reference", "other", "allowed", "words"),
    [
        ((1.0, 2.0), (1.0, 2.002), SAME_WEIGHTS, "logit differs by 0.002"),
        ((1.0, 2.0), (1.0005, 2.0), SAME_WEIGHTS, "p_ai differs on average"),
        ((1.0, 0.0), (1.0, 0.03), STORED_WEIGHTS, "p_ai differs by 0.0075"),
        ((1.0, 0.0), (1.0, 0.13), HALF, "p_ai differs by 0.032"),
        ((1.0, -1.0), (1.012, -1.012), HALF, "p_ai differs on average by 0.0024"),
        ((0.3, -2.0), (-0.3, -2.0), Tolerance(1.0, 1.0, 0.05), "a label flips at a distance"),
    ],
)
def test_a_difference_past_its_tolerance_is_refused(
    reference: tuple[float, ...], other: tuple[float, ...], allowed: Tolerance, words: str
) -> None:
    check("it", parity(_f(*reference), _f(*reference)), allowed)
    with pytest.raises(ExportError, match="nothing was written") as error:
        check("it", parity(_f(*reference), _f(*other)), allowed)
    assert words in str(error.value)


def test_the_tolerances_are_those_that_were_promised() -> None:
    assert SAME_WEIGHTS.max_probability == 1e-4
    assert (HALF.mean_probability, HALF.max_probability, HALF.flip_margin) == (2e-3, 3e-2, 0.05)


@pytest.mark.parametrize("logits", [(1.0, np.nan), (np.inf, 0.0), (0.3, 0.3)])
def test_logits_that_no_trained_network_gives_are_refused(logits: tuple[float, ...]) -> None:
    with pytest.raises(ExportError, match="nothing was written"):
        parity(_f(*logits), _f(*logits))
