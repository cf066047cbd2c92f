"""Decoded training images in one memory-mapped file: an epoch decodes nothing.

Decoding is most of the work of a loader: see `benchmarks/results/training.jsonl`.
Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import fcntl
import json
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.locks import locked
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.train.samples import Sample, decoded

Stamps = dict[str, list[int]]  # size and time of each image by its path

FORMAT = 2
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

    def __init__(self, folder: Path, places: dict[str, tuple[int, int, int]]) -> None:
        self.folder, self.places = folder, places
        self._bytes: np.memmap[Any, np.dtype[np.uint8]] | None = None

    def mapped(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        """All pixels as one array, which may be written to without a change of the file."""
        return np.memmap(self.folder / PIXELS, np.uint8, "c")

    def __call__(self, sample: Sample) -> PixelsHWC:
        """`pixels_HWC`, uint8, a read-only view of the file."""
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / PIXELS, np.uint8, "r")
        start, height, width = self.places[str(sample.path)]
        return np.asarray(self._bytes[start : start + height * width * 3]).reshape(height, width, 3)


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
    """Open the cache of these samples, or build it where there is none or a file has changed since.

    The index is written last: a half-written cache is built anew. Trainings may share a cache: one builds it and the
    others wait.

    Returns:
        The cache, and a message for each sample that cannot be read and so is not in it.

    Raises:
        DataError: the folder cannot be written, holds something else, or another training uses it with other images.
    """
    try:
        _check_that_it_is_a_cache(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_file(folder / BUILD_LOCK) as build:
            if not locked(build, fcntl.LOCK_EX | fcntl.LOCK_NB):
                tell(f"{folder}: another training builds it; waiting")
                locked(build, fcntl.LOCK_EX)
            use = _lock_file(folder / USE_LOCK)
            try:
                found = _opened(folder, _stamps(samples), short_side)
                if found is None:
                    if not locked(use, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        raise DataError(f"{folder}: another training uses it with other images; give another --cache")
                    found = _built(folder, samples, short_side, workers, tell)
                locked(use, fcntl.LOCK_SH)
            except BaseException:
                use.close()
                raise
            cache, problems = found
            weakref.finalize(cache, use.close)  # the lock lasts as long as the cache that was opened
            return cache, problems
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}; give another --cache") from None


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


def _opened(folder: Path, stamps: Stamps, short_side: int) -> tuple[CachedPixels, list[str]] | None:
    if not (folder / INDEX).is_file():
        return None
    values = _index_from_file(folder / INDEX)
    # It may hold more: with --per-source a run takes some of the images that another run put there.
    if values["short_side"] != short_side or not stamps.items() <= values["stamps"].items():
        return None
    places = {name: (place[0], place[1], place[2]) for name, place in values["places"].items() if name in stamps}
    missing = tuple(f"{name}:" for name in stamps.keys() - places.keys())  # with which a message begins
    return CachedPixels(folder, places), [problem for problem in values["problems"] if problem.startswith(missing)]


def _built(
    folder: Path, samples: Sequence[Sample], short_side: int, workers: int, tell: Callable[[str], None]
) -> tuple[CachedPixels, list[str]]:
    index, part = folder / INDEX, folder / INDEX_PART
    if index.is_file():
        tell(f"{folder}: of other images; it is built anew")
        index.unlink()
    stamps = _stamps(samples)  # before they are read: one that changes meanwhile is seen the next time
    places, problems, size = _write_pixels(folder / PIXELS, samples, short_side, workers)
    values = {"format": FORMAT, "short_side": short_side, "stamps": stamps, "places": places, "problems": problems}
    part.write_text(json.dumps(values), encoding="utf-8")
    os.replace(part, index)
    tell(f"{folder}: {len(places)} images, {size / 2**20:.0f} MiB")
    return CachedPixels(folder, places), problems


def _index_from_file(index: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        if values["format"] != FORMAT or not {"short_side", "stamps", "places", "problems"} <= values.keys():
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{index}: not an index that this version wrote; give another folder with --cache") from None
    return values


def _stamps(samples: Sequence[Sample]) -> Stamps:
    return {str(sample.path): _stamp(sample.path) for sample in samples}


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [0, 0]  # a missing file is a problem of its image, told when it is decoded
    return [status.st_size, status.st_mtime_ns]


def _write_pixels(
    path: Path, samples: Sequence[Sample], short_side: int, workers: int
) -> tuple[dict[str, tuple[int, int, int]], list[str], int]:
    places: dict[str, tuple[int, int, int]] = {}
    problems = []
    start = 0
    with path.open("wb") as file:
        for sample, pixels_HWC in decoded(samples, FilePixels(short_side), workers):
            if isinstance(pixels_HWC, ImageError):
                problems.append(str(pixels_HWC))
                continue
            file.write(pixels_HWC.tobytes())
            places[str(sample.path)] = (start, pixels_HWC.shape[0], pixels_HWC.shape[1])
            start += pixels_HWC.size
    return places, problems, start
