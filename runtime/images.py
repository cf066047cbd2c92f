"""Find image files and decode them to RGB pixels, refusing what is damaged or too large to be safe.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aivsreal.runtime.errors import ImageError
from aivsreal.runtime.preprocess import PixelsHWC

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .dib .tif .tiff .avif .heic .heif".split(),
)
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
MAX_PIXELS = 268_435_456  # 2**28 pixels are 0.8 GB of RGB: larger than any camera's file, small enough for a laptop
MIN_SIDE = 16  # below this there is nothing to judge: the network would look at interpolation alone


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files under `folder`, recursively, sorted within each folder, one folder in memory at a time.

    Names are told apart by suffix. Links to folders are not followed, so a loop of links ends.

    Raises:
        OSError: a folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        listing = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries
        )
    for name, is_folder, is_file in listing:
        if is_folder:
            yield from image_paths(folder / name)
        elif is_file and os.path.splitext(name)[1].lower() in SUFFIXES:
            yield folder / name


def pixels_from_file(path: Path) -> PixelsHWC:
    """Decode an image file to `pixels_HWC`, uint8 RGB: first frame, EXIF turn applied, transparency on white.

    Raises:
        ImageError: the file is missing, not an image, truncated, too large or too small.
    """
    heif = path.suffix.lower() in HEIF_SUFFIXES
    if heif:
        _register_heif(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide here
            with Image.open(path, formats=None if heif else FORMATS) as image:
                _check_size(path, image.width, image.height)
                return pixels_from_image(image)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image in a format that is known here") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    # What Pillow's decoders raise on damaged files, seen by fuzzing each format: all mean "cannot be decoded".
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, IndexError, KeyError, OverflowError) as error:
        detail = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ImageError(f"{path}: cannot be decoded: {detail or type(error).__name__}") from None


def pixels_from_image(image: Image.Image) -> PixelsHWC:
    """RGB pixels of an open Pillow image: EXIF turn applied, transparency laid on white, 16 bit scaled to 8.

    Raises:
        ImageError: the image is too large or too small.
        OSError: the file behind it is truncated.
    """
    _check_size("image", image.width, image.height)
    # draft() is left alone here: DCT scaling changes pixels, and with them the verdict.
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith(("I;16", "I", "F")):
        turned = _eight_bit_from_deep(turned)
    if turned.has_transparency_data:
        rgba = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(turned.convert("RGB"))


def _eight_bit_from_deep(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    # Integer modes hold 16-bit samples; float images are either 0..1 or already 0..255.
    top = 65535.0 if image.mode.startswith("I") else (1.0 if values.max(initial=0.0) <= 1.0 else 255.0)
    return Image.fromarray(np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).astype(np.uint8))


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
