"""Where what was built for this machine is kept: engines, optimised networks, which backend is fastest here."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def user_folder(variable: str, in_home: str) -> Path | None:
    """`aivsreal` in the folder that `variable` names, or in that one of the home folder; it need not exist.

    None where neither is known, as in a container whose user is a number: a relative path is none (the XDG's rule).
    """
    folder = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), in_home)
    return Path(folder, "aivsreal") if os.path.isabs(folder) else None


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/aivsreal`, or `~/.cache/aivsreal`, or None, as `user_folder`."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def usable_cache_folder(name: str) -> Path | None:
    """A folder in the cache that this user can write to and nobody else, or None where there is none.

    What lies in it is loaded as it is, so a folder that others can write to is as good as none.
    """
    cache = cache_folder()
    if cache is None:
        return None
    folder = cache / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return None
    alone = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if alone and os.access(folder, os.W_OK) else None


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    import tempfile  # as in bundle: only writing needs it

    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
        try:
            part.write(content)
            part.close()
            os.replace(part.name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part.name)
            raise


def remembered(file: Path) -> dict[str, Any]:
    """The JSON object in a file of the cache; an empty one where it is missing or damaged."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def remember(file: Path, key: str, value: Mapping[str, Any], most: int = 16) -> None:
    """Put one entry last into the JSON object of `file`, and keep the last `most`; a full disk is no error."""
    values = {**{name: old for name, old in remembered(file).items() if name != key}, key: dict(value)}
    kept = dict(list(values.items())[-most:])
    with contextlib.suppress(OSError):
        write_whole(file, json.dumps(kept, indent=1).encode())


def remove_oldest(places: Iterable[Path], most: int) -> None:
    """Remove all but the `most` files or folders that were made or read last; none of them may go, that is no error."""
    used: list[tuple[int, Path]] = []
    for place in places:
        with contextlib.suppress(OSError):  # another process has removed it
            status = place.stat(follow_symlinks=False)
            used.append((max(status.st_mtime_ns, status.st_atime_ns), place))
    for _, place in sorted(used, reverse=True)[most:]:
        remove(place)


def remove(place: Path) -> None:
    """Remove a file or a folder; that it is not there, or cannot go, is no error."""
    import shutil  # 4 ms, which only a first start needs

    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink()
