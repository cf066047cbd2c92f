"""Find image files: under a folder, or from a command's arguments."""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from io import BufferedReader

SUFFIXES = (
    "jpg jpeg jpe jif jfif pjpeg pjp mpo png apng webp gif bmp dib tif tiff avif avifs heic heics heif heifs hif"
).split()
# Downloads are named x.jpg_large, x.jpg:orig or x.jpg?width=800.
_IMAGE_NAME = re.compile(rf"(?!\._).+\.(?:{'|'.join(SUFFIXES)})(?:[_:-](?:large|medium|small|orig)|\?.*)?", re.I | re.S)
_THUMBNAILS = frozenset({"@eaDir", "__MACOSX"})  # what a Synology and a Mac's archives keep beside the files


@dataclass(slots=True)
class Search:
    """Which files of a folder are looked at, and how many were not."""

    all_files: bool = False
    """Take files of other names too, if their content is a picture that is decoded here."""
    exclude: tuple[str, ...] = ()
    """Patterns of names, or with a slash of paths below the folder, that are left out."""
    own: frozenset[str] = frozenset()
    """Folders that this run writes pictures into, by their real paths: it does not judge its own heat maps."""
    others: int = 0
    """Files that were not looked at, for their names or their content."""
    links: int = 0
    """Linked folders that were not entered."""
    folders: int = 0
    """Folders of a system's thumbnails that were not entered."""
    excluded: int = 0
    """Files and folders that a pattern left out."""
    written: int = 0
    """Folders of `own` that were not entered."""

    def paths(self, folder: Path) -> Iterator[Path]:
        """Image files under `folder`, recursively, sorted within each folder, one folder in memory at a time.

        Names are told apart by suffix. Links to folders are not followed, so a loop of links ends. What cannot be read
        comes too, so that nothing is passed over in silence: a dangling link, and a folder that cannot be listed.
        """
        return self._below(folder)

    def told(self) -> str | None:
        """What was not looked at, as a line for people; None where all was."""
        kinds = "of other content" if self.all_files else "with other names"
        counts = (
            (self.others, "file", f" {kinds}"),
            (self.links, "linked folder", ""),
            (self.folders, "folder", " of a system's thumbnails"),
            (self.excluded, "exclusion", " by --exclude"),
            (self.written, "folder", " that this run writes into"),
        )
        parts = [f"{count:,} {name}{'' if count == 1 else 's'}{more}" for count, name, more in counts if count]
        return f"not looked at: {', '.join(parts)}" if parts else None

    def takes_folder(self, name: str, below: str) -> bool:
        """Whether a folder is entered; `below` is its path below the one that was named."""
        return name not in _THUMBNAILS and not self.is_excluded(name, below)

    def is_excluded(self, name: str, below: str) -> bool:
        """Whether a pattern leaves out a file or folder; `below` as of `takes_folder`."""
        return any(fnmatchcase(below if "/" in pattern else name, pattern) for pattern in self.exclude)

    def _below(self, folder: Path) -> Iterator[Path]:
        levels = [iter([(folder, "", True)])]  # not by recursion: Python ends that at a thousand nested folders
        while levels:
            path, below, is_folder = next(levels[-1], (None, "", False))
            if path is None:
                levels.pop()
            elif is_folder:
                try:
                    levels.append(self._listed(path, below))
                except OSError:
                    yield path
            else:
                yield path

    def _listed(self, folder: Path, below: str) -> Iterator[tuple[Path, str, bool]]:
        with os.scandir(folder) as entries:
            listing = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if self._takes(entry, below)
            )
        return ((folder / name, f"{below}{name}/", is_folder) for name, is_folder in listing)

    def _takes(self, entry: os.DirEntry[str], below: str) -> bool:
        name = entry.name
        if self.is_excluded(name, below + name):
            self.excluded += 1
        elif entry.is_dir(follow_symlinks=False):
            if self.own and os.path.realpath(entry.path) in self.own:
                self.written += 1
                return False
            if self.takes_folder(name, below + name):
                return True
            self.folders += 1
        elif entry.is_symlink() and os.path.isdir(entry.path):
            self.links += 1
        elif has_image_name(name) or (self.all_files and _is_picture(entry)):
            return True
        else:
            self.others += 1
        return False


def image_paths(folder: Path) -> Iterator[Path]:
    """Image files under `folder`, as `Search.paths`."""
    return Search().paths(folder)


