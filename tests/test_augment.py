"""Each random change alone, all of them together, and JPEG beside libjpeg."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from aivsreal.runtime.preprocess import square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.batches.augment import augmented, jpeg, patched, perturbed
from aivsreal.train.batches.cache import reduced
from aivsreal.train.batches.data import Crops, TrainBatches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import PRESETS, AugmentConfig, TrainConfig
from aivsreal.train.samples import Sample

CPU = torch.device("cpu")
NOTHING = AugmentConfig(crop_min=1.0, groups=1, hflip_p=0.0)
CHANGES = {
    field.name: replace(NOTHING, **{field.name: 1.0})  # type: ignore[arg-type]
    for field in fields(AugmentConfig)
    if field.name.endswith("_p")
}


def _crops(side: int = 64, count: int = 6, groups: int = 1) -> list[torch.Tensor]:
    """Slopes with noise that is smooth over some pixels, as photos are."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(groups * count):
        coarse_HWC = rng.integers(30, 225, (side // 4, side // 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse_HWC).resize((side, side), Image.Resampling.BICUBIC)
        made.append(np.asarray(image, dtype=np.int16) + rng.integers(-6, 7, (side, side, 3)))
    crops = torch.from_numpy(np.clip(made, 0, 255).astype(np.uint8))
    return list(crops.split(count))


def _levels(crops: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(crops).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_alone_changes_every_image_and_only_the_seed_decides_how(name: str) -> None:
    crops = _crops()
    first, again = (augmented(crops, 64, CHANGES[name], (7, 0, 0), CPU) for _ in range(2))
    assert torch.equal(first, again)
    assert (first != _levels(crops)).flatten(1).any(1).all()
    assert ((first >= 0) & (first <= 255) & (first == first.round())).all()
    if name not in ("hflip_p", "grey_p"):  # which draw nothing more than whether
        assert not torch.equal(first, augmented(crops, 64, CHANGES[name], (6, 0, 0), CPU))


def test_no_change_is_so_large_that_the_image_is_gone() -> None:
    crops = _crops()
    for name, config in CHANGES.items():
        changed = augmented(crops, 64, config, (5, 0, 0), CPU)
        if name != "hflip_p":
            assert (changed - _levels(crops)).abs().mean() < 40, name
        assert (changed.mean((2, 3)) - _levels(crops).mean((2, 3))).abs().max() < 60, name


def test_without_changes_nothing_is_changed() -> None:
    crops = _crops()
    assert torch.equal(augmented(crops, 64, NOTHING, (0, 0, 0), CPU), _levels(crops))


def test_a_probability_is_the_share_of_images_that_change() -> None:
    crops = _crops(16, 400)
    changed = (augmented(crops, 16, replace(NOTHING, noise_p=0.3), (1, 0, 0), CPU) != _levels(crops)).flatten(1).any(1)
    assert 0.22 < changed.float().mean() < 0.38


def test_groups_differ_in_what_is_drawn_once_for_each() -> None:
    crops = [_crops()[0], _crops()[0].clone()]
    first, second = augmented(crops, 64, replace(NOTHING, blur_p=1.0), (0, 0, 0), CPU).chunk(2)
    assert not torch.equal(first, second)


def test_a_flip_is_a_mirror_image() -> None:
    crops = _crops()
    flipped = augmented(crops, 64, CHANGES["hflip_p"], (0, 0, 0), CPU)
    assert torch.equal(flipped.flip(3), _levels(crops))


def test_frequency_noise_moves_one_band_and_keeps_the_mean() -> None:
    crops = _crops()
    changed = augmented(crops, 64, CHANGES["frequency_noise_p"], (5, 0, 0), CPU)
    assert (changed.mean((2, 3)) - _levels(crops).mean((2, 3))).abs().max() < 1
    before, after = (torch.fft.rfft2(levels).abs() for levels in (_levels(crops), changed))
    moved = (after - before).abs() > 0.2 * before.mean()
    assert 0.01 < moved.float().mean() < 0.9


@pytest.mark.parametrize("subsampled", [False, True])
@pytest.mark.parametrize("side", [64, 53])
def test_jpeg_is_that_of_libjpeg(subsampled: bool, side: int) -> None:
    crops_BHWC = _crops(64, 4)[0][:, :side]
    levels_BCHW = crops_BHWC.permute(0, 3, 1, 2).float()
    differences, harm = [], []
    for quality in range(40, 96, 5):
        ours_BCHW = jpeg(levels_BCHW, np.full(len(levels_BCHW), float(quality)), subsampled)
        for ours_CHW, crop_HWC in zip(ours_BCHW, crops_BHWC, strict=True):
            buffer = io.BytesIO()
            subsampling = "4:2:0" if subsampled else "4:4:4"
            Image.fromarray(crop_HWC.numpy()).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
            theirs_HWC = np.asarray(Image.open(buffer)).astype(np.float32)
            differences.append(np.abs(ours_CHW.permute(1, 2, 0).numpy() - theirs_HWC).mean())
            harm.append(np.abs(crop_HWC.numpy() - theirs_HWC).mean())
    assert max(differences) < 1, differences
    assert np.mean(differences) < np.mean(harm) / 5  # and not because JPEG does nothing here


@pytest.mark.parametrize("quality", range(35, 49))
def test_low_qualities_have_the_tables_of_libjpeg(quality: int) -> None:
    crops_BHWC = _crops(64, 4)[0]
    ours_BCHW = jpeg(crops_BHWC.permute(0, 3, 1, 2).float(), np.full(len(crops_BHWC), float(quality)), False)
    for ours_CHW, crop_HWC in zip(ours_BCHW, crops_BHWC, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(crop_HWC.numpy()).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
        theirs_HWC = np.asarray(Image.open(buffer)).astype(np.float32)
        assert np.abs(ours_CHW.permute(1, 2, 0).numpy() - theirs_HWC).mean() < 0.6  # 3 with tables of no whole scale


def test_jpeg_takes_another_quality_for_each_image() -> None:
    crops_BHWC = _crops(64, 1)[0].expand(3, -1, -1, -1)
    low, high, same = jpeg(crops_BHWC.permute(0, 3, 1, 2).float(), np.array([35.0, 95.0, 35.0]), True)
    assert torch.equal(low, same)
    assert not torch.equal(low, high)


def _batches(pixels: list[np.ndarray], config: TrainConfig) -> TrainBatches:
    samples = [Sample(__file__, ("real", "ai")[index % 2], "train", "made") for index in range(len(pixels))]  # type: ignore[arg-type]
    at = {id(sample): values for sample, values in zip(samples, pixels, strict=True)}
    return TrainBatches(samples, config, lambda sample: at[id(sample)], Machine(workers=1))


def test_crops_stay_inside_and_differ() -> None:
    side = 90
    index_HWC = np.stack(np.meshgrid(np.arange(120), np.arange(side), [7]), -1).reshape(side, 120, 3).astype(np.uint8)
    augment = AugmentConfig(crop_min=0.5, groups=4)
    config = TrainConfig(spec=PreprocessSpec(70), augment=augment, batch_size=32, passes=3)
    assert config.view_side == side
    seen = set()
    for crops, *_ in _batches([index_HWC] * 32, config).epoch(0):
        assert len(crops) == 4
        for crops_BHWC in crops:
            assert side / 2 <= crops_BHWC.shape[1] == crops_BHWC.shape[2] <= side
            for crop_HWC in crops_BHWC.numpy().astype(int):
                assert (np.diff(crop_HWC[..., 0], axis=1) == 1).all(), "a crop of this view is not resampled"
                assert (np.diff(crop_HWC[..., 1], axis=0) == 1).all()
                seen.add((len(crop_HWC), *crop_HWC[0, 0, :2]))
    assert len(seen) > 20


def test_the_middle_is_cut_where_the_runtime_cuts_it() -> None:
    top_B, left_B = Crops(np.array([0, 1]), 8).corners(np.array([11, 8]), np.array([8, 14]))
    assert (top_B.tolist(), left_B.tolist()) == ([1, 0], [0, 3])
    ends_B2 = np.array([[0.0, 0.0], [np.nextafter(1, 0), np.nextafter(1, 0)]])
    top_B, left_B = Crops(np.array([0, 1]), 8, ends_B2).corners(np.array([11, 11]), np.array([8, 14]))
    assert (top_B.tolist(), left_B.tolist()) == ([0, 3], [0, 6])


def test_a_whole_view_reaches_the_network_as_the_runtime_shows_it() -> None:
    spec = PreprocessSpec(56, crop_fraction=1.0)
    config = TrainConfig(spec=spec, augment=NOTHING, batch_size=2)
    view_HWC = np.asarray(_crops(config.view_side, 1)[0][0])
    ((crops, *_),) = _batches([view_HWC] * 2, config).epoch(0)
    seen_BCHW = augmented(crops, 56, NOTHING, (4, 0, 0), CPU)
    wanted_CHW = torch.from_numpy(square_from_pixels(view_HWC, spec).copy()).permute(2, 0, 1).float()
    # The group's filter is bicubic or bilinear; with this seed Pillow's bicubic, up to the rounding of its two passes.
    assert (seen_BCHW - wanted_CHW).abs().max() <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_small_and_odd_images(preset: str) -> None:
    config = replace(PRESETS[preset], batch_size=4)
    shapes = ((16, 16, 3), (17, 300, 3), (288, 240, 3), (500, 75, 3))
    rng = np.random.default_rng(0)
    pixels = [reduced(rng.integers(0, 255, shape, dtype=np.uint8), config.view_side) for shape in shapes]
    for crops, _, target_B, index_B in _batches(pixels, config).epoch(0):
        levels_BCHW = augmented(crops, config.spec.size, config.augment, (0, 0, 0), CPU)
        assert levels_BCHW.shape == (4, 3, config.spec.size, config.spec.size)
        assert target_B.tolist() == (index_B % 2).tolist()


def test_cutmix_mixes_targets_by_the_area_that_was_replaced() -> None:
    target_B = torch.tensor([0.0, 1.0] * 32)
    batch_BCHW = target_B[:, None, None, None].expand(-1, 3, 20, 30).clone()
    mixed_BCHW, mixed_B = patched(batch_BCHW, 1.0, (3, 1), target_B)
    # Every pixel is its image's target here, so the mean of an image is its new target.
    torch.testing.assert_close(mixed_BCHW.mean((1, 2, 3)), mixed_B)
    assert 8 < int(((mixed_B > 0.1) & (mixed_B < 0.9)).sum()) < 64
    again_BCHW, again_B = patched(batch_BCHW, 1.0, (3, 1), target_B)
    assert torch.equal(again_BCHW, mixed_BCHW)
    assert torch.equal(again_B, mixed_B)
    assert torch.equal(batch_BCHW.mean((1, 2, 3)), target_B), "what came in is as it was"
    untouched_BCHW, untouched_B = patched(batch_BCHW, 0.0, (3, 1), target_B)
    assert torch.equal(untouched_BCHW, batch_BCHW)
    assert torch.equal(untouched_B, target_B)


def test_cutmix_mixes_all_that_is_known_and_an_unknown_label_spreads_to_what_it_touches() -> None:
    target_B = torch.tensor([0.0, float("nan")] * 32)
    components_BC = torch.arange(64.0)[:, None].expand(-1, 3)
    _, mixed_B, mixed_BC = patched(torch.zeros(64, 3, 20, 30), 0.5, (3, 1), target_B, components_BC)
    changed_B = (mixed_BC != components_BC).any(1)
    assert 10 < changed_B.sum() < 54
    assert torch.equal(mixed_B[~changed_B].isnan(), target_B[~changed_B].isnan())
    assert target_B.isnan().sum() < mixed_B.isnan().sum() < 64


def test_noise_of_the_second_view_is_within_one_to_eight_levels() -> None:
    levels_BCHW = torch.full((16, 3, 32, 32), 128.0)
    strength_B = (perturbed(levels_BCHW, (2, 0, 0)) - levels_BCHW).flatten(1).std(1)
    assert strength_B.min() > 0.9
    assert strength_B.max() < 8.5
    assert strength_B.std() > 0.5
    assert torch.equal(perturbed(levels_BCHW, (2, 0, 0)), perturbed(levels_BCHW, (2, 0, 0)))
