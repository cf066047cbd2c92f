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
    from aivsreal.runtime.options import ScanOptions
    from aivsreal.runtime.verdict import Label, Scanned, Verdict

__all__ = ["Bundle", "Detector", "Label", "ScanOptions", "Scanned", "Verdict"]

_HOMES = {
    "Bundle": "bundle.folder",
    "Detector": "detector",
    "Label": "verdict",
    "ScanOptions": "options",
    "Scanned": "verdict",
    "Verdict": "verdict",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
