"""What the decoder uses is whole, or the picture is refused; what it passes over is nobody's loss."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, marked, picture

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file
from aivsreal.runtime.pixels.images import pixels_from_file

OPTIONS = ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}, {"optimize": True})
VIDEO = np.random.default_rng(1).integers(0, 256, 20_000, np.uint8).tobytes()  # it has 78 markers, by chance
TRAILERS = {
    "nothing": b"",
    "half a marker": b"\xff",
    "zeros": bytes(5000),
    "words": b"\0\0\x01\nMotionPhoto_Data" + bytes(20) + b"SEFT",
    "a second picture": encoded("JPEG", picture(7)),
    "a video": VIDEO,
}


def _scan_header(jpeg: bytes) -> int:
    """Where Ss stands in the first scan's header."""
    at = jpeg.index(b"\xff\xda")
    return at + 5 + 2 * jpeg[at + 4]


@pytest.mark.parametrize(("first", "last", "bits"), [(0, 0, 0), (1, 63, 0), (0, 63, 0x10), (63, 0, 0x21)])
def test_a_sequential_jpeg_is_whole_whatever_its_scan_header_says_of_coefficients(
    tmp_path: Path, first: int, last: int, bits: int
) -> None:
    whole = encoded("JPEG")
    at = _scan_header(whole)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "odd.jpg").write_bytes(whole[:at] + bytes([first, last, bits]) + whole[at + 3 :])
    assert (pixels_from_file(tmp_path / "odd.jpg") == pixels_from_file(tmp_path / "whole.jpg")).all()


def test_a_sequential_jpeg_lacks_a_component_whose_scan_is_missing(tmp_path: Path) -> None:
    whole = encoded("JPEG")
    at = whole.index(b"\xff\xda")
    header = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"  # luminance alone
    (tmp_path / "image.jpg").write_bytes(whole[:at] + header + whole[_scan_header(whole) + 3 :])
    decoded = decoded_from_file(tmp_path / "image.jpg", DecodePlan())
    assert decoded.fault is Fault.PARTIAL
    assert "128 of its 192 coefficients" in (decoded.error or "")


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_jpeg_of_which_every_block_was_sent_is_whole_without_an_end_marker(
    tmp_path: Path, options: dict[str, object], trailer: bytes
) -> None:
    for image in (picture(), marked((128, 128, 128))):
        whole = encoded("JPEG", image, **options)
        (tmp_path / "whole.jpg").write_bytes(whole)
        (tmp_path / "open.jpg").write_bytes(whole[:-2] + trailer)
        assert (pixels_from_file(tmp_path / "open.jpg") == pixels_from_file(tmp_path / "whole.jpg")).all()


@pytest.mark.parametrize("trailer", ["nothing", "half a marker", "zeros", "a second picture"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_jpeg_that_ends_early_without_an_end_marker_is_partial(
    tmp_path: Path, options: dict[str, object], trailer: str
) -> None:
    whole = encoded("JPEG", **options)
    for share in (0.5, 0.7, 0.9, 0.97):
        (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * share)] + TRAILERS[trailer])
        assert decoded_from_file(tmp_path / "cut.jpg", DecodePlan()).fault is Fault.PARTIAL, share


def _chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


LARGE = zlib.compress(bytes(1_100_000))
EXCESS = {
    "a profile of 1.1 MB": _chunk(b"iCCP", b"scanner\0\0" + LARGE),
    "a text of 1.1 MB": _chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "an international text of 1.1 MB": _chunk(b"iTXt", b"Comment\0\1\0en\0Comment\0" + LARGE),
    "a text packed in an unknown way": _chunk(b"zTXt", b"Comment\0\7" + LARGE),
    "a profile packed in an unknown way": _chunk(b"iCCP", b"scanner\0\7" + LARGE),
    "a profile without a name": _chunk(b"iCCP", b""),
    "a broken check sum": _chunk(b"tEXt", b"Comment\0words", 7),
    "half a gamma": _chunk(b"gAMA", b"\0\0"),
    "half a density": _chunk(b"pHYs", b"\0\0\0\1"),
    "half its primaries": _chunk(b"cHRM", bytes(16)),
    "no intent": _chunk(b"sRGB", b""),
}


@pytest.mark.parametrize("place", ["before its pixels", "behind them"])
@pytest.mark.parametrize("chunk", EXCESS.values(), ids=EXCESS)
def test_a_png_is_judged_whatever_its_metadata_and_what_was_passed_over_is_said(
    tmp_path: Path, chunk: bytes, place: str
) -> None:
    plain = encoded("PNG", picture())
    at = 33 if place == "before its pixels" else len(plain) - 12
    (tmp_path / "image.png").write_bytes(plain[:at] + _chunk(b"tEXt", b"Software\0ComfyUI") + chunk + plain[at:])
    decoded = decoded_from_file(tmp_path / "image.png", DecodePlan())
    assert (decoded.pixels[0] == np.asarray(picture())).all()
    software, note = decoded.evidence  # what can be read still is
    assert (software.source, software.detail) == ("png:Software", "ComfyUI")
    assert note.source == "decoding"
    assert note.detail.startswith(f"metadata passed over: {chunk[4:8].decode()} (")


