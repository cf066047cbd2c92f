"""What a teacher said of the patches of an image, found again under a crop of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.batches.augment import augmented, mirrored
from aivsreal.train.batches.data import TrainBatches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import PRESETS, AugmentConfig, TrainConfig
from aivsreal.train.fit.tokens import TokenBasis, grids_of, under
from aivsreal.train.samples import Sample

CPU = torch.device("cpu")
GRID = 7


@pytest.mark.parametrize("share", [0.875, 1.0])
def test_what_is_said_of_a_crop_is_what_lies_under_it(share: float) -> None:
    """A "teacher" that says of each patch its mean colour, on views whose colour is their place."""
    config = TrainConfig(
        spec=PreprocessSpec(56, crop_fraction=share),
        augment=AugmentConfig(crop_min=0.5, groups=4),
        batch_size=16,
        passes=2,
    )
    views = [
        np.stack(np.meshgrid(np.arange(width), np.arange(height), [90]), -1).reshape(height, width, 3).astype(np.uint8)
        for height, width in ((72, 72), (72, 130), (130, 72), (72, 100))
    ]
    samples = [Sample(__file__, ("real", "ai")[index % 2], "train", "made") for index in range(16)]  # type: ignore[arg-type]
    at = {id(sample): views[index % 4] for index, sample in enumerate(samples)}
    batches = TrainBatches(samples, config, lambda sample: at[id(sample)], Machine(workers=1))
    plain = batches.plain(config.spec, np.arange(len(samples)))
    plain_NCHW = torch.cat([crops.permute(0, 3, 1, 2).float() for crops_B, *_ in plain for crops in crops_B])
    said_NKHW = adaptive_avg_pool2d(plain_NCHW, GRID)[:, :2]
    known, mirrored_ones, beyond = 0, 0, 0
    for number, (crops, window_B3, _, index_B) in enumerate(batches.epoch(0)):
        seed = (0, number)
        flip_B = mirrored(len(index_B), config.augment, seed)
        seen_BKHW = adaptive_avg_pool2d(augmented(crops, 56, config.augment, seed, CPU), GRID)[:, :2]
        found_BKHW = under(said_NKHW[index_B], window_B3, flip_B, share)
        # Where the outer half of the outermost cells is asked, the nearest cell's middle answers.
        inside_BKHW = ~found_BKHW.isnan()
        apart_BKHW = (found_BKHW - seen_BKHW).abs()[inside_BKHW]
        assert apart_BKHW.max() <= 63 / GRID / 2 + 1
        assert apart_BKHW.median() < 1
        known, beyond = known + int(inside_BKHW.sum()), beyond + int((~inside_BKHW).sum())
        mirrored_ones += int(flip_B.sum())
    assert known > beyond > 0
    assert mirrored_ones > 5


def test_a_basis_keeps_what_tokens_say(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    mixed = [torch.randn(4, 24, generator=random) * 3 for _ in range(2)]
    tokens = [torch.randn(20, 9, 4, generator=random) @ mix + 5 for mix in mixed]
    basis = TokenBasis.of([x_BTC.flatten(0, 1) for x_BTC in tokens], 4)
    rows_BN = basis.kept(tokens)
    grids = grids_of(rows_BN.numpy().astype(np.float16), (3, 3))
    assert grids.shape == (20, 2, 4, 3, 3)
    torch.testing.assert_close(grids.square().mean((0, 2, 3, 4)), torch.ones(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(grids.mean((0, 3, 4)), torch.zeros(2, 4), atol=1e-2, rtol=0)
    for which, x_BTC in enumerate(tokens):  # four components hold all of what four directions were mixed of
        said_NK = grids[:, which].flatten(2).transpose(1, 2).flatten(0, 1)
        flat_NC = x_BTC.flatten(0, 1)
        again_NC = said_NK @ torch.linalg.lstsq(said_NK, flat_NC - flat_NC.mean(0)).solution + flat_NC.mean(0)
        assert (again_NC - flat_NC).abs().max() < 0.05
    basis.save(tmp_path / "basis.npz")
    torch.testing.assert_close(TokenBasis.load(tmp_path / "basis.npz", CPU).kept(tokens), rows_BN)


def test_nobody_was_asked_of_an_image_cut_from_two() -> None:
    with pytest.raises(ValueError, match="cut from two"):
        replace(PRESETS["student-once"], cutmix_p=0.3)
