"""Find image files and decode them to RGB pixels, refusing what is damaged or too large to be safe.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import os
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

from aivsreal.runtime.errors import ImageError
from aivsreal.runtime.preprocess import PixelsHWC

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .dib .tif .tiff .avif .heic .heif".split(),
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
MAX_PIXELS = 178_956_970  # Pillow's own limit: past it `Image.open` refuses, and its setting is the whole process's
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


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files under `folder`, recursively, sorted within each folder, one folder in memory at a time.

    Names are told apart by suffix. Links to folders are not followed, so a loop of links ends. What cannot be read
    comes too, so that nothing is passed over in silence: a dangling link, and a folder that cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            listing = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                or (os.path.splitext(entry.name)[1].lower() in SUFFIXES and not os.path.isdir(entry.path))
            )
    except OSError:
        yield folder
        return
    for name, is_folder in listing:
        if is_folder:
            yield from image_paths(folder / name)
        else:
            yield folder / name


def pixels_from_file(path: Path) -> PixelsHWC:
    """Decode an image file to `pixels_HWC`, uint8 RGB: first frame, EXIF turn applied, transparency on white.

    Raises:
        ImageError: the file is missing, not an image, truncated, too large or too small.
    """
    heif = path.suffix.lower() in HEIF_SUFFIXES
    if heif:
        _register_heif(path)
    _check_file(path)
    with _QUIET, _damage_as_image_error(path), Image.open(path, formats=None if heif else FORMATS) as image:
        _check_size(path, image.width, image.height)
        return _rgb_from_image(image)


def pixels_from_image(image: Image.Image) -> PixelsHWC:
    """RGB pixels of an open Pillow image: EXIF turn applied, transparency laid on white, 16 bit scaled to 8.

    Raises:
        ImageError: the image is too large or too small, or the file behind it is damaged.
    """
    _check_size("image", image.width, image.height)
    with _QUIET, _damage_as_image_error("image"):
        return _rgb_from_image(image)


def pixels_from_array(array_HWC: npt.NDArray[np.uint8]) -> PixelsHWC:
    """The array itself, once it is seen to be `pixels_HWC`.

    Raises:
        ImageError: it is not uint8 RGB `[H, W, 3]`, or too large or too small.
    """
    if array_HWC.dtype != np.uint8 or array_HWC.ndim != 3 or array_HWC.shape[2] != 3:
        raise ImageError(f"array: must be uint8 [H, W, 3] in RGB order, not {array_HWC.dtype} {array_HWC.shape}")
    _check_size("array", array_HWC.shape[1], array_HWC.shape[0])
    return array_HWC


def _rgb_from_image(image: Image.Image) -> PixelsHWC:
    # draft() is left alone here: DCT scaling changes pixels, and with them the verdict.
    image.load()
    turn = _TURNS.get(_orientation(image))
    turned = image if turn is None else image.transpose(turn)
    if turned.mode.startswith(("I", "F")):
        turned = _eight_bit_from_deep(turned)
    if turned.has_transparency_data:
        rgba = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(turned if turned.mode == "RGB" else turned.convert("RGB"))


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
def _damage_as_image_error(name: Path | str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that is known here") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it") from None
    except _DAMAGED as error:
        detail = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ImageError(f"{name}: cannot be decoded: {detail or type(error).__name__}") from None


def _check_file(path: Path) -> None:
    """Opening a pipe would wait for ever, and an empty file deserves a clear word."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        detail = "no such file" if missing else f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ImageError(f"{path}: {detail}") from None
    if os.path.isdir(path):
        readable = os.access(path, os.R_OK | os.X_OK)
        raise ImageError(f"{path}: {'a folder, not an image' if readable else 'a folder that cannot be listed'}")
    if not os.path.isfile(path):
        raise ImageError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise ImageError(f"{path}: empty file")


def _check_size(name: Path | str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} is more than {MAX_PIXELS:,} pixels; scale it down first")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} is too small to judge; {MIN_SIDE} pixels a side is the least")


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(f"{path}: HEIC needs pillow-heif: run pip install 'aivsreal[heic]'") from None
    pillow_heif.register_heif_opener()
