"""The library's front door: open a bundle once, then judge images or scan files with it.

Legend: B image in a batch; H, W image height and width; S input size; C channel (3, RGB).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.backend import Backend, LogitsB, SquareBackend, open_backend
from aivsreal.runtime.bundle import Bundle
from aivsreal.runtime.errors import BackendError, Fault, ImageError
from aivsreal.runtime.images import pixels_from_array, pixels_from_file, pixels_from_image
from aivsreal.runtime.preprocess import PixelsHWC, square_from_pixels
from aivsreal.runtime.rows import Judge
from aivsreal.runtime.verdict import OperatingPoint, Scanned, Verdict, verdict_from_logit

AnyImage = Union[str, Path, Image.Image, npt.NDArray[np.uint8]]  # noqa: UP007  Python 3.10 evaluates it
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

    @staticmethod
    def open(
        bundle: Path | str | None = None,
        backend: str = "auto",
        operating_point: str | None = None,
        threads: int | None = None,
    ) -> Detector:
        """Open a bundle (None: the shipped one) with a backend of `backend.BACKENDS`.

        Raises:
            BundleError: the bundle is missing or damaged, or has no such operating point.
            BackendError: no backend, or not the one asked for, can run here.
        """
        opened = Bundle.open(bundle)
        point = opened.manifest.point(operating_point)
        running, why = open_backend(opened, backend, threads)
        return Detector(opened, running, why, point)

    def __enter__(self) -> Detector:
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
        """Give back what the backend holds."""
        self.backend.close()

    def judge(self, image: AnyImage) -> Verdict:
        """Judge one image: a path, a Pillow image, or uint8 RGB `pixels_HWC`.

        Raises:
            ImageError: it cannot be read or judged.
            BackendError: the backend failed.
        """
        return self._verdict(float(self.backend.logits([pixels_from_any(image)])[0]))

    def judge_many(self, images: Iterable[AnyImage], batch_size: int = BATCH_SIZE) -> Iterator[Verdict]:
        """Judge images in batches, in order; one batch is in memory at a time.

        Raises:
            ImageError: one cannot be read; the verdicts of those before it have been given.
            BackendError: the backend failed.
        """
        _check_positive("batch_size", batch_size)
        rest = iter(images)
        failed: ImageError | None = None
        while failed is None:
            pixels: list[PixelsHWC] = []
            try:
                for image in islice(rest, batch_size):
                    pixels.append(self._reduced(pixels_from_any(image)))  # noqa: PERF401  kept when one fails
            except ImageError as error:
                failed = error
            for logit in self._logits(pixels):
                yield self._verdict(float(logit))
            if failed is None and not pixels:
                return
        raise failed

    def scan(
        self, paths: Iterable[Path], batch_size: int = BATCH_SIZE, threads: int | None = None
    ) -> Iterator[Scanned]:
        """Judge files in order; one that cannot be judged becomes a result with its error.

        Files are decoded in a few threads, at most two batches ahead, so memory does not grow with their number. For
        a `SquareBackend` the threads also crop and resize, so that it does not grow with the images' size either.

        Args:
            paths: read as far as the window needs, so it may be an endless stream.
            batch_size: images that the network sees at once.
            threads: decoding threads; None takes one a core, at most four.

        Raises:
            BackendError: the backend failed.
        """
        _check_positive("batch_size", batch_size)
        workers = threads or min(4, os.cpu_count() or 1)
        rest = iter(paths)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="aivsreal-decode")
        try:
            window: deque[tuple[Path, Future[PixelsHWC]]] = deque()
            while True:
                for path in islice(rest, 2 * batch_size - len(window)):
                    window.append((path, pool.submit(self._reduced_from_file, path)))
                if not window:
                    return
                batch = [window.popleft() for _ in range(min(batch_size, len(window)))]
                yield from self._scanned_batch(batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _scanned_batch(self, batch: Sequence[tuple[Path, Future[PixelsHWC]]]) -> Iterator[Scanned]:
        results: list[Scanned | None] = []
        pixels: list[PixelsHWC] = []
        for path, future in batch:
            try:
                pixels.append(future.result())
                results.append(None)
            except ImageError as error:
                results.append(Scanned(path, error=str(error).removeprefix(f"{path}: "), fault=error.fault))
        logits = iter(self._logits(pixels))
        for (path, _), failed in zip(batch, results, strict=True):
            yield failed or self._scanned(path, float(next(logits)))

    def _scanned(self, path: Path, logit: float) -> Scanned:
        try:
            return Scanned(path, verdict=verdict_from_logit(logit, self.bundle.manifest.temperature, self.point))
        except ValueError as error:
            return Scanned(path, error=str(error), fault=Fault.MODEL)

    def _reduced_from_file(self, path: Path) -> PixelsHWC:
        return self._reduced(pixels_from_file(path))

    def _reduced(self, pixels_HWC: PixelsHWC) -> PixelsHWC:
        if not isinstance(self.backend, SquareBackend):
            return pixels_HWC
        square_SSC = square_from_pixels(pixels_HWC, self.bundle.manifest.spec)
        # A crop that already has the input's size is a view, which would keep the whole image alive.
        return square_SSC.copy() if square_SSC.base is not None else square_SSC

    def _logits(self, reduced: Sequence[PixelsHWC]) -> LogitsB:
        if not reduced:
            return np.empty(0, dtype=np.float32)
        if isinstance(self.backend, SquareBackend):
            return self.backend.logits_from_squares(reduced)
        return self.backend.logits(reduced)

    def _verdict(self, logit: float) -> Verdict:
        try:
            return verdict_from_logit(logit, self.bundle.manifest.temperature, self.point)
        except ValueError as error:
            raise BackendError(f"{error}: the backend {self.backend.name} computed nonsense; try another") from None


def pixels_from_any(image: AnyImage) -> PixelsHWC:
    """`pixels_HWC`, uint8 RGB, of a path, a Pillow image or an array.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(image, (str, Path)):
        return pixels_from_file(Path(image))
    return pixels_from_image(image) if isinstance(image, Image.Image) else pixels_from_array(image)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be positive, not {value}")
