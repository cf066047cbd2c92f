"""Decode image files to RGB pixels, refusing what is damaged or too large to be safe.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.files.containers import announced_format, is_heif
from aivsreal.runtime.files.integrity import PartialPicture, check_container, check_filled
from aivsreal.runtime.files.read import Snapshot, snapshot_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import halvings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
MAX_PIXELS = 178_956_970  # Pillow's own limit: past it `Image.open` refuses, unless `own_process` moved it
MIN_SIDE = 16  # below this there is nothing to judge: the network would look at interpolation alone

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
        path: of the file.
        max_pixels: refuse larger images.
        least_side: short side in pixels that is enough for the caller, as `PreprocessSpec.least_side`: a larger JPEG is
            then decoded at a half, a quarter or an eighth, never below it. 0 decodes every pixel.

    Raises:
        ImageError: the file is missing, not an image, damaged, partial, too large or too small.
    """
    return pixels_from_snapshot(snapshot_from_file(path), max_pixels, least_side)


def pixels_from_snapshot(snapshot: Snapshot, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> PixelsHWC:
    """As `pixels_from_file`, of a file that is in memory already.

    Raises:
        ImageError: it is not an image, damaged, partial, too large or too small.
    """
    with opened(snapshot, max_pixels) as image:
        ((_, frame),) = frames_from_image(image, snapshot, 1, max_pixels, least_side)
        return np.asarray(frame)


@contextmanager
def opened(snapshot: Snapshot, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The Pillow image of a file, its size and structure checked; whatever goes wrong inside becomes an `ImageError`.

    The content says what format it is, never the name.

    Raises:
        ImageError: it is not an image, damaged, partial, too large or too small.
    """
    path, content = snapshot.path, snapshot.content
    heif = is_heif(content)
    if heif:
        _register_heif(path)
    with (
        _QUIET,
        _damage_as_image_error(path, max_pixels, announced_format(content)),
        Image.open(io.BytesIO(content), formats=("HEIF",) if heif else FORMATS) as image,
    ):
        _check_size(path, image.width, image.height, max_pixels)  # before anything is decoded
        check_container(image.format or "", content, image.width, image.height)
        yield image


def frames_from_image(
    image: Image.Image, snapshot: Snapshot, count: int, max_pixels: int = MAX_PIXELS, least_side: int = 0
) -> Iterator[tuple[int, Image.Image]]:
    """Index and RGB image of the first frame, or of up to `count` frames that are spread evenly.

    Call it inside `opened`, whose errors it shares, and use each frame before the next one is asked for. `least_side`
    is that of `pixels_from_file`.
    """
    total = getattr(image, "n_frames", 1) if count > 1 else 1
    wanted = min(count, total)
    reduction = _drafted(image, least_side) if total == 1 else 1
    for index in (round(step * (total - 1) / max(1, wanted - 1)) for step in range(wanted)):
        if index:
            image.seek(index)
            _check_size(snapshot.path, image.width, image.height, max_pixels)
        image.load()
        if index == 0 and image.format in ("JPEG", "MPO"):
            check_filled(snapshot.content, image, reduction)
        yield index, _rgb_from_image(image)


def pixels_from_image(image: Image.Image) -> PixelsHWC:
    """RGB pixels of an open Pillow image: EXIF turn applied, transparency laid on white, 16 bit scaled to 8.

    Raises:
        ImageError: the image is too large or too small, or the file behind it is damaged.
    """
    _check_size("image", image.width, image.height, MAX_PIXELS)
    with _QUIET, _damage_as_image_error("image", MAX_PIXELS):
        image.load()
        return np.asarray(_rgb_from_image(image))


def pixels_from_array(array_HWC: npt.NDArray[np.uint8]) -> PixelsHWC:
    """The array itself, once it is seen to be `pixels_HWC`.

    Raises:
        ImageError: it is not uint8 RGB `[H, W, 3]`, or too large or too small.
    """
    if array_HWC.dtype != np.uint8 or array_HWC.ndim != 3 or array_HWC.shape[2] != 3:
        raise ImageError(f"array: must be uint8 [H, W, 3] in RGB order, not {array_HWC.dtype} {array_HWC.shape}")
    _check_size("array", array_HWC.shape[1], array_HWC.shape[0], MAX_PIXELS)
    return array_HWC


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


def _rgb_from_image(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    turned = image if turn is None else image.transpose(turn)
    if turned.mode.startswith(("I", "F")):
        turned = _eight_bit_from_deep(turned)
    if turned.has_transparency_data:
        rgba = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose: it copies the pixels when there is no turn and fails where only the EXIF is damaged.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except _DAMAGED:
        return 1


def _eight_bit_from_deep(image: Image.Image) -> Image.Image:
    values_HW = np.nan_to_num(np.asarray(image, dtype=np.float32))
    # Integer modes hold 16-bit samples; float images are either 0..1 or already 0..255.
    top = 65535.0 if image.mode.startswith("I") else (1.0 if values_HW.max(initial=0.0) <= 1.0 else 255.0)
    return Image.fromarray(np.clip(values_HW * (255.0 / top), 0, 255).astype(np.uint8))


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
def _damage_as_image_error(name: Path | str, max_pixels: int, signature: str | None = None) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        if signature is not None:
            raise ImageError(f"{name}: begins as {signature} does, and cannot be decoded", Fault.DAMAGED) from None
        raise ImageError(f"{name}: not an image in a format that is known here", Fault.NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: {_too_many(max_pixels)}", Fault.TOO_LARGE) from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it", Fault.TOO_LARGE) from None
    except PartialPicture as error:
        raise ImageError(f"{name}: a part of the picture is missing: {error}", Fault.PARTIAL) from None
    except _DAMAGED as error:
        detail = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        fault = Fault.PARTIAL if "truncated" in detail else Fault.DAMAGED  # Pillow's word for a file that just ends
        raise ImageError(f"{name}: cannot be decoded: {detail or type(error).__name__}", fault) from None


def _check_size(name: Path | str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} is {_too_many(max_pixels)}", Fault.TOO_LARGE)
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: {width} x {height} is too small to judge; {MIN_SIDE} pixels a side is the least", Fault.TOO_SMALL
        )


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
