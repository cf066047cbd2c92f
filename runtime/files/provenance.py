"""What a file's metadata says of its origin: a signal beside the verdict, which it never changes by itself.

Only places that the format sets aside for such statements are read, each by its structure: a word somewhere in the
bytes, or behind the end of the picture, is none. Anyone can write metadata, and most services remove it: a statement
is worth what its writer is, and its absence says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from xml.parsers import expat

from PIL import ExifTags, Image

from aivsreal.runtime.files.c2pa import c2pa_evidence
from aivsreal.runtime.verdict import Evidence, Origin

IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_VOCABULARY = re.compile(r"(?:https?://cv\.iptc\.org/newscodes/digitalsourcetype/)?(\w+)")
_ORIGINS = {
    "trainedAlgorithmicMedia": Origin.AI,
    "compositeWithTrainedAlgorithmicMedia": Origin.AI_PARTS,
    "digitalCapture": Origin.CAPTURE,
    "computationalCapture": Origin.CAPTURE,
    "negativeFilm": Origin.CAPTURE,
    "positiveFilm": Origin.CAPTURE,
    "print": Origin.CAPTURE,
}
# The whole field, or its beginning up to a space: "Stable Diffusion XL 1.0" is one, "Stable Diffusionist" is not.
_GENERATORS = re.compile(
    r"(stable diffusion|comfyui|invokeai|novelai|midjourney|dall[-·. ]?e|adobe firefly|imagen|fooocus|draw things)"
    r"(?:[\s/,;(].*)?",
    re.IGNORECASE | re.DOTALL,
)
# AUTOMATIC1111 and its kin: the last lines of the text are "Steps: 20, Sampler: Euler a, CFG scale: 7, ...".
_SETTINGS = re.compile(r"^Steps: \d+, (?:[\w ]+: )", re.MULTILINE)
_MOST = 1 << 24  # characters of one text; ComfyUI workflows reach hundreds of kilobytes
_SHOWN = 200
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, SyntaxError, RecursionError)


def evidence_from_image(image: Image.Image, content: bytes) -> tuple[Evidence, ...]:
    """Each statement that the file makes, in a fixed order. Damaged metadata state nothing; nothing is raised.

    Args:
        image: the open and loaded image; PNG text may stand behind the pixels.
        content: the whole file.
    """
    found: list[Evidence] = []
    for reader in (_from_png_text, _from_exif, _from_xmp):
        try:
            found.extend(reader(image))
        except (*_UNREADABLE, MemoryError):
            continue
    found.extend(c2pa_evidence(image.format or "", content, origin_from_source_type))
    return tuple(dict.fromkeys(found))


def origin_from_source_type(value: str) -> Origin:
    """Origin of an IPTC `DigitalSourceType`, given as its URI or its bare name."""
    match = _VOCABULARY.fullmatch(value.strip())
    return _ORIGINS.get(match.group(1), Origin.UNSTATED) if match else Origin.UNSTATED


def _from_png_text(image: Image.Image) -> Iterator[Evidence]:
    if image.format != "PNG":
        return
    texts = {name: str(text) for name, text in getattr(image, "text", {}).items() if len(text) <= _MOST}
    if _SETTINGS.search(texts.get("parameters", "")):
        yield Evidence("png:parameters", Origin.AI, _short(texts["parameters"]))
    nodes = _object(texts.get("prompt"))
    if nodes and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in nodes.values()):
        yield Evidence("png:prompt", Origin.AI, f"a ComfyUI prompt of {len(nodes)} nodes")
    graph = _object(texts.get("workflow")).get("nodes")
    if isinstance(graph, list) and graph and all(isinstance(node, dict) and "type" in node for node in graph):
        yield Evidence("png:workflow", Origin.AI, f"a ComfyUI workflow of {len(graph)} nodes")
    if _object(texts.get("invokeai_metadata")):
        yield Evidence("png:invokeai_metadata", Origin.AI, _short(texts["invokeai_metadata"]))
    if _GENERATORS.fullmatch(texts.get("Software", "").strip()):
        yield Evidence("png:Software", Origin.AI, _short(texts["Software"]))


def _from_exif(image: Image.Image) -> Iterator[Evidence]:
    exif = image.getexif()
    software = exif.get(ExifTags.Base.Software)
    if isinstance(software, str) and _GENERATORS.fullmatch(software.strip("\0 ")):
        yield Evidence("exif:Software", Origin.AI, _short(software))
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and len(comment) <= _MOST:
        text = _text_from_comment(comment, "utf-16-le" if exif.endian == "<" else "utf-16-be")
        if _SETTINGS.search(text):
            yield Evidence("exif:UserComment", Origin.AI, _short(text))


def _text_from_comment(comment: bytes, unicode_codec: str) -> str:
    code, text = comment[:8], comment[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    # The tag's byte order is the file's, but writers get it wrong: the first character, ASCII in practice, shows it.
    codec = {b"\0": "utf-16-be"}.get(text[:1], "utf-16-le" if text[1:2] == b"\0" else unicode_codec)
    return text.decode(codec, "replace")


def _from_xmp(image: Image.Image) -> Iterator[Evidence]:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "surrogateescape")
    if isinstance(packet, bytes) and len(packet) <= _MOST:
        for value in source_types_from_xmp(packet):
            yield Evidence("xmp:DigitalSourceType", origin_from_source_type(value), _short(value))


def source_types_from_xmp(packet: bytes) -> list[str]:
    """Every `Iptc4xmpExt:DigitalSourceType` of an XMP packet: as attribute, text or resource.

    Raises:
        ValueError: it is no XML, or declares entities, as no XMP does and as attacks on parsers do.
    """
    found: list[str] = []
    open_names: list[str] = []
    text: list[str] = []
    wanted, resource = f"{IPTC_EXTENSION} DigitalSourceType", f"{_RDF} resource"

    def start(name: str, attributes: dict[str, str]) -> None:
        if wanted in attributes:
            found.append(attributes[wanted])
        if name == wanted and resource in attributes:
            found.append(attributes[resource])
        open_names.append(name)
        text.clear()

    def end(name: str) -> None:
        open_names.pop()
        if name == wanted and (stated := "".join(text).strip()):
            found.append(stated)
        text.clear()

    def refuse(*_: object) -> None:
        raise ValueError("an XMP packet declares no document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda part: text.append(part) if open_names and open_names[-1] == wanted else None
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise ValueError(f"no XML: {error}") from None
    return found


def _object(text: str | None) -> dict[str, object]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _short(text: str) -> str:
    plain = " ".join(text.strip("\0 ").split())
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"
