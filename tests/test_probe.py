"""The head over a frozen encoder: logistic regression on its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pocket_vit import SIZE, pocket_vit

from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.probe import PATCHES, STRENGTHS, Features, fit_head, kept_features


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

        return kept_features(network, batches_from, 12, file, told.append)

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
    std_F = ((train.features_NF - network.shift) / network.scale).std(0)
    half = width // 2
    torch.testing.assert_close(std_F[:half], torch.ones(half), atol=1e-3, rtol=0)
    torch.testing.assert_close(std_F[half:], torch.full((half,), PATCHES), atol=1e-3, rtol=0)


def test_images_count_by_their_weight(network: ProbedVit) -> None:
    width = network.shift.numel()
    train, val = _planted(width, 300, 1), _planted(width, 400, 2)
    wrong = Features(train.features_NF, torch.where(torch.arange(300) < 150, 1 - train.target_N, train.target_N))
    right_ones = 2.0 * (torch.arange(300) >= 150)
    found = fit_head(network, wrong, right_ones, _auc_on(val))
    misled = fit_head(network, wrong, torch.ones(300), _auc_on(val))
    assert max(found.values()) > 0.85
    assert max(misled.values()) < max(found.values()) - 0.1
