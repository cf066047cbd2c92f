"""The library's front door: open a bundle once, then judge images or scan files with it.

Legend: B image in a batch; H, W image height and width; S input size; C channel (3, RGB).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.backends.protocol import Backend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, Fault, ImageError
from aivsreal.runtime.files.decode import Decoded, DecodePlan, reduced
from aivsreal.runtime.files.images import (
    MAX_PIXELS,
    pixels_from_array,
    pixels_from_file,
    pixels_from_image,
    pixels_from_snapshot,
)
from aivsreal.runtime.files.pipeline import judged_batches
from aivsreal.runtime.files.pool import TIME_LIMIT_S, DecodePool
from aivsreal.runtime.files.read import MAX_BYTES, Reader, Snapshot, check_content, snapshot_from_file
from aivsreal.runtime.preprocess import PixelsHWC, Scores, square_from_pixels
from aivsreal.runtime.verdict import (
    FileStamp,
    Judge,
    OperatingPoint,
    Scanned,
    Verdict,
    View,
    p_ai_from_logit,
    verdict_from_declared,
    verdict_from_logit,
)

AnyPath = Union[str, "os.PathLike[str]"]
AnyImage = Union[  # noqa: UP007  Python 3.10 evaluates it
    AnyPath, bytes, bytearray, memoryview, BinaryIO, Image.Image, npt.NDArray[np.uint8]
]
TAKEN = "a path, the bytes of an image file, a file opened in binary mode, a Pillow image or uint8 RGB [H, W, 3]"
BATCH_SIZE = 16


class Detector:
    """A bundle, the backend that runs it and the operating point that turns its scores into labels.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, bundle: Bundle, backend: Backend, why: str, point: OperatingPoint) -> None:
        self.bundle = bundle
        self.backend = backend
        self.why = why
        """Why this backend was chosen and the others were passed over."""
        self.point = point
        self._closed = False

    @staticmethod
    def open(
        bundle: Bundle | Path | str | None = None,
        backend: str = "auto",
        operating_point: str | None = None,
        threads: int | None = None,
        images: int | None = None,
    ) -> Detector:
        """Open a bundle with a backend.

        Args:
            bundle: an open one, its folder, or None for the shipped one.
            backend: one of `backend.BACKENDS`.
            operating_point: its name; None takes the bundle's default.
            threads: CPU threads for the network; None leaves it to the backend.
            images: how many will be judged, where that is known, as of `backend.open_backend`.

        Raises:
            BundleError: the bundle is missing or damaged, or has no such operating point.
            BackendError: no backend, or not the one asked for, can run here.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        point = opened.manifest.point(operating_point)
        running, why = open_backend(opened, backend, threads, images)
        return Detector(opened, running, why, point)

    def __enter__(self) -> Detector:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def judge_of_rows(self) -> Judge:
        """What a row of results says of who judged."""
        return Judge(self.bundle.digest, self.point.name, f"{self.backend.name} {self.backend.precision}")

    def close(self) -> None:
        """Give back what the backend holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.backend.close()

    def judge(self, image: AnyImage) -> Verdict:
        """Judge one image: a path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8
        RGB `pixels_HWC`.

        Raises:
            ImageError: it cannot be read or judged.
            BackendError: the backend failed, or the detector is closed.
            TypeError: it is none of these.
        """
        self._check_open()
        return self._verdict(float(self._scores([self._reduced(self._pixels(image))]).logits_B[0]))

    def judge_many(self, images: Iterable[AnyImage], batch_size: int = BATCH_SIZE) -> Iterator[Verdict]:
        """Judge images in batches, in order; one batch is in memory at a time.

        Raises:
            ImageError: one cannot be read; the verdicts of those before it have been given.
            BackendError: the backend failed, or the detector is closed.
            TypeError: `images` is a single one, or one of them is nothing that `judge` takes.
        """
        self._check_open()
        _check_positive("batch_size", batch_size)
        _check_several("images", images)
        rest = iter(images)
        failed: ImageError | None = None
        while failed is None:
            pixels: list[PixelsHWC] = []
            try:
                for image in islice(rest, batch_size):
                    pixels.append(self._reduced(self._pixels(image)))  # noqa: PERF401  kept when one fails
            except ImageError as error:
                failed = error
            for logit in self._scores(pixels).logits_B:
                yield self._verdict(float(logit))
            if failed is None and not pixels:
                return
        raise failed

    def scan(
        self,
        paths: Iterable[AnyPath | None],
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        pool: DecodePool | None = None,
        trust_metadata: bool = False,
        views: bool = False,
    ) -> Iterator[Scanned]:
        """Judge files in order; one that cannot be judged becomes a result with its error.

        Files are decoded in a thread a core, at most two batches ahead, so memory does not grow with their number. For
        a backend that takes squares the threads also crop and resize, so that it does not grow with the images' size
        either. The first results come after one file; see `pipeline.judged_batches`.

        Args:
            paths: read as far as the window needs, so it may be an endless stream. One whose next path has yet to come
                gives None before it waits for it, and the results of all before it come first.
            batch_size: images that the network sees at once.
            threads: decoding threads; None takes one a core.
            pool: one of `decode_pool`, for its options or to keep its processes for the next scan; it stays open.
            trust_metadata: let what a file declares of its origin decide its label.
            views: put into each result what the network saw, with its map where the network gives one.

        Raises:
            BackendError: the backend failed, or the detector is closed.
            TypeError: `paths` is a single one, or one of them is no path.
        """
        for batch in self.scan_batches(paths, batch_size, threads, pool, trust_metadata, views):
            yield from batch

    def scan_batches(
        self,
        paths: Iterable[AnyPath | None],
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        pool: DecodePool | None = None,
        trust_metadata: bool = False,
        views: bool = False,
    ) -> Iterator[list[Scanned]]:
        """As `scan`, a batch at a time: between two of them nothing is half done, so that is where to stop.

        Raises:
            BackendError: the backend failed.
        """
        self._check_open()
        _check_positive("batch_size", batch_size)
        _check_several("paths", paths)
        running = pool or self.decode_pool(threads)

        def judge(batch: Sequence[Decoded]) -> list[Scanned]:
            return self._judged(batch, batch_size, trust_metadata, views)

        try:
            each = (None if path is None else _path(path) for path in paths)
            yield from judged_batches(each, running, judge, batch_size)
        finally:
            if pool is None:
                running.close()

    def decode_pool(
        self,
        threads: int | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        isolate: bool = False,
        frames: int = 1,
        max_pixels: int = MAX_PIXELS,
        by_content: bool = False,
        read: Reader = snapshot_from_file,
    ) -> DecodePool:
        """Threads that decode for `scan`; close the pool when done. See `DecodePool` and `DecodePlan`."""
        spec = self.bundle.manifest.spec
        seen = spec if self.backend.takes_squares else None
        plan = DecodePlan(seen, frames, max_pixels, by_content, spec.least_side)
        return DecodePool(plan, threads, time_limit_s, isolate, read)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the detector is closed: open another one with Detector.open")

    def _judged(self, batch: Sequence[Decoded], batch_size: int, trust_metadata: bool, views: bool) -> list[Scanned]:
        pixels = [frame for decoded in batch for frame in decoded.pixels]
        # Files of several frames make a batch longer than was asked for.
        with_maps = views and self.backend.has_maps
        parts = [self._scores(pixels[at : at + batch_size], with_maps) for at in range(0, len(pixels), batch_size)]
        logits = iter([float(logit) for scores in parts for logit in scores.logits_B])
        maps = iter([map_hw for scores in parts for map_hw in (() if scores.maps_Bhw is None else scores.maps_Bhw)])
        judged = []
        for decoded in batch:
            scanned = self._scanned(decoded, [next(logits) for _ in decoded.pixels], trust_metadata)
            seen = [next(maps, None) for _ in decoded.pixels]
            if views and scanned.verdict is not None:
                scanned = replace(scanned, view=View(self._square(decoded.pixels[0]), seen[0]))
            judged.append(scanned)
        return judged

    def _scanned(self, decoded: Decoded, logits: Sequence[float], trust_metadata: bool) -> Scanned:
        path, stamp = decoded.path, decoded.stamp
        if decoded.error is not None:
            return Scanned(path, error=decoded.error, fault=decoded.fault, stamp=stamp)
        temperature = self.bundle.manifest.temperature
        try:
            verdict = verdict_from_logit(sum(logits) / len(logits), temperature, self.point)
        except ValueError as error:
            return Scanned(path, error=str(error), fault=Fault.MODEL, stamp=stamp)
        frames: tuple[tuple[int, float], ...] = ()
        if len(logits) > 1:
            each = [p_ai_from_logit(logit, temperature) for logit in logits]
            frames = tuple(zip(decoded.frames, each, strict=True))
            verdict = replace(verdict, reason=f"{verdict.reason}, from the mean of {len(logits)} frames")
        if trust_metadata:
            verdict = verdict_from_declared(verdict, decoded.evidence)
        return Scanned(path, verdict, evidence=decoded.evidence, stamp=stamp, frames=frames)

    def _pixels(self, image: AnyImage) -> PixelsHWC:
        return pixels_from_any(image, self.bundle.manifest.spec.least_side)

    def _reduced(self, pixels_HWC: PixelsHWC) -> PixelsHWC:
        return reduced(pixels_HWC, self.bundle.manifest.spec if self.backend.takes_squares else None)

    def _square(self, reduced_HWC: PixelsHWC) -> PixelsHWC:
        return reduced_HWC if self.backend.takes_squares else square_from_pixels(reduced_HWC, self.bundle.manifest.spec)

    def _scores(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        if not images:
            return Scores(np.empty(0, dtype=np.float32))
        self._check_open()  # again, as a stream may go on after the end
        return self.backend.run(images, maps)

    def _verdict(self, logit: float) -> Verdict:
        try:
            return verdict_from_logit(logit, self.bundle.manifest.temperature, self.point)
        except ValueError as error:
            raise BackendError(f"{error}: the backend {self.backend.name} computed nonsense; try another") from None


def pixels_from_any(image: AnyImage, least_side: int = 0) -> PixelsHWC:
    """`pixels_HWC`, uint8 RGB, of whatever `Detector.judge` takes.

    Args:
        image: a path, the bytes of an image file, a file opened in binary mode (read from where it stands), a Pillow
            image or an array.
        least_side: as of `pixels_from_file`; it is for files alone: an open image is its owner's.

    Raises:
        ImageError: it cannot be read.
        TypeError: it is none of these.
    """
    if isinstance(image, (str, os.PathLike)):
        return pixels_from_file(_path(image), least_side=least_side)
    if isinstance(image, Image.Image):
        return pixels_from_image(image)
    if isinstance(image, np.ndarray):
        return pixels_from_array(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _pixels_from_content(bytes(image), "bytes", least_side)
    if not hasattr(image, "read"):
        raise TypeError(f"an image must be {TAKEN}, not {_kind(image)}")
    named = getattr(image, "name", None)
    name = named if isinstance(named, str) else "binary file"
    try:
        content = image.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}", Fault.UNREADABLE) from None
    if not isinstance(content, bytes):
        raise TypeError(f"{name}: opened as text: open it with mode 'rb'; an image must be {TAKEN}")
    return _pixels_from_content(content, name, least_side)


def _pixels_from_content(content: bytes, name: str, least_side: int) -> PixelsHWC:
    check_content(name, len(content))
    return pixels_from_snapshot(Snapshot(Path(name), content, FileStamp(len(content), 0)), least_side=least_side)


def _path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a path must be a str or an os.PathLike, not {_kind(path)}")
    return path if isinstance(path, Path) else Path(os.fsdecode(path))


def _check_several(name: str, given: object) -> None:
    """A single one could be iterated over too: a text by its letters, a file by its lines."""
    if isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(given, "read"):
        raise TypeError(f"{name} must be several, for example a list, not {_kind(given)}")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be positive, not {value}")
