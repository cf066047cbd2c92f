"""What a file is by its first bytes, and which segments, chunks, boxes and directories its container holds.

Every walker takes the whole file, stops where its structure does, and never looks for words in the bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
)
# Stuffed zeros and restarts belong to a scan's data. Not \xff+: that took 9 ms a megabyte, this takes 0.3.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})


_RAW = (
    ("Fujifilm raw", 0, b"FUJIFILMCCD-RAW"),
    ("Panasonic raw", 0, b"IIU\0"),
    ("Olympus raw", 0, b"IIRO"),
    ("Olympus raw", 0, b"IIRS"),
    ("Olympus raw", 0, b"MMOR"),
    ("Sigma raw", 0, b"FOVb"),
    ("Minolta raw", 0, b"\0MRM"),
    ("Canon raw (CRW)", 6, b"HEAPCCDR"),
    ("Canon raw (CR2)", 8, b"CR\x02"),
    ("Canon raw (CR3)", 4, b"ftypcrx "),
)


def announced_format(content: bytes) -> str | None:
    """The format that the first bytes announce."""
    if _brands(content) & _AVIF_BRANDS:
        return "AVIF"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WebP"
    return next((name for name, start in _SIGNATURES if content.startswith(start)), None)


def is_heif(content: bytes) -> bool:
    """Whether it is HEIC or HEIF, which share their container with AVIF."""
    brands = _brands(content)
    return bool(brands & _HEIF_BRANDS) and not brands & _AVIF_BRANDS


def _brands(content: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO base media file; the major one may be that of any picture, `mif1`."""
    if content[4:8] != b"ftyp":
        return set()
    size = min(int.from_bytes(content[:4], "big"), 256)
    return {content[8:12], *(content[at : at + 4] for at in range(16, size, 4))}


def camera_raw(content: bytes) -> str | None:
    """Which camera's raw file it is, where its first bytes say so; many others begin as TIFF does."""
    return next((name for name, at, start in _RAW if content.startswith(start, at)), None)


class JpegSegment(NamedTuple):
    """One segment of a JPEG."""

    marker: int
    data: bytes
    coded: int
    """Where a scan's coded data begin; `behind` where it is no scan."""
    behind: int
    """Where the segment ends, with its coded data."""


def jpeg_segments(content: bytes, scans: bool = True) -> Iterator[JpegSegment]:
    """The segments of the first image in a JPEG, up to its end marker, the next image's start or the file's end.

    Without `scans` only those before the first scan.
    """
    at = 2
    while (at := content.find(b"\xff", at)) >= 0:  # libjpeg steps over bytes between segments too
        while content[at : at + 1] == b"\xff":
            at += 1
        if at >= len(content) or (marker := content[at]) == START_OF_IMAGE:
            return
        at += 1
        if marker == END_OF_IMAGE:
            yield JpegSegment(marker, b"", at, at)
            return
        if marker in _BARE:
            continue
        length = int.from_bytes(content[at : at + 2], "big")
        data = content[at + 2 : at + length]
        at = coded = at + max(2, length)
        if marker == START_OF_SCAN:
            if not scans:
                return
            found = _SCAN_END.search(content, at)
            at = len(content) if found is None else found.start()
            while at > coded and content[at - 1] == 0xFF:  # fill bytes belong to the next marker
                at -= 1
        yield JpegSegment(marker, data, coded, at)


class PngChunk(NamedTuple):
    """One chunk of a PNG."""

    name: bytes
    start: int
    """Where its length stands."""
    behind: int
    """Where the next chunk begins; past the file's end where the file ends early."""


def png_chunks(content: bytes) -> Iterator[PngChunk]:
    """The chunks of a PNG, the end chunk included."""
    at = 8
    while at + 12 <= len(content):
        chunk = PngChunk(content[at + 4 : at + 8], at, at + 12 + int.from_bytes(content[at : at + 4], "big"))
        yield chunk
        if chunk.name == b"IEND":
            return
        at = chunk.behind


class RiffChunk(NamedTuple):
    """One chunk of a RIFF file, such as WebP."""

    name: bytes
    start: int
    """Where its content begins."""
    end: int
    """Of its content, or of a file that ends before."""


def riff_chunks(content: bytes) -> Iterator[RiffChunk]:
    """Chunks of a RIFF file; one without a name, of zeros that nobody wrote over, is all the rest."""
    end, at = min(len(content), 8 + int.from_bytes(content[4:8], "little")), 12
    while at + 8 <= end:
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        size = size if any(name) else end - at
        yield RiffChunk(name, at + 8, min(at + 8 + size, len(content)))
        at += 8 + size + size % 2


class BmffBox(NamedTuple):
    """One box of an ISO base media file, such as AVIF and HEIC."""

    name: bytes
    start: int
    """Where its content begins."""
    end: int


