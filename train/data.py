"""The list of images to train on, from `images.csv` or folders, and what loads them.

Legend: B image in a batch; H, W image height and width; C channel; S input size.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.images import image_paths, pixels_from_file
from aivsreal.runtime.preprocess import batch_from_squares, square_from_pixels
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.augment import augmented_square
from aivsreal.train.config import TrainConfig

VAL_SHARE = 10  # where no split is for validation, one image in ten is held out, by the digest of its path


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    path: Path
    label: str
    split: str
    source: str

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
        raise DataError(f"{data}: no images; it needs an images.csv or the folders train/real and train/ai")
    if not any(sample.split.startswith("val") for sample in samples):
        samples = [_held_out(sample, data) for sample in samples]
    return samples


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
                Sample(table.parent / row["path"], row["label"], row.get("split") or "train", row.get("source") or "")
            )
    return samples


def _samples_from_folders(data: Path) -> list[Sample]:
    splits = [data] if (data / "real").is_dir() or (data / "ai").is_dir() else sorted(data.iterdir())
    return [
        Sample(path, label, "train" if split == data else split.name, path.parent.name)
        for split in splits
        for label in LABELS
        if (split / label).is_dir()
        for path in image_paths(split / label)
    ]


def _held_out(sample: Sample, data: Path) -> Sample:
    root = data if data.is_dir() else data.parent
    digest = hashlib.sha256(sample.path.relative_to(root).as_posix().encode()).digest()
    held_out = sample.split == "train" and digest[0] % VAL_SHARE == 0
    return Sample(sample.path, sample.label, "val" if held_out else sample.split, sample.source)


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


Draw = tuple[int, int, int]  # epoch, position in the epoch, index of the sample


class TrainDraws(Sampler[Draw]):
    """The order of an epoch, which the seed and the epoch alone determine, whatever the number of workers."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.count = len(samples)
        self.config = config
        self.epoch = 0
        self.weights = _weights(samples) if config.balance else None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.config.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            # Systematic sampling: an image with weight w is drawn floor(w) or ceil(w) times, never by luck more often.
            edges = np.cumsum(self.weights * self.count)
            order = np.searchsorted(edges, np.arange(self.count) + rng.random(), side="right")
            order = rng.permutation(np.minimum(order, self.count - 1))
        return iter([(self.epoch, position, int(index)) for position, index in enumerate(order)])


def _weights(samples: Sequence[Sample]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sizes = Counter((sample.label, sample.source) for sample in samples)
    roots = {label: sum(n**0.5 for (other, _), n in sizes.items() if other == label) for label in LABELS}
    weights = [sizes[s.label, s.source] ** -0.5 / roots[s.label] / 2 for s in samples]
    return np.asarray(weights, dtype=np.float64)


class TrainImages(Dataset[tuple[torch.Tensor, int]]):
    """Augmented squares `square_SSC`, uint8, and targets, addressed by `Draw`."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.samples, self.config = list(samples), config

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int]:
        epoch, position, index = draw
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((config.seed, epoch, position))
        square_SSC = augmented_square(pixels_from_file(sample.path), config.spec, config.augment, rng)
        return torch.from_numpy(square_SSC.copy()), sample.target


class ValImages(Dataset[tuple[torch.Tensor, int]]):
    """Squares exactly as the runtime sees them, and targets."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig) -> None:
        self.samples, self.spec = list(samples), config.spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[index]
        square_SSC = square_from_pixels(pixels_from_file(sample.path), self.spec)
        return torch.from_numpy(square_SSC.copy()), sample.target


def batch_from_tensors(squares_BSSC: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Normalise with the runtime's own code, so that training and runtime cannot differ."""
    return torch.from_numpy(batch_from_squares(list(squares_BSSC.numpy()), config.spec))
