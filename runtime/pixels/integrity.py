"""Tell a picture of which a part is missing, where the decoder would fill it in and say nothing.

Measured with Pillow 13 on files cut at 200 places: a file that just ends is refused by every decoder. But libjpeg
paints grey where the data of a JPEG end early and an end marker follows; a PNG's decoder does not look at the check
sums of the pixels; and WebP and AVIF have none, so that a file whose end was never written, zeros in its place as
interrupted downloads leave it, decodes to a picture that nobody took.
"""

from __future__ import annotations

import io
import re
import zlib

from PIL import Image

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.pixels.containers import (
    END_OF_IMAGE,
    START_OF_SCAN,
    announced_format,
    bmff_boxes,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_HUFFMAN_TABLES, _QUANTISATION_TABLES, _RESTART_INTERVAL = 0xC4, 0xDB, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_HUFFMAN_TABLES, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_COMMENTS = frozenset({0xFE, *range(0xE0, 0xF0)})
_PNG_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_PNG_PICTURE = frozenset({b"tRNS", *_PNG_ANIMATION})  # beside those whose names say that they are critical
_WEBP_PICTURES = frozenset({b"VP8 ", b"VP8L", b"ANMF", bytes(4)})  # the last: where the next frame was never written
_LEAST_BODY = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}
# Pillow's limits, `PngImagePlugin.MAX_TEXT_CHUNK` and `MAX_TEXT_MEMORY`
_MOST_COMPRESSED, _MOST_TEXT = 1 << 20, 1 << 26
_ENDS_EARLY = "its data end before the picture does"


