"""The training loop, top to bottom: data, network, steps, validation, checkpoint.

Legend: B image in a batch; C channel (3, RGB); H, W input height and width; S input size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from aivsreal.runtime.bundle.card import TrainingCard
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.networks.mapped import logits_from_output
from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.train.batches.augment import augmented, batch_from_levels, mirrored, patched, perturbed
from aivsreal.train.batches.data import Batch, Data, TrainBatches, val_batches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import TrainConfig
from aivsreal.train.evaluate.bootstrap import measures
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.checkpoint import Progress, Trained, load_progress, save_best, save_last
from aivsreal.train.fit.distil import Learner, Lesson, Lessons, Teacher, distillation_loss, prepared
from aivsreal.train.fit.optimise import learning_rate, optimizer_for, update_average
from aivsreal.train.fit.probe import begin_with_head
from aivsreal.train.samples import Sample

Metrics = dict[str, float]
Row = dict[str, Any]
"""Of `metrics.jsonl`: epoch, learning rate, and the metrics of training and of each validation split."""


def fit(
    config: TrainConfig, machine: Machine, network: nn.Module, data: Data, run: Path, *, card: TrainingCard,
    resume: bool, on_step: Callable[[int, int, int, float], None], on_epoch: Callable[[Sequence[Row]], None],
    tell: Callable[[str], None] = lambda _: None, teacher: Teacher | None = None, kept: Path | None = None,
) -> Row:  # fmt: skip
    """Train to the last epoch; `run/best.*` is the epoch that `goodness` likes best, whose row is given.

    Args:
        network: as `start.network_to_train` gives it; what needs no gradient stays as it is.
        card: what the checkpoint's card says; epoch, metrics and weights are filled in.
        on_step: called with epoch, step, steps in the epoch and loss.
        on_epoch: called with the metrics rows of all epochs so far, after the checkpoint is on disk.
        tell: takes a line where something takes long.
        teacher: what `config.distil` learns from.
        kept: folder that keeps the features of an encoder for other runs; None is the run's own.

    Raises:
        CheckpointError: `resume` and the checkpoint is of another configuration or data list.
        DataError: the training diverged.
    """
    machine.begin(config.seed)
    batches = TrainBatches([*data.train, *data.unlabelled], config, data.pixels_of, machine)
    squares = {
        split: list(val_batches(machine.ranks.share(part), config, data.pixels_of, machine.workers))
        for split, part in data.val.items()
    }
    trained = _placed(network, teacher, config, machine)
    progress = Progress()
    if resume:
        progress = load_progress(run, card, trained)
    elif isinstance(trained.network, ProbedVit) and not config.init:
        begin_with_head(trained.network, batches, machine, kept or run, tell)
        trained.average.load_state_dict(trained.network.state_dict())

    def finish(row: Row) -> None:
        for split, part in data.val.items():
            row[split] = validate(trained.average, part, squares[split], config, machine)
        chosen = _keep(row, data.choose_on, progress)
        if machine.ranks.first:
            _save(run, trained, replace(card, epoch=row["epoch"], metrics=row), progress, chosen=chosen)
            on_epoch(progress.history)

    if isinstance(trained.network, ProbedVit) and progress.epoch == 0 and not progress.history:
        finish({"epoch": 0, "lr": 0.0})
    lessons = None if teacher is None else prepared(teacher, batches, machine, kept or run, tell)
    step = Step(config, machine, trained, teacher, lessons)
    for epoch in range(progress.epoch, config.epochs):
        finish(_epoch(step, batches, epoch, on_step))
    assert progress.best is not None
    return progress.best


def _placed(network: nn.Module, teacher: Teacher | None, config: TrainConfig, machine: Machine) -> Trained:
    network = machine.placed(network)
    learner: nn.Module = network
    if teacher is not None:
        learner = Learner(network, config.distil, teacher.to(machine.device).token_width).to(machine.device)
    average = copy.deepcopy(network).eval() if config.ema_decay else network
    return Trained(network, learner, average, optimizer_for(learner, config))


def _keep(row: Row, choose_on: Sequence[str], progress: Progress) -> bool:
    """Note a finished epoch; whether it is the best one yet."""
    progress.epoch = row["epoch"]
    progress.history.append(row)
    chosen = progress.best is None or goodness(row, choose_on) > goodness(progress.best, choose_on)
    if chosen:
        progress.best = row
    return chosen


def _save(run: Path, trained: Trained, card: TrainingCard, progress: Progress, *, chosen: bool) -> None:
    if chosen:
        save_best(run, trained.average, card)
    save_last(run, trained, card, progress)


def _epoch(step: Step, batches: TrainBatches, epoch: int, on_step: Callable[[int, int, int, float], None]) -> Row:
    """All steps of an epoch, over all ranks."""
    config, device, steps = step.config, step.machine.device, len(batches)
    step.trained.learner.train()
    losses, correct, labelled, seen = (torch.zeros((), device=device) for _ in range(4))
    for number, batch in enumerate(batches.epoch(epoch)):
        lr = learning_rate(epoch * steps + number, steps, config)
        loss, logits_B, target_B = step.take(batch, lr, (config.seed, epoch, number, step.machine.ranks.rank))
        if config.ema_decay:
            update_average(step.trained.average, step.trained.network, config.ema_decay, epoch * steps + number)
        losses += loss * len(target_B)
        known_B = ~target_B.isnan()
        correct += (((logits_B > 0) == (target_B > 0.5)) & known_B).sum()
        labelled += known_B.sum()
        seen += len(target_B)
        if device.type == "cpu" or number % 20 == 0:  # reading a loss waits for the device
            on_step(epoch, number + 1, steps, loss.item())
    sums = step.machine.ranks.gathered([value.item() for value in (losses, correct, labelled, seen)])
    loss_sum, correct_sum, known_sum, seen_sum = (sum(part) for part in zip(*sums, strict=True))
    train = {"loss": loss_sum / seen_sum, "accuracy": correct_sum / max(1, known_sum)}
    return {"epoch": epoch + 1, "lr": lr, "train": train}


class Step:
    """One step of the weights: damage, mix, ask the teacher, forward, backward, optimizer."""

    def __init__(
        self, config: TrainConfig, machine: Machine, trained: Trained, teacher: Teacher | None, lessons: Lessons | None
    ) -> None:
        self.config, self.machine, self.trained, self.teacher, self.lessons = config, machine, trained, teacher, lessons
        # A configuration gives some of what maps a student to its teacher no weight.
        self._forward = machine.forward_of(trained.learner, uses_all=teacher is None)
        self._ask = torch.compile(teacher) if teacher is not None and machine.compiled else teacher

    def take(self, batch: Batch, lr: float, seed: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss, `logits_B`, and `target_B` as images were mixed; a target of NaN is of one without a label."""
        config, trained = self.config, self.trained
        crops, window_B3, target_B, index_B = batch
        levels_BCHW = augmented(crops, config.spec.size, config.augment, seed, self.machine.device)
        known, lesson = [target_B.to(self.machine.device)], None
        if self.lessons is not None:
            lesson = self.lessons.of(index_B, window_B3, mirrored(len(index_B), config.augment, seed))
            known += [lesson.soft_B, lesson.components_BC]
        elif self.teacher is not None and self.teacher.share_NK is not None:
            known.append(self.teacher.share_NK[index_B.to(self.machine.device)])
        if config.cutmix_p:
            levels_BCHW, *known = patched(levels_BCHW, config.cutmix_p, seed, *known)
        target_B, *taught = known
        lesson = self._asked(levels_BCHW, *taught) if lesson is None else Lesson(taught[0], taught[1], lesson.tokens)
        if config.consistency and self.teacher is None:
            loss, logits_B = self._consistent(levels_BCHW, target_B, seed)
        else:
            loss, logits_B = self._loss(levels_BCHW, target_B, lesson)
        for group in trained.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        trained.optimizer.zero_grad(set_to_none=True)
        cast(Any, loss).backward()  # torch leaves it untyped
        if config.clip_norm:
            nn.utils.clip_grad_norm_(trained.learner.parameters(), config.clip_norm)
        trained.optimizer.step()
        return loss.detach(), logits_B, target_B

    def _asked(self, levels_BCHW: torch.Tensor, *share_BK: torch.Tensor) -> Lesson | None:
        if self.teacher is None or self._ask is None:
            return None
        with torch.no_grad(), self.machine.autocast():
            return cast(Lesson, self._ask(self.teacher.batch(levels_BCHW), *share_BK))

    def _loss(
        self, levels_BCHW: torch.Tensor, target_B: torch.Tensor, lesson: Lesson | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.machine.autocast():
            output = self._forward(batch_from_levels(levels_BCHW, self.config.spec))
            if lesson is not None:
                output, components_BC, tokens = output
            logits_B = logits_from_output(output)
        known_B = (~target_B.isnan()).float()
        loss = binary_cross_entropy_with_logits(logits_B, self._smooth(target_B).nan_to_num(), weight=known_B)
        if lesson is not None:
            distil = self.config.distil
            loss = distil.labels * loss + distillation_loss(logits_B, components_BC, tokens, lesson, distil)
        return loss, logits_B

    def _consistent(
        self, levels_BCHW: torch.Tensor, target_B: torch.Tensor, seed: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise Perturbation Regularisation: images and the same under noise, which must be judged alike."""
        # One batch of both, so that BatchNorm sees them together.
        views = [batch_from_levels(view, self.config.spec) for view in (levels_BCHW, perturbed(levels_BCHW, seed))]
        with self.machine.autocast():
            logits_B, noisy_B = logits_from_output(self._forward(torch.cat(views))).chunk(2)
        smooth_B = self._smooth(target_B)
        plain, noisy = (binary_cross_entropy_with_logits(one_B, smooth_B) for one_B in (logits_B, noisy_B))
        apart = (logits_B.sigmoid() - noisy_B.sigmoid()).square().mean()
        return (plain + noisy) / 2 + self.config.consistency * apart, logits_B

    def _smooth(self, target_B: torch.Tensor) -> torch.Tensor:
        return target_B * (1 - self.config.label_smoothing) + self.config.label_smoothing / 2


def goodness(row: dict[str, Any], splits: Sequence[str]) -> float:
    """What an epoch is chosen by: the mean of AUC and macro AUC over the splits.

    A mean, because one AUC alone is uncertain: that of 885 images of five sources by 0.035, and it picked epoch 3 of
    26, with 0.740 on unseen and 0.804 on seen sources, over epoch 26 with 0.729 and 0.920.
    """
    return float(np.mean([row[split][name] for split in splits for name in ("auc", "macro_auc")]))


def validate(
    network: nn.Module,
    samples: Sequence[Sample],
    squares: Iterable[torch.Tensor],
    config: TrainConfig,
    machine: Machine,
) -> Metrics:
    """Loss, accuracy at 0.5, AUC and macro AUC over pairs of sources of one split, which the ranks share.

    Args:
        squares: `squares_BSSC`, uint8, of this rank's share of the samples.

    Raises:
        DataError: the network gives no numbers.
    """
    # .train() first: timm's LeViT keeps attention biases of the last eval() forward, stale after an update.
    network.train()
    network.eval()
    mine = machine.ranks.share(samples)
    logits = []
    with torch.inference_mode(), machine.autocast():
        for squares_BSSC in squares:
            levels_BCHW = squares_BSSC.to(machine.device).permute(0, 3, 1, 2).float()
            logits.append(logits_from_output(network(batch_from_levels(levels_BCHW, config.spec))).cpu())
    network.train()
    found = (torch.cat(logits), [(sample.target, sample.source) for sample in mine]) if logits else None
    parts = [part for part in machine.ranks.gathered(found) if part]
    logits_B = torch.cat([part[0] for part in parts])
    if not logits_B.isfinite().all():
        raise DataError("the training diverged: the network gives no numbers any more; begin anew with a lower --lr")
    target_B = np.array([target for _, told in parts for target, _ in told])
    sources = [source or "-" for _, told in parts for _, source in told]
    return _metrics(target_B, logits_B, sources)


def _metrics(target_B: np.ndarray[Any, Any], logits_B: torch.Tensor, sources: Sequence[str]) -> Metrics:
    score_B = logits_B.numpy().astype(np.float64)
    return {
        "loss": binary_cross_entropy_with_logits(logits_B, torch.from_numpy(target_B).float()).item(),
        "accuracy": float(((score_B > 0) == (target_B > 0)).mean()),
        "auc": auc(target_B, score_B),
        "macro_auc": measures(target_B, score_B, ("auc",), draws=1, source_B=sources)["auc"].value,
    }
