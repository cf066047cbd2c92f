"""The labelled images of a data set, from `images.csv` or folders; needs no torch."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.verdict import LABELS

_TAKEN = "it needs an images.csv, or the folders train/real and train/ai, or real and ai (whatever their case)"
_NAMED = 8  # folders that an error lists
Weights = npt.NDArray[np.float64]
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
    kind: str = ""
    """What it shows, such as portrait, art or document; evaluations say how good a model is on each."""

    @property
    def target(self) -> int:
        """1 for ai, 0 for real."""
        return LABELS.index(self.label)


def samples_from_data(data: Path) -> list[Sample]:
    """All labelled images of `data`: a CSV file, a folder with an `images.csv`, or `SPLIT/real` and `SPLIT/ai` folders.

    Beside a CSV file a `kinds.csv` with the columns `source` and `kind` may say what the images of each source show; a
    column `kind` of its own goes before it.

    A folder with `real/` and `ai/` and no splits, or a data set without a split named `val...`, gets one: a tenth of
    `train`, chosen by the digest of the relative path, so that it never changes when images are added.

    Raises:
        DataError: nothing is there or can be read, a column or class is missing, or a label is unknown.
    """
    if not os.path.exists(data):
        raise DataError(f"{data}: no such file or folder, or one that may not be looked into")
    table = data if os.path.isfile(data) else data / "images.csv"
    samples = _samples_from_csv(table) if os.path.isfile(table) else _samples_from_folders(data)
    if not samples:
        raise DataError(f"{data}: no images; {_TAKEN}")
    if not any(sample.split.startswith("val") for sample in samples):
        samples = [_held_out(sample, data) for sample in samples]
    return samples


def samples_under(folder: Path, label: str, split: str) -> list[Sample]:
    """All images under a folder, of one class or, with an empty label, of none; a source is the folder a file lies in.

    Raises:
        DataError: it is no folder.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder")
    return [Sample(path, label, split, path.parent.name) for path in image_paths(folder)]


def _samples_from_csv(table: Path) -> list[Sample]:
    rows = _rows(table)
    _, names = next(rows, (0, []))
    missing = {"path", "label"} - set(names)
    if missing:
        found = f"it has {', '.join(map(repr, names))}" if any(names) else "its first line is empty"
        raise DataError(
            f"{table}: needs the columns path and label (and split, source); {' and '.join(sorted(missing))} missing, "
            f"{found}"
        )
    kinds = _kinds_beside(table)
    samples = []
    for line, cells in rows:
        row = dict(zip(names, cells, strict=False))
        if not row.get("path"):
            raise DataError(f"{table}, line {line}: there is no path in it")
        if row.get("label") not in LABELS:
            raise DataError(f"{table}, line {line}: label must be real or ai, not {row.get('label', '')!r}")
        samples.append(
            Sample(
                table.parent / row["path"],
                row["label"],
                row.get("split") or "train",
                row.get("source") or "",
                row.get("licence") or "",
                row.get("kind") or kinds.get(row.get("source") or "", ""),
            )
        )
    return samples


def _kinds_beside(table: Path) -> dict[str, str]:
    """Kind by source, of the `kinds.csv` that may lie beside a table."""
    path = table.with_name("kinds.csv")
    if not os.path.isfile(path):
        return {}
    rows = _rows(path)
    _, names = next(rows, (0, []))
    if not {"source", "kind"} <= set(names):
        raise DataError(f"{path}: needs the columns source and kind")
    found = (dict(zip(names, cells, strict=False)) for _, cells in rows)
    return {row["source"]: row.get("kind", "") for row in found if row.get("source")}


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with their last line's number, as a spreadsheet saves them.

    Excel puts a mark before UTF-8, and semicolons where a comma is in numbers; its "Unicode text" is UTF-16 with tabs.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    try:
        content = table.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        heading = text.split("\n", 1)[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=heading.count))
        for cells in reader:
            if any(cells):
                yield reader.line_num, cells
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f'{table}: is not UTF-8: save it as "CSV UTF-8"') from None
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}") from None


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
        samples += [sample for label, folder in classes for sample in samples_under(folder, label, name)]
    return samples


