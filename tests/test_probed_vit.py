"""The probed ViT: its map, its low-rank changes and its constants."""

from __future__ import annotations

import pytest
import torch
from pocket_vit import NAME, SIZE, pocket_vit

from aivsreal.runtime.networks.vit import (
    LowRankLinear,
    ProbedVit,
    is_vit,
    low_rank,
    merge_low_rank,
    probed_blocks,
    trained_names,
)
from aivsreal.runtime.networks.vit_weights import LOW_RANK, PREFIX


@pytest.fixture(scope="module")
def batch_BCHW() -> torch.Tensor:
    return torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_logit_is_the_mean_of_its_map(batch_BCHW: torch.Tensor) -> None:
    network = pocket_vit()
    logits_B1, map_BHW = network.logits_and_map(batch_BCHW)
    assert map_BHW.shape == (5, 4, 4)
    assert map_BHW.flatten(1).std(1).min() > 1e-2
    assert logits_B1.std() > 1e-2
    torch.testing.assert_close(map_BHW.mean((1, 2)), logits_B1[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(network(batch_BCHW), logits_B1, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_patch_moves_its_own_cell_of_the_map_most(batch_BCHW: torch.Tensor) -> None:
    network = pocket_vit()
    changed_BCHW = batch_BCHW.clone()
    changed_BCHW[:, :, 8:16, 24:32] += 1.0
    moved_BT = (network.logits_and_map(changed_BCHW)[1] - network.logits_and_map(batch_BCHW)[1]).flatten(1)
    own_BT = moved_BT - moved_BT.median(1, keepdim=True).values  # what the class tokens say is on every cell
    assert (own_BT.abs().argmax(1) == 1 * 4 + 3).all()


@torch.no_grad()
def test_a_fresh_low_rank_change_changes_nothing_and_a_trained_one_merges(batch_BCHW: torch.Tensor) -> None:
    network = pocket_vit()
    before_B1 = network(batch_BCHW)
    low_rank(network, 2, first=1)
    torch.testing.assert_close(network(batch_BCHW), before_B1, atol=0, rtol=0)
    changes = [module for module in network.modules() if isinstance(module, LowRankLinear)]
    assert len(changes) == 4 * 2  # four layers in each of the blocks 1 and 2
    for change in changes:
        change.up.normal_(0, 0.1)
    trained_B1 = network(batch_BCHW)
    assert (trained_B1 - before_B1).abs().max() > 1e-2
    merge_low_rank(network)
    assert not any(isinstance(module, LowRankLinear) for module in network.modules())
    torch.testing.assert_close(network(batch_BCHW), trained_B1, atol=1e-5, rtol=1e-5)
    assert network.state_dict().keys() == pocket_vit().state_dict().keys()


def test_what_training_changes_is_head_constants_and_low_rank_changes() -> None:
    network = pocket_vit()
    head = {"hidden.weight", "hidden.bias", "whole.weight", "head.weight", "head.bias", "shift", "scale"}
    assert set(trained_names(network)) == head
    low_rank(network, 2, first=2)
    more = set(trained_names(network)) - head
    assert len(more) == 4 * 2
    assert all(name.startswith(f"{PREFIX}blocks.2.") and name.endswith(LOW_RANK) for name in more)


def test_only_vits_with_a_class_token_can_be_probed() -> None:
    assert is_vit(NAME)
    assert is_vit("vit_base_patch16_clip_quickgelu_224")
    assert not is_vit("levit_192")
    assert not is_vit("vit_of_another_kind")
    with pytest.raises(ValueError, match="no ViT of that name"):
        ProbedVit("vit_of_another_kind", 32)
    with pytest.raises(ValueError, match="no class token"):
        ProbedVit("vit_base_patch16_siglip_224", 32)


def test_the_first_third_of_the_blocks_is_not_probed() -> None:
    assert probed_blocks(12) == (4, 5, 6, 7, 8, 9, 10, 11)
    assert probed_blocks(3) == (1, 2)
