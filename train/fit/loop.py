"""The training loop, top to bottom: data, network, steps, validation, checkpoint.

Legend: B image in a batch; C channel (3, RGB); H, W input height and width.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from aivsreal.runtime.bundle.card import TrainingCard
from aivsreal.runtime.networks.mapped import logits_from_output
from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.runtime.networks.vit_weights import LOW_RANK
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.config import AugmentConfig, TrainConfig
from aivsreal.train.evaluate.bootstrap import measures
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.fit.augment import augmented, patched, perturbed, resized
from aivsreal.train.fit.cache import FEATURES, FilePixels
from aivsreal.train.fit.checkpoint import Progress, load_progress, save_best, save_last
from aivsreal.train.fit.data import PixelsOf, TrainBatches, val_batches
from aivsreal.train.fit.distil import (
    FITTED_ON,
    Learner,
    Lesson,
    Lessons,
    Teacher,
    distillation_loss,
)
from aivsreal.train.fit.distributed import Ranks
from aivsreal.train.fit.optimise import learning_rate, optimizer_for, update_average
from aivsreal.train.fit.probe import fit_head, kept_features
from aivsreal.train.samples import Sample

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes; none of it is meant to change what is learned."""

    device: str = "cpu"
    amp: bool = False
    """Mixed precision in bfloat16, where the hardware multiplies it."""
    workers: int = 2
    compiled: bool = False
    """`torch.compile` for the training step."""
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from and is chosen on."""

    train: Sequence[Sample]
    val: dict[str, list[Sample]]
    choose_on: Sequence[str]
    pixels_of: PixelsOf | None = None
    """Gives a sample's view; None decodes its file."""
    unlabelled: Sequence[Sample] = ()
    """Images whose label nobody knows or uses: a teacher alone says what they are."""


