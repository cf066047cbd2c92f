"""What a file is by its first bytes, for people: which pictures are decoded here, and what else it may be."""

from __future__ import annotations

from dataclasses import dataclass

from aivsreal.runtime.pixels.containers import announced_format, camera_raw, is_heif

HEAD = 4096  # bytes that are enough to tell


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is."""

    name: str
    """With its article: "a PDF document"."""
    picture: bool = False
    decoded: bool = False
    """Whether it is a picture that is decoded here."""
    advice: str = ""
    """What to do where a picture was expected."""


_DECODED = {
    "JPEG": "a JPEG picture",
    "PNG": "a PNG picture",
    "GIF": "a GIF picture",
    "TIFF": "a TIFF picture",
    "AVIF": "an AVIF picture",
    "WebP": "a WebP picture",
}
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # sizes of the header that follows "BM"
_PICTURES = {
    b"8BPS": "a Photoshop document (PSD)",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL picture",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"gimp xcf": "a GIMP document (XCF)",
    b"\x76\x2f\x31\x01": "an OpenEXR picture",
    b"#?RADIANCE": "a Radiance HDR picture",
    b"DDS ": "a DDS texture",
    b"qoif": "a QOI picture",
    b"\0\0\1\0": "a Windows icon",
}
_OTHERS = {
    b"%PDF-": "a PDF document",
    b"%!PS": "a PostScript document",
    b"AT&TFORM": "a DjVu document",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"\0\0\1\xba": "an MPEG video",
    b"FLV\1": "a Flash video",
    b"ID3": "an MP3 recording",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\7": "a RAR archive",
    b"\0\5\x16\7": "metadata of a Mac beside its file (AppleDouble)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office or thumbnail database of Windows",
    b"\x93NUMPY": "a numpy array",
    b"SQLite format 3\0": "a SQLite database",
}
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "a WAVE recording"}
_LFS = Kind("a Git LFS pointer, not the file itself", advice="run git lfs pull")


def kind_of(head: bytes) -> Kind | None:
    """What the first `HEAD` bytes of a file say it is; None where that is not known."""
    if (raw := camera_raw(head)) is not None:
        return Kind(f"a {raw} file", True)
    known = announced_format(head)
    if known is not None:
        return Kind(_DECODED[known], True, True)
    if is_heif(head):
        return Kind("an HEIC picture", True, True)
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return Kind("a BMP picture", True, True)
    for table, picture in ((_PICTURES, True), (_OTHERS, False)):
        for start, name in table.items():
            if head.startswith(start):
                return Kind(name, picture)
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return Kind(_RIFF[head[8:12]])
    if head[4:8] == b"ftyp":
        return _film(head[8:12])
    return _text(head.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower())


def _film(brand: bytes) -> Kind:
    if brand in (b"M4A ", b"M4B "):
        return Kind("an MPEG-4 recording")
    return Kind("a QuickTime video" if brand == b"qt  " else "an MP4 video")


def _text(start: bytes) -> Kind | None:
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return _LFS
    if start.startswith((b"<!doctype html", b"<html")):
        return Kind("an HTML page")
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return Kind("an SVG drawing", True)
    return None
