"""What metadata say is read where the format has a place for it, and nowhere else."""

from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hostile import encoded, picture
from PIL import Image, PngImagePlugin
from PIL.ExifTags import Base
from signing import TRAINED, signed

from aivsreal.runtime import ScanOptions
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.evidence.c2pa import has_manifest
from aivsreal.runtime.evidence.generators import origin_from_source_type
from aivsreal.runtime.evidence.provenance import IPTC_EXTENSION, texts_from_xmp
from aivsreal.runtime.files import process as decode_process
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file
from aivsreal.runtime.files.pool import DecodePool
from aivsreal.runtime.verdict import Evidence, Label, Origin, Verdict, verdict_from_declared

SETTINGS = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 96x72"
PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}, "4": {"class_type": "VAEDecode", "inputs": {}}})
WORKFLOW = json.dumps({"nodes": [{"id": 1, "type": "KSampler"}], "links": []})
XMP_IN_PNG = "XML:com.adobe.xmp"
needs_c2pa = pytest.mark.skipif(find_spec("c2pa") is None, reason="c2pa-python is not installed")


def _xmp(source_type: str, form: str = "attribute") -> bytes:
    inner = {
        "attribute": f'<rdf:Description x:DigitalSourceType="{source_type}"/>',
        "text": f"<rdf:Description><x:DigitalSourceType>{source_type}</x:DigitalSourceType></rdf:Description>",
        "resource": f'<rdf:Description><x:DigitalSourceType rdf:resource="{source_type}"/></rdf:Description>',
    }[form]
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:x="{IPTC_EXTENSION}">'
        f'{inner}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _text(**texts: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


def _exif(software: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0131] = software
    return exif


def _maker(**values: str) -> Image.Exif:
    exif = Image.Exif()
    for name, value in values.items():
        exif[Base[name]] = value
    return exif


def _raw(name: str, profile: bytes) -> PngImagePlugin.PngInfo:
    """A profile as ImageMagick puts it into a PNG."""
    info, digits = PngImagePlugin.PngInfo(), profile.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    info.add_text(f"Raw profile type {name}", f"\n{name}\n{len(profile):8}\n{lines}\n", zip=True)
    return info


def _xmp_of(field: str) -> bytes:
    """A packet with one field as element: prefixes dc, xmp, photoshop, exif and dcterms are declared."""
    names = {
        "dc": "http://purl.org/dc/elements/1.1/",
        "xmp": "http://ns.adobe.com/xap/1.0/",
        "photoshop": "http://ns.adobe.com/photoshop/1.0/",
        "exif": "http://ns.adobe.com/exif/1.0/",
        "dcterms": "http://purl.org/dc/terms/",
    }
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in names.items())
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        f"{declared}>"
        f"<rdf:Description>{field}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _comment(settings: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + settings.encode("utf-16-be")
    return exif


def _evidence(folder: Path, content: bytes) -> tuple[Evidence, ...]:
    (folder / "image").write_bytes(content)
    decoded = decoded_from_file(folder / "image", DecodePlan())
    assert decoded.error is None
    return decoded.evidence


@pytest.mark.parametrize(
    ("content", "source", "origin"),
    [
        (encoded("PNG", pnginfo=_text(parameters=SETTINGS)), "png:parameters", Origin.AI),
        (encoded("PNG", pnginfo=_text(prompt=PROMPT)), "png:prompt", Origin.AI),
        (encoded("PNG", pnginfo=_text(workflow=WORKFLOW)), "png:workflow", Origin.AI),
        (encoded("PNG", pnginfo=_text(Software="NovelAI")), "png:Software", Origin.AI),
        (encoded("JPEG", exif=_exif("Stable Diffusion XL 1.0")), "exif:Software", Origin.AI),
        (encoded("WEBP", exif=_exif("ComfyUI")), "exif:Software", Origin.AI),
        (encoded("JPEG", exif=_comment(SETTINGS)), "exif:UserComment", Origin.AI),
        (encoded("JPEG", xmp=_xmp(TRAINED)), "xmp:DigitalSourceType", Origin.AI),
        (encoded("WEBP", xmp=_xmp(TRAINED)), "xmp:DigitalSourceType", Origin.AI),
        (encoded("TIFF", tiffinfo={700: _xmp(TRAINED)}), "xmp:DigitalSourceType", Origin.AI),
        (encoded("PNG", pnginfo=_text(**{XMP_IN_PNG: _xmp(TRAINED).decode()})), "xmp:DigitalSourceType", Origin.AI),
        (
            encoded("JPEG", xmp=_xmp(TRAINED.replace("trained", "compositeWithTrained"))),
            "xmp:DigitalSourceType",
            Origin.AI_PARTS,
        ),
        (encoded("JPEG", xmp=_xmp("digitalCapture")), "xmp:DigitalSourceType", Origin.CAPTURE),
        (encoded("JPEG", xmp=_xmp("algorithmicMedia")), "xmp:DigitalSourceType", Origin.UNSTATED),
    ],
)  # fmt: skip
def test_each_place_is_read(tmp_path: Path, content: bytes, source: str, origin: Origin) -> None:
    assert [(one.source, one.origin) for one in _evidence(tmp_path, content)] == [(source, origin)]