def test_the_memory_that_texts_of_a_png_take_is_bounded(tmp_path: Path) -> None:
    plain = encoded("PNG", picture())
    text = zlib.compress(bytes(1_000_000))
    texts = b"".join(_chunk(b"zTXt", b"Comment%d\0\0" % index + text) for index in range(80))
    (tmp_path / "image.png").write_bytes(plain[:33] + texts + _chunk(b"tEXt", b"Software\0ComfyUI") + plain[33:])
    decoded = decoded_from_file(tmp_path / "image.png", DecodePlan())
    assert (decoded.pixels[0] == np.asarray(picture())).all()
    software, note = decoded.evidence
    assert software.detail == "ComfyUI"  # small enough to find room
    assert note.detail.endswith("(more than 67,108,864 bytes in all) and 10 more")


@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}], ids=["simple", "extended"])
def test_a_lossless_webp_may_end_in_zeros_that_its_decoder_takes(tmp_path: Path, options: dict[str, object]) -> None:
    image = picture(3, (640, 640))
    image.paste((200, 30, 90), (0, 400, 640, 640))
    whole = encoded("WEBP", image, lossless=True, quality=0, method=0, **options)
    flat = whole.index(bytes(20_000))
    (tmp_path / "whole.webp").write_bytes(whole)
    assert (pixels_from_file(tmp_path / "whole.webp") == np.asarray(image)).all()
    for kept in (flat // 4, flat // 2, flat - 5000):
        (tmp_path / "cut.webp").write_bytes(whole[:kept] + bytes(len(whole) - kept))
        assert decoded_from_file(tmp_path / "cut.webp", DecodePlan()).fault in (Fault.PARTIAL, Fault.DAMAGED), kept


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("HEIF", {})])
def test_a_picture_may_have_exif_behind_it_that_is_padded_with_zeros(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(40_000)
    (tmp_path / "whole").write_bytes(whole := encoded(kind, exif=exif, **options))
    assert decoded_from_file(tmp_path / "whole", DecodePlan()).fault is None
    for kept in (len(whole) // 20, len(encoded(kind, **options)) - 100):
        (tmp_path / "cut").write_bytes(whole[:kept] + bytes(len(whole) - kept))
        assert decoded_from_file(tmp_path / "cut", DecodePlan()).fault in (Fault.PARTIAL, Fault.DAMAGED), kept


@pytest.mark.parametrize("exif", [{}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(5000)}], ids=["plain", "exif"])
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_picture_may_have_padding_behind_it_that_is_a_box(tmp_path: Path, kind: str, exif: dict[str, bytes]) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    whole = encoded(kind, picture(0, (300, 200)), **exif)
    picture_ends = len(encoded(kind, picture(0, (300, 200))))
    padding = b"\0\0\0\x10skip" + bytes(8) + b"\0\0\x10\x08free" + bytes(4096)
    (tmp_path / "whole").write_bytes(whole + padding)
    assert decoded_from_file(tmp_path / "whole", DecodePlan()).error is None
    for kept in (picture_ends // 2, picture_ends - 100):
        for rest in (bytes(len(whole) - kept) + padding, bytes(len(whole) - kept + len(padding))):
            (tmp_path / "cut").write_bytes(whole[:kept] + rest)
            assert decoded_from_file(tmp_path / "cut", DecodePlan()).fault in (Fault.PARTIAL, Fault.DAMAGED), kept


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_zeros_behind_the_boxes_of_a_picture_are_no_padding(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "image").write_bytes(encoded(kind) + b"\0\0\0\x10free" + bytes(8 + 4096))
    assert decoded_from_file(tmp_path / "image", DecodePlan()).fault is Fault.PARTIAL


def test_an_animation_of_which_only_the_first_frames_were_written_is_partial(tmp_path: Path) -> None:
    whole = encoded("WEBP", picture(1), save_all=True, append_images=[picture(2), picture(3)])
    second = whole.index(b"ANMF", whole.index(b"ANMF") + 4)
    (tmp_path / "cut.webp").write_bytes(whole[:second] + bytes(len(whole) - second))
    assert decoded_from_file(tmp_path / "cut.webp", DecodePlan()).fault in (Fault.PARTIAL, Fault.DAMAGED)