def bmff_boxes(content: bytes, at: int = 0, end: int | None = None) -> Iterator[BmffBox]:
    """The boxes that lie side by side between two offsets; None means the file's end."""
    end = len(content) if end is None else min(end, len(content))
    while at + 8 <= end:
        size, head = int.from_bytes(content[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at  # it reaches to the end
        if size < head:
            return
        yield BmffBox(content[at + 4 : at + 8], at + head, min(at + size, end))
        at += size


class Coded(NamedTuple):
    """Code points of ITU-T H.273 that a file gives for its colours."""

    primaries: int
    transfer: int


def bmff_colour(content: bytes) -> Coded | None:
    """The code points of the primary item of an AVIF or HEIC; those of a gain map beside it do not count."""
    inside: dict[bytes, BmffBox] = {}
    for box in bmff_boxes(content):
        if box.name == b"meta":
            for part in bmff_boxes(content, box.start + 4, box.end):
                inside.setdefault(part.name, part)
                if part.name == b"iprp":
                    inside |= {one.name: one for one in bmff_boxes(content, part.start, part.end)}
    if not {b"pitm", b"ipco", b"ipma"} <= inside.keys():
        return None
    properties = list(bmff_boxes(content, inside[b"ipco"].start, inside[b"ipco"].end))
    for index in _primary_properties(content, inside[b"pitm"], inside[b"ipma"]):
        one = properties[index - 1] if 0 < index <= len(properties) else None
        if one is not None and one.name == b"colr" and content[one.start : one.start + 4] == b"nclx":
            values = content[one.start + 4 : one.start + 8]
            return Coded(int.from_bytes(values[:2], "big"), int.from_bytes(values[2:], "big"))
    return None


def _primary_properties(content: bytes, primary: BmffBox, associations: BmffBox) -> list[int]:
    """Numbers of the properties of the primary item, from 1."""
    wide = content[primary.start : primary.start + 1] != b"\0"
    item = int.from_bytes(content[primary.start + 4 : primary.start + (8 if wide else 6)], "big")
    start, end = associations.start, associations.end
    id_size = 4 if content[start : start + 1] != b"\0" else 2
    width = 2 if int.from_bytes(content[start + 1 : start + 4], "big") & 1 else 1
    at = start + 8
    while at + id_size < end:
        count = content[at + id_size]
        first = at + id_size + 1
        if int.from_bytes(content[at : at + id_size], "big") == item:
            numbers = range(first, min(first + count * width, end), width)
            return [int.from_bytes(content[one : one + width], "big") & ((1 << (8 * width - 1)) - 1) for one in numbers]
        at = first + count * width
    return []


class TiffDirectory(NamedTuple):
    """One directory of a TIFF: a page, or a picture beside one."""

    tags: dict[int, tuple[int, ...]]
    """Integers of the tags that were asked for, at most `_MOST_VALUES` each; none for tags of other types."""
    behind: int
    """Where the next directory stands; 0 behind the last."""


_MOST_DIRECTORIES, _MOST_ENTRIES, _MOST_VALUES = 4096, 4096, 256
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # types of a TIFF's values, as `struct` names them


def is_tiff(content: bytes) -> bool:
    """Whether it begins as a TIFF or a BigTIFF."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffReader:
    """Reads some tags of a TIFF's directories: never more entries than the file has room for.

    Directories can overlap and tags can share their values: all of those in a file of 563 kB took 500 MB.
    """

    def __init__(self, content: bytes, tags: frozenset[int]) -> None:
        self._content, self._tags = content, tags
        self._order = "<" if content[:2] == b"II" else ">"
        self._big = content[2:4] in (b"+\0", b"\0+")
        self._entry = struct.Struct(self._order + ("HHQ8s" if self._big else "HHI4s"))
        self._left = len(content) // self._entry.size

    def pages(self) -> Iterator[TiffDirectory]:
        """The directories that the pages are, in order."""
        at = self._number(8, 8) if self._big else self._number(4, 4)
        seen = set[int]()
        while 8 <= at < len(self._content) and at not in seen and len(seen) < _MOST_DIRECTORIES and self._left:
            seen.add(at)
            page = self.directory(at)
            yield page
            at = page.behind

    def directory(self, at: int) -> TiffDirectory:
        """The directory at an offset."""
        head, size, inline = 8 if self._big else 2, self._entry.size, 8 if self._big else 4
        first = at + head
        last = min(first + size * self._number(at, head), len(self._content))
        count = min(max(last - first, 0) // size, _MOST_ENTRIES, self._left)
        self._left -= count
        entries = self._entry.iter_unpack(self._content[first : first + count * size])
        found = {entry[0]: entry[1:] for entry in entries if entry[0] in self._tags}
        return TiffDirectory({tag: self._values(*entry) for tag, entry in found.items()}, self._number(last, inline))

    def _values(self, kind: int, count: int, inline: bytes) -> tuple[int, ...]:
        if kind not in _INTEGERS:
            return ()
        one = struct.Struct(self._order + _INTEGERS[kind])
        size = min(count, _MOST_VALUES) * one.size
        at = int.from_bytes(inline, "little" if self._order == "<" else "big")
        values = inline[:size] if size <= len(inline) else self._content[at : at + size]
        return tuple(value for (value,) in one.iter_unpack(values[: len(values) // one.size * one.size]))

    def _number(self, at: int, width: int) -> int:
        return int.from_bytes(self._content[at : at + width], "little" if self._order == "<" else "big")
