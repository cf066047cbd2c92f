"""Settings of Pillow that hold for a whole process: only a command, whose process is its own, may make them."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

from PIL import Image, _imaging

from aivsreal.runtime.images import MAX_PIXELS

_HANDLERS = ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler", "TIFFSetWarningHandlerExt")


def set_up_pillow(max_pixels: int) -> None:
    """Let Pillow open images of so many pixels, and keep libtiff from writing to stderr: what it says is raised too."""
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS) // 2 + 1  # Pillow refuses at twice the number
    assert _imaging  # it is what loads libtiff
    with contextlib.suppress(OSError, AttributeError):  # another system, or a Pillow without libtiff
        for library in set(re.findall(r"\S*/libtiff[^/\s]*\.so\S*", Path("/proc/self/maps").read_text())):
            for name in _HANDLERS:
                set_handler = getattr(ctypes.CDLL(library), name)
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)
