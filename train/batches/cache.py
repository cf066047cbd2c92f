"""Decoded training images in one memory-mapped file: an epoch decodes nothing.

Decoding is most of the work of a loader: see `benchmarks/results/training.jsonl`.
Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import fcntl
import json
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.locks import locked, wait_for_lock
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.train.samples import Sample, decoded

Stamps = dict[str, list[int]]  # size and time of each image by its name
Place = tuple[int, int, int]  # the first byte of a view, its height and width

FORMAT = 3
MAX_ASPECT = 1.5  # of a view: what lies further out is in no crop that the runtime judges
FEATURES = "features-"  # begins the names of files with what an encoder says of the images; they lie beside the pixels
PIXELS, INDEX, INDEX_PART = "pixels.bin", "index.json", "index.json.part"
BUILD_LOCK = "build.lock"  # held while the cache is checked and built: trainings that start together build it once
USE_LOCK = "use.lock"  # shared by all that train from the cache: nobody builds another one under their maps


class FilePixels:
    """Decodes a sample's file each time; the one that needs no preparation."""

    def __init__(self, short_side: int) -> None:
        self.short_side = short_side

    def __call__(self, sample: Sample) -> PixelsHWC:
        """`pixels_HWC`, uint8.

        Raises:
            ImageError: the file cannot be read.
        """
        return reduced(pixels_from_file(sample.path, least_side=2 * self.short_side), self.short_side)


class CachedPixels:
    """Reads a sample's pixels from a cache folder of `cached_pixels`."""

    def __init__(self, folder: Path, places: dict[str, Place]) -> None:
        self.folder, self.places = folder, places
        self._bytes: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def __contains__(self, sample: Sample) -> bool:
        return name_of(sample) in self.places

    def __call__(self, sample: Sample) -> PixelsHWC:
        """`pixels_HWC`, uint8, a read-only view of the file."""
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / PIXELS, np.uint8, "r")
        start, height, width = self.places[name_of(sample)]
        return np.asarray(self._bytes[start : start + height * width * 3]).reshape(height, width, 3)


def name_of(sample: Sample) -> str:
    """What an image is called in a cache: the same from wherever a training is started."""
    return os.path.abspath(sample.path)


