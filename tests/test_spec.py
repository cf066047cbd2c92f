"""The one value that says how pixels become the input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivsreal.runtime.spec import Geometry, PreprocessSpec, ResizeFilter, halvings, spec_from_json

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.floats(0.01, 1.0))
def test_a_centre_crop_is_a_centred_square_inside_the_image(width: int, height: int, fraction: float) -> None:
    spec = PreprocessSpec(crop_fraction=fraction)
    left, top, right, bottom = spec.box(width, height)
    step = halvings(min(width, height), spec.least_side)  # 1 unless the picture is large enough to be decoded smaller
    assert abs(right - left - max(1.0, min(width, height) * fraction)) < 2 * step
    assert abs((right - left) - (bottom - top)) < step
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert abs(width - right - left) <= 2 * step
    assert abs(height - bottom - top) <= 2 * step
    if step == 1:
        assert right - left == bottom - top == max(1, round(min(width, height) * fraction))


@given(st.integers(16, 40_000), st.integers(16, 40_000), st.sampled_from([0.5, 0.7, 0.875, 1.0]))
def test_a_picture_decoded_at_a_smaller_scale_is_seen_in_the_same_box(width: int, height: int, fraction: float) -> None:
    spec = PreprocessSpec(crop_fraction=fraction)
    divisor = min(8, halvings(min(width, height), spec.least_side))
    box = spec.box(-(-width // divisor), -(-height // divisor))
    assert spec.box(width, height) == tuple(
        min(edge * divisor, side) for edge, side in zip(box, (width, height) * 2, strict=True)
    )


def test_a_smaller_scale_still_holds_twice_the_input() -> None:
    for spec in (PreprocessSpec(), PreprocessSpec(96, Geometry.SQUASH), PreprocessSpec(160, crop_fraction=0.5)):
        for side in range(1, 9000, 37):
            divisor = halvings(side, spec.least_side)
            assert divisor == 1 or -(-side // divisor) >= spec.least_side
            assert -(-side // (2 * divisor)) < spec.least_side
        left, _, right, _ = spec.box(spec.least_side, spec.least_side)
        assert right - left >= 2 * spec.size - 1


def test_squash_sees_the_whole_image() -> None:
    assert PreprocessSpec(geometry=Geometry.SQUASH).box(300, 200) == (0, 0, 300, 200)


def test_256_pixels_are_cropped_to_the_input_without_resampling() -> None:
    assert PreprocessSpec().box(256, 256) == (16, 16, 240, 240)


def test_the_affine_step_is_the_formula() -> None:
    spec = PreprocessSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    scale_C, bias_C = spec.affine()
    value = np.arange(256)[:, None]
    formula = (value / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert np.abs(value * scale_C + bias_C - formula).max() < 1e-6
    assert scale_C.dtype == bias_C.dtype == np.float32


def test_a_spec_survives_json() -> None:
    for geometry in Geometry:
        for kernel in ResizeFilter:
            spec = PreprocessSpec(96, geometry, 0.75, kernel, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
            assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"crop_fraction": 0.0},
        {"crop_fraction": 1.5},
        {"std": [0.5, 0.0, 0.5]},
        {"mean": [0.5, 0.5]},
        {"filter": "nearest"},
        {"antialias": False},
        {"unknown": 1},
    ],
)
def test_what_is_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        spec_from_json({**PreprocessSpec().to_json(), **change})
