"""Pixels of whatever a caller has: a path, bytes, an open file, a Pillow image or an array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.pixels.images import pixels_from_array, pixels_from_file, pixels_from_image, pixels_from_snapshot
from aivsreal.runtime.pixels.read import MAX_BYTES, Snapshot, check_content
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.verdict import FileStamp

AnyPath = Union[str, "os.PathLike[str]"]
AnyImage = Union[  # noqa: UP007  Python 3.10 evaluates it
    AnyPath, bytes, bytearray, memoryview, BinaryIO, Image.Image, npt.NDArray[np.uint8]
]
TAKEN = "a path, the bytes of an image file, a file opened in binary mode, a Pillow image or uint8 RGB [H, W, 3]"


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
        return pixels_from_file(path_from_any(image), least_side=least_side)
    if isinstance(image, Image.Image):
        return pixels_from_image(image)
    if isinstance(image, np.ndarray):
        return pixels_from_array(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _pixels_from_content(bytes(image), "bytes", least_side)
    if not hasattr(image, "read"):
        raise TypeError(f"an image must be {TAKEN}, not {kind_of(image)}")
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


def path_from_any(path: object) -> Path:
    """The path that is given.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a path must be a str or an os.PathLike, not {kind_of(path)}")
    return path if isinstance(path, Path) else Path(os.fsdecode(path))


def kind_of(value: object) -> str:
    """Its class, as an error names it."""
    return "None" if value is None else type(value).__name__
