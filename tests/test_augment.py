"""Each random change alone, and all of them together."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from aivsreal.runtime.preprocess import square_from_pixels
from aivsreal.runtime.spec import Geometry, PreprocessSpec
from aivsreal.train.config import PRESETS, AugmentConfig
from aivsreal.train.fit.augment import augmented_square

SPEC = PreprocessSpec(64, crop_fraction=1.0)
NOTHING = AugmentConfig(crop_min=1.0, hflip_p=0.0, jitter_p=0.0)
CHANGES = [
    replace(NOTHING, **changes)  # type: ignore[arg-type]
    for changes in (
        {"crop_min": 0.5},
        {"native_crop_p": 1.0},
        {"hflip_p": 1.0},
        {"rotate_degrees": 15.0},
        {"jitter_p": 1.0, "brightness": 0.3},
        {"jitter_p": 1.0, "contrast": 0.3},
        {"jitter_p": 1.0, "saturation": 0.3},
        {"jitter_p": 1.0, "hue": 0.1},
        {"small_p": 1.0},
        {"restyle_p": 1.0},
        {"layout_p": 1.0},
        {"rescale_p": 1.0},
        {"blur_p": 1.0},
        {"sharpen_p": 1.0},
        {"noise_p": 1.0},
        {"jpeg_p": 1.0},
        {"jpeg_p": 1.0, "jpeg_twice_p": 1.0},
        {"webp_p": 1.0},
        {"grey_p": 1.0},
        {"shuffle_p": 1.0},
        {"frequency_noise_p": 1.0},
    )
]


def _pixels(height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _augmented(config: AugmentConfig, seed: int = 0, spec: PreprocessSpec = SPEC) -> np.ndarray:
    return augmented_square(_pixels(), spec, config, np.random.default_rng(seed))


@pytest.mark.parametrize("config", CHANGES, ids=lambda config: _name(config))
def test_each_change_alone_changes_the_image_and_only_the_seed_decides_how(config: AugmentConfig) -> None:
    plain_SSC = square_from_pixels(_pixels(80, 80), SPEC)
    changed = [augmented_square(_pixels(80, 80), SPEC, config, np.random.default_rng(3)) for _ in range(2)]
    assert (changed[0] == changed[1]).all()
    assert (changed[0].dtype, changed[0].shape) == (np.uint8, (64, 64, 3))
    assert (changed[0] != plain_SSC).any()


def test_every_field_is_covered_above() -> None:
    covered = {field.name for config in CHANGES for field in fields(config) if _differs(config, field.name)}
    assert covered == {field.name for field in fields(AugmentConfig)}


def _differs(config: AugmentConfig, name: str) -> bool:
    return bool(getattr(config, name) != getattr(NOTHING, name))


def _name(config: AugmentConfig) -> str:
    return "+".join(field.name for field in fields(config) if _differs(config, field.name))


def test_without_changes_the_network_sees_what_the_runtime_shows_it() -> None:
    assert (augmented_square(_pixels(80, 80), SPEC, NOTHING, np.random.default_rng(0)) == square_from_pixels(
        _pixels(80, 80), SPEC
    )).all()  # fmt: skip


def test_shuffling_keeps_every_pixel_and_every_tile() -> None:
    plain, shuffled = (_augmented(replace(NOTHING, shuffle_p=p), spec=replace(SPEC, geometry=Geometry.SQUASH))
                       for p in (0.0, 1.0))  # fmt: skip
    tiles = [
        sorted(image[y : y + 16, x : x + 16].tobytes() for y in range(0, 64, 16) for x in range(0, 64, 16))
        for image in (plain, shuffled)
    ]
    assert tiles[0] == tiles[1]
    assert (plain != shuffled).any()


def test_frequency_noise_moves_one_band_and_keeps_the_mean() -> None:
    smooth = np.tile(np.linspace(80, 160, 64)[:, None, None], (1, 64, 3))
    noise = np.random.default_rng(1).normal(0, 8, smooth.shape)
    image = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    changed = augmented_square(image, SPEC, replace(NOTHING, frequency_noise_p=1.0), np.random.default_rng(5))
    assert abs(changed.mean() - image.mean()) < 0.5
    before, after = (np.abs(np.fft.rfft2(values[..., 0].astype(float))) for values in (image, changed))
    moved = np.abs(after - before) > 0.2 * before.mean()
    assert 0.01 < moved.mean() < 0.9


def test_crops_stay_inside_and_differ() -> None:
    config = AugmentConfig(crop_min=0.5, native_crop_p=0.5)
    for geometry in Geometry:
        squares = [_augmented(config, seed, PreprocessSpec(64, geometry)) for seed in range(20)]
        assert len({square.tobytes() for square in squares}) == 20


def test_a_native_crop_resamples_nothing() -> None:
    square_SSC = _augmented(replace(NOTHING, native_crop_p=1.0))
    rows = {
        row.tobytes()
        for row in np.lib.stride_tricks.sliding_window_view(_pixels(), 64, axis=1)
        .transpose(0, 1, 3, 2)
        .reshape(-1, 64, 3)
    }
    assert all(row.tobytes() in rows for row in square_SSC)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_small_and_odd_images(preset: str) -> None:
    config = PRESETS[preset]
    for height, width in ((16, 16), (17, 300), (256, 213)):
        for seed in range(3):
            pixels_HWC = _pixels(height, width)
            square_SSC = augmented_square(pixels_HWC, config.spec, config.augment, np.random.default_rng(seed))
            assert square_SSC.shape == (224, 224, 3)
