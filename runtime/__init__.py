"""The lean half: scan images with a bundle. Importing it needs numpy and Pillow, nothing else.

The names below are loaded when they are first used, so that `aivsreal-scan --help` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if __name__ != "aivsreal.runtime":
    raise ImportError("write aivsreal.runtime: the repository root is on sys.path")

from aivsreal.runtime.telemetry import opt_out

opt_out()  # here, as this runs before any module of ours can import what reports

if TYPE_CHECKING:
    from aivsreal.runtime.bundle.folder import Bundle
    from aivsreal.runtime.detector import Detector
    from aivsreal.runtime.errors import AivsrealError, Fault, ImageError
    from aivsreal.runtime.options import ScanOptions
    from aivsreal.runtime.verdict import Evidence, Label, OperatingPoint, Origin, Scanned, Verdict

    __version__: str

__all__ = [
    "AivsrealError",
    "Bundle",
    "Detector",
    "Evidence",
    "Fault",
    "ImageError",
    "Label",
    "OperatingPoint",
    "Origin",
    "ScanOptions",
    "Scanned",
    "Verdict",
    "__version__",
]

_HOMES = {
    "bundle.folder": ("Bundle",),
    "detector": ("Detector",),
    "errors": ("AivsrealError", "Fault", "ImageError"),
    "options": ("ScanOptions",),
    "verdict": ("Evidence", "Label", "OperatingPoint", "Origin", "Scanned", "Verdict"),
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("aivsreal")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