FOOOCUS = '{"base_model": "x", "prompt": "a", "sampler": "dpm"}'
SWARM = json.dumps({"sui_image_params": {"prompt": "a", "model": "b"}}, indent=2)
JOB = "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("content", "sources"),
    [
        (encoded("JPEG", exif=_maker(Make="Black Forest Labs", Model="flux-dev")), ["exif:Make"]),
        (encoded("WEBP", exif=_maker(Software="AI generated;txt2img;flux")), ["exif:Software"]),
        (encoded("PNG", exif=_maker(Software="AI generated;img2img;flux")), ["exif:Software"]),
        (
            encoded("WEBP", exif=_maker(Model=f"prompt:{PROMPT}", Make=f"workflow:{WORKFLOW}")),
            ["exif:Make", "exif:Model"],
        ),
        (encoded("JPEG", exif=_comment(json.dumps({"prompt": PROMPT, "workflow": {}}))), ["exif:UserComment"]),
        (
            encoded("PNG", pnginfo=_text(parameters=FOOOCUS, fooocus_scheme="fooocus")),
            ["png:parameters", "png:fooocus_scheme"],
        ),
        (encoded("WEBP", exif=_comment(FOOOCUS)), ["exif:UserComment"]),
        (encoded("PNG", pnginfo=_text(parameters=SWARM)), ["png:parameters"]),
        (encoded("JPEG", exif=_comment(SWARM)), ["exif:UserComment"]),
        (encoded("PNG", pnginfo=_text(**{"sd-metadata": '{"model": "stable diffusion"}'})), ["png:sd-metadata"]),
        (encoded("PNG", pnginfo=_text(Dream="a -s50")), ["png:Dream"]),
        (encoded("PNG", pnginfo=_text(invokeai_metadata='{"seed": 1}')), ["png:invokeai_metadata"]),
        (encoded("PNG", pnginfo=_text(Comment='{"prompt": "a", "steps": 28, "sampler": "k_euler"}')), ["png:Comment"]),
        (encoded("PNG", pnginfo=_text(use_stable_diffusion_model="sd-v1-5")), ["png:use_stable_diffusion_model"]),
        (encoded("PNG", pnginfo=_text(Description=JOB)), ["png:Description"]),
        (encoded("GIF", comment=SETTINGS.encode()), ["gif:comment"]),
        (encoded("JPEG", comment=SETTINGS.encode()), ["jpeg:comment"]),
        (encoded("PNG", pnginfo=_raw("xmp", _xmp(TRAINED))), ["xmp:DigitalSourceType"]),
        (
            encoded("PNG", pnginfo=_raw("APP1", b"http://ns.adobe.com/xap/1.0/\0" + _xmp(TRAINED))),
            ["xmp:DigitalSourceType"],
        ),
        (encoded("JPEG", xmp=_xmp_of("<xmp:CreatorTool>Draw Things</xmp:CreatorTool>")), ["xmp:CreatorTool"]),
        (encoded("JPEG", xmp=_xmp_of("<photoshop:Credit>Made with Google AI</photoshop:Credit>")), ["xmp:Credit"]),
        (
            encoded("JPEG", xmp=_xmp_of(f"<dc:description><rdf:Alt><rdf:li>{JOB}</rdf:li></rdf:Alt></dc:description>")),
            ["xmp:description"],
        ),
    ],
)  # fmt: skip
def test_each_generator_is_read_where_it_writes(tmp_path: Path, content: bytes, sources: list[str]) -> None:
    found = _evidence(tmp_path, content)
    assert sorted(one.source for one in found) == sorted(sources)
    assert {one.origin for one in found} == {Origin.AI}


def test_a_picture_with_edited_parts_says_so(tmp_path: Path) -> None:
    content = encoded("JPEG", xmp=_xmp_of("<photoshop:Credit>Edited with Google AI</photoshop:Credit>"))
    assert [one.origin for one in _evidence(tmp_path, content)] == [Origin.AI_PARTS]


