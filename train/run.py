"""A training from its images to its last epoch, top to bottom: what `aivsreal-train` does with what was typed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from aivsreal.runtime.bundle.card import TrainingCard
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.verdict import LABELS
from aivsreal.train import plot
from aivsreal.train.batches.cache import FilePixels, cached_pixels
from aivsreal.train.batches.data import Data, PixelsOf
from aivsreal.train.batches.machine import Machine, Ranks
from aivsreal.train.config import TrainConfig
from aivsreal.train.fit.checkpoint import CURVES, METRICS, check_unused
from aivsreal.train.fit.loop import Row, fit
from aivsreal.train.progress import TrainDisplay
from aivsreal.train.samples import (
    Sample,
    counts_of,
    digest_of,
    first_of_each_source,
    in_split,
    licences_of,
    readable,
    samples_from_data,
    samples_under,
)
from aivsreal.train.start.network import network_to_train, start_from_names, teacher_from_path

Tell = Callable[[str], None]


def train(
    config: TrainConfig, machine: Machine, data: Path, out: Path, *, resume: bool, choose_on: Sequence[str],
    init: Sequence[str], teacher: Path | None, unlabelled: Sequence[Path], cache: Path | None,
) -> None:  # fmt: skip
    """Train into the folder `out`; the first process prints the best epoch.

    Raises:
        CheckpointError, DataError: something is missing or does not fit.
    """
    if not resume:
        check_unused(out)

    def tell(text: str) -> None:
        if machine.ranks.first:
            click.echo(text, err=True)

    start = start_from_names(init)
    machine.ranks.join(machine.name)
    found = _listed(data, config.per_source, unlabelled)
    samples, pixels_of, problems = _opened(found, config.view_side, machine, cache, tell)
    for problem in problems:
        tell(f"skipped: {problem}")
    images = _divided(samples, pixels_of, choose_on)
    network, config, started_from = network_to_train(config, start, images.train, pixels_of)
    asked = None
    if teacher is not None:
        asked, started_from["teacher"] = teacher_from_path(teacher, start, config.distil)
        config = replace(config, teacher=started_from["teacher"])
    card = _card(config, machine, images, data, started_from)
    _make(out)
    tell(
        f"{config.preset}: {config.arch} on {len(images.train)} images, {len(problems)} skipped, {machine.name}"
        f"{' with mixed precision' if machine.amp else ''}; best epoch by AUC on {' and '.join(images.choose_on)}; "
        f"into {out}"
    )
    with TrainDisplay(config.epochs, quiet=not machine.ranks.first) as display:

        def on_epoch(rows: Sequence[Row]) -> None:
            _record(out, rows)
            display.epoch(rows[-1])

        best = fit(
            config, machine, network, images, out, card=card,
            resume=resume, teacher=asked, on_step=display.step, on_epoch=on_epoch, tell=tell, kept=cache or out,
        )  # fmt: skip
    machine.ranks.leave()
    if machine.ranks.first:
        click.echo(json.dumps({"checkpoint": str(out / "best.safetensors"), **best}))


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another folder with -o") from None


def _record(out: Path, rows: Sequence[Row]) -> None:
    """All of them: where a run was killed after its checkpoint the last one is missing."""
    part = out / f"{METRICS}.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, out / METRICS)
    plot.draw_curves(out / METRICS, out / CURVES)


def machine_of(device: str | None, amp: bool | None, compiled: bool | None, workers: int, batch_size: int) -> Machine:
    """Where a run computes; what is None is as this machine can.

    Raises:
        DataError: there is no such device, or the processes cannot share a batch.
    """
    ranks = Ranks.from_environment()
    if batch_size % ranks.world:
        raise DataError(f"--batch-size {batch_size}: {ranks.world} processes cannot share it evenly")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and ranks.world > 1:
        device = f"cuda:{ranks.local}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DataError(f"--device {device}: give cpu, cuda or cuda:N")
    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise DataError(f"--device {device}: torch sees no such GPU here; leave --device out for what is there")
    if amp is None:
        amp = torch.cuda.is_bf16_supported() if device != "cpu" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return Machine(device, amp, workers, device != "cpu" if compiled is None else compiled, ranks)


def _listed(data: Path, per_source: int, unlabelled: Sequence[Path]) -> list[Sample]:
    found = samples_from_data(data)
    train = first_of_each_source([sample for sample in found if sample.split == "train"], per_source)
    val = [sample for sample in found if sample.split.startswith("val")]
    return [*train, *val, *(sample for folder in unlabelled for sample in samples_under(folder, "", "train"))]


def _opened(
    found: Sequence[Sample], view_side: int, machine: Machine, cache: Path | None, tell: Tell
) -> tuple[list[Sample], PixelsOf, list[str]]:
    """The samples that can be read, what gives their views, and a message for each of the others."""
    if cache is None:
        samples, problems = readable(found, workers=2)
        return samples, FilePixels(view_side), problems
    with machine.ranks.first_before_others():
        views, problems = cached_pixels(cache, found, view_side, max(2, machine.workers), tell)
    return [sample for sample in found if sample in views], views, problems


def _divided(samples: Sequence[Sample], pixels_of: PixelsOf, choose_on: Sequence[str]) -> Data:
    labelled = [sample for sample in samples if sample.label]
    vals = sorted({sample.split for sample in labelled if sample.split.startswith("val")})
    for split in choose_on:
        if split not in vals:
            raise DataError(f"--choose-on {split}: no such validation split; there are {', '.join(vals)}")
    return Data(
        in_split(labelled, "train"),
        {split: in_split(labelled, split) for split in vals},
        list(choose_on or vals),
        pixels_of,
        [sample for sample in samples if not sample.label],
    )


def _card(
    config: TrainConfig, machine: Machine, images: Data, data: Path, started_from: dict[str, Any]
) -> TrainingCard:
    used = [*images.train, *images.unlabelled, *(sample for part in images.val.values() for sample in part)]
    return TrainingCard(
        config.arch, LABELS, config.spec, config.to_json(),
        chosen_on="+".join(images.choose_on), data_digest=digest_of(used, data if os.path.isdir(data) else data.parent),
        data_counts=counts_of(used), data_licences={**licences_of(used)},
        versions={
            "torch": torch.__version__, "device": machine.name, "amp": machine.amp, "compiled": machine.compiled,
            "processes": machine.ranks.world,
        },
        epoch=0, metrics={}, weights="", weights_sha256="", started_from=started_from or None,
    )  # fmt: skip
