"""Settings of Pillow that hold for a whole process: only a command, whose process is its own, may make them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from pathlib import Path

from PIL import Image, _imaging

from aivsreal.runtime.pixels.images import MAX_PIXELS

_HANDLERS = ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler", "TIFFSetWarningHandlerExt")


def set_up_pillow(max_pixels: int = MAX_PIXELS) -> None:
    """Let Pillow open images of so many pixels; keep it and libtiff from writing to stderr: what they say is raised."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS) // 2 + 1  # Pillow refuses at twice the number
    assert _imaging  # it is what loads libtiff
    with contextlib.suppress(OSError, AttributeError):  # another system, or a Pillow without libtiff
        # By lines: one regular expression over the whole of it took 6 ms of a start.
        mapped = Path("/proc/self/maps").read_text().splitlines()
        for library in {line.split(maxsplit=5)[5] for line in mapped if "/libtiff" in line and ".so" in line}:
            for name in _HANDLERS:
                set_handler = getattr(ctypes.CDLL(library), name)
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)
