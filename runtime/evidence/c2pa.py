"""C2PA: whether a manifest is embedded, found by walking the container, and what c2pa-python reads in it, offline.

Without the extra `provenance` a manifest is only reported to be there.
"""

from __future__ import annotations

import io
import json
from itertools import islice
from typing import Any

from aivsreal.runtime.evidence.generators import origin_from_source_type, shortened
from aivsreal.runtime.pixels.containers import TiffReader, bmff_boxes, jpeg_segments, png_chunks, riff_chunks
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
# No manifest, certificate status or trust list is fetched from anywhere. Without a list of trusted signers, the state
# of a signature is at best "valid": the file is as its signer left it, whoever that is.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def c2pa_evidence(kind: str, content: bytes) -> list[Evidence]:
    """At most one statement. Nothing is raised: what cannot be read is said in its detail."""
    if not has_manifest(kind, content):
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
        return [_evidence_from_store(store, state)]
    except Exception as error:  # c2pa's errors, and whatever the manifest's JSON lacks: it is only a statement
        return [Evidence("c2pa", Origin.UNSTATED, shortened(f"a C2PA manifest that cannot be read: {error}"))]


def has_manifest(kind: str, content: bytes) -> bool:
    """Whether the container holds a C2PA manifest in the place that its format has for it."""
    if kind in ("JPEG", "MPO"):
        headers = jpeg_segments(content, scans=False)
        return any(one.marker == 0xEB and _is_c2pa_box(one.data[8:]) for one in headers)
    if kind == "PNG":
        return any(chunk.name == b"caBX" for chunk in png_chunks(content))
    if kind == "WEBP":
        return any(chunk.name == b"C2PA" for chunk in riff_chunks(content))
    if kind in ("AVIF", "HEIF"):
        return any(box.name == b"uuid" and content.startswith(_BMFF_UUID, box.start) for box in bmff_boxes(content))
    pages = TiffReader(content, frozenset({_TIFF_TAG})).pages() if kind == "TIFF" else ()
    return any(_TIFF_TAG in page.tags for page in islice(pages, 1))


def _evidence_from_store(store: dict[str, Any], state: str) -> Evidence:
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
    return Evidence("c2pa", origin, shortened(f"signature {state}, by {signer}; made with {maker}{source}"))


def _is_c2pa_box(box: bytes) -> bool:
    """A JUMBF superbox whose description box has the type of a C2PA manifest store."""
    return box[4:8] == b"jumb" and box[12:16] == b"jumd" and box[16:20] == b"c2pa"
