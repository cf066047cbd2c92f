"""What a step does to the weights: their learning rate, AdamW, and the average that is validated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.runtime.networks.vit_weights import PREFIX
from aivsreal.train.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then constant or half a cosine to zero (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def optimizer_for(learner: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what needs gradients; "factor" is a group's share of the learning rate."""
    vit = isinstance(learner, ProbedVit)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            # Biases and BatchNorm are not decayed: pulling them to zero only fights the normalisation.
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            factor = config.head_lr if vit and not name.startswith(PREFIX) else 1.0
            groups.setdefault((decay, factor), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": part, "weight_decay": decay, "factor": factor} for (decay, factor), part in groups.items()],
        lr=config.lr,
    )


def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average of a network towards it."""
    decay = min(decay, (1 + step) / (10 + step))  # short memory at first, or the random start would linger
    kept, new = list(_moving(average)), list(_moving(network))
    with torch.no_grad():
        torch._foreach_lerp_(kept, new, 1 - decay)


def _moving(network: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters in training and statistics; a frozen encoder is the same in both."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for name, value in network.state_dict().items():
        if value.is_floating_point() and name not in frozen:
            yield value
