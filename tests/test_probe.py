"""The head over a frozen encoder, fitted to its features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pocket_vit import SIZE, pocket_vit

from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.probe import PATCHES, HeadConfig, fit_head, judged_by_others, kept_features


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


def test_features_are_kept_and_a_stopped_run_goes_on(
    network: ProbedVit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = torch.randn(12, 3, SIZE, SIZE).split(4)
    file = tmp_path / "features-0.npy"
    monkeypatch.setattr("time.monotonic", iter(range(0, 10_000, 100)).__next__)  # each batch takes longer than a minute
    told: list[str] = []
    asked: list[int] = []

    def kept(stop_at: int = 99) -> np.ndarray[Any, np.dtype[np.float16]]:
        def batches_from(first: int) -> Iterator[torch.Tensor]:
            for start in range(first, 12, 4):
                if start == stop_at:
                    raise KeyboardInterrupt
                asked.append(start)
                yield batches[start // 4]

        return kept_features(
            lambda batch_BCHW: network.raw_features(batch_BCHW)[0], batches_from, 12, file, told.append
        )

    with pytest.raises(KeyboardInterrupt):
        kept(stop_at=8)
    assert not file.exists()
    features_NF = kept()
    assert asked == [0, 4, 8]
    with torch.no_grad():
        wanted_NF = torch.cat([network.raw_features(batch_BCHW)[0] for batch_BCHW in batches])
    np.testing.assert_allclose(features_NF, wanted_NF.numpy(), atol=5e-3, rtol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    np.testing.assert_array_equal(kept(), features_NF)
    assert asked == [0, 4, 8]
    assert told[0].startswith("the encoder is shown 12 images")


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
