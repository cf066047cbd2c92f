"""Decode image files to RGB pixels, refusing what is damaged or too large to be safe.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.pixels.colour import coded_colours
from aivsreal.runtime.pixels.containers import announced_format, is_heif, png_chunks
from aivsreal.runtime.pixels.integrity import Unfit, check_filled, sound_content, still_picture, without_excess
from aivsreal.runtime.pixels.kinds import HEAD, kind_of
from aivsreal.runtime.pixels.read import Snapshot, snapshot_from_file
from aivsreal.runtime.pixels.rgb import FLAT, raw_mode, rgb_from_image
from aivsreal.runtime.pixels.tiff import check_kind, kind_of_samples, shown_pages
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import halvings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's own limit: past it `Image.open` refuses, unless `own_process` moved it
MIN_SIDE = 16  # below this there is nothing to judge: the network would look at interpolation alone

_BROKEN_ANIMATION = "its animation is broken: its still picture was taken"
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, seen by fuzzing each format: all mean "cannot be decoded".
_DAMAGED = (
    *(OSError, ValueError, SyntaxError, TypeError, EOFError, IndexError, KeyError, OverflowError),
    *(AttributeError, ZeroDivisionError, NotImplementedError, RuntimeError, AssertionError, struct.error, zlib.error),
)


def pixels_from_file(path: Path, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> PixelsHWC:
    """Decode an image file to `pixels_HWC`, uint8 RGB: first frame, EXIF turn applied, transparency on white.

    Args:
        least_side: short side in pixels that is enough for the caller, as `PreprocessSpec.least_side`: a larger JPEG is
            then decoded at a half, a quarter or an eighth, never below it. 0 decodes every pixel.

    Raises:
        ImageError: the file is missing, not an image, damaged, partial, blank, too large or too small.
    """
    return pixels_from_snapshot(snapshot_from_file(path), max_pixels, least_side)


def pixels_from_snapshot(snapshot: Snapshot, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> PixelsHWC:
    """As `pixels_from_file`, of a file that is in memory already.

    Raises:
        ImageError: it is not an image, damaged, partial, too large or too small.
    """
    with opened(snapshot, max_pixels) as picture:
        ((_, frame),) = picture.frames(1, least_side)
        return np.asarray(frame)


@contextmanager
def opened(snapshot: Snapshot, max_pixels: int = MAX_PIXELS) -> Iterator[Picture]:
    """The picture in a file, its size and structure checked; whatever goes wrong inside becomes an `ImageError`.

    The content says what format it is, never the name.

    Raises:
        ImageError: it is not an image, damaged, partial, too large or too small.
    """
    path, content = snapshot.path, snapshot.content
    heif = is_heif(content)
    if heif:
        _register_heif(path)
    formats = ("HEIF",) if heif else FORMATS
    with _QUIET, _damage_as_image_error(path, max_pixels, content), ExitStack() as files:
        check_kind(content)
        notes = list[str]()
        if announced_format(content) == "PNG":
            content = without_excess(content, notes)
        try:
            image = files.enter_context(Image.open(io.BytesIO(content), formats=formats))
        except UnidentifiedImageError:
            if (still := still_picture(content)) is None:
                raise
            content = still
            notes.append(_BROKEN_ANIMATION)
            image = files.enter_context(Image.open(io.BytesIO(content), formats=formats))
        check = _check_not_too_large if image.format == "TIFF" else _check_size  # its pages have sizes of their own
        check(path, image.width, image.height, max_pixels)  # before anything is decoded
        exif = image.info.get("exif") or b""
        sound = sound_content(image.format or "", content, image.width, image.height, exif)
        if sound is not content:
            image = files.enter_context(Image.open(io.BytesIO(sound), formats=formats))
        yield Picture(path, image, sound, ended=sound is content, max_pixels=max_pixels, notes=notes)


class Picture:
    """An open image file, of which the frames that a viewer shows can be decoded. `opened` makes it."""

    def __init__(
        self, path: Path, image: Image.Image, content: bytes, *, ended: bool, max_pixels: int, notes: list[str]
    ) -> None:
        self.image = image
        self.notes = notes
        """What was passed over or presumed in decoding, for a person to know."""
        self._path = path
        self._content = content
        self._ended = ended
        self._max_pixels = max_pixels

    def frames(self, count: int = 1, least_side: int = 0) -> Iterator[tuple[int, Image.Image]]:
        """Index and RGB image of the first frame, or of up to `count` frames that are spread evenly.

        Frames that cannot be judged are left out and noted where others can. Use each before the next is asked for.
        `least_side` is that of `pixels_from_file`.

        Raises:
            ImageError: none can be judged; says why the first cannot.
        """
        shown = self._shown(count > 1)
        wanted = min(count, len(shown))
        spread = [shown[round(step * (len(shown) - 1) / max(1, wanted - 1))] for step in range(wanted)]
        left_out: list[tuple[int, ImageError]] = []
        for index in spread:
            try:
                with _damage_as_image_error(self._path, self._max_pixels):
                    frame = self._frame(index, _drafted(self.image, least_side) if len(shown) == 1 else 1)
            except ImageError as error:
                left_out.append((index, error))
            else:
                yield index, frame
        if len(left_out) == wanted:
            if not self._took_still_picture():
                raise left_out[0][1]
            yield 0, self._frame(0, 1)
        elif left_out:
            first, why = left_out[0]
            reason = str(why).removeprefix(f"{self._path}: ")
            self.notes.append(f"{len(left_out)} of {wanted} frames left out; frame {first}: {reason}")

    def _shown(self, several: bool) -> Sequence[int]:
        """Indices of the frames that a viewer shows: of more than the first only where `several` are wanted."""
        image = self.image
        if image.format == "TIFF":
            shown = shown_pages(self._content)
            return shown if several else shown[:1]
        if image.format == "PNG" and getattr(image, "default_image", False):
            if not any(chunk.name == b"fcTL" for chunk in png_chunks(self._content)):
                return (0,)  # it only says that it is animated
            return range(1, getattr(image, "n_frames", 1))  # its first image is for viewers without animation
        if image.format in _ANIMATED and several:
            return range(getattr(image, "n_frames", 1))
        return (0,)  # what stands beside a JPEG or HEIC is a preview, a gain map or a depth map

    def _took_still_picture(self) -> bool:
        """Go on with the still picture of a PNG whose animation is broken, as viewers do."""
        still = still_picture(self._content)
        if still is None:
            return False
        self._content = still
        self.image = self._again(0)
        self.notes.append(_BROKEN_ANIMATION)
        return True

    def _frame(self, index: int, reduction: int) -> Image.Image:
        image = self.image
        if index:
            image.seek(index)
        _check_size(self._path, image.width, image.height, self._max_pixels)
        raw = raw_mode(image)
        image.load()
        if image.format in ("JPEG", "MPO"):
            check_filled(self._content, image, reduction, self._ended)
        coded = coded_colours(image, self._content)
        return _turned(rgb_from_image(image, raw, self.notes, lambda: self._again(index), coded), image)

    def _again(self, index: int) -> Image.Image:
        again = Image.open(io.BytesIO(self._content), formats=FORMATS)
        again.seek(index)
        return again


def pixels_from_image(image: Image.Image) -> PixelsHWC:
    """RGB pixels of an open Pillow image: EXIF turn applied, transparency laid on white, 16 bit scaled to 8.

    Raises:
        ImageError: the image is too large or too small, or the file behind it is damaged.
    """
    _check_size("image", image.width, image.height, MAX_PIXELS)
    with _QUIET, _damage_as_image_error("image", MAX_PIXELS):
        raw = raw_mode(image)
        image.load()
        return np.asarray(_turned(rgb_from_image(image, raw, []), image))


def pixels_from_array(array_HWC: npt.NDArray[np.uint8]) -> PixelsHWC:
    """The array itself, once it is seen to be `pixels_HWC`.

    Raises:
        ImageError: it is not uint8 RGB `[H, W, 3]`, or too large, too small or blank.
    """
    if array_HWC.dtype != np.uint8 or array_HWC.ndim != 3 or array_HWC.shape[2] != 3:
        raise ImageError(f"array: must be uint8 [H, W, 3] in RGB order, not {array_HWC.dtype} {array_HWC.shape}")
    height, width, _ = array_HWC.shape
    _check_size("array", width, height, MAX_PIXELS)
    for looked_at in (array_HWC[:: 1 + height // 8, :: 1 + width // 8], array_HWC):
        if (looked_at != array_HWC[0, 0]).any():
            return array_HWC
    raise ImageError(f"array: {FLAT}", Fault.BLANK)


def _drafted(image: Image.Image, least_side: int) -> int:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 where that leaves the short side `least_side`; returns the divisor.

    The inverse DCT then computes fewer values: a 12-megapixel JPEG took 17 ms at 1/4 and 61 ms whole on one core.
    simplejpeg (libjpeg-turbo 3) took 15 ms, and 1.6 against 1.9 ms for 1024 x 768: not worth a dependency.
    """
    if least_side < 1 or image.format not in ("JPEG", "MPO"):
        return 1
    divisor = min(8, halvings(min(image.size), least_side))
    if divisor > 1:
        image.draft("", (image.width // divisor, image.height // divisor))
    return divisor


def _turned(rgb: Image.Image, image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it copies the pixels when there is no turn and fails where only the EXIF is damaged.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except _DAMAGED:
        return 1


class _Quiet:
    """Ignores warnings while any thread decodes: Pillow warns of odd metadata, but the pixels decide here.

    `warnings.catch_warnings` alone swaps a list of the whole process: two threads that overlap leave it swapped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


@contextmanager
def _damage_as_image_error(name: Path | str, max_pixels: int, content: bytes = b"") -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        signature, samples = announced_format(content), kind_of_samples(content)
        if samples is not None:
            raise ImageError(f"{name}: {samples} cannot be read here: save it as PNG", Fault.UNSUPPORTED) from None
        if signature is not None:
            raise ImageError(f"{name}: begins as {signature} does, and cannot be decoded", Fault.DAMAGED) from None
        kind = kind_of(content[:HEAD])
        found = "" if kind is None else f"{kind.name}: "
        advice = f": {kind.advice}" if kind is not None and kind.advice else ""
        message = f"{name}: {found}not an image in a format that is known here{advice}"
        raise ImageError(message, Fault.NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: {_beyond_pillow(max_pixels)}", Fault.TOO_LARGE) from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it", Fault.TOO_LARGE) from None
    except Unfit as error:
        raise ImageError(f"{name}: {error}", error.fault) from None
    except _DAMAGED as error:
        detail = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        words = {"truncated": Fault.PARTIAL, "Unsupported": Fault.UNSUPPORTED}  # Pillow's, the first of what just ends
        fault = next((fault for word, fault in words.items() if word in detail), Fault.DAMAGED)
        raise ImageError(f"{name}: cannot be decoded: {detail or type(error).__name__}", fault) from None


def _beyond_pillow(max_pixels: int) -> str:
    """Pillow has a limit of its own, which commands raise and a library must not raise for its user."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if max_pixels <= most:
        return _too_many(max_pixels)
    return f"more than {most:,} pixels, the most that Pillow decodes here: raise PIL.Image.MAX_IMAGE_PIXELS, or isolate"


def _check_size(name: Path | str, width: int, height: int, max_pixels: int) -> None:
    _check_not_too_large(name, width, height, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: {width} x {height} is too small to judge; {MIN_SIDE} pixels a side is the least", Fault.TOO_SMALL
        )


def _check_not_too_large(name: Path | str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} is {_too_many(max_pixels)}", Fault.TOO_LARGE)


def _too_many(max_pixels: int) -> str:
    return f"more than {max_pixels:,} pixels: scale it down, or allow more with --max-pixels"


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            f"{path}: HEIC needs pillow-heif: run pip install 'aivsreal[heic]'", Fault.NEEDS_EXTRA
        ) from None
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()
