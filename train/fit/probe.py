"""Fit the head over a frozen encoder: standardise its features and regress the labels, before anything else is trained.

Legend: N image; F feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from aivsreal.runtime.backends.vit import ProbedVit

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Of the L2 penalty beside the mean loss; the best is found on the validation splits."""
_LEAST_STD = 1e-3
_STEPS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What an encoder says of images, raw, and what they are."""

    features_NF: torch.Tensor
    target_N: torch.Tensor


def features_from_batches(
    network: ProbedVit, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], tell: Callable[[int], None] | None = None
) -> Features:
    """Run the encoder once over normalised batches with their targets; the features stay on the network's device."""
    rows, targets = [], []
    with torch.inference_mode():
        for batch_BCHW, target_B in batches:
            rows.append(network.features(batch_BCHW)[0].float())
            targets.append(target_B.to(rows[-1].device, torch.float32))
            if tell is not None:
                tell(sum(len(row) for row in rows))
    # Out of inference mode: what follows takes gradients.
    return Features(torch.cat(rows).clone(), torch.cat(targets).clone())


def fit_head(
    network: ProbedVit,
    train: Features,
    weight_N: torch.Tensor,
    good: Callable[[Callable[[torch.Tensor], torch.Tensor]], float],
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, float]:
    """Set the network's standardisation and head by weighted logistic regression.

    Args:
        network: its `shift` and `scale` are 0 and 1, as the features were taken.
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
