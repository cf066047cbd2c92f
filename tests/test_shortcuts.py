"""The shortcut audit and the delivery tiers on images whose statistics are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.evaluate.shortcuts import (
    STATISTICS,
    baseline_from_statistics,
    property_aucs,
    statistics_from_pixels,
)
from aivsreal.train.evaluate.tiers import Tier, delivered
from aivsreal.train.samples import Sample

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def _noise(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _named(pixels_HWC: Pixels) -> dict[str, float]:
    return dict(zip(STATISTICS, statistics_from_pixels(pixels_HWC).tolist(), strict=True))


def test_there_are_fifteen_named_statistics() -> None:
    assert len(STATISTICS) == len(set(STATISTICS)) == 15
    assert np.isfinite(statistics_from_pixels(_noise(16, 16))).all()


def test_a_plain_colour_has_its_means_and_nothing_else() -> None:
    values = _named(np.full((40, 60, 3), (200, 100, 50), dtype=np.uint8))
    assert [values[f"{name}_mean"] for name in ("red", "green", "blue")] == [200, 100, 50]
    assert values["saturation_mean"] == pytest.approx(0.75)
    quiet = ("red_std", "gradient_energy", "laplacian_variance", "edge_density", "entropy", "noise_std")
    assert [values[name] for name in quiet] == pytest.approx([0] * len(quiet), abs=1e-6)


def test_noise_is_rougher_than_a_ramp() -> None:
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    rough, smooth = _named(_noise(128, 64)), _named(ramp)
    for name in ("gradient_energy", "laplacian_variance", "high_frequency_share", "edge_density", "noise_std"):
        assert rough[name] > smooth[name]


def test_blocks_of_eight_are_seen_and_blocks_of_seven_are_not() -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    blocks = {side: values.repeat(side, axis=0).repeat(side, axis=1).repeat(3, axis=2) for side in (7, 8)}
    assert _named(blocks[8])["blockiness"] > 1000
    assert _named(blocks[7])["blockiness"] < 3


def test_the_baseline_learns_what_a_line_can_tell_and_no_more() -> None:
    rng = np.random.default_rng(0)
    target_B = np.arange(400) % 2
    statistics_BF = rng.normal(size=(400, 15))
    statistics_BF[:, 3] += 2 * target_B
    baseline = baseline_from_statistics(statistics_BF[:200], target_B[:200])
    assert baseline.images == 200
    assert np.argmax(np.abs(baseline.weight_F)) == 3
    assert auc(target_B[200:], baseline.logits(statistics_BF[200:])) > 0.85
    assert np.array_equal(baseline.weight_F, baseline_from_statistics(statistics_BF[:200], target_B[:200]).weight_F)


def test_the_baseline_is_where_the_gradient_vanishes() -> None:
    rng = np.random.default_rng(1)
    target_B = rng.integers(0, 2, 100)
    statistics_BF = rng.normal(size=(100, 15)) * 7 + 3
    baseline = baseline_from_statistics(statistics_BF, target_B, l2=2.0)
    residual_B = 1 / (1 + np.exp(-baseline.logits(statistics_BF))) - target_B
    inputs_BF = (statistics_BF - baseline.mean_F) / baseline.std_F
    assert inputs_BF.T @ residual_B + 2 * baseline.weight_F == pytest.approx(np.zeros(15), abs=1e-6)
    assert residual_B.sum() == pytest.approx(0, abs=1e-6)


def test_classes_that_are_separated_and_a_constant_statistic_do_no_harm() -> None:
    statistics_BF = np.ones((20, 15))
    statistics_BF[:, 0] = np.arange(20)
    target_B = (np.arange(20) >= 10).astype(np.int64)
    baseline = baseline_from_statistics(statistics_BF, target_B)
    assert np.isfinite(baseline.weight_F).all()
    assert auc(target_B, baseline.logits(statistics_BF)) == 1.0


def test_a_baseline_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes"):
        baseline_from_statistics(np.ones((3, 15)), np.ones(3, dtype=np.int64))


def test_a_file_property_that_gives_the_class_away_has_an_auc_of_one(tmp_path: Path) -> None:
    samples = []
    for index in range(6):
        label = "ai" if index % 2 else "real"
        path = tmp_path / (f"{index}.png" if label == "ai" else f"{index}.jpg")
        Image.fromarray(_noise(32 if label == "ai" else 64, 32, index)).save(path)
        samples.append(Sample(path, label, "test", "s"))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    areas = property_aucs([*samples, Sample(broken, "real", "test", "s")])
    assert set(areas) == {"width", "height", "pixels", "aspect", "bytes_per_pixel", "format"}
    assert areas["width"] == areas["format"] == areas["pixels"] == 1.0
    assert areas["height"] == 0.5


@pytest.mark.parametrize(
    ("tier", "size", "expected"),
    [
        (Tier.CLEAN, (1000, 500), (1000, 500)),
        (Tier.WEB, (1000, 500), (768, 384)),
        (Tier.WEB, (300, 200), (300, 200)),
        (Tier.HARD, (500, 1000), (256, 512)),
        (Tier.HARD, (2000, 20), (512, 16)),
    ],
)
def test_a_delivery_shrinks_to_its_long_side_and_never_enlarges(
    tier: Tier, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    arrived_HWC = delivered(_noise(*size), tier)
    assert (arrived_HWC.shape[1], arrived_HWC.shape[0]) == expected
    assert arrived_HWC.dtype == np.uint8


def test_a_harder_delivery_loses_more() -> None:
    pixels_HWC = _noise(64, 64)
    lost = [float(np.abs(delivered(pixels_HWC, tier).astype(float) - pixels_HWC).mean()) for tier in Tier]
    assert lost[0] == 0 < lost[1] < lost[2]