class Unfit(ValueError):
    """A picture that must not be judged, for a reason of ours and not of its decoder."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class PartialPicture(Unfit):
    """A part of the picture is missing; says which."""

    def __init__(self, message: str) -> None:
        super().__init__(f"a part of the picture is missing: {message}", Fault.PARTIAL)


def sound_content(kind: str, content: bytes, width: int, height: int, exif: bytes = b"") -> bytes:
    """Look at the structure of a file before its pixels are trusted; returns what is to be decoded.

    That is the content itself, but for a JPEG without an end marker: it gets one, in the place of what stands behind
    its picture. Then `check_filled` must be asked whether the data were all there.

    Args:
        kind: Pillow's name of the format.
        exif: as Pillow found it.

    Raises:
        PartialPicture: a part is missing.
    """
    if kind in ("JPEG", "MPO"):
        end = _end_of_jpeg(content)
        return content if end is None else content[:end] + b"\xff\xd9"
    if kind == "PNG":
        _check_png(content)
    elif kind in ("WEBP", "AVIF", "HEIF"):
        # A flat WebP ends in a zero byte per 10,000 pixels (1,000 x 1,000: 101; 6,000 x 4,000: 2,310), an AVIF in none.
        data = _last_picture(content) if kind == "WEBP" else _before_padding(content)
        data = data if kind == "WEBP" else _before_exif(data, exif.removeprefix(b"Exif\0\0"))
        zeros = len(data) - len(data.rstrip(b"\0"))
        if zeros > 64 + width * height // 4000 and not (kind == "WEBP" and _needs_its_last_bytes(content)):
            raise PartialPicture(f"the last {zeros:,} bytes are zeros")
    return content


def _before_padding(bmff: bytes) -> bytes:
    """An AVIF or HEIC without the boxes at its end that only pad it; what follows no box is none of them."""
    end = behind = 0
    for box in bmff_boxes(bmff):
        behind = box.end
        end = end if box.name in (b"free", b"skip") else behind
    return bmff[:end] if behind == len(bmff) else bmff


def _before_exif(content: bytes, exif: bytes) -> bytes:
    """A file without the Exif data that libheif puts at its end, where they were written."""
    return content[: -len(exif)] if any(exif[:8]) and content.endswith(exif) else content


def _last_picture(webp: bytes) -> bytes:
    """Data of the last chunk with pixels: Exif may stand behind it, and be padded with as many zeros as it likes."""
    start, end = 0, len(webp)
    for chunk in riff_chunks(webp):
        if chunk.name in _WEBP_PICTURES:
            start, end = chunk.start, chunk.end
    return webp[start:end]


def _needs_its_last_bytes(webp: bytes) -> bool:
    """Whether a WebP is lossless and can't be decoded without its last two bytes, whatever they are.

    A fast encoder writes flat pixels as zeros: 26,664 of them end the file of a 640 x 640 picture with a flat third,
    method 0. Zeros in the place of an end that was never written are more than the picture takes.
    """
    picture = next((chunk for chunk in riff_chunks(webp) if chunk.name == b"VP8L"), None)
    if picture is None:
        return False
    data = webp[picture.start : picture.end - 2]
    data = len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    shorter = b"RIFF" + (len(data) + 8).to_bytes(4, "little") + b"WEBPVP8L" + data
    try:
        with Image.open(io.BytesIO(shorter), formats=("WEBP",)) as image:
            image.load()
    except OSError:
        return True
    return False


def check_filled(content: bytes, image: Image.Image, reduction: int = 1, ended: bool = True) -> None:
    """Tell a JPEG whose data end early, by the plain grey that libjpeg puts in their place.

    A picture may end in that grey by itself, so such a one is decoded once more with noise put behind its data: if
    they were all there, nothing changes.

    Args:
        image: its loaded first image, before any turn.
        reduction: what its sides were divided by in decoding.
        ended: the file had an end marker; without one the noise is tried whatever the picture ends in.

    Raises:
        PartialPicture: the last pixels were filled in.
    """
    if ended and not {127, 128}.issuperset(_last_pixel(image)):  # 127: inverted, as Adobe's CMYK is
        return
    end = _end_of_scans(content)
    if end is None:
        if ended:
            return
        raise PartialPicture("it has no end marker")
    import random  # a picture that ends in grey is rare

    noise = random.Random(0).randbytes(1 << 16).replace(b"\xff", b"\x55")  # it holds no marker
    with Image.open(io.BytesIO(content[:end] + noise + b"\xff\xd9"), formats=("JPEG",)) as again:
        if reduction > 1:
            again.draft("", (again.width // reduction, again.height // reduction))
        if again.tobytes() != image.tobytes():
            raise PartialPicture(_ENDS_EARLY)


def _last_pixel(image: Image.Image) -> tuple[float, ...]:
    value = image.getpixel((image.width - 1, image.height - 1))
    return value if isinstance(value, tuple) else (value or 0.0,)


class _Frame:
    """What a JPEG's frame header announces, and which of it the scans have sent."""

    def __init__(self, marker: int, data: bytes) -> None:
        self._progressive, self.arithmetic = marker in _PROGRESSIVE, marker in _ARITHMETIC
        self._sides = int.from_bytes(data[3:5], "big"), int.from_bytes(data[1:3], "big")
        parts = [data[at : at + 3] for at in range(6, 6 + 3 * data[5], 3)]
        self._factors = {part[0]: (max(part[1] >> 4, 1), max(part[1] & 15, 1)) for part in parts}
        self._whole = set[int]()  # components that a sequential scan sent
        self._lowest: dict[tuple[int, int], int] = {}  # (component, coefficient) -> the lowest bit that was sent

    @property
    def count(self) -> int:
        """Of coefficients."""
        return 64 * len(self._factors)

    @property
    def missing(self) -> int:
        """Coefficients that were not sent down to their last bit."""
        unsent = self._factors.keys() - self._whole
        return sum(1 for one in unsent for index in range(64) if self._lowest.get((one, index), 1))

    def add(self, scan: bytes) -> bool:
        """Note what a scan sends, by its header; False where that is none of this frame."""
        ids = self._components(scan)
        if not self._progressive:
            self._whole.update(ids)  # all there is, always: libjpeg warns of other values and goes on
            return bool(ids)
        first, last, bits = scan[1 + 2 * len(ids) : 4 + 2 * len(ids)] if ids else (0, 0, 0)
        for component in ids:
            for coefficient in range(first, min(last, 63) + 1):
                self._lowest[component, coefficient] = bits & 15
        return bool(ids)

    def units(self, scan: bytes) -> int:
        """How many coding units a scan consists of."""
        ids = self._components(scan)
        if not ids:
            return 0
        # One component's units are its blocks, without those that only fill up a unit of several.
        own = (1, 1) if len(ids) > 1 else self._factors[ids[0]]
        most = [max(factors[axis] for factors in self._factors.values()) for axis in (0, 1)]
        across, down = (-(-self._sides[axis] * own[axis] // (8 * most[axis])) for axis in (0, 1))
        return across * down

    def _components(self, scan: bytes) -> bytes:
        ids = scan[1 : 1 + 2 * scan[0] : 2] if scan and len(scan) >= 4 + 2 * scan[0] else b""
        return ids if all(one in self._factors for one in ids) else b""


def _frame(marker: int, data: bytes) -> _Frame | None:
    return _Frame(marker, data) if marker in _FRAMES and len(data) > 5 and 0 < data[5] <= (len(data) - 6) // 3 else None


def _end_of_jpeg(content: bytes) -> int | None:
    """None where an end marker stands behind the picture, else where it belongs.

    Raises:
        PartialPicture: not every bit of every coefficient of every component was sent.
    """
    frame: _Frame | None = None
    end: int | None = None  # behind the scan that made the picture complete
    for marker, data, _, behind in jpeg_segments(content):
        if marker == END_OF_IMAGE and (frame is None or end is not None):
            return None
        if marker == END_OF_IMAGE or (end is not None and not _may_follow(marker, data)):
            break
        frame = frame or _frame(marker, data)
        if marker == START_OF_SCAN and frame is not None:
            if not frame.add(data) and end is not None:
                break
            end = None if frame.missing else behind
    if frame is not None and end is None:
        raise PartialPicture(f"{frame.missing} of its {frame.count} coefficients were not sent in full")
    if end is None:
        raise PartialPicture("it has no end marker")
    # Zeros, as broken downloads leave them, are no data, but for one: the last byte, or the zero behind a 0xFF in it.
    return min(end, len(content[:end].rstrip(b"\0")) + 1)


def _may_follow(marker: int, data: bytes) -> bool:
    """Whether a segment may stand behind a complete picture; anything else there is no part of the JPEG."""
    if marker == _HUFFMAN_TABLES:
        at = 0
        while at < len(data):
            at += 17 + sum(data[at + 1 : at + 17])
        return at == len(data)
    if marker == _QUANTISATION_TABLES:
        return len(data) % 65 == 0
    return marker in _COMMENTS or marker == START_OF_SCAN or (marker == _RESTART_INTERVAL and len(data) == 2)


def _end_of_scans(content: bytes) -> int | None:
    """Where the last scan's data end; None where noise behind them proves nothing, as with arithmetic coding.

    Raises:
        PartialPicture: a restart marker is missing: behind a gap of those, noise is stepped over.
    """
    interval, end = 0, None
    frame: _Frame | None = None
    for marker, data, coded, behind in jpeg_segments(content):
        frame = frame or _frame(marker, data)
        if marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[:2], "big")
        elif marker == START_OF_SCAN and frame is not None:
            end = behind
            restarts = -(-frame.units(data) // interval) - 1 if interval else 0
            if restarts > 0 and len(_RESTART.findall(content, coded, behind)) < restarts:
                raise PartialPicture(_ENDS_EARLY)
    return None if frame is None or frame.arithmetic else end


def without_excess(content: bytes, notes: list[str]) -> bytes:
    """A PNG without metadata that Pillow refuses the whole picture for: too much of it, or broken.

    Args:
        notes: gets what was left out.
    """
    kept, left_out, at, text_bytes = list[bytes](), list[str](), 0, 0
    for name, start, behind in png_chunks(content):
        if name in _PNG_PICTURE or not name[:1].islower():
            continue
        body = content[start + 8 : behind - 4]
        size, why = _metadata_size(name, body)
        text_bytes += size
        if len(content) < behind or zlib.crc32(name + body) != int.from_bytes(content[behind - 4 : behind], "big"):
            why = "its check sum does not fit"
        elif text_bytes > _MOST_TEXT:
            why, text_bytes = f"more than {_MOST_TEXT:,} bytes in all", text_bytes - size
        if why:
            kept.append(content[at:start])
            left_out.append(f"{name.decode('latin-1')} ({why})")
            at = behind
    if not left_out:
        return content
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    notes.append(f"metadata passed over: {', '.join(left_out[:3])}{more}")
    return b"".join((*kept, content[at:]))


def still_picture(content: bytes) -> bytes | None:
    """A PNG without its animation; None where it is no PNG or has none."""
    spans = list(png_chunks(content)) if announced_format(content) == "PNG" else []
    if not any(name in _PNG_ANIMATION for name, _, _ in spans):
        return None
    return content[:8] + b"".join(content[at:behind] for name, at, behind in spans if name not in _PNG_ANIMATION)


def _metadata_size(name: bytes, body: bytes) -> tuple[int, str]:
    """How many bytes of text or profile a chunk of a PNG comes to, and why it cannot be read, or nothing."""
    if len(body) < _LEAST_BODY.get(name, 0):
        return 0, "cut short"
    if name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
        return 0, ""
    _, found, rest = body.partition(b"\0")
    if name == b"iTXt" and rest[:1] != b"\0":
        rest = rest[1:2] + b"\0".join(rest[2:].split(b"\0", 2)[2:])
    elif name in (b"tEXt", b"iTXt"):
        return len(body), ""
    if not found or rest[:1] != b"\0":
        return 0, "compressed in a way that is not known"
    reader = zlib.decompressobj()
    try:
        size = len(reader.decompress(rest[1:], _MOST_COMPRESSED))
    except zlib.error:
        return 0, ""  # Pillow reads nothing, and goes on
    return size, f"more than {_MOST_COMPRESSED:,} bytes when decompressed" if reader.unconsumed_tail else ""


def _check_png(content: bytes) -> None:
    for name, start, behind in png_chunks(content):  # a missing end chunk is noticed by the decoder where pixels miss
        # What is wrong beside the pixels is nobody's loss.
        if name in (b"IHDR", b"PLTE", b"IDAT", b"tRNS") and (
            len(content) < behind
            or zlib.crc32(memoryview(content)[start + 4 : behind - 4])
            != int.from_bytes(content[behind - 4 : behind], "big")
        ):
            raise PartialPicture(f"the check sum of its {name.decode()} does not fit")