def has_image_name(name: str) -> bool:
    """Whether a file's name says that it is a picture; `._x.jpg` is what a Mac keeps beside x.jpg."""
    return _IMAGE_NAME.fullmatch(name) is not None


def argument_paths(
    arguments: Iterable[str], notes: list[str], search: Search | None = None
) -> Iterator[Path | None]:  # fmt: skip
    """Files of a command's arguments, streamed: files, folders, and `-` for a list on standard input.

    None comes where whoever writes that list has to be waited for, so that what is known can be given before.

    Args:
        notes: gets a line for each one that yields nothing.
        search: how folders are searched; it counts what is not looked at.
    """
    from aivsreal.runtime.text import escaped

    search = search or Search()
    for argument in arguments:
        found = False
        for name in _names_on_stdin() if argument == "-" else [argument]:
            if name is None:
                yield None
                continue
            found = True
            if not os.path.isdir(name):
                yield Path(name)
                continue
            empty = True
            for path in search.paths(Path(name)):
                empty = False
                yield path
            if empty:
                notes.append(f"{escaped(name)}: no images in this folder")
        if not found:
            notes.append("standard input: no paths")


def count_if_few(arguments: Iterable[str], limit: int, search: Search | None = None) -> int | None:
    """How many files `argument_paths` would give, None where they are `limit` or more, or not known beforehand.

    It looks at twenty entries a file at most: listing a large tree twice is not worth what is known then. With
    `all_files` each file counts, since what is in it is not known.
    """
    search = search or Search()
    places, count, looks = [(argument, "") for argument in arguments], 0, 20 * limit
    if ("-", "") in places:
        return None
    while places:
        place, below = places.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        named = search.all_files or has_image_name(entry.name)
                        count += named and not search.is_excluded(entry.name, below + entry.name)
                    elif search.takes_folder(entry.name, below + entry.name):
                        places.append((entry.path, f"{below}{entry.name}/"))
                    looks -= 1
                    if count >= limit or looks <= 0:
                        return None
        except OSError:
            count += 1  # a file, or what will be an error
        if count >= limit:
            return None
    return count


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether its content is a picture that is decoded here; what cannot be read is taken too, to become an error."""
    from aivsreal.runtime.pixels.kinds import HEAD, kind_of

    if not entry.is_file():
        return False
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            kind = kind_of(file.read(HEAD))
    except OSError:
        return True
    return kind is not None and kind.decoded


def _names_on_stdin() -> Iterator[str | None]:
    """Lines of a list, or what stands between NULs where it has any, as `find -print0` writes it."""
    torn, end = b"", b"\n"
    for some in _chunks_of_stdin():
        if some is None:
            yield None
            continue
        if b"\0" in some:
            end = b"\0"
        *names, torn = (torn + some).split(end)
        yield from (_without_return(name) for name in names if name.strip(b"\r\n"))
    if torn.strip(b"\r\n"):
        yield _without_return(torn)


def _without_return(name: bytes) -> str:
    path = os.fsdecode(name)
    # Windows ends lines with a carriage return too; here it may, if seldom, belong to the name.
    return path[:-1] if path.endswith("\r") and not os.path.lexists(path) else path


def _chunks_of_stdin() -> Iterator[bytes | None]:
    """What is there to read, in UTF-8, without the mark that Windows puts before a text; None where one has to wait."""
    if sys.stdin is None:  # it was closed before the command began
        return
    stream, decoder, begun = cast("BufferedReader", sys.stdin.buffer), None, False
    while True:
        if not _has_more(stream, 0):
            yield None
            _has_more(stream, None)  # where it was set not to block, reading now would look like its end
        some = stream.read1(1 << 16)
        if not some:
            return
        if not begun:
            begun = True
            if some.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                decoder = codecs.getincrementaldecoder("utf-16")("replace")
            some = some.removeprefix(codecs.BOM_UTF8)
        yield some if decoder is None else decoder.decode(some).encode(errors="replace")


def _has_more(stream: BufferedReader, wait_s: float | None) -> bool:
    """Whether reading returns at once, waiting up to so long for that; None waits as long as it takes."""
    try:
        return bool(select.select([stream], [], [], wait_s)[0])
    except (OSError, ValueError):  # no file of the system's, or a system that cannot tell
        return True
