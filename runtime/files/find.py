"""Find image files: under a folder, or from a command's arguments."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from io import BufferedReader

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .dib .tif .tiff .avif .heic .heif".split(),
)


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files under `folder`, recursively, sorted within each folder, one folder in memory at a time.

    Names are told apart by suffix. Links to folders are not followed, so a loop of links ends. What cannot be read
    comes too, so that nothing is passed over in silence: a dangling link, and a folder that cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            listing = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if entry.is_dir(follow_symlinks=False) or (has_image_name(entry.name) and not os.path.isdir(entry.path))
            )
    except OSError:
        yield folder
        return
    for name, is_folder in listing:
        if is_folder:
            yield from image_paths(folder / name)
        else:
            yield folder / name


def argument_paths(arguments: Iterable[str], notes: list[str]) -> Iterator[Path | None]:
    """Files of a command's arguments, streamed: files, folders, and `-` for a list on standard input.

    None comes where whoever writes that list has to be waited for, so that what is known can be given before.

    Args:
        arguments: as they were typed.
        notes: gets a line for each one that yields nothing.
    """
    from aivsreal.runtime.text import escaped

    for argument in arguments:
        found = False
        for name in _lines_of_stdin() if argument == "-" else [argument]:
            if name is None:
                yield None
                continue
            found = True
            if not os.path.isdir(name):
                yield Path(name)
                continue
            empty = True
            for path in image_paths(Path(name)):
                empty = False
                yield path
            if empty:
                notes.append(f"{escaped(name)}: no images in this folder")
        if not found:
            notes.append("standard input: no paths")


def count_if_few(arguments: Iterable[str], limit: int) -> int | None:
    """How many files `argument_paths` would give, None where they are `limit` or more, or not known beforehand.

    It looks at twenty entries a file at most: listing a large tree twice is not worth what is known then.
    """
    places, count, looks = list(arguments), 0, 20 * limit
    if "-" in places:
        return None
    while places:
        place = places.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        places.append(entry.path)
                    else:
                        count += has_image_name(entry.name)
                    looks -= 1
                    if count >= limit or looks <= 0:
                        return None
        except OSError:
            count += 1  # a file, or what will be an error
        if count >= limit:
            return None
    return count


def has_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _lines_of_stdin() -> Iterator[str | None]:
    if sys.stdin is None:  # it was closed before the command began
        return
    stream, torn = cast("BufferedReader", sys.stdin.buffer), b""
    while True:
        if not _has_more(stream, 0):
            yield None
            _has_more(stream, None)  # where it was set not to block, reading now would look like its end
        some = stream.read1(1 << 16)
        *names, torn = (torn + some).split(b"\n")
        yield from (os.fsdecode(name) for name in [*names, b"" if some else torn] if name)
        if not some:
            return


def _has_more(stream: BufferedReader, wait_s: float | None) -> bool:
    """Whether reading returns at once, waiting up to so long for that; None waits as long as it takes."""
    try:
        return bool(select.select([stream], [], [], wait_s)[0])
    except (OSError, ValueError):  # no file of the system's, or a system that cannot tell
        return True
