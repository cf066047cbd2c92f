"""What more sources do at the same number of images: trains a recipe on some of DATA, prints a row for each run.

Run `python -m aivsreal.benchmarks.studies.sources DATA --runs FOLDER`. Sources are drawn with the seed, real and ai in
the proportion that DATA has them, and the same number of images is taken as equally from each as there are images.
Measured on `val_unseen`, none of whose sources is drawn; `test` has no say.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.benchmarks.studies.ablation import Scale, epochs_done, row_from_run, train, train_command
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.config import PRESETS
from aivsreal.train.samples import Sample, first_of_each_source, in_split, samples_from_data

CHOSEN_ON = "val_unseen"


def drawn(samples: Sequence[Sample], sources: int, images: int, seed: int) -> list[Sample]:
    """About so many images of so many sources, as equally from each as they have them.

    Raises:
        DataError: there are not so many sources of both classes, or not so many images of those.
    """
    sizes = Counter((sample.label, sample.source) for sample in samples)
    if not len(LABELS) <= sources <= len(sizes):
        raise DataError(f"--sources {sources}: train has {len(sizes)}, and {len(LABELS)} are needed")
    by_label = [sorted(source for source in sizes if source[0] == label) for label in LABELS]
    first = min(max(round(sources * len(by_label[0]) / len(sizes)), 1), sources - 1)
    rng = np.random.default_rng(seed)
    chosen = {
        names[index]
        for names, count in zip(by_label, (first, sources - first), strict=True)
        for index in rng.permutation(len(names))[:count]
    }
    kept = [sample for sample in samples if (sample.label, sample.source) in chosen]
    if len(kept) < images:
        raise DataError(f"--images {images}: the {sources} sources drawn with seed {seed} have {len(kept)}")
    return first_of_each_source(kept, _of_each([sizes[source] for source in chosen], images))


def _of_each(sizes: Sequence[int], images: int) -> int:
    """The least number of images of each source at which all together are so many."""
    return next(count for count in range(1, max(sizes) + 1) if sum(min(size, count) for size in sizes) >= images)


def written(table: Path, samples: Sequence[Sample]) -> None:
    """A data set of these samples, wherever they lie."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "source"])
        writer.writerows((sample.path.absolute(), sample.label, sample.split, sample.source) for sample in samples)


@command("sources")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/sources"), show_default=True)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="student-alone", show_default=True)
@click.option("--sources", "counts", multiple=True, type=click.IntRange(2), default=[20, 50, 98], show_default=True)
@click.option("--images", type=click.IntRange(2), default=2600, show_default=True, help="At least so many, of all.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0], show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True)
@click.option("--size", type=click.IntRange(32), default=96, show_default=True, help="Input size in pixels.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that load images.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the images decoded between runs.")
def main(
    data: Path, runs: Path, preset: str, counts: Sequence[int], images: int, seeds: Sequence[int], epochs: int,
    size: int, workers: int, cache: Path | None,
) -> None:  # fmt: skip
    """Train a preset on some sources of DATA and print one JSON line for each run."""
    samples = samples_from_data(data)
    scale = Scale(epochs, size)
    machine = machine_facts()
    for count in counts:
        for seed in seeds:
            chosen = drawn(in_split(samples, "train"), count, images, seed)
            run = runs / f"{preset}-{count}-{seed}"
            table = run / "images.csv"
            written(table, [*chosen, *in_split(samples, CHOSEN_ON)])
            if len(epochs_done(run / "run")) < epochs:
                train(run / "run", train_command(table, preset, seed, scale), workers, cache)
            row = row_from_run(run / "run", table, preset, seed, scale)
            options = f"--sources {count} --images {images} --seed {seed} --epochs {epochs} --size {size}"
            made = f"python -m aivsreal.benchmarks.studies.sources {data.name} --preset {preset} {options}"
            about = {"benchmark": "sources", "sources": count, "images": len(chosen), "command": made}
            click.echo(json.dumps({**row, **about, "machine": machine}))


if __name__ == "__main__":
    main()