def reduced(pixels_HWC: PixelsHWC, short_side: int) -> PixelsHWC:
    """A view of the image: its middle, at most 3:2, scaled, antialiased, so that its short side is `short_side`."""
    height, width = pixels_HWC.shape[:2]
    short = min(height, width)
    longest = round(MAX_ASPECT * short)
    top, left = (max(0, (side - longest) // 2) for side in (height, width))
    middle_HWC = pixels_HWC[top : top + longest, left : left + longest]
    height, width = middle_HWC.shape[:2]
    size = (round(width * short_side / short), round(height * short_side / short))
    return np.asarray(Image.fromarray(middle_HWC).resize(size, Image.Resampling.BICUBIC))


def cached_pixels(
    folder: Path, samples: Sequence[Sample], short_side: int, workers: int, tell: Callable[[str], None]
) -> tuple[CachedPixels, list[str]]:
    """Open the cache, and add to it the views of samples that it lacks or whose file has changed since.

    Trainings may share a cache: one adds to it and the others wait. Views are never moved, so that those who train from
    it meanwhile are not disturbed.

    Returns:
        The cache, and a message for each sample that cannot be read and so is not in it.

    Raises:
        DataError: the folder cannot be written, holds something else, or another training uses it with other views.
    """
    try:
        _check_that_it_is_a_cache(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_file(folder / BUILD_LOCK) as build:
            wait_for_lock(build, lambda: tell(f"{folder}: another training builds it; waiting"))
            use = _lock_file(folder / USE_LOCK)
            try:
                index = _index_of(folder, short_side, use, tell)
                named = {name_of(sample): sample for sample in samples}
                stamps = {name: _stamp(sample.path) for name, sample in named.items()}  # before they are read
                missing = [sample for name, sample in named.items() if index.stamps.get(name) != stamps[name]]
                if missing:
                    _add(folder, index, missing, stamps, workers, tell)
                locked(use, fcntl.LOCK_SH)
            except BaseException:
                use.close()
                raise
            cache = CachedPixels(folder, {name: index.places[name] for name in stamps if name in index.places})
            weakref.finalize(cache, use.close)  # the lock lasts as long as the cache that was opened
            return cache, [index.problems[name] for name in stamps if name in index.problems]
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}; give another --cache") from None


@dataclass(slots=True)
class _Index:
    """What a cache holds; a problem is the message of an image that has no place."""

    short_side: int
    stamps: Stamps = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def _check_that_it_is_a_cache(folder: Path) -> None:
    if (folder / INDEX).is_file():
        _index_from_file(folder / INDEX)
    elif folder.is_dir() and not {path.name for path in folder.iterdir() if not path.name.startswith(FEATURES)} <= {
        PIXELS,
        INDEX_PART,
        BUILD_LOCK,
        USE_LOCK,
    }:
        raise DataError(f"{folder}: holds something that is no cache; give an empty or new folder")


def _lock_file(path: Path) -> IO[str]:
    """Opened for reading, so that a finished cache can lie where nothing can be written."""
    return open(path, opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))


def _index_of(folder: Path, short_side: int, use: IO[str], tell: Callable[[str], None]) -> _Index:
    """Of the cache as it is; of views of another size nothing is of use."""
    file = folder / INDEX
    if file.is_file():
        index = _index_from_file(file)
        if index.short_side == short_side:
            pixels = folder / PIXELS
            there = pixels.stat().st_size if pixels.is_file() else 0
            for name, place in index.places.items():
                if _end(place) > there:  # of a copy that was not whole
                    index.stamps.pop(name, None)
            return index
    if not locked(use, fcntl.LOCK_EX | fcntl.LOCK_NB):
        raise DataError(f"{folder}: another training uses it with views of another size; give another --cache")
    if file.is_file():
        tell(f"{folder}: of views of another size; it is built anew")
        file.unlink()
    return _Index(short_side)


def _add(
    folder: Path, index: _Index, samples: Sequence[Sample], stamps: Stamps, workers: int, tell: Callable[[str], None]
) -> None:
    end = max((_end(place) for name, place in index.places.items() if name in index.stamps), default=0)
    try:
        with open(folder / PIXELS, "ab") as file:
            file.truncate(end)  # what lies behind was added by one that was killed
            for sample, pixels_HWC in decoded(samples, FilePixels(index.short_side), workers):
                name = name_of(sample)
                for old in (index.stamps, index.places, index.problems):
                    old.pop(name, None)
                if isinstance(pixels_HWC, ImageError):
                    index.problems[name] = str(pixels_HWC)
                else:
                    file.write(pixels_HWC.tobytes())
                    index.places[name] = (end, pixels_HWC.shape[0], pixels_HWC.shape[1])
                    end += pixels_HWC.size
                # Last: without it a view that was not written whole is made again. One that changes is seen next time.
                index.stamps[name] = stamps[name]
    finally:  # one that is stopped keeps what it has
        save_json(folder / INDEX, {"format": FORMAT, **asdict(index)})
    tell(f"{folder}: {len(samples)} images added, {end / 2**20:.0f} MiB")


def _end(place: Place) -> int:
    start, height, width = place
    return start + height * width * 3


def save_json(file: Path, values: Mapping[str, object]) -> None:
    """Whole or not at all, and readable by all who share the folder."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(values), encoding="utf-8")
    os.replace(part, file)


def _index_from_file(file: Path) -> _Index:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError
        index = _Index(**values)
        index.places = {name: (start, height, width) for name, (start, height, width) in index.places.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: not an index that this version wrote; give another folder with --cache") from None
    return index


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [0, 0]  # a missing file is a problem of its image, told when it is decoded
    return [status.st_size, status.st_mtime_ns]