@pytest.mark.parametrize("place", ["https://example.com/a.c2pa", "self#jumbf=/c2pa/urn:uuid:1"])
def test_a_c2pa_manifest_elsewhere_is_reported_and_not_fetched(tmp_path: Path, place: str) -> None:
    content = encoded(
        "PNG", pnginfo=_text(**{XMP_IN_PNG: _xmp_of(f"<dcterms:provenance>{place}</dcterms:provenance>").decode()})
    )
    found = [(one.source, one.origin, place in one.detail) for one in _evidence(tmp_path, content)]
    assert found == ([("c2pa", Origin.UNSTATED, True)] if place.startswith("https") else [])


@pytest.mark.parametrize("form", ["attribute", "text", "resource"])
def test_xmp_has_three_ways_to_say_it(form: str) -> None:
    assert texts_from_xmp(_xmp(TRAINED, form)) == [("xmp:DigitalSourceType", TRAINED)]


@pytest.mark.parametrize(
    "content",
    [
        encoded("JPEG") + TRAINED.encode(),
        encoded("JPEG") + b"trainedAlgori",  # 13 bytes
        encoded("PNG") + _xmp(TRAINED),
        encoded("JPEG", comment=_xmp(TRAINED)),
        encoded("JPEG", exif=_exif("not made with Stable Diffusion")),
        encoded("JPEG", exif=_exif("Stable Diffusionist's photo club")),
        encoded("PNG", pnginfo=_text(Title=SETTINGS)),
        encoded("PNG", pnginfo=_text(Description=f"about trainedAlgorithmicMedia, {TRAINED}")),
        encoded("PNG", pnginfo=_text(parameters="f = 1/8, Steps: many")),
        encoded("PNG", pnginfo=_text(prompt="Enter your name", workflow="draft, edit, publish")),
        encoded("PNG", pnginfo=_text(prompt="[1, 2]", workflow='{"nodes": 3}')),
        encoded("JPEG", xmp=_xmp(TRAINED).replace(IPTC_EXTENSION.encode(), b"http://example.com/")),
        encoded("JPEG", xmp=_xmp(TRAINED).replace(b"DigitalSourceType", b"DigitalSourceTypes")),
        encoded("JPEG", xmp=b"<broken " + _xmp(TRAINED)),
        encoded("JPEG", xmp=b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + _xmp(TRAINED)),
        encoded("PNG", pnginfo=_text(prompt='{"a":' * 5000 + "1" + "}" * 5000)),
        encoded("PNG", pnginfo=_text(parameters='{"prompt": "Your name?", "seed": 3}')),
        encoded("PNG", pnginfo=_text(Comment="Created with GIMP", Dream="of a day -s")),
        encoded("PNG", pnginfo=_text(**{"sd-metadata": "{}", "fooocus_scheme": "other"})),
        encoded("PNG", pnginfo=_raw("xmp", b"<broken ")),
        encoded("PNG", pnginfo=_text(**{"Raw profile type xmp": "xmp 4 zz"})),
        encoded("JPEG", exif=_maker(Make="NIKON CORPORATION", Model="prompt: camera", ImageDescription="workflow:{}")),
        encoded("JPEG", exif=_exif("Imagen AI 2.0")),
        encoded("JPEG", xmp=_xmp_of("<xmp:CreatorTool>Adobe Photoshop 25.0</xmp:CreatorTool>")),
        encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    ],
)  # fmt: skip
def test_words_elsewhere_and_damaged_metadata_say_nothing(tmp_path: Path, content: bytes) -> None:
    assert _evidence(tmp_path, content) == ()


def test_of_many_statements_some_of_each_origin_are_kept_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = "".join(f"<rdf:li>{number}</rdf:li>" for number in (*range(2000), *range(16), TRAINED))
    field = f'<x:DigitalSourceType xmlns:x="{IPTC_EXTENSION}">{items}</x:DigitalSourceType>'
    evidence = _evidence(tmp_path, encoded("WEBP", xmp=_xmp_of(field)))
    *unstated, trained, note = evidence
    assert [one.detail for one in unstated] == [str(number) for number in range(16)]
    assert (trained.origin, trained.detail) == (Origin.AI, TRAINED)
    assert (note.source, note.detail) == ("decoding", "metadata passed over: 1,984 more statements")
    monkeypatch.setattr(decode_process, "_MAX_HEADER", 1 << 14)  # in place of 16 MB
    with DecodePool(DecodePlan(), 1, isolate=True) as pool:
        isolated = pool.result(pool.submit(tmp_path / "image"))
    assert (isolated.error, isolated.evidence) == (None, evidence)


