"""C2PA: whether a manifest is embedded, found by walking the container, and what c2pa-python reads in it, offline.

Without the extra `provenance` a manifest is only reported to be there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from aivsreal.runtime.verdict import Evidence, Origin

_MIME = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
_BMFF_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_TIFF_TAG = 0xCD41
_SHOWN = 200
# No manifest, certificate status or trust list is fetched from anywhere. Without a list of trusted signers, the state
# of a signature is at best "valid": the file is as its signer left it, whoever that is.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def c2pa_evidence(kind: str, content: bytes, origin_from_source_type: Callable[[str], Origin]) -> list[Evidence]:
    """At most one statement. Nothing is raised: what cannot be read is said in its detail.

    Args:
        kind: Pillow's name of the format.
        content: the whole file.
        origin_from_source_type: reads the IPTC term that a manifest's actions carry.
    """
    try:
        if not has_manifest(kind, content):
            return []
    except (ValueError, IndexError):
        return []
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError):
        detail = "a C2PA manifest is embedded; to read it, run pip install 'aivsreal[provenance]'"
        return [Evidence("c2pa", Origin.UNSTATED, detail)]
    try:
        context = c2pa.Context.from_dict(_OFFLINE)
        with c2pa.Reader(_MIME[kind], io.BytesIO(content), context=context) as reader:
            store = json.loads(reader.json())
            state = str(reader.get_validation_state() or "unknown").lower()
        return [_evidence_from_store(store, state, origin_from_source_type)]
    except Exception as error:  # c2pa's errors, and whatever the manifest's JSON lacks: it is only a statement
        return [Evidence("c2pa", Origin.UNSTATED, _short(f"a C2PA manifest that cannot be read: {error}"))]


def has_manifest(kind: str, content: bytes) -> bool:
    """Whether the container holds a C2PA manifest in the place that its format has for it.

    Raises:
        ValueError: the container's structure is damaged.
        IndexError: the same.
    """
    if kind in ("JPEG", "MPO"):
        return any(_is_c2pa_box(data[8:]) for marker, data in _jpeg_headers(content) if marker == 0xEB)
    if kind == "PNG":
        return any(name == b"caBX" for name in _png_chunks(content))
    if kind == "WEBP":
        return any(name == b"C2PA" for name in _riff_chunks(content))
    if kind in ("AVIF", "HEIF"):
        return any(name == b"uuid" and start == _BMFF_UUID for name, start in _bmff_boxes(content))
    return kind == "TIFF" and _TIFF_TAG in _tiff_tags(content)


def _evidence_from_store(
    store: dict[str, Any], state: str, origin_from_source_type: Callable[[str], Origin]
) -> Evidence:
    manifest = store["manifests"][store["active_manifest"]]
    makers = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator", "not named")}]
    maker = " ".join(str(makers[0][key]) for key in ("name", "version") if makers[0].get(key))
    signature = manifest.get("signature_info") or {}
    signer = signature.get("issuer") or signature.get("common_name") or "not named"
    terms = [
        str(action["digitalSourceType"])
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions", ())
        if action.get("digitalSourceType")
    ]
    origins = [origin_from_source_type(term) for term in terms]
    # What an invalid signature stands under may have been written by anyone, about any other picture.
    stated = next((origin for origin in (Origin.AI, Origin.AI_PARTS, Origin.CAPTURE) if origin in origins), None)
    origin = stated if stated is not None and state in ("valid", "trusted") else Origin.UNSTATED
    source = f"; source {', '.join(dict.fromkeys(term.rsplit('/', 1)[-1] for term in terms))}" if terms else ""
    return Evidence("c2pa", origin, _short(f"signature {state}, by {signer}; made with {maker}{source}"))


def _is_c2pa_box(box: bytes) -> bool:
    """A JUMBF superbox whose description box has the type of a C2PA manifest store."""
    return box[4:8] == b"jumb" and box[12:16] == b"jumd" and box[16:20] == b"c2pa"


def _jpeg_headers(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 2
    while content[at] == 0xFF and (marker := content[at + 1]) not in (0xDA, 0xD9):
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        yield marker, content[at + 4 : at + 2 + length]
        at += 2 + max(2, length)


def _png_chunks(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(content) and (name := content[at + 4 : at + 8]) != b"IEND":
        yield name
        at += 12 + int.from_bytes(content[at : at + 4], "big")


def _riff_chunks(content: bytes) -> Iterator[bytes]:
    end, at = min(len(content), 8 + int.from_bytes(content[4:8], "little")), 12
    while at + 8 <= end:
        yield content[at : at + 4]
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def _bmff_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        size, head = int.from_bytes(content[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        yield content[at + 4 : at + 8], content[at + head : at + head + 16]
        if size < head:
            return  # 0: the box reaches to the end
        at += size


def _tiff_tags(content: bytes) -> Iterator[int]:
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    first = int.from_bytes(content[4:8], order)
    for at in range(first + 2, first + 2 + 12 * int.from_bytes(content[first : first + 2], order), 12):
        yield int.from_bytes(content[at : at + 2], order)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"
