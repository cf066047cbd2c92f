"""The training loop, top to bottom: data, network, steps, validation, checkpoint."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from aivsreal.runtime.backends.networks import logits_from_output, network_from_arch
from aivsreal.train.config import TrainConfig
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.batch_changes import patched, perturbed
from aivsreal.train.fit.cache import FilePixels
from aivsreal.train.fit.checkpoint import Progress, load_progress, save_best, save_last
from aivsreal.train.fit.data import PixelsOf, TrainDraws, TrainImages, ValImages, batch_from_tensors
from aivsreal.train.fit.distributed import Ranks
from aivsreal.train.fit.resolution import weights_at_size
from aivsreal.train.samples import Sample

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes; none of it is meant to change what is learned."""

    device: str = "cpu"
    amp: bool = False
    """Automatic mixed precision: half with loss scaling on CUDA, bfloat16 on a CPU that has it in hardware."""
    workers: int = 2
    compiled: bool = False
    """`torch.compile` for the training step."""
    ranks: Ranks = field(default_factory=Ranks)


def fit(
    config: TrainConfig,
    machine: Machine,
    train_samples: Sequence[Sample],
    val_samples: dict[str, list[Sample]],
    choose_on: Sequence[str],
    run: Path,
    card: dict[str, Any],
    *,
    resume: bool,
    start: dict[str, torch.Tensor] | None = None,
    pixels_of: PixelsOf | None = None,
    on_step: Callable[[int, int, int, float], None],
    on_epoch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train to the last epoch; `run/best.*` is the epoch with the highest mean AUC on the splits of `choose_on`.

    The mean, because the AUC of one split of 885 images is uncertain by 0.035: one split alone picked epoch 3 of 26,
    with 0.740 on the unseen sources and 0.804 on the seen ones, over epoch 26 with 0.729 and 0.920.

    Args:
        card: what the checkpoint's card says besides metrics and weights.
        start: weights to start from, in place of random ones.
        pixels_of: gives a sample's pixels; None decodes its file.
        on_step: called with epoch, step, steps in the epoch and loss.
        on_epoch: called with the epoch's metrics row, after the checkpoint is on disk.

    Returns:
        The metrics row of the best epoch.

    Raises:
        CheckpointError: `resume` and the checkpoint is of another configuration or data list.
        ValueError: the batch cannot be shared evenly by the ranks.
    """
    ranks = machine.ranks
    if config.batch_size % ranks.world:
        raise ValueError(f"a batch of {config.batch_size} cannot be shared evenly by {ranks.world} processes")
    torch.manual_seed(config.seed)
    device = torch.device(machine.device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    network = network_from_arch(config.arch, config.spec.size)
    if start is not None:
        network.load_state_dict(weights_at_size(start, network.state_dict()))
    network = _placed(network, device, ranks)
    average = copy.deepcopy(network).eval() if config.ema_decay else network
    optimizer = _optimizer(network, config)
    scaler = torch.amp.GradScaler(device.type, enabled=machine.amp and device.type == "cuda")
    progress = Progress()
    if resume:
        progress = load_progress(run, card, network, average, optimizer, scaler)

    forward = _parallel(network, machine)
    pixels_of = pixels_of or FilePixels(config.short_side)
    # The runtime judges an image as it is, and so does validation.
    val_pixels_of = pixels_of if not config.short_side else FilePixels()
    draws = TrainDraws(train_samples, config, ranks)
    loader = DataLoader(
        TrainImages(train_samples, config, pixels_of), config.batch_size // ranks.world, sampler=draws,
        num_workers=machine.workers, drop_last=ranks.world > 1 or len(train_samples) > config.batch_size,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    steps = len(loader)
    for epoch in range(progress.epoch, config.epochs):
        draws.epoch = epoch
        network.train()
        losses, correct, seen = 0.0, 0, 0
        for step, (squares_BSSC, target_B) in enumerate(loader):
            lr = learning_rate(epoch * steps + step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch_BCHW = _sent(batch_from_tensors(squares_BSSC, config), device)
            target_B = target_B.to(device, torch.float32)
            seed = (config.seed, epoch, step, ranks.rank)
            if config.cutmix_p:
                batch_BCHW, target_B = patched(batch_BCHW, target_B, config.cutmix_p, seed)
            smooth_B = target_B * (1 - config.label_smoothing) + config.label_smoothing / 2
            with _autocast(device, machine.amp):
                if config.consistency:
                    # One batch of both views, so that BatchNorm sees them together.
                    both_BCHW = torch.cat([batch_BCHW, perturbed(batch_BCHW, seed)])
                    logits_B, noisy_B = logits_from_output(forward(both_BCHW)).chunk(2)
                else:
                    logits_B = noisy_B = logits_from_output(forward(batch_BCHW))
            loss = binary_cross_entropy_with_logits(logits_B, smooth_B)
            if config.consistency:
                loss = (loss + binary_cross_entropy_with_logits(noisy_B, smooth_B)) / 2
                loss = loss + config.consistency * (logits_B.sigmoid() - noisy_B.sigmoid()).square().mean()
            optimizer.zero_grad(set_to_none=True)
            cast(Any, scaler.scale(loss)).backward()  # torch leaves it untyped
            if config.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            if config.ema_decay:
                _update_average(average, network, config.ema_decay, epoch * steps + step)
            losses += loss.item() * len(target_B)
            correct += int(((logits_B > 0) == (target_B > 0.5)).sum())
            seen += len(target_B)
            on_step(epoch, step + 1, steps, loss.item())
        losses, correct, seen = (sum(part) for part in zip(*ranks.gathered((losses, correct, seen)), strict=True))
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "lr": lr,
            "train": {"loss": losses / seen, "accuracy": correct / seen},
        }
        for split, samples in val_samples.items():
            row[split] = validate(average, samples, config, machine, val_pixels_of)
        progress.epoch = epoch + 1
        progress.history.append(row)
        chosen = progress.best is None or _mean_auc(row, choose_on) > _mean_auc(progress.best, choose_on)
        if chosen:
            progress.best = row
        if ranks.first:
            full = {**card, "epoch": epoch + 1, "metrics": row}
            if chosen:
                save_best(run, average, full)
            save_last(run, network, average, optimizer, scaler, {**full, "chosen_on": ""}, progress)
            on_epoch(row)
    assert progress.best is not None
    return progress.best


def validate(
    network: nn.Module, samples: Sequence[Sample], config: TrainConfig, machine: Machine, pixels_of: PixelsOf
) -> Metrics:
    """Loss, accuracy at 0.5 and AUC of one split, which the ranks share."""
    # .train() first: timm's LeViT keeps attention biases of the last eval() forward, stale after an update.
    network.train()
    network.eval()
    mine = ValImages(machine.ranks.share(samples), config, pixels_of)
    loader = DataLoader(mine, config.batch_size, num_workers=machine.workers)
    logits, targets = [], []
    with torch.inference_mode(), _autocast(torch.device(machine.device), machine.amp):
        for squares_BSSC, target_B in loader:
            output = network(_sent(batch_from_tensors(squares_BSSC, config), torch.device(machine.device)))
            logits.append(logits_from_output(output).cpu())
            targets.append(target_B)
    network.train()
    parts = machine.ranks.gathered((torch.cat(logits), torch.cat(targets)) if logits else None)
    logits_B, target_B = (torch.cat(part) for part in zip(*(part for part in parts if part), strict=True))
    loss = binary_cross_entropy_with_logits(logits_B, target_B.float()).item()
    accuracy = float(((logits_B > 0) == (target_B > 0)).float().mean())
    return {"loss": loss, "accuracy": accuracy, "auc": auc(target_B.numpy(), logits_B.numpy().astype(np.float64))}


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then constant or half a cosine to zero (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    share = (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def _mean_auc(row: dict[str, Any], splits: Sequence[str]) -> float:
    return float(np.mean([row[split]["auc"] for split in splits]))


def _placed(network: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if device.type != "cuda":
        return network.to(device)
    if ranks.world > 1:
        network = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)  # it exists for CUDA alone
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _parallel(network: nn.Module, machine: Machine) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of a training step: compiled and over all ranks, where that is asked for."""
    device = torch.device(machine.device)
    forward: Any = network
    if machine.ranks.world > 1:
        forward = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    return cast("Callable[[torch.Tensor], torch.Tensor]", torch.compile(forward) if machine.compiled else forward)


def _sent(batch_BCHW: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return batch_BCHW.to(device)
    return batch_BCHW.to(device, memory_format=torch.channels_last, non_blocking=True)


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # Biases and BatchNorm are not decayed: pulling them to zero only fights the normalisation.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr)


def _update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # short memory at first, or the random start would linger
    with torch.no_grad():
        for kept, new in zip(_floats(average), _floats(network), strict=True):
            kept.lerp_(new, 1 - decay)


def _floats(network: nn.Module) -> Iterator[torch.Tensor]:
    return (value for value in network.state_dict().values() if value.is_floating_point())


def _autocast(device: torch.device, amp: bool) -> contextlib.AbstractContextManager[Any]:
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp)
