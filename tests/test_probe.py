"""The head over a frozen encoder: logistic regression on its features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pocket_vit import SIZE, pocket_vit

from aivsreal.runtime.backends.vit import ProbedVit
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.probe import STRENGTHS, Features, features_from_batches, fit_head


@pytest.fixture
def network() -> ProbedVit:
    network = pocket_vit()
    network.shift.zero_()
    network.scale.fill_(1)
    return network


def _planted(width: int, count: int, seed: int) -> Features:
    """Features of very different sizes, of which three tell the classes apart a little."""
    random = torch.Generator().manual_seed(seed)
    target_N = (torch.arange(count) % 2).float()
    features_NF = torch.randn(count, width, generator=random)
    features_NF[:, :3] += 1.5 * target_N[:, None]
    return Features(features_NF * torch.logspace(-2, 3, width) + 7, target_N)


def _auc_on(val: Features) -> Callable[[Callable[[torch.Tensor], torch.Tensor]], float]:
    return lambda logits_of: auc(val.target_N.numpy().astype(np.int64), logits_of(val.features_NF).numpy())


def test_features_are_those_of_the_network_in_the_order_of_the_batches(network: ProbedVit) -> None:
    batch_BCHW = torch.randn(6, 3, SIZE, SIZE)
    target_B = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    found = features_from_batches(network, zip(batch_BCHW.split(4), target_B.split(4), strict=True))
    assert torch.equal(found.target_N, target_B)
    with torch.no_grad():
        torch.testing.assert_close(found.features_NF, network.features(batch_BCHW)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_best_penalty_is_found_and_its_head_is_set(network: ProbedVit) -> None:
    width = network.shift.numel()
    train, val = _planted(width, 300, 1), _planted(width, 400, 2)
    with torch.enable_grad():
        found = fit_head(network, train, torch.ones(300), _auc_on(val))
    assert list(found) == [f"{strength:g}" for strength in sorted(STRENGTHS, reverse=True)]
    assert max(found.values()) > 0.85
    assert max(found.values()) > list(found.values())[-1], "the weakest penalty learns noise"
    set_NF = (val.features_NF - network.shift) / network.scale
    logits_N = torch.nn.functional.linear(set_NF, network.head.weight, network.head.bias)[:, 0]
    assert auc(val.target_N.numpy().astype(np.int64), logits_N.numpy()) == pytest.approx(max(found.values()), abs=1e-4)


def test_images_count_by_their_weight(network: ProbedVit) -> None:
    width = network.shift.numel()
    train, val = _planted(width, 300, 1), _planted(width, 400, 2)
    wrong = Features(train.features_NF, torch.where(torch.arange(300) < 150, 1 - train.target_N, train.target_N))
    right_ones = 2.0 * (torch.arange(300) >= 150)
    found = fit_head(network, wrong, right_ones, _auc_on(val))
    misled = fit_head(network, wrong, torch.ones(300), _auc_on(val))
    assert max(found.values()) > 0.85
    assert max(misled.values()) < max(found.values()) - 0.1
