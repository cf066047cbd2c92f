"""What each preset does to seen and to unseen sources: trains those that are not trained yet, prints a row for each.

Run `python -m aivsreal.benchmarks.studies.ablation DATA --runs FOLDER`; a run that was cut off goes on where it
stopped. The splits are the validation splits of DATA: `test` has no say in a choice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError
from aivsreal.train.config import PRESETS

Row = dict[str, Any]
TAUGHT = sorted(name for name, config in PRESETS.items() if config.distil.asks_a_teacher)
ALONE = sorted(name for name, config in PRESETS.items() if config.arch.startswith("levit_") and name not in TAUGHT)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large runs are: without a GPU, a small network on small images shows in minutes which way a change goes."""

    epochs: int
    size: int | None = None
    arch: str | None = None
    """timm name."""
    teacher: Path | None = None
    """Bundle or run of a ViT, for the presets that are taught."""
    encoder: str | None = None
    """File of a teacher's encoder, where it is a run."""
    per_source: int = 0
    """At most so many images of a source; 0 takes all."""

    def size_of(self, preset: str) -> int:
        """Side of the input in pixels."""
        return self.size or PRESETS[preset].spec.size

    def arch_of(self, preset: str) -> str:
        """The network."""
        return self.arch or PRESETS[preset].arch

    def options(self, preset: str) -> list[str]:
        """The options of `aivsreal-train` for a preset."""
        size = ["--size", str(self.size)] if self.size else []
        arch = ["--arch", self.arch] if self.arch else []
        teacher = ["--teacher", str(self.teacher)] if self.teacher and preset in TAUGHT else []
        encoder = ["--init", self.encoder] if teacher and self.encoder else []
        images = ["--per-source", str(self.per_source)] if self.per_source else []
        return ["--epochs", str(self.epochs), *size, *arch, *images, *teacher, *encoder]


def train_command(data: Path, preset: str, seed: int, scale: Scale) -> list[str]:
    """The arguments of `aivsreal-train` that make a row, without the folder that it writes to."""
    return [str(data), "--preset", preset, "--seed", str(seed), *scale.options(preset)]


def train(run: Path, options: Sequence[str], workers: int, cache: Path | None) -> None:
    """Train a run, or what is left of it, with these arguments of `aivsreal-train`.

    Raises:
        DataError: it failed.
    """
    command = [sys.executable, "-m", "aivsreal.train.cli", *options, "-o", str(run), "--workers", str(workers)]
    command += ["--cache", str(cache)] if cache else []
    command += ["--resume"] if (run / "last.state.pt").is_file() else []
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise DataError(f"{' '.join(command[1:])} failed; its message is above")


def epochs_done(run: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, none where it has not begun."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def row_from_run(run: Path, data: Path, preset: str, seed: int, scale: Scale) -> Row:
    """What a finished run says: its best epoch and its last one, by split.

    Raises:
        DataError: the folder holds a run of another recipe.
    """
    card = json.loads((run / "last.json").read_text(encoding="utf-8"))
    config = card["config"]
    size, arch, images = config["spec"]["size"], config["arch"], config["per_source"]
    found = (config["preset"], config["seed"], config["epochs"], arch, size, images)
    if found != (preset, seed, scale.epochs, scale.arch_of(preset), scale.size_of(preset), scale.per_source):
        raise DataError(
            f"{run} is of preset {found[0]}, seed {found[1]}, {found[2]} epochs, {arch} at {size} px, "
            f"{images or 'all'} images of a source; give another --runs"
        )
    history = epochs_done(run)
    best = max(history, key=mean_auc)
    return {
        "benchmark": "ablation",
        "preset": preset,
        "seed": seed,
        "epochs": scale.epochs,
        "arch": arch,
        "size": size,
        "command": " ".join(["aivsreal-train", *train_command(Path(data.name), preset, seed, scale)]),
        "best": _rounded(best),
        "last": _rounded(history[-1]),
        "data_digest": card["data_digest"],
        "versions": card["versions"],
    }


def mean_auc(row: Row) -> float:
    """Mean of AUC and macro AUC over the validation splits: what `aivsreal-train` chooses the best epoch by."""
    aucs = [value[name] for split, value in row.items() if split.startswith("val") for name in ("auc", "macro_auc")]
    return float(sum(aucs) / len(aucs))


def with_changes(rows: Sequence[Row], reference: str) -> list[Row]:
    """The rows, each with its AUC and macro AUC less those of the reference with the same seed, at the last epoch."""
    references = {row["seed"]: row["last"] for row in rows if row["preset"] == reference}

    def changes(row: Row, measure: str) -> Row:
        before = references[row["seed"]]
        vals = {name: value[measure] for name, value in row["last"].items() if name.startswith("val")}
        return {name: round(value - before[name][measure], 4) for name, value in vals.items()}

    return [
        {**row, "auc_change": changes(row, "auc"), "macro_auc_change": changes(row, "macro_auc")}
        if row["seed"] in references
        else row
        for row in rows
    ]


def _rounded(row: Row) -> Row:
    return {
        name: {measure: round(number, 4) for measure, number in value.items()} if isinstance(value, dict) else value
        for name, value in row.items()
    }


@command("ablation")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(sorted(PRESETS)),
    help="[default: those that a LeViT needs no more for; with --teacher the taught ones too]",
)
@click.option("--teacher", type=click.Path(path_type=Path), help="Bundle or run that teaches the student's presets.")
@click.option("--init", "encoder", metavar="FILE", help="The file of a teacher's encoder, where --teacher is a run.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0], show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True)
@click.option("--size", type=click.IntRange(32), help="Input size in pixels.  [default: each preset's]")
@click.option("--arch", help="timm name of the LeViT.  [default: each preset's]")
@click.option("--per-source", type=click.IntRange(0), default=0, help="At most so many images of a source.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that load images.")
@click.option("--reference", type=click.Choice(sorted(PRESETS)), default="labels", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the images decoded between runs.")
@click.option("--finished", is_flag=True, help="Train nothing: rows of the runs that are there.")
def main(
    data: Path, runs: Path, presets: Sequence[str], teacher: Path | None, encoder: str | None, seeds: Sequence[int],
    epochs: int, size: int | None, arch: str | None, per_source: int, workers: int, reference: str,
    cache: Path | None, finished: bool,
) -> None:  # fmt: skip
    """Train presets on DATA and print one JSON line for each."""
    scale = Scale(epochs, size, arch, teacher, encoder, per_source)
    rows = []
    for seed in seeds:
        for preset in presets or [*ALONE, *(TAUGHT if teacher else [])]:
            run = runs / f"{preset}-{seed}"
            if len(epochs_done(run)) < epochs:
                if finished:
                    continue
                train(run, train_command(data, preset, seed, scale), workers, cache)
            rows.append(row_from_run(run, data, preset, seed, scale))
    machine = machine_facts()
    for row in with_changes(rows, reference):
        click.echo(json.dumps({**row, "machine": machine}))


if __name__ == "__main__":
    main()
