"""Where something may be written: an output replaces what this program wrote before, or nothing.

A shell's `*.jpg` behind `--html` once made the first photograph the report. So each output is recognised by content
before it is replaced; `--overwrite` is for other files of the user's, and never for a picture.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.pixels.kinds import kind_of
from aivsreal.runtime.text import escaped

_HEAD = 1 << 16
SOFTWARE = "aivsreal"  # the text chunk Software of each picture that is drawn begins with it


@dataclass(frozen=True, slots=True)
class Written:
    """A kind of file that this program writes."""

    name: str
    """With its article."""
    recognises: Callable[[bytes], bool]
    """By the first bytes of a file."""


def _is_drawn(head: bytes) -> bool:
    chunks = (f"iTXtSoftware\0\0\0\0\0{SOFTWARE}".encode(), f"tEXtSoftware\0{SOFTWARE}".encode())
    return head.startswith(b"\x89PNG") and any(chunk in head for chunk in chunks)


REPORT = Written("a report of aivsreal", lambda head: b"<title>aivsreal report</title>" in head[:4096])
CSV = Written("rows of aivsreal", lambda head: head.startswith(b"path,label,p_ai,logit,reason,evidence,error,fault"))
ASSET = Written("a picture of a report of aivsreal", lambda head: b"\xff\xfe\0\x0aaivsreal" in head[:_HEAD])
MAP = Written("a map beside its picture of aivsreal", lambda head: False)  # known by the picture alone
DRAWING = Written("a picture that aivsreal drew", _is_drawn)
EVALUATION = Written(
    "an evaluation of aivsreal", lambda head: head.startswith((b'{\n "format": 1,\n "arch": ', b"# Evaluation\n"))
)


def assets_folder(report: Path) -> Path:
    """Where the pictures of a report lie that are not in it."""
    return report.with_name(f"{report.stem}_files")


def check_replaceable(target: Path, kind: Written, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse to write where something else would be lost.

    Args:
        target: file to write; what is no regular file, a pipe or a terminal, loses nothing.
        kind: what is written: an older one of its kind is replaced.
        inputs: files that are read, which are never replaced.
        overwrite: replace other files too, but for pictures.

    Raises:
        OutputError: there is a folder, an input, or something that this program did not write.
    """
    shown = escaped(target)
    try:
        status = os.stat(target)
        if stat.S_ISDIR(status.st_mode):
            raise OutputError(f"{shown} is a folder: name a file")
        for one in inputs:
            with contextlib.suppress(OSError):
                if os.path.samestat(status, os.stat(one)):
                    raise OutputError(f"{shown} is read by this command: name another file to write")
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return
        with target.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{shown}: cannot be written: {error.strerror or error}; name another file") from None
    if kind.recognises(head):
        return
    what = kind_of(head)
    if what is not None and what.picture:
        raise OutputError(f"{shown} is {what.name}, not {kind.name}, and pictures are not replaced: name another file")
    if not overwrite:
        found = "another file" if what is None else what.name
        raise OutputError(f"{shown} is {found}, not {kind.name}: name another file, or replace it with --overwrite")


def check_apart(outputs: Mapping[str, Path]) -> None:
    """Refuse two outputs on one path, by whatever names.

    Raises:
        OutputError: two are the same.
    """
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise OutputError(f"{other} and {option} would both write {escaped(path)}: name two files")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A stream that becomes `target` at the end, whole or not at all; a pipe or a terminal is written as it is.

    Raises:
        OutputError: it cannot be written.
    """
    import tempfile  # with what that loads it takes 8 ms, which only writing needs

    place, scratch = Path(os.path.realpath(target)), None
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:
                yield stream
            return
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name[:80]}.", dir=place.parent)
        with open(handle, "wb") as stream:
            yield stream
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, place)
        scratch = None
    except OSError as error:
        raise OutputError(f"{escaped(target)}: cannot be written: {error.strerror or error}") from None
    finally:
        if scratch is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
