"""Measures against cases small enough to count by hand; the same code was once compared with scikit-learn."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from aivsreal.train.evaluate.bootstrap import measures, share
from aivsreal.train.evaluate.metrics import (
    MEASURES,
    auc,
    reliability,
    roc,
    value_of,
)

TARGET_B = np.array([0, 0, 0, 1, 1])
P_AI_B = np.array([0.1, 0.4, 0.8, 0.6, 0.9])


def test_the_auc_counts_pairs_in_the_right_order() -> None:
    assert auc(TARGET_B, P_AI_B) == pytest.approx(5 / 6)


def test_ties_count_half_in_the_auc() -> None:
    assert auc(np.array([0, 1, 1]), np.array([0.5, 0.5, 0.7])) == pytest.approx(0.75)


def test_the_auc_takes_logits() -> None:
    assert auc(TARGET_B, np.array([-9.0, -1.0, 3.0, 2.0, 8.0])) == auc(TARGET_B, P_AI_B)


def test_accuracies_split_at_one_half_with_the_half_itself_being_ai() -> None:
    assert value_of("accuracy", TARGET_B, P_AI_B) == pytest.approx(4 / 5)
    assert value_of("balanced_accuracy", TARGET_B, P_AI_B) == pytest.approx((2 / 3 + 1) / 2)
    assert value_of("accuracy", np.array([0, 1]), np.array([0.5, 0.5])) == pytest.approx(0.5)


def test_average_precision_weighs_precision_by_the_recall_gained() -> None:
    # From the top: 0.9 ai (1/1), 0.8 real, 0.6 ai (2/3).
    assert value_of("average_precision", TARGET_B, P_AI_B) == pytest.approx((1 + 2 / 3) / 2)


def test_the_true_positive_rate_keeps_to_the_false_positive_rate() -> None:
    assert value_of("tpr_at_1_fpr", TARGET_B, P_AI_B) == pytest.approx(0.5)
    many_B = np.r_[np.zeros(100), np.ones(4)].astype(np.int64)  # one AI image of four lies below 3 of 100 real ones
    score_B = np.r_[np.linspace(0.0, 0.5, 97), np.full(3, 0.7), 0.6, 0.8, 0.9, 0.95]
    assert value_of("tpr_at_1_fpr", many_B, score_B) == pytest.approx(3 / 4)
    assert value_of("tpr_at_5_fpr", many_B, score_B) == pytest.approx(1.0)


def test_a_threshold_among_ties_takes_all_of_them_or_none() -> None:
    assert value_of("tpr_at_5_fpr", np.array([0, 1, 1]), np.array([0.9, 0.9, 0.9])) == 0.0


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    # Bin 0 holds 0.00 and 0.02 (gap 1/2 - 0.01), the last holds 1.0 twice (gap 1 - 1/2).
    value = value_of("ece", np.array([0, 1, 0, 1]), np.array([0.0, 0.02, 1.0, 1.0]))
    assert value == pytest.approx((2 * 0.49 + 2 * 0.5) / 4)


def test_perfect_answers_have_no_calibration_error() -> None:
    assert value_of("ece", np.array([0, 1]), np.array([0.0, 1.0])) == 0.0


def test_reliability_bins_say_what_was_claimed_and_what_was_so() -> None:
    rows = reliability(TARGET_B, P_AI_B, bins=2)
    assert [row.images for row in rows] == [2, 3]
    assert rows[1].p_ai_mean == pytest.approx(2.3 / 3)
    assert rows[1].ai_share == pytest.approx(2 / 3)


def test_an_empty_reliability_bin_has_no_share() -> None:
    assert np.isnan(reliability(TARGET_B, P_AI_B, bins=15)[7].ai_share)


def test_the_roc_curve_runs_from_corner_to_corner() -> None:
    curve = roc(TARGET_B, P_AI_B)
    assert curve.fpr_T == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert curve.tpr_T == pytest.approx([0, 0.5, 0.5, 1, 1, 1])
    assert curve.threshold_T[0] == np.inf


def test_the_bootstrap_gives_the_same_interval_for_the_same_seed() -> None:
    assert measures(TARGET_B, P_AI_B, seed=3) == measures(TARGET_B, P_AI_B, seed=3)


def test_an_interval_holds_its_value_and_narrows_with_more_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for images in (100, 4000):
        target_B = np.arange(images) % 2
        few = measures(target_B, np.clip(rng.normal(0.4 + 0.2 * target_B, 0.2), 0, 1), ("auc",))["auc"]
        assert few.low < few.value < few.high
        widths.append(few.high - few.low)
    assert widths[1] < widths[0] / 4


def test_the_bootstrap_agrees_with_drawing_images_one_by_one() -> None:
    rng = np.random.default_rng(1)
    target_B = np.arange(200) % 2
    p_ai_B = np.clip(rng.normal(0.4 + 0.2 * target_B, 0.2), 0, 1)
    ai, real = np.flatnonzero(target_B == 1), np.flatnonzero(target_B == 0)
    areas = []
    for _ in range(600):
        drawn = np.concatenate([rng.choice(ai, len(ai)), rng.choice(real, len(real))])
        areas.append(auc(target_B[drawn], p_ai_B[drawn]))
    measure = measures(target_B, p_ai_B, ("auc",))["auc"]
    assert [measure.low, measure.high] == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.01)


def test_all_measures_of_a_large_set_come_in_chunks() -> None:
    target_B = np.arange(9000) % 2
    p_ai_B = np.random.default_rng(2).random(9000)
    assert set(measures(target_B, p_ai_B, draws=500)) == set(MEASURES)


@pytest.mark.parametrize(
    ("target_B", "score_B", "message"),
    [
        (np.array([1, 1]), np.array([0.1, 0.2]), "both classes"),
        (np.array([0, 1]), np.array([0.1, np.nan]), "finite"),
        (np.array([0, 1]), np.array([0.1]), "finite"),
    ],
)
def test_a_measure_that_has_no_meaning_is_refused(
    target_B: np.ndarray[tuple[int], np.dtype[np.int64]],
    score_B: np.ndarray[tuple[int], np.dtype[np.float64]],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        auc(target_B, score_B)


def test_logits_have_no_calibration_error() -> None:
    with pytest.raises(ValueError, match="logits"):
        value_of("ece", np.array([0, 1]), np.array([-3.0, 3.0]))


def test_sources_weigh_alike_whatever_their_size() -> None:
    # Source a has three real images, all right; source b has one, and it is wrong.
    target_B, p_ai_B = np.array([0, 0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.7])
    sources = ["a", "a", "a", "b", "c", "c"]
    macro = measures(target_B, p_ai_B, source_B=sources)
    assert macro["accuracy"].value == pytest.approx((1 + 0 + 1) / 3)
    assert macro["balanced_accuracy"].value == pytest.approx((0.5 + 1) / 2)
    assert macro["auc"].value == pytest.approx(0.5)  # against a 1, against b 0
    assert measures(target_B, p_ai_B)["auc"].value == pytest.approx(6 / 8)


def test_one_source_a_class_is_no_other_measure() -> None:
    names = ("auc", "balanced_accuracy", "tpr_at_5_fpr")  # those that do not depend on the share of each class
    macro = measures(TARGET_B, P_AI_B, names, source_B=["a", "a", "a", "b", "b"])
    plain = measures(TARGET_B, P_AI_B, names)
    for name in names:
        assert astuple(macro[name]) == pytest.approx(astuple(plain[name])), name


def test_average_precision_knows_images_of_little_weight() -> None:
    target_B, p_ai_B = np.repeat([0, 1], 300), np.concatenate([np.linspace(0, 0.4, 300), np.linspace(0.6, 1, 300)])
    of_one = measures(target_B, p_ai_B, ("average_precision",), draws=2, source_B=["a"] * 300 + ["b"] * 300)
    assert of_one["average_precision"].value == 1.0  # it was 0.51
    light_B = np.full(600, 1 / 300)
    mixed_B = np.random.default_rng(0).random(600)
    assert value_of("average_precision", target_B, mixed_B, light_B) == pytest.approx(
        value_of("average_precision", target_B, mixed_B)
    )


def test_sources_that_weigh_alike_are_drawn_themselves() -> None:
    rng = np.random.default_rng(3)
    shift_S = rng.normal(0, 1, 24)  # sources differ more than their images do
    source_B = np.repeat(np.arange(24), 30)
    target_B = (source_B % 2).astype(np.int64)
    score_B = rng.normal(target_B + shift_S[source_B], 0.5)
    areas = []
    for _ in range(400):
        drawn = []
        for label in (0, 1):
            sources = rng.choice(np.arange(label, 24, 2), 12)
            drawn += [rng.choice(np.flatnonzero(source_B == source), 30) for source in sources]
        at = np.concatenate(drawn)
        areas.append(auc(target_B[at], score_B[at]))
    found = measures(target_B, score_B, ("auc",), source_B=[str(source) for source in source_B])["auc"]
    assert [found.low, found.high] == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.03)
    images = measures(target_B, score_B, ("auc",))["auc"]
    assert found.high - found.low > 3 * (images.high - images.low)


def test_a_share_of_all_images_is_not_sure() -> None:
    assert astuple(share(np.ones(10, dtype=bool))) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert astuple(share(np.zeros(37, dtype=bool))) == pytest.approx((0.0, 0.0, 0.0941), abs=1e-4)
    assert astuple(share(np.arange(10) < 5)) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


def test_a_share_has_the_interval_of_its_images() -> None:
    few, many = (share(np.arange(images) % 4 == 0) for images in (8, 800))
    assert few.value == many.value == 0.25
    assert few.low < many.low < 0.25 < many.high < few.high
