"""The library's front door: open a bundle once, then judge images or scan files with it.

Legend: B image in a batch; H, W image height and width; S input size; C channel (3, RGB).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.backends.protocol import Backend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import FULL
from aivsreal.runtime.errors import CLOSED, BackendError, Fault
from aivsreal.runtime.files.decode import Decoded, DecodePlan, cut, reduced
from aivsreal.runtime.files.given import AnyImage, AnyPath, kind_of, path_from_any, pixels_from_any
from aivsreal.runtime.files.pipeline import judged_batches
from aivsreal.runtime.files.pool import DecodePool
from aivsreal.runtime.options import ScanOptions
from aivsreal.runtime.pixels.read import Reader, snapshot_from_file
from aivsreal.runtime.preprocess import PixelsHWC, square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import (
    Judge,
    OperatingPoint,
    Scanned,
    Verdict,
    View,
    asks_again,
    p_ai_from_logit,
    verdict_from_declared,
    verdict_from_logit,
    verdict_from_second,
)

AS_USUAL = ScanOptions()


class Detector:
    """A bundle, the backend that runs it and the operating point that turns its scores into labels.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, why: str, point: OperatingPoint, second: Detector | None = None
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.why = why
        """Why this backend was chosen and the others were passed over."""
        self.point = point
        self.windows = bundle.manifest.windows(point)
        """Parts of an image that are judged each, as the operating point says; none is the whole."""
        self.second = second
        """Judges again what this one does not call real; it is closed with it."""
        # Where one of them resizes by itself, the whole pixels are kept of an image, for both.
        self._whole: bool = not backend.takes_squares or (second is not None and second._whole)
        if second is not None:
            second._whole = self._whole
        self._closed = False

    @staticmethod
    def open(
        bundle: Bundle | Path | str | None = None,
        backend: str = "auto",
        operating_point: str | None = None,
        threads: int | None = None,
        *,
        images: int | None = None,
        second_opinion: Bundle | Path | str | None = None,
        full_views: bool = False,
    ) -> Detector:
        """Open a bundle with a backend.

        Args:
            bundle: an open one, its folder, or None for the shipped one.
            backend: one of `backends.BACKENDS`.
            operating_point: its name; None takes the bundle's default.
            threads: CPU threads for the network; None leaves it to the backend.
            images: how many will be judged, where that is known, as of `backends.choose.open_backend`.
            second_opinion: a bundle that judges again what the first does not call real: `unsure` and `ai`. Its
                operating point is that of the same name, if it has one, else its default.
            full_views: judge several windows of an image, at an operating point that is made for that. A point's name
                that ends in `-full` says so too.

        Raises:
            BundleError: the bundle is missing or damaged, has no such operating point, or one view only.
            BackendError: no backend, or not the one asked for, can run here.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be positive, not {threads}")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        point = opened.manifest.point(operating_point, full_views)
        if second_opinion is None:
            running, why = open_backend(opened, backend, threads, images)
            return Detector(opened, running, why, point)
        other = second_opinion if isinstance(second_opinion, Bundle) else Bundle.open(second_opinion)
        alike = None if operating_point is None else operating_point.removesuffix(FULL)
        names = {one.name for one in other.manifest.points}
        second = Detector.open(other, backend, alike if alike in names else None, threads)
        try:
            running, why = open_backend(opened, backend, threads, images)
        except BaseException:
            second.close()
            raise
        return Detector(opened, running, why, point, second)

    def __enter__(self) -> Detector:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def judge_of_rows(self) -> Judge:
        """What a row of results says of who judged."""
        second = None if self.second is None else self.second.judge_of_rows
        return Judge(self.bundle.digest, self.point.name, f"{self.backend.name} {self.backend.precision}", second)

    def close(self) -> None:
        """Give back what the backend holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.backend.close()
            if self.second is not None:
                self.second.close()

    def judge(self, image: AnyImage) -> Verdict:
        """Judge one image: a path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8
        RGB `pixels_HWC`.

        Raises:
            ImageError: it cannot be read or judged.
            BackendError: the backend failed, or the detector is closed.
            TypeError: it is none of these.
        """
        self._check_open()
        return self._verdicts([self._decoded(image)])[0]

    def judge_many(self, images: Iterable[AnyImage], batch_size: int = AS_USUAL.batch_size) -> Iterator[Verdict]:
        """Judge images in batches, in order; one batch is in memory at a time.

        Raises:
            ImageError: one cannot be read. The verdicts of those before it have been given; so they are where `images`
                raises.
            BackendError: the backend failed, or the detector is closed.
            TypeError: `images` is a single one, or one of them is nothing that `judge` takes.
        """
        self._check_open()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        _check_several("images", images)
        rest = iter(images)
        failed: Exception | None = None
        while failed is None:
            seen = list[Decoded]()
            try:
                for image in islice(rest, batch_size):
                    seen.append(self._decoded(image))  # kept when one fails
            except Exception as error:
                failed = error
            yield from self._verdicts(seen)
            if failed is None and not seen:
                return
        raise failed

    def scan(
        self, paths: Iterable[AnyPath | None], options: ScanOptions = AS_USUAL, pool: DecodePool | None = None
    ) -> Iterator[Scanned]:
        """Judge files in order; one that cannot be judged becomes a result with its error.

        Files are decoded in a thread a core, at most two batches ahead, so memory does not grow with their number. For
        a backend that takes squares the threads also crop and resize, so that it does not grow with the images' size
        either. The first results come after one file; see `pipeline.judged_batches`.

        Args:
            paths: read as far as the window needs, so it may be an endless stream. One whose next path has yet to come
                gives None before it waits for it, and the results of all before it come first.
            options: how they are read and judged.
            pool: one of `decode_pool`, to keep its processes for the next scan; it decodes as it was made to, and
                stays open.

        Raises:
            BackendError: the backend failed, or the detector is closed.
            TypeError: `paths` is a single one, or one of them is no path. What `paths` raises comes after the
                results of all before it.
        """
        for batch in self.scan_batches(paths, options, pool):
            yield from batch

    def scan_batches(
        self, paths: Iterable[AnyPath | None], options: ScanOptions = AS_USUAL, pool: DecodePool | None = None
    ) -> Iterator[list[Scanned]]:
        """As `scan`, a batch at a time: between two of them nothing is half done, so that is where to stop.

        Raises:
            BackendError: the backend failed.
        """
        self._check_open()
        _check_several("paths", paths)
        running = pool or self.decode_pool(options)
        size, views = options.batch_size, options.views

        def judge(batch: Sequence[Decoded]) -> list[Scanned]:
            judged = self._judged(batch, size, views)
            return [_with_declared(scanned) for scanned in judged] if options.trust_metadata else judged

        try:
            each = (None if path is None else path_from_any(path) for path in paths)
            yield from judged_batches(each, running, judge, size)
        finally:
            if pool is None:
                running.close()

    def decode_pool(self, options: ScanOptions = AS_USUAL, read: Reader = snapshot_from_file) -> DecodePool:
        """Threads that decode for `scan`; close the pool when done. See `DecodePool` and `DecodePlan`."""
        seen, second = self._square_specs()
        limits = (options.frames, options.max_pixels, options.by_content, self._least_side)
        plan = DecodePlan(seen, *limits, second, self.windows)
        return DecodePool(plan, options.threads, options.time_limit_s, options.isolate, read)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(CLOSED)

    def _verdicts(self, images: Sequence[Decoded]) -> list[Verdict]:
        verdicts = list[Verdict]()
        for scanned in self._judged(images, max(1, len(images)), False):
            if scanned.verdict is None:
                raise BackendError(f"{scanned.error}: the backend {self.backend.name} computed nonsense; try another")
            verdicts.append(scanned.verdict)
        return verdicts

    def _judged(self, batch: Sequence[Decoded], batch_size: int, views: bool) -> list[Scanned]:
        """With the second model's verdict where the first is not `real`; what the first said is kept beside it."""
        judged = self._judged_once(batch, batch_size, views)
        if self.second is None:
            return judged
        asked = [at for at, one in enumerate(judged) if one.verdict is not None and asks_again(one.verdict)]
        again = [replace(batch[at], pixels=batch[at].second or batch[at].pixels) for at in asked]
        for at, scanned in zip(asked, self.second._judged_once(again, batch_size, views), strict=True):
            first = judged[at].verdict
            if scanned.verdict is not None and first is not None:
                verdict = verdict_from_second(first, scanned.verdict, self.second.bundle.name)
                scanned = replace(scanned, verdict=verdict, first=first)
            judged[at] = scanned
        return judged

    def _judged_once(self, batch: Sequence[Decoded], batch_size: int, views: bool) -> list[Scanned]:
        pixels = [self._own(frame) for decoded in batch for frame in decoded.pixels]
        # Files of several frames make a batch longer than was asked for.
        with_maps = views and self.backend.has_maps
        if pixels:
            self._check_open()  # again, as a stream may go on after the end
        parts = [self.backend.run(pixels[at : at + batch_size], with_maps) for at in range(0, len(pixels), batch_size)]
        logits = iter([float(logit) for scores in parts for logit in scores.logits_B])
        maps = iter([map_hw for scores in parts for map_hw in (() if scores.maps_Bhw is None else scores.maps_Bhw)])
        judged = []
        for decoded in batch:
            scanned = self._scanned(decoded, [next(logits) for _ in decoded.pixels])
            seen = [next(maps, None) for _ in decoded.pixels]
            if views and scanned.verdict is not None:
                scanned = replace(scanned, view=View(self._square(decoded.pixels[0]), seen[0]))
            judged.append(scanned)
        return judged

    def _scanned(self, decoded: Decoded, logits: Sequence[float]) -> Scanned:
        path, stamp = decoded.path, decoded.stamp
        if decoded.error is not None:
            return Scanned(path, error=decoded.error, fault=decoded.fault, stamp=stamp)
        temperature = self.bundle.manifest.temperature_at(self.point)
        try:
            verdict = verdict_from_logit(sum(logits) / len(logits), temperature, self.point)
        except ValueError as error:
            return Scanned(path, error=str(error), fault=Fault.MODEL, stamp=stamp)
        frames: tuple[tuple[int, float], ...] = ()
        count = len(decoded.frames)
        if len(logits) > count:
            verdict = replace(verdict, reason=f"{verdict.reason}, from the mean of {len(logits) // count} views")
        if count > 1:
            views = len(logits) // count
            means = [sum(logits[at : at + views]) / views for at in range(0, len(logits), views)]
            frames = tuple(zip(decoded.frames, [p_ai_from_logit(one, temperature) for one in means], strict=True))
            verdict = replace(verdict, reason=f"{verdict.reason}, from the mean of {count} frames")
        return Scanned(path, verdict, evidence=decoded.evidence, stamp=stamp, frames=frames)

    @property
    def _least_side(self) -> int:
        own = self.windows.least_side
        return own if self.second is None else max(own, self.second._least_side)

    def _square_specs(self) -> tuple[PreprocessSpec | None, PreprocessSpec | None]:
        """Of which squares are made where an image is decoded: this one's, and the second's where it is another."""
        own, second = self.bundle.manifest.spec, self.second
        again = None if second is None else second.bundle.manifest.spec
        if again is not None and not self.windows.parts and (self._whole or own.same_square(again)):
            again = None
        return None if self._whole else own, again

    def _decoded(self, image: AnyImage) -> Decoded:
        """What is kept of an image until it is judged, and apart from that what the second model sees of it."""
        pixels_HWC = pixels_from_any(image, self._least_side)
        own, second = self._square_specs()
        again = () if second is None else (reduced(pixels_HWC, None if own is None else second),)
        seen = tuple(reduced(window_HWC, own) for window_HWC in cut(pixels_HWC, self.windows))
        return Decoded(Path(), None, seen, (0,), second=again)

    def _own(self, kept_HWC: PixelsHWC) -> PixelsHWC:
        """What the backend takes of what was kept."""
        return self._square(kept_HWC) if self.backend.takes_squares else kept_HWC

    def _square(self, kept_HWC: PixelsHWC) -> PixelsHWC:
        return square_from_pixels(kept_HWC, self.bundle.manifest.spec) if self._whole else kept_HWC


def _with_declared(scanned: Scanned) -> Scanned:
    if scanned.verdict is None:
        return scanned
    return replace(scanned, verdict=verdict_from_declared(scanned.verdict, scanned.evidence))


def _check_several(name: str, given: object) -> None:
    """A single one could be iterated over too: a text by its letters, a file by its lines."""
    if isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(given, "read"):
        raise TypeError(f"{name} must be several, for example a list, not {kind_of(given)}")