def fit(
    config: TrainConfig,
    machine: Machine,
    network: nn.Module,
    data: Data,
    run: Path,
    card: TrainingCard,
    *,
    resume: bool,
    teacher: Teacher | None = None,
    on_step: Callable[[int, int, int, float], None],
    on_epoch: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None] = lambda _: None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Train to the last epoch; `run/best.*` is the epoch that `goodness` likes best.

    Args:
        network: as `start.network_to_train` gives it; what needs no gradient stays as it is.
        card: what the checkpoint's card says; epoch, metrics and weights are filled in.
        teacher: what `config.distil` learns from.
        on_step: called with epoch, step, steps in the epoch and loss.
        on_epoch: called with the epoch's metrics row, after the checkpoint is on disk.
        tell: takes a line where something takes long.
        kept: folder that keeps the features of an encoder for other runs; None is the run's own.

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
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's stub
    pixels_of = data.pixels_of or FilePixels(config.view_side)
    batches = TrainBatches([*data.train, *data.unlabelled], config, pixels_of, ranks, machine.workers, device)
    steps = len(batches)
    squares = {
        split: list(val_batches(ranks.share(part), config, pixels_of, machine.workers))
        for split, part in data.val.items()
    }
    network = _placed(network, device, ranks)
    if teacher is not None:
        teacher = teacher.to(device)
    learner: nn.Module = network if teacher is None else Learner(network, config.distil, teacher.width).to(device)
    average = copy.deepcopy(network).eval() if config.ema_decay else network
    optimizer = optimizer_for(learner, config)
    progress = Progress()
    if resume:
        progress = load_progress(run, card, learner, average, optimizer)
    elif isinstance(network, ProbedVit) and not config.init:
        features_NF = _kept(network, config.spec, config, machine, batches, kept or run, tell)
        _begin_with_head(network, config, device, batches, features_NF)
        average.load_state_dict(network.state_dict())

    def keep(row: dict[str, Any]) -> None:
        progress.epoch = row["epoch"]
        progress.history.append(row)
        chosen = progress.best is None or goodness(row, data.choose_on) > goodness(progress.best, data.choose_on)
        if chosen:
            progress.best = row
        if ranks.first:
            full = replace(card, epoch=row["epoch"], metrics=row)
            if chosen:
                save_best(run, average, full)
            save_last(run, learner, average, optimizer, replace(full, chosen_on=""), progress)
            on_epoch(row)

    def validated() -> dict[str, Metrics]:
        return {split: validate(average, part, squares[split], config, machine) for split, part in data.val.items()}

    if isinstance(network, ProbedVit) and progress.epoch == 0 and not progress.history:
        keep({"epoch": 0, "lr": 0.0, **validated()})
    lessons = None
    if teacher is not None:
        lessons = _taught(teacher, config, machine, batches, kept or run, tell)
    forward = _parallel(learner, machine)
    ask = torch.compile(teacher) if teacher is not None and machine.compiled else teacher
    for epoch in range(progress.epoch, config.epochs):
        learner.train()
        losses, correct, labelled, seen = (torch.zeros((), device=device) for _ in range(4))
        for step, (crops, target_B, index_B) in enumerate(batches.epoch(epoch)):
            lr = learning_rate(epoch * steps + step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            seed = (config.seed, epoch, step, ranks.rank)
            levels_BCHW = augmented(crops, config.spec.size, config.augment, seed, device)
            target_B = target_B.to(device)
            known = [target_B, *(lessons.of(index_B) if lessons is not None else ())]
            if config.cutmix_p:
                levels_BCHW, *known = patched(levels_BCHW, config.cutmix_p, seed, *known)
            target_B = known[0]
            lesson = Lesson(*known[1:]) if lessons is not None else None
            loss, logits_B = _loss(forward, ask, levels_BCHW, target_B, lesson, config, machine, seed)
            optimizer.zero_grad(set_to_none=True)
            cast(Any, loss).backward()  # torch leaves it untyped
            if config.clip_norm:
                nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
            optimizer.step()
            if config.ema_decay:
                update_average(average, network, config.ema_decay, epoch * steps + step)
            losses += loss.detach() * len(target_B)
            known_B = ~target_B.isnan()
            correct += (((logits_B > 0) == (target_B > 0.5)) & known_B).sum()
            labelled += known_B.sum()
            seen += len(target_B)
            if device.type == "cpu" or step % 20 == 0:  # reading a loss waits for the device
                on_step(epoch, step + 1, steps, loss.item())
        sums = ranks.gathered([value.item() for value in (losses, correct, labelled, seen)])
        loss_sum, correct_sum, known_sum, seen_sum = (sum(part) for part in zip(*sums, strict=True))
        train = {"loss": loss_sum / seen_sum, "accuracy": correct_sum / max(1, known_sum)}
        keep({"epoch": epoch + 1, "lr": lr, "train": train, **validated()})
    assert progress.best is not None
    return progress.best


def goodness(row: dict[str, Any], splits: Sequence[str]) -> float:
    """What an epoch is chosen by: the mean of AUC and macro AUC over the splits.

    A mean, because one AUC alone is uncertain: that of 885 images of five sources by 0.035, and it picked epoch 3 of
    26, with 0.740 on unseen and 0.804 on seen sources, over epoch 26 with 0.729 and 0.920.
    """
    return float(np.mean([row[split][name] for split in splits for name in ("auc", "macro_auc")]))


def normalised(levels_BCHW: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """`batch_BCHW` for the network from grey levels 0..255, by the runtime's own numbers."""
    scale_C, bias_C = (torch.from_numpy(values).to(levels_BCHW.device) for values in spec.affine())
    return levels_BCHW * scale_C[:, None, None] + bias_C[:, None, None]


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
    """
    # .train() first: timm's LeViT keeps attention biases of the last eval() forward, stale after an update.
    network.train()
    network.eval()
    mine = machine.ranks.share(samples)
    device = torch.device(machine.device)
    logits = []
    with torch.inference_mode(), _autocast(machine):
        for squares_BSSC in squares:
            levels_BCHW = squares_BSSC.to(device).permute(0, 3, 1, 2).float()
            logits.append(logits_from_output(network(_laid(normalised(levels_BCHW, config.spec)))).cpu())
    network.train()
    found = (torch.cat(logits), [(sample.target, sample.source) for sample in mine]) if logits else None
    parts = [part for part in machine.ranks.gathered(found) if part]
    logits_B = torch.cat([part[0] for part in parts])
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


def _loss(
    forward: Callable[[torch.Tensor], Any], teacher: Callable[[torch.Tensor], Any] | None, levels_BCHW: torch.Tensor,
    target_B: torch.Tensor, lesson: Lesson | None, config: TrainConfig, machine: Machine, seed: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss of a step, and the logits of the batch; a target of NaN is of an image without a label."""
    batch_BCHW = _laid(normalised(levels_BCHW, config.spec))
    smooth_B = target_B * (1 - config.label_smoothing) + config.label_smoothing / 2
    with _autocast(machine):
        if teacher is not None:
            if lesson is None:
                with torch.no_grad():
                    lesson = teacher(_for_teacher(levels_BCHW, cast(Any, teacher).spec))
            output, components_BC, tokens = forward(batch_BCHW)
            logits_B = logits_from_output(output)
        elif config.consistency:
            # One batch of both views, so that BatchNorm sees them together.
            noisy_BCHW = normalised(perturbed(levels_BCHW, seed), config.spec)
            logits_B, noisy_B = logits_from_output(forward(torch.cat([batch_BCHW, noisy_BCHW]))).chunk(2)
        else:
            logits_B = logits_from_output(forward(batch_BCHW))
    known_B = ~target_B.isnan()
    labels = binary_cross_entropy_with_logits(logits_B, smooth_B.nan_to_num(), weight=known_B.float())
    if lesson is not None:
        taught = distillation_loss(logits_B, components_BC, tokens, lesson, config.distil)
        return config.distil.labels * labels + taught, logits_B
    if config.consistency:
        labels = (labels + binary_cross_entropy_with_logits(noisy_B, smooth_B)) / 2
        labels = labels + config.consistency * (logits_B.sigmoid() - noisy_B.sigmoid()).square().mean()
    return labels, logits_B


def _kept(
    network: ProbedVit, spec: PreprocessSpec, config: TrainConfig, machine: Machine, batches: TrainBatches,
    folder: Path, tell: Callable[[str], None],
) -> npt.NDArray[np.float16]:  # fmt: skip
    """Raw features of every image's plain view by a ViT as it is, from the folder's file where there is one."""
    told = [spec.to_json(), config.view_side, *((str(s.path), s.path.stat().st_size) for s in batches.samples)]
    sha = hashlib.sha256(json.dumps(told).encode())
    for name, value in sorted(network.encoder.state_dict().items()):
        if not name.endswith(LOW_RANK):
            sha.update(value.cpu().numpy().tobytes())
    plain = AugmentConfig(hflip_p=0.0)
    device = torch.device(machine.device)

    def batches_from(first: int) -> Iterator[torch.Tensor]:
        for crops, *_ in batches.plain(first):
            yield _laid(normalised(augmented(crops, spec.size, plain, (0,), device), spec))

    network.eval()
    if not machine.ranks.first:
        machine.ranks.gathered(None)  # the first fills the file and the others then open it
    with _autocast(machine):
        file = folder / f"{FEATURES}{sha.hexdigest()[:16]}.npy"
        features_NF = kept_features(network, batches_from, len(batches.samples), file, tell)
    if machine.ranks.first:
        machine.ranks.gathered(None)
    return features_NF


def _begin_with_head(
    network: ProbedVit, config: TrainConfig, device: torch.device, batches: TrainBatches,
    features_NF: npt.NDArray[np.float16],
) -> None:  # fmt: skip
    """Fit the head over the encoder as it comes, to plain views; an image counts as often as it would be drawn."""
    weight_N = torch.from_numpy(batches.draws.weights * len(batches.samples)).float()
    target_N = torch.tensor([float(sample.target) for sample in batches.samples])
    values_NF = torch.from_numpy(features_NF.astype(np.float32)).to(device)
    fit_head(network, values_NF, target_N.to(device), weight_N.to(device), config.seed)


def _taught(
    teacher: Teacher, config: TrainConfig, machine: Machine, batches: TrainBatches, folder: Path,
    tell: Callable[[str], None],
) -> Lessons | None:  # fmt: skip
    """Fit the teacher's components on images as the student will see them; where it is asked once, ask it."""
    if config.distil.once:
        return Lessons(teacher, _kept(teacher.network, teacher.spec, config, machine, batches, folder, tell))
    plain = AugmentConfig(hflip_p=0.0)
    device = torch.device(machine.device)

    def shown() -> Iterator[torch.Tensor]:
        for step, (crops, *_) in enumerate(islice(batches.epoch(0), -(-FITTED_ON // batches.size))):
            levels_BCHW = augmented(crops, config.spec.size, plain, (config.seed, step), device)
            yield _for_teacher(levels_BCHW, teacher.spec)

    with _autocast(machine):
        teacher.fit(shown())
    # Each rank has seen its own images: all must learn the components of the first.
    fitted = machine.ranks.gathered(dict(teacher.named_buffers(recurse=False)))[0]
    for name, value in teacher.named_buffers(recurse=False):
        value.copy_(fitted[name])
    return None


def _for_teacher(levels_BCHW: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """The student's images as the teacher wants them, which may be of another size."""
    return _laid(normalised(resized(levels_BCHW, spec.size, "bicubic"), spec))


def _placed(network: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if device.type != "cuda":
        return network.to(device)
    if ranks.world > 1:
        network = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)  # it exists for CUDA alone
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _parallel(learner: nn.Module, machine: Machine) -> Callable[[torch.Tensor], Any]:
    """The forward of a training step: compiled and over all ranks, where that is asked for."""
    device = torch.device(machine.device)
    forward: Any = learner
    if machine.ranks.world > 1:
        forward = DistributedDataParallel(
            learner, device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=isinstance(learner, Learner),  # what a configuration gives no weight
        )  # fmt: skip
    return cast("Callable[[torch.Tensor], Any]", torch.compile(forward) if machine.compiled else forward)


def _laid(batch_BCHW: torch.Tensor) -> torch.Tensor:
    return batch_BCHW.contiguous(memory_format=torch.channels_last) if batch_BCHW.is_cuda else batch_BCHW.contiguous()


def _autocast(machine: Machine) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(torch.device(machine.device).type, torch.bfloat16, enabled=machine.amp)
