"""`python -m aivsreal.train.pack`: views of a data set as small files, to train where the originals are not.

A view is what a training with `--cache` would keep of an image, as AVIF with full chroma: 23 kB and 40.6 dB in the mean
of 60 originals, where JPEG of quality 92 needs 40 kB for 40.9 dB and of quality 90 with 4:2:0 29 kB for 37.8 dB. Its
Exif data say what it was made of, so that one of another size or of a file that has changed is made again.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
from PIL import ExifTags, Image

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.pixels.read import stamp_of
from aivsreal.train.batches.cache import FilePixels
from aivsreal.train.samples import Sample, first_of_each_source, in_split, samples_from_data

QUALITY, SPEED = 85, 8  # at quality 65 a view has 13 kB and 36.5 dB; LeViT's AUC on unseen sources was the same
_NOTE = ExifTags.Base.ImageDescription


def packed(
    samples: list[Sample], out: Path, short_side: int, quality: int, workers: int
) -> Iterator[tuple[Sample, str, str]]:
    """Each sample, the name of its view's file in `out`, and instead of that a message where it cannot be read."""
    with ProcessPoolExecutor(workers) as pool:
        done = pool.map(partial(_pack, out, short_side, quality), samples, _names(samples), chunksize=8)
        yield from ((sample, *told) for sample, told in zip(samples, done, strict=True))


def _names(samples: list[Sample]) -> list[str]:
    """A file for each sample; those whose own names are alike get a part of the digest of their path."""
    names = [f"{sample.split}/{sample.label}/{sample.path.stem}" for sample in samples]
    counts = Counter(names)
    digests = [hashlib.sha256(os.fsencode(sample.path)).hexdigest()[:8] for sample in samples]
    return [
        f"{name}.avif" if counts[name] == 1 else f"{name}-{digest}.avif"
        for name, digest in zip(names, digests, strict=True)
    ]


def _pack(out: Path, short_side: int, quality: int, sample: Sample, name: str) -> tuple[str, str]:
    path, note = out / name, _note_for(sample.path, short_side, quality)  # of the original before it is read
    try:
        (name + sample.source).encode()
        if _note_in(path) == note:
            return name, ""
        pixels_HWC = FilePixels(short_side)(sample)
    except ImageError as error:
        return "", str(error)
    except UnicodeEncodeError:
        return "", f"{sample.path}: its name or its folder's is not UTF-8, as images.csv must be: rename it"
    exif = Image.Exif()
    exif[_NOTE] = note
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HWC).save(
        part, "AVIF", quality=quality, speed=SPEED, subsampling="4:4:4", max_threads=1, exif=exif
    )
    part.replace(path)
    return name, ""


def _note_for(original: Path, short_side: int, quality: int) -> str:
    """What a view is made of."""
    stamp = stamp_of(original)
    if stamp is None:
        return ""  # a missing file is told when it is decoded
    return f"short side {short_side}, quality {quality}, of {stamp.size} bytes, {stamp.mtime_ns} ns"


def _note_in(view: Path) -> str | None:
    try:
        with Image.open(view) as image:
            return image.getexif().get(_NOTE)
    except OSError:  # it is not there, or damaged
        return None


@command("aivsreal.train.pack")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--short-side", type=click.IntRange(32), default=288, show_default=True)
@click.option("--quality", type=click.IntRange(0, 100), default=QUALITY, show_default=True, help="Of AVIF.")
@click.option("--per-source", type=click.IntRange(0), default=0, help="At most so many images of a source; 0: all.")
@click.option("--split", "splits", multiple=True, help="Repeatable.  [default: train and val*]")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def main(
    data: Path, out: Path, *, short_side: int, quality: int, per_source: int, splits: tuple[str, ...], workers: int
) -> None:
    """Write the views of DATA and their images.csv into OUT; run again, it makes what is missing or has changed."""

    def taken(split: str) -> bool:
        return split in splits if splits else split.startswith(("train", "val"))

    if out.resolve() == (data.parent if data.is_file() else data).resolve():
        raise DataError(f"{out} holds the originals, whose images.csv would be lost: give another folder")
    found = [sample for sample in samples_from_data(data) if taken(sample.split)]
    names = dict.fromkeys([*splits, *(sample.split for sample in found)])
    samples = [sample for name in names for sample in first_of_each_source(in_split(found, name), per_source)]
    try:
        done = _write(samples, out, short_side, quality, workers)
    except OSError as error:
        raise DataError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    click.echo(f"{done} of {len(samples)} views are in {out}", err=True)


def _write(samples: list[Sample], out: Path, short_side: int, quality: int, workers: int) -> int:
    """The views, and then their table in place of the one before; how many there are."""
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    part = out / "images.csv.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split", "source", "licence", "kind"))
        for sample, name, problem in packed(samples, out, short_side, quality, workers):
            if problem:
                click.echo(f"skipped: {problem}", err=True)
            else:
                table.writerow((name, sample.label, sample.split, sample.source, sample.licence, sample.kind))
                done += 1
    part.replace(out / "images.csv")
    return done


if __name__ == "__main__":
    main()
