"""Fit the head over a frozen encoder: standardise its features and regress the labels, before anything else is trained.

Legend: N image; F feature.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from aivsreal.runtime.networks.vit import ProbedVit

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Of the L2 penalty beside the mean loss; the best is found on the validation splits."""
_LEAST_STD = 1e-3
_STEPS = 60


PATCHES = 0.25
"""What a standardised mean of patches counts beside a class token: at 1 the AUC on unseen sources falls from 0.929 to
0.920, at 0.25 to 0.929, and the map still says something."""


def kept_features(
    network: ProbedVit,
    batches_from: Callable[[int], Iterable[torch.Tensor]],
    count: int,
    file: Path,
    tell: Callable[[str], None],
) -> npt.NDArray[np.float16]:
    """Raw features `[N, F]` of many images, kept in a file: a run that was stopped goes on where it was.

    Args:
        network: its `shift` and `scale` do not matter.
        batches_from: normalised batches from an image on.
        count: N.
        file: a `.npy` that is named after all that the features depend on.
        tell: takes a line a minute.
    """
    width = network.shift.numel()
    part = file.with_suffix(".part.npy")
    progress = file.with_suffix(".part.json")
    if file.is_file():
        return np.load(file, mmap_mode="r")
    done = json.loads(progress.read_text(encoding="utf-8")) if progress.is_file() and part.is_file() else 0
    mode = "r+" if done else "w+"
    rows_NF = np.lib.format.open_memmap(part, mode, np.float16, None if done else (count, width))
    if not done:
        tell(f"the encoder is shown {count} images; what it says is kept in {file}")
    last = time.monotonic()
    with torch.inference_mode():
        for batch_BCHW in batches_from(done):
            features_BF = network.raw_features(batch_BCHW)[0]
            rows_NF[done : done + len(features_BF)] = features_BF.float().cpu().numpy()
            done += len(features_BF)
            if time.monotonic() - last > 60 and done < count:
                last = time.monotonic()
                rows_NF.flush()
                progress.write_text(json.dumps(done), encoding="utf-8")
                tell(f"the encoder has seen {done} of {count} images")
    rows_NF.flush()
    part.replace(file)
    progress.unlink(missing_ok=True)
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What an encoder says of images, raw, and what they are."""

    features_NF: torch.Tensor
    target_N: torch.Tensor


def fit_head(
    network: ProbedVit,
    train: Features,
    weight_N: torch.Tensor,
    good: Callable[[Callable[[torch.Tensor], torch.Tensor]], float],
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, float]:
    """Set the network's standardisation and head by weighted logistic regression.

    Args:
        network: gets them.
        train: raw features.
        weight_N: of each image; their mean is 1.
        good: how good a head is, given what makes logits of raw features: higher is better.
        strengths: of the L2 penalty.

    Returns:
        How good each strength was.
    """
    x_NF = train.features_NF
    mean_F = x_NF.mean(0)
    std_F = x_NF.std(0).clamp_min(_LEAST_STD)
    std_F[len(std_F) // 2 :] /= PATCHES  # the second half are means of patches
    x_NF = ((x_NF - mean_F) / std_F).to(torch.float32)
    weight_N = weight_N.to(x_NF.device)
    found: dict[str, float] = {}
    best = -1.0
    head = torch.zeros(x_NF.shape[1] + 1, device=x_NF.device)
    for strength in sorted(strengths, reverse=True):  # the strongest first: each starts where the last one ended
        head = _regressed(x_NF, train.target_N, weight_N, strength, head)

        def logits_of(raw_NF: torch.Tensor, head: torch.Tensor = head) -> torch.Tensor:
            return ((raw_NF - mean_F) / std_F) @ head[:-1] + head[-1]

        found[f"{strength:g}"] = value = good(logits_of)
        if value > best:
            best = value
            with torch.no_grad():
                network.shift.copy_(mean_F)
                network.scale.copy_(std_F)
                network.head.weight.copy_(head[None, :-1])
                network.head.bias.copy_(head[-1:])
    return found


def _regressed(
    x_NF: torch.Tensor, target_N: torch.Tensor, weight_N: torch.Tensor, strength: float, start: torch.Tensor
) -> torch.Tensor:
    head = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([head], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        fit = binary_cross_entropy_with_logits(x_NF @ head[:-1] + head[-1], target_N, weight=weight_N)
        value = fit + strength * head[:-1].square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return head.detach()