def test_terms_are_whole_words() -> None:
    assert origin_from_source_type(" trainedAlgorithmicMedia ") is Origin.AI
    assert (
        origin_from_source_type("https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia") is Origin.AI
    )
    for other in ("", "http://example.com/trainedAlgorithmicMedia", "untrainedAlgorithmicMedia", "a b"):
        assert origin_from_source_type(other) is Origin.UNSTATED


@needs_c2pa
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_c2pa_manifest_is_read_with_the_state_of_its_signature(tmp_path: Path, kind: str) -> None:
    plain = encoded(kind)
    content = signed(plain, f"image/{kind.lower()}")
    assert has_manifest(kind, content)
    assert not has_manifest(kind, plain)
    (one,) = _evidence(tmp_path, content)
    assert (one.source, one.origin) == ("c2pa", Origin.AI)
    assert one.detail == (
        "signature valid, by Test signer; made with Test generator 1.0; source trainedAlgorithmicMedia"
    )


@needs_c2pa
def test_a_manifest_on_another_picture_is_invalid_and_decides_nothing(tmp_path: Path) -> None:
    plain, other = encoded("JPEG"), encoded("JPEG", picture(7))
    pixels, others = (jpeg[jpeg.index(b"\xff\xdb") :] for jpeg in (plain, other))
    first = signed(plain, "image/jpeg")
    moved = first.replace(pixels, others)
    assert moved != first
    (one,) = _evidence(tmp_path, moved)
    assert one.origin is Origin.UNSTATED
    assert one.detail.startswith("signature invalid")


@needs_c2pa
def test_without_the_extra_a_manifest_is_reported_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = signed(encoded("PNG"), "image/png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    (one,) = _evidence(tmp_path, content)
    assert one.origin is Origin.UNSTATED
    assert "aivsreal[provenance]" in one.detail


def test_a_broken_manifest_is_no_error(tmp_path: Path) -> None:
    box = b"\0\0\0\x40jumb\0\0\0\x20jumdc2pa" + bytes(40)
    segment = b"\xff\xeb" + (10 + len(box)).to_bytes(2, "big") + b"JP\0\1\0\0\0\1" + box
    plain = encoded("JPEG")
    (one,) = _evidence(tmp_path, plain[:2] + segment + plain[2:])
    assert (one.source, one.origin) == ("c2pa", Origin.UNSTATED)


REAL = Verdict(Label.REAL, 0.1, -2.2, "p_ai 0.100 is below 0.250 (balanced)")


def test_declared_origin_decides_only_the_label() -> None:
    for origin in (Origin.AI, Origin.AI_PARTS):
        trusted = verdict_from_declared(REAL, [Evidence("png:prompt", origin, "...")])
        assert (trusted.label, trusted.p_ai, trusted.logit) == (Label.AI, REAL.p_ai, REAL.logit)
        assert trusted.reason.startswith("png:prompt declares ")
        assert trusted.reason.endswith(REAL.reason)
    for origin in (Origin.CAPTURE, Origin.UNSTATED):
        assert verdict_from_declared(REAL, [Evidence("c2pa", origin, "...")]) == REAL


def test_metadata_and_appended_bytes_never_change_the_score(tmp_path: Path) -> None:
    image, declared = picture(0, (300, 240)), _xmp(TRAINED)
    plain = encoded("JPEG", image)
    for name, content in (
        ("plain", plain),
        ("appended", plain + b"trainedAlgori"),
        ("declared", encoded("JPEG", image, xmp=declared)),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(content)
    paths = sorted(tmp_path.iterdir())
    with Detector.open(threads=1) as detector:
        appended, said, alone = detector.scan(paths)
        assert appended.verdict == said.verdict == alone.verdict
        assert (appended.evidence, alone.evidence) == ((), ())
        assert [one.origin for one in said.evidence] == [Origin.AI]
        trusted = list(detector.scan(paths, ScanOptions(trust_metadata=True)))
    assert alone.verdict
    assert said.verdict
    assert [one.verdict.p_ai for one in trusted if one.verdict] == [alone.verdict.p_ai] * 3
    assert trusted[1].verdict
    assert trusted[1].verdict.label is Label.AI
    assert (trusted[0].verdict, trusted[2].verdict) == (alone.verdict, alone.verdict)


def test_png_text_behind_the_pixels_is_read(tmp_path: Path) -> None:
    whole = encoded("PNG", pnginfo=_text(prompt=PROMPT))
    at = whole.index(b"tEXt") - 4
    length = int.from_bytes(whole[at : at + 4], "big") + 12
    moved = whole[:at] + whole[at + length : -12] + whole[at : at + length] + whole[-12:]
    assert Image.open(io.BytesIO(moved)).size == (96, 72)
    assert [one.source for one in _evidence(tmp_path, moved)] == ["png:prompt"]
