"""The labelled images of a data set, from `images.csv` or folders; needs no torch."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.files.images import pixels_from_file
from aivsreal.runtime.verdict import LABELS

_TAKEN = "it needs an images.csv, or the folders train/real and train/ai, or real and ai (whatever their case)"
_NAMED = 8  # folders that an error lists
VAL_SHARE = 10  # where no split is for validation, one image in ten is held out, by the digest of its path


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    path: Path
    label: str
    split: str
    source: str
    licence: str = ""
    """As its source states it."""

    @property
    def target(self) -> int:
        """1 for ai, 0 for real."""
        return LABELS.index(self.label)


def samples_from_data(data: Path) -> list[Sample]:
    """All labelled images of `data`: a CSV file, a folder with an `images.csv`, or `SPLIT/real` and `SPLIT/ai` folders.

    A folder with `real/` and `ai/` and no splits, or a data set without a split named `val...`, gets one: a tenth of
    `train`, chosen by the digest of the relative path, so that it never changes when images are added.

    Raises:
        DataError: nothing is there, a column or class is missing, or a label is unknown.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    table = data if data.is_file() else data / "images.csv"
    samples = _samples_from_csv(table) if table.is_file() else _samples_from_folders(data)
    if not samples:
        raise DataError(f"{data}: no images; {_TAKEN}")
    if not any(sample.split.startswith("val") for sample in samples):
        samples = [_held_out(sample, data) for sample in samples]
    return samples


def samples_from_pair(real: Path, ai: Path, split: str = "all") -> list[Sample]:
    """All images under a folder of real and a folder of AI images, as one split; a source is the folder a file lies in.

    Raises:
        DataError: one of them is no folder.
    """
    for folder in (real, ai):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    return [
        Sample(path, label, split, path.parent.name)
        for label, folder in zip(LABELS, (real, ai), strict=True)
        for path in image_paths(folder)
    ]


def _samples_from_csv(table: Path) -> list[Sample]:
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{table}: needs the columns path and label (and split, source); {sorted(missing)} missing")
        samples = []
        for row in reader:
            if row["label"] not in LABELS:
                raise DataError(f"{table}, line {reader.line_num}: label must be real or ai, not {row['label']!r}")
            samples.append(
                Sample(
                    table.parent / row["path"],
                    row["label"],
                    row.get("split") or "train",
                    row.get("source") or "",
                    row.get("licence") or "",
                )
            )
    return samples


def _samples_from_folders(data: Path) -> list[Sample]:
    splits = [data] if _classes(data) else sorted(folder for folder in data.iterdir() if _classes(folder))
    if not splits:
        raise DataError(f"{data}: no images; {_TAKEN}{_found(data)}")
    samples = []
    for split in splits:
        classes = _classes(split)
        if {label for label, _ in classes} < set(LABELS) and len(_folders(split)) > len(classes):
            raise DataError(f"{split}: a class is missing; {_TAKEN}{_found(split)}")  # it may be there as "fake"
        name = "train" if split == data else split.name
        samples += [
            Sample(path, label, name, path.parent.name) for label, folder in classes for path in image_paths(folder)
        ]
    return samples


def _classes(split: Path) -> list[tuple[str, Path]]:
    """Label and folder of each folder that is named as a class, whatever its case."""
    folders = _folders(split)
    return [(label, folder) for label in LABELS for folder in folders if folder.name.lower() == label]


def _folders(place: Path) -> list[Path]:
    return sorted(folder for folder in place.iterdir() if folder.is_dir()) if place.is_dir() else []


def _found(place: Path) -> str:
    names = ", ".join(folder.name for folder in _folders(place)[:_NAMED])
    return f"; here are the folders {names}" if names else ""


def _held_out(sample: Sample, data: Path) -> Sample:
    root = data if data.is_dir() else data.parent
    digest = hashlib.sha256(sample.path.relative_to(root).as_posix().encode()).digest()
    held_out = sample.split == "train" and digest[0] % VAL_SHARE == 0
    return replace(sample, split="val") if held_out else sample


def in_split(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of one split.

    Raises:
        DataError: the split has no image of a class.
    """
    chosen = [sample for sample in samples if sample.split == split]
    for label in LABELS:
        if not any(sample.label == label for sample in chosen):
            raise DataError(f"split {split!r} has no image labelled {label}; both classes are needed")
    return chosen


def readable(samples: Sequence[Sample], workers: int) -> tuple[list[Sample], list[str]]:
    """Decode every image once: the samples that can be used, and one message for each that cannot."""

    def problem(sample: Sample) -> str | None:
        try:
            pixels_from_file(sample.path)
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        problems = list(pool.map(problem, samples))
    good = [sample for sample, message in zip(samples, problems, strict=True) if message is None]
    return good, [message for message in problems if message is not None]


def digest_of(samples: Sequence[Sample], root: Path) -> str:
    """SHA-256 of the data list: relative path, label, split and size of each file, in order."""
    sha = hashlib.sha256()
    for sample in samples:
        name = sample.path.relative_to(root).as_posix() if sample.path.is_relative_to(root) else sample.path.name
        sha.update(f"{name}\t{sample.label}\t{sample.split}\t{sample.path.stat().st_size}\n".encode())
    return sha.hexdigest()


def counts_of(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Images by `split/label` and source."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[f"{sample.split}/{sample.label}"][sample.source or "-"] += 1
    return {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())}


def licences_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Licence by source, "" where none is known."""
    return {sample.source or "-": sample.licence for sample in sorted(samples, key=lambda sample: sample.source)}


def limited(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples of each split and class, spread evenly over the list so that all sources stay in."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.split, sample.label].append(sample)
    return [
        group[index * len(group) // min(len(group), limit or len(group))]
        for group in groups.values()
        for index in range(min(len(group), limit or len(group)))
    ]
