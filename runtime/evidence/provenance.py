"""What a file's metadata says of its origin: a signal beside the verdict, which it never changes by itself.

Only places that the format sets aside for such statements are read, each by its structure: a word somewhere in the
bytes, or behind the end of the picture, is none. Anyone can write metadata, and most services remove it: a statement
is worth what its writer is, and its absence says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from xml.parsers import expat

from PIL import ExifTags, Image
from PIL.ExifTags import Base

from aivsreal.runtime.evidence.c2pa import c2pa_evidence
from aivsreal.runtime.evidence.generators import origin_from_source_type, shortened, statements_of
from aivsreal.runtime.verdict import Evidence, Origin

IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_FIELDS = {
    f"{IPTC_EXTENSION} DigitalSourceType": "xmp:DigitalSourceType",
    "http://purl.org/dc/terms/ provenance": "xmp:provenance",
    "http://ns.adobe.com/xap/1.0/ CreatorTool": "xmp:CreatorTool",
    "http://ns.adobe.com/photoshop/1.0/ Credit": "xmp:Credit",
    "http://ns.adobe.com/exif/1.0/ UserComment": "xmp:UserComment",
    "http://purl.org/dc/elements/1.1/ description": "xmp:description",
}
_MOST = 1 << 24  # characters of one text; ComfyUI workflows reach hundreds of kilobytes
_MOST_ALIKE = 16  # statements of one origin that are kept: an XMP packet of 13 MB made 700,000, and a row of 55 MB
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, SyntaxError, RecursionError)


def evidence_from_image(image: Image.Image, content: bytes) -> tuple[Evidence, ...]:
    """Each statement that the file makes, in a fixed order: the first of each origin, and how many more there are.

    Damaged metadata state nothing; nothing is raised.

    Args:
        image: the open and loaded image; PNG text may stand behind the pixels.
    """
    kept, alike = dict[Evidence, None](), Counter[Origin]()
    for one in _statements(image):
        if one not in kept:
            alike[one.origin] += 1
            if alike[one.origin] <= _MOST_ALIKE:
                kept[one] = None
    kept |= dict.fromkeys(c2pa_evidence(image.format or "", content))
    left_out = sum(max(0, count - _MOST_ALIKE) for count in alike.values())
    if left_out:
        kept[Evidence("decoding", Origin.UNSTATED, f"metadata passed over: {left_out:,} more statements")] = None
    return tuple(kept)


def _statements(image: Image.Image) -> Iterator[Evidence]:
    for texts in (_png_texts, _comments, _exif_texts, _xmp_texts):
        try:
            for place, text in texts(image):
                if len(text) <= _MOST:
                    yield from _said(place, text)
        except (*_UNREADABLE, MemoryError):
            continue


def _said(place: str, text: str) -> Iterator[Evidence]:
    if place == "xmp:DigitalSourceType":
        yield Evidence(place, origin_from_source_type(text), shortened(text))
    elif place == "xmp:provenance":
        # Where an embedded manifest lies is said here too, in older files: that one is read by itself.
        if text.startswith(("http://", "https://")):
            yield Evidence("c2pa", Origin.UNSTATED, shortened(f"a C2PA manifest elsewhere, not fetched: {text}"))
    else:
        yield from statements_of(place, text)


def _png_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    if image.format == "PNG":
        for name, text in getattr(image, "text", {}).items():
            yield f"png:{name}", str(text)


def _comments(image: Image.Image) -> Iterator[tuple[str, str]]:
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and image.format in ("JPEG", "MPO", "GIF"):
        yield f"{'gif' if image.format == 'GIF' else 'jpeg'}:comment", comment.decode("utf-8", "replace")


def _exif_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    exif = image.getexif()
    for tag in (Base.Software, Base.Make, Base.Model, Base.ImageDescription, Base.DocumentName):
        text = exif.get(tag)
        if isinstance(text, str):
            yield f"exif:{tag.name}", text
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    comment, maker = inner.get(Base.UserComment), inner.get(Base.MakerNote)
    if isinstance(comment, bytes) and len(comment) <= _MOST:
        yield "exif:UserComment", _text_from_comment(comment, "utf-16-le" if exif.endian == "<" else "utf-16-be")
    elif isinstance(comment, str):  # as text, which the tag is not meant to be
        yield "exif:UserComment", comment
    if isinstance(maker, (str, bytes)) and len(maker) < 16:  # a camera's is longer, and no text
        yield "exif:MakerNote", maker if isinstance(maker, str) else maker.decode("utf-8", "replace")


def _text_from_comment(comment: bytes, unicode_codec: str) -> str:
    code, text = comment[:8], comment[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    # The tag's byte order is the file's, but writers get it wrong: the first character, ASCII in practice, shows it.
    codec = {b"\0": "utf-16-be"}.get(text[:1], "utf-16-le" if text[1:2] == b"\0" else unicode_codec)
    return text.decode(codec, "replace")


def _xmp_texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    for packet in _xmp_packets(image):
        if packet and len(packet) <= _MOST:
            yield from texts_from_xmp(packet)


def _xmp_packets(image: Image.Image) -> Iterator[bytes]:
    info = image.info
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "surrogateescape")
    if isinstance(packet, bytes):
        yield packet
    if image.format == "PNG":
        # ImageMagick: a text of the profile's name, its length, and its bytes as hexadecimal digits over many lines.
        texts = getattr(image, "text", {})
        for name in ("Raw profile type xmp", "Raw profile type APP1"):
            digits = str(texts.get(name, "")).split(None, 2)[2:]
            profile = bytes.fromhex(digits[0]) if digits else b""
            if name.endswith("xmp") or profile.startswith(_XMP_IN_JPEG):
                yield profile.removeprefix(_XMP_IN_JPEG)


def texts_from_xmp(packet: bytes) -> list[tuple[str, str]]:
    """Place and text of every field of `_XMP_FIELDS`: as attribute, text, resource, or in the items of a list.

    Raises:
        ValueError: it is no XML, or declares entities, as no XMP does and as attacks on parsers do.
    """
    found: list[tuple[str, str]] = []
    open_places: list[str | None] = []  # of each open element the field that it is, or lies in
    text: list[str] = []
    resource = f"{_RDF} resource"

    def start(name: str, attributes: dict[str, str]) -> None:
        found.extend((_XMP_FIELDS[key], value) for key, value in attributes.items() if key in _XMP_FIELDS)
        place = _XMP_FIELDS.get(name) or (open_places[-1] if open_places else None)
        if place is not None and resource in attributes:
            found.append((place, attributes[resource]))
        open_places.append(place)
        text.clear()

    def end(name: str) -> None:
        place, stated = open_places.pop(), "".join(text).strip()
        if place is not None and stated:
            found.append((place, stated))
        text.clear()

    def refuse(*_: object) -> None:
        raise ValueError("an XMP packet declares no document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda part: text.append(part) if open_places and open_places[-1] else None
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise ValueError(f"no XML: {error}") from None
    return found
