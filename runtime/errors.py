"""The errors that aivsreal raises on purpose.

    AivsrealError
    ├── ImageError          one image cannot be judged; a scan records it, with its `Fault`, and goes on
    ├── BundleError         a bundle is missing, foreign, damaged or half made
    ├── BackendError        no backend, or not the one asked for, can run here
    │   ├── GpuMemoryError  the GPU's memory is full; a smaller batch may fit
    │   └── MissingExtra    a package that an optional extra brings is not installed
    ├── CheckpointError     a checkpoint or its card cannot be used
    ├── DataError           a data set cannot be trained on or evaluated
    ├── ExportError         an export was refused; nothing was written
    ├── ResultsError        a results file cannot be read, written or gone on with
    └── OutputError         a report or a heat map cannot be written

Each message says what happened, with which file, and what to type next. Anything else that comes out of the library
is a defect of ours and is not caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

CLOSED = "the detector is closed: open another one with Detector.open"


class AivsrealError(Exception):
    """Root of the tree: catch this to catch all that aivsreal raises on purpose."""


class Fault(str, Enum):
    """What kept one file from a verdict, for programs; the message of the error is for people."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not-a-file"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not-an-image"
    DAMAGED = "damaged"
    PARTIAL = "partial"
    """It would decode, but a part of the picture is missing."""
    BLANK = "blank"
    """Nothing can be seen in it: it is transparent throughout, or every pixel has one colour."""
    UNSUPPORTED = "unsupported"
    """It is whole, and of a kind of which the picture itself cannot be read here, such as camera raw."""
    TOO_LARGE = "too-large"
    TOO_SMALL = "too-small"
    CHANGED = "changed"
    """It was written to while it was read."""
    NEEDS_EXTRA = "needs-extra"
    TIME_LIMIT = "time-limit"
    CRASHED = "crashed"
    """Its decoder took its process with it."""
    MODEL = "model"
    """The network computed nonsense for it."""


class ImageError(AivsrealError):
    """One image cannot be read or judged.

    Args:
        message: what happened, beginning with the file's path where there is one.
        fault: the kind of it, for programs.
    """

    def __init__(self, message: str, fault: Fault = Fault.DAMAGED) -> None:
        super().__init__(message)
        self.fault = fault


class BundleError(AivsrealError):
    """A bundle folder is missing, foreign, damaged or half made."""


class BackendError(AivsrealError):
    """No backend can run the bundle here, or the one asked for cannot."""


class GpuMemoryError(BackendError):
    """The GPU's memory is full; a smaller batch may fit."""


class MissingExtra(BackendError):
    """A package that an optional extra brings is not installed.

    Args:
        extra: name of the extra in `pyproject.toml`.
        module: the module whose import failed.
        purpose: what it was wanted for, as the end of "... is needed to ...".
    """

    def __init__(self, extra: str, module: str, purpose: str) -> None:
        super().__init__(f"{module} is needed to {purpose} and is not installed: run pip install 'aivsreal[{extra}]'")
        self.extra = extra
        self.module = module


_PACKAGES = {"gpu": "onnxruntime-gpu"}  # of an extra, where it is not called as its module


@contextmanager
def importing(extra: str, module: str, purpose: str) -> Iterator[None]:
    """For the import of what an optional extra brings; the arguments are those of `MissingExtra`.

    Raises:
        MissingExtra: it is not installed.
        BackendError: it is installed and does not load.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(extra, error.name or module, purpose) from None
    except ImportError as error:
        mend = f"pip install --force-reinstall {_PACKAGES.get(extra, module)}"
        raise BackendError(f"{module} is installed but does not load ({error}): run {mend}") from None


class CheckpointError(AivsrealError):
    """A training checkpoint or its card is missing, foreign or damaged."""


class DataError(AivsrealError):
    """A data set is missing, empty in one class, or cannot be read."""


class ExportError(AivsrealError):
    """An export was refused, for example because parity is past its tolerance."""


class ResultsError(AivsrealError):
    """A results file is another program's, is in use, belongs to another model, or cannot be written."""


class OutputError(AivsrealError):
    """A report or a heat map cannot be written."""
