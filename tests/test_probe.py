"""The head over a frozen encoder, fitted to its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pocket_vit import pocket_vit

from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.probe import PATCHES, HeadConfig, fit_head, judged_by_others, shares_of_others


@pytest.fixture
def network() -> ProbedVit:
    network = pocket_vit()
    network.shift.zero_()
    network.scale.fill_(1)
    return network


def _planted(width: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different sizes, of which six tell the classes apart a little, and their targets."""
    random = torch.Generator().manual_seed(seed)
    target_N = (torch.arange(count) % 2).float()
    features_NF = torch.randn(count, width, generator=random)
    features_NF[:, :6] += 1.5 * target_N[:, None]
    return features_NF * torch.logspace(-2, 3, width) + 7, target_N


def _auc_of(network: ProbedVit, features_NF: torch.Tensor, target_N: torch.Tensor) -> float:
    with torch.no_grad():
        logits_N1 = network.judged((features_NF - network.shift) / network.scale)
    return auc(target_N.numpy().astype(np.int64), logits_N1[:, 0].double().numpy())


QUICK = HeadConfig(steps=150, batch_size=64, lr=2e-3)


def test_a_head_is_fitted_to_standardised_features(network: ProbedVit) -> None:
    width = network.shift.numel()
    features_NF, target_N = _planted(width, 600, 1)
    fit_head(network, features_NF, target_N, torch.ones(600), config=QUICK)
    assert _auc_of(network, *_planted(width, 400, 2)) > 0.9
    std_F = ((features_NF - network.shift) / network.scale).std(0)
    half = width // 2
    torch.testing.assert_close(std_F[:half], torch.ones(half), atol=1e-3, rtol=0)
    torch.testing.assert_close(std_F[half:], torch.full((half,), PATCHES), atol=1e-3, rtol=0)


def test_the_seed_decides_the_head(network: ProbedVit) -> None:
    train = _planted(network.shift.numel(), 200, 1)
    heads = []
    for seed in (0, 0, 1):
        fit_head(network, *train, torch.ones(200), seed, config=HeadConfig(steps=3))
        heads.append(network.hidden.weight.clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_images_count_by_their_weight(network: ProbedVit) -> None:
    width = network.shift.numel()
    features_NF, target_N = _planted(width, 600, 1)
    wrong_N = torch.where(torch.arange(600) < 300, 1 - target_N, target_N)
    val = _planted(width, 400, 2)
    fit_head(network, features_NF, wrong_N, 2.0 * (torch.arange(600) >= 300), config=QUICK)
    found = _auc_of(network, *val)
    fit_head(network, features_NF, wrong_N, torch.ones(600), config=QUICK)
    assert found > 0.85
    assert _auc_of(network, *val) < found - 0.1


def test_heads_of_other_sources_know_no_label_by_heart() -> None:
    random = torch.Generator().manual_seed(0)
    sources = [f"{index // 50}" for index in range(800)]
    target_N = torch.tensor([float(index // 50 % 2) for index in range(800)])
    own_NF = torch.randn(16, 48, generator=random).repeat_interleave(50, 0)  # what betrays a source, and so its label
    plain_NF = own_NF + 0.3 * torch.randn(800, 48, generator=random)
    unknown_N = target_N.clone()
    unknown_N[::10] = torch.nan

    def found(x_NF: torch.Tensor) -> float:
        logit_N = judged_by_others(x_NF, unknown_N, torch.ones(800), sources, 4, 0, QUICK)
        known_N = ~unknown_N.isnan()
        assert torch.isfinite(logit_N).all()
        return auc(target_N[known_N].numpy().astype(np.int64), logit_N[known_N].double().numpy())

    assert found(plain_NF) < 0.8
    told_NF = plain_NF.clone()
    told_NF[:, :6] += 4 * target_N[:, None]
    assert found(told_NF) > 0.9
    once = judged_by_others(told_NF, unknown_N, torch.ones(800), sources, 4, 0, QUICK)
    assert torch.equal(once, judged_by_others(told_NF, unknown_N, torch.ones(800), sources, 4, 0, QUICK))


@pytest.mark.parametrize(("real", "ai", "by_source"), [(1, 1, False), (5, 1, False), (2, 2, True), (6, 2, True)])
def test_each_head_sees_both_classes_however_few_their_sources_are(real: int, ai: int, by_source: bool) -> None:
    sources = [*(f"real/{index % real}" for index in range(60)), *(f"ai/{index % ai}" for index in range(60))]
    target_N = torch.arange(120) // 60 * 1.0
    for seed in range(20):
        share_NK = shares_of_others(sources, target_N, 4, np.random.default_rng(seed))
        assert torch.equal(share_NK.sum(1), torch.ones(120))
        for judged_N in share_NK.T > 0:
            assert {0.0, 1.0} == set(target_N[~judged_N].tolist())
        of_source = {
            name: {tuple(row.tolist()) for row, one in zip(share_NK, sources, strict=True) if one == name}
            for name in sources
        }
        assert all(len(shares) == 1 for shares in of_source.values()) == by_source