def _classes(split: Path) -> list[tuple[str, Path]]:
    """Label and folder of each folder that is named as a class, whatever its case."""
    folders = _folders(split)
    return [(label, folder) for label in LABELS for folder in folders if folder.name.lower() == label]


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(folder for folder in place.iterdir() if os.path.isdir(folder)) if os.path.isdir(place) else []
    except OSError as error:
        raise DataError(f"{place}: cannot be listed: {error.strerror}") from None


def _found(place: Path) -> str:
    names = ", ".join(folder.name for folder in _folders(place)[:_NAMED])
    return f"; here are the folders {names}" if names else ""


def _held_out(sample: Sample, data: Path) -> Sample:
    root = data if os.path.isdir(data) else data.parent
    digest = hashlib.sha256(_bytes_of(_within(sample.path, root))).digest()
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


def decoded(
    samples: Sequence[Sample], pixels_of: Callable[[Sample], PixelsHWC], workers: int
) -> Iterator[tuple[Sample, PixelsHWC | ImageError]]:
    """Each sample with its pixels, or with why there are none; some at a time, for all need not fit into memory."""

    def tried(sample: Sample) -> PixelsHWC | ImageError:
        try:
            return pixels_of(sample)
        except ImageError as error:
            return error

    ahead = 8 * max(1, workers)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for first in range(0, len(samples), ahead):
            part = samples[first : first + ahead]
            yield from zip(part, pool.map(tried, part), strict=True)


def readable(samples: Sequence[Sample], workers: int) -> tuple[list[Sample], list[str]]:
    """Decode every image once: the samples that can be used, and one message for each that cannot."""
    good, problems = [], []
    for sample, pixels in decoded(samples, lambda sample: pixels_from_file(sample.path), workers):
        if isinstance(pixels, ImageError):
            problems.append(str(pixels))
        else:
            good.append(sample)
    return good, problems


def digest_of(samples: Sequence[Sample], root: Path) -> str:
    """SHA-256 of the data list: relative path, label, split and size of each file, in order."""
    sha = hashlib.sha256()
    for sample in samples:
        facts = (_within(sample.path, root), sample.label, sample.split, str(sample.path.stat().st_size))
        sha.update(_bytes_of("\t".join(facts) + "\n"))
    return sha.hexdigest()


def _within(path: Path, root: Path) -> str:
    """The path in a data set, or the name of a file that lies elsewhere, as a table may say."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _bytes_of(text: str) -> bytes:
    """UTF-8, but for names of files, which may be any bytes."""
    return text.encode("utf-8", "surrogateescape")


def counts_of(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Images by `split/label` and source."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[f"{sample.split}/{sample.label or 'unlabelled'}"][sample.source or "-"] += 1
    return {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())}


def licences_of(samples: Sequence[Sample]) -> dict[str, str]:
    """Licence by source, "" where none is known."""
    return {sample.source or "-": sample.licence for sample in sorted(samples, key=lambda sample: sample.source)}


def weights_of(sources: Sequence[tuple[str, str]], power: float) -> Weights:
    """`weight_N`, 1 in sum: half for each class, among its sources in proportion to a power of their size.

    Args:
        sources: label and source of each image; those without a label have their share of all images.
        power: 0 weighs all sources of a class alike, 1 all images.
    """
    sizes, labels = Counter(sources), Counter(label for label, _ in sources)
    totals = {label: sum(n**power for (other, _), n in sizes.items() if other == label) for label in labels}
    known = sum(labels[label] for label in LABELS) / len(sources)
    shares = {label: known / 2 if label in LABELS else 1 - known for label in labels}
    weights = [sizes[one] ** (power - 1) / totals[one[0]] * shares[one[0]] for one in sources]
    return np.asarray(weights, dtype=np.float64)


def first_of_each_source(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many of each source and class, in their order; 0 is all."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for sample in samples:
        seen[sample.label, sample.source] += 1
        if not count or seen[sample.label, sample.source] <= count:
            kept.append(sample)
    return kept


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
