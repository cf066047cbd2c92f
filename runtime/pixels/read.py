"""Read a file into memory as one state of it, without waiting for ever and without trusting its name.

What is decoded, hashed and searched for metadata is then the same bytes, whatever happens to the file meanwhile; and a
file that is cut short while it is read cannot end the process, as it does where a decoder maps it (SIGBUS).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.verdict import FileStamp

MAX_BYTES = 1 << 30  # a 100-megapixel picture of 16 bits, uncompressed, is 600 MB

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a file and the state that it was read in."""

    path: Path
    content: bytes
    stamp: FileStamp


Reader = Callable[[Path, bool], Snapshot]
"""As `snapshot_from_file`: for files that are not of the system's, such as objects in a storage."""


def snapshot_from_file(path: Path, by_content: bool = False) -> Snapshot:
    """Read a regular file whole.

    Args:
        path: links are followed.
        by_content: put the SHA-256 of the content into the stamp.

    Raises:
        ImageError: it is missing, no regular file, empty, unreadable, past `MAX_BYTES`, or changes while it is read.
    """
    _check_kind(path, _status(path))
    try:
        # Between the look and the opening a pipe may have taken its place: opening that would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            before = os.fstat(descriptor)
            _check_kind(path, before)
            content = file.read(before.st_size)
            while 0 < len(content) < before.st_size and (more := file.read(before.st_size - len(content))):
                content += more  # Linux reads at most 2 GB at once, a network drive less
            after = os.fstat(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to read it", Fault.TOO_LARGE) from None
    if len(content) != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ImageError(f"{path}: it was written to while it was read: scan it again", Fault.CHANGED)
    digest = hashlib.sha256(content).hexdigest() if by_content else None
    return Snapshot(path, content, FileStamp(before.st_size, before.st_mtime_ns, digest))


def stamp_of(path: Path, by_content: bool = False) -> FileStamp | None:
    """The state of a file as it is now, or None where it cannot even be looked at. Never raises."""
    try:
        status = os.stat(path)
        digest = None
        if by_content and stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_BYTES:
            digest = snapshot_from_file(path, by_content=True).stamp.sha256
        return FileStamp(status.st_size, status.st_mtime_ns, digest)
    except (OSError, ValueError):
        return None
    except ImageError:
        return FileStamp(status.st_size, status.st_mtime_ns)


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{path}: cannot be read: {error}", Fault.UNREADABLE) from None


def _unreadable(path: Path, error: OSError) -> ImageError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        link = os.path.islink(path)
        return ImageError(f"{path}: {'a link to nowhere' if link else 'no such file'}", Fault.MISSING)
    if error.errno == errno.ELOOP:
        return ImageError(f"{path}: a link that leads to itself", Fault.MISSING)
    return ImageError(f"{path}: cannot be read: {error.strerror or error}", Fault.UNREADABLE)


def _check_kind(path: Path, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        readable = os.access(path, os.R_OK | os.X_OK)
        if readable:
            raise ImageError(f"{path}: a folder, not an image", Fault.NOT_A_FILE)
        raise ImageError(f"{path}: a folder that cannot be listed", Fault.UNREADABLE)
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise ImageError(f"{path}: {name}, not a regular file", Fault.NOT_A_FILE)
    check_content(path, status.st_size)


def check_content(name: Path | str, size: int) -> None:
    """Refuse what is empty or too large to be read into memory.

    Raises:
        ImageError: it has no byte, or more than `MAX_BYTES`.
    """
    if size == 0:
        raise ImageError(f"{name}: empty file", Fault.EMPTY)
    if size > MAX_BYTES:
        raise ImageError(f"{name}: {size:,} bytes; {MAX_BYTES:,} is the most that is read", Fault.TOO_LARGE)
