"""Which pictures of a file are its frames, and that one which cannot be judged costs the others nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture
from PIL import Image

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file

FIRST, SECOND, THIRD = (picture(seed) for seed in range(3))


def _decoded(folder: Path, content: bytes, frames: int = 8) -> Decoded:
    (folder / "image").write_bytes(content)
    return decoded_from_file(folder / "image", DecodePlan(frames=frames))


def _notes(decoded: Decoded) -> list[str]:
    return [one.detail for one in decoded.evidence if one.source == "decoding"]


def test_a_gain_map_beside_a_jpeg_is_no_frame(tmp_path: Path) -> None:
    alone = _decoded(tmp_path, encoded("JPEG"))
    beside = encoded("MPO", FIRST, save_all=True, append_images=[Image.new("L", (24, 18), 90)])
    whole = _decoded(tmp_path, beside)
    assert (whole.frames, whole.error) == ((0,), None)
    assert np.abs(whole.pixels[0].astype(int) - alone.pixels[0]).max() == 0
    # What Discord and others leave: the index of the second picture, without the picture.
    stripped = _decoded(tmp_path, beside[: beside.index(b"\xff\xd9") + 2])
    assert (stripped.pixels[0] == whole.pixels[0]).all()


def test_a_preview_beside_a_heic_is_no_frame(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    container = heif.from_pillow(FIRST)
    container.add_from_pillow(Image.new("L", (96, 72), 90))
    container.save(tmp_path / "two.heic", quality=-1)
    assert _decoded(tmp_path, (tmp_path / "two.heic").read_bytes()).frames == (0,)


def test_a_page_that_is_too_small_is_left_out_and_said(tmp_path: Path) -> None:
    content = encoded("TIFF", FIRST, save_all=True, append_images=[SECOND.resize((12, 10)), THIRD])
    decoded = _decoded(tmp_path, content)
    assert decoded.frames == (0, 2)
    assert (decoded.pixels[1] == np.asarray(THIRD)).all()
    assert _notes(decoded) == [
        "1 of 3 frames left out; frame 1: 12 x 10 is too small to judge; 16 pixels a side is the least"
    ]


def test_a_first_page_that_is_too_small_costs_the_others_nothing(tmp_path: Path) -> None:
    content = encoded("TIFF", SECOND.resize((12, 10)), save_all=True, append_images=[FIRST])
    assert _decoded(tmp_path, content).frames == (1,)
    assert _decoded(tmp_path, content, frames=1).fault is Fault.TOO_SMALL


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_a_file_whose_last_frame_is_cut_is_judged_by_the_others(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind, FIRST, save_all=True, append_images=[SECOND, THIRD])
    decoded = _decoded(tmp_path, whole)
    cut = _decoded(tmp_path, whole[: -len(whole) // 8] if kind != "TIFF" else _with_broken_page(whole))
    assert (cut.error, cut.frames) == (None, (0, 1))
    assert all((one == other).all() for one, other in zip(cut.pixels, decoded.pixels, strict=False))
    assert _notes(cut) or kind == "GIF"  # a GIF does not say how many frames it has


def _with_broken_page(tiff: bytes) -> bytes:
    """The third page's width, gone."""
    at = [index for index in range(len(tiff)) if tiff[index : index + 4] == b"\x00\x01\x04\x00"][-1]
    return tiff[:at] + b"\x00\x99" + tiff[at + 2 :]


def test_a_file_of_which_no_frame_can_be_judged_says_why(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (96, 72), colour) for colour in ("red", "blue")]
    decoded = _decoded(tmp_path, encoded("TIFF", flat[0], save_all=True, append_images=flat[1:]))
    assert (decoded.fault, decoded.error) == (Fault.BLANK, "nothing can be seen: every pixel has one colour")


@pytest.mark.parametrize("frames", [1, 8])
def test_the_hidden_default_image_of_an_animated_png_is_not_judged(tmp_path: Path, frames: int) -> None:
    content = encoded("PNG", FIRST, save_all=True, default_image=True, append_images=[SECOND, THIRD])
    decoded = _decoded(tmp_path, content, frames)
    assert decoded.frames == (1, 2)[: min(frames, 2)]
    for pixels_HWC, image in zip(decoded.pixels, (SECOND, THIRD), strict=False):
        assert (pixels_HWC == np.asarray(image)).all()


def test_a_png_that_only_says_that_it_is_animated_shows_its_default_image(tmp_path: Path) -> None:
    plain = encoded("PNG", FIRST)
    chunk = b"acTL" + struct.pack(">II", 3, 0)
    content = plain[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    decoded = _decoded(tmp_path, content)
    assert (decoded.error, decoded.frames) == (None, (0,))
    assert (decoded.pixels[0] == np.asarray(FIRST)).all()


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("frames", [1, 8])
def test_a_png_whose_animation_is_broken_shows_its_still_picture(tmp_path: Path, hidden: bool, frames: int) -> None:
    content = encoded("PNG", FIRST, save_all=True, default_image=hidden, append_images=[SECOND, THIRD])
    at = content.index(b"fcTL")  # a frame that is out of its order
    chunk = b"fcTL\0\0\0\x63" + content[at + 8 : at + 30]
    broken = content[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[at + 34 :]
    decoded = _decoded(tmp_path, broken, frames)
    assert (decoded.error, decoded.frames) == (None, (0,))
    assert (decoded.pixels[0] == np.asarray(FIRST)).all()
    assert _notes(decoded) == ["its animation is broken: its still picture was taken"]


def _tiff(*directories: dict[int, object], order: str = "<", big: bool = False) -> bytes:
    """A TIFF of RGB pages; 330 names directories beside the page, by their place in the arguments."""
    word, head = ("Q", 16) if big else ("I", 8)
    marks = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if big else 42)
    body, places, pages = b"", dict[int, int](), [one for one in directories if not one.get("beside")]
    kinds = [*[one for one in directories if one.get("beside")], *reversed(pages)]
    behind = 0
    for one in kinds:
        image = one["image"]
        assert isinstance(image, Image.Image)
        data = image.tobytes()
        bits = head + len(body) + len(data)
        body += data + struct.pack(f"{order}HHH", 8, 8, 8)
        tags = {256: image.width, 257: image.height, 259: 1, 262: 2, 273: bits - len(data), 277: 3, 279: len(data)}
        tags |= {tag: value for tag, value in one.items() if isinstance(tag, int)}
        if 330 in tags:
            tags[330] = places[tags[330]]
        entries = [struct.pack(f"{order}HH{word}{word}", tag, 4, 1, tags[tag]) for tag in tags]
        entries.append(struct.pack(f"{order}HH{word}{word}", 258, 3, 3, bits))
        if big:
            entries[-1] = struct.pack(f"{order}HHQHHHH", 258, 3, 3, 8, 8, 8, 0)
        entries.sort(key=lambda entry: struct.unpack(f"{order}H", entry[:2]))
        at = head + len(body)
        places[directories.index(one)] = at
        beside = one.get("beside")
        count = struct.pack(f"{order}Q" if big else f"{order}H", len(entries))
        body += count + b"".join(entries) + struct.pack(f"{order}{word}", 0 if beside else behind)
        behind = behind if beside else at
    start = struct.pack(f"{order}HHQ", 8, 0, behind) if big else struct.pack(f"{order}I", behind)
    return marks + start + body


SMALL, LARGE = picture(3, (32, 24)), picture(4, (160, 120))


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])  # Pillow has no fourth
@pytest.mark.parametrize("mark", [{254: 1}, {254: 4}, {255: 2}])
def test_the_page_that_is_the_picture_is_judged_and_not_its_preview_or_mask(
    tmp_path: Path, mark: dict[int, int], order: str, big: bool
) -> None:
    content = _tiff({"image": SMALL, **mark}, {"image": LARGE, 254: 0}, {"image": FIRST, 254: 2}, order=order, big=big)
    decoded = _decoded(tmp_path, content)
    assert decoded.frames == (1, 2)
    for pixels_HWC, image in zip(decoded.pixels, (LARGE, FIRST), strict=True):
        assert (pixels_HWC == np.asarray(image)).all()
    (alone,) = _decoded(tmp_path, content, frames=1).pixels
    assert (alone == np.asarray(LARGE)).all()


RAW = {
    "DNG": [{"image": SMALL, 254: 1, 330: 1, 50706: 0x401}, {"image": LARGE, "beside": True, 254: 0}],
    "NEF": [{"image": SMALL, 254: 1, 330: 1}, {"image": LARGE, "beside": True, 254: 0, 262: 32803}],
    "a picture beside its preview": [{"image": SMALL, 330: 1}, {"image": LARGE, "beside": True}],
    "only a preview": [{"image": SMALL, 254: 1}],
    "linear raw": [{"image": LARGE, 262: 34892}],
}


@pytest.mark.parametrize("directories", RAW.values(), ids=RAW)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_raw_file_is_refused_by_its_name_and_not_judged_by_its_preview(
    tmp_path: Path, directories: list[dict[int, object]], order: str
) -> None:
    decoded = _decoded(tmp_path, _tiff(*directories, order=order))
    assert (decoded.fault, decoded.pixels) == (Fault.UNSUPPORTED, ())
    assert "preview" in (decoded.error or "")


@pytest.mark.parametrize(
    "start", [b"FUJIFILMCCD-RAW 0201", b"IIRO\x08", b"IIU\0", b"\0\0\0\x18ftypcrx ", b"II*\0\x10\0\0\0CR\x02\0"]
)
def test_a_raw_file_that_is_no_tiff_is_refused_by_its_name(tmp_path: Path, start: bytes) -> None:
    decoded = _decoded(tmp_path, start + encoded("JPEG"))
    assert decoded.fault is Fault.UNSUPPORTED
    assert "raw" in (decoded.error or "")


def test_smaller_versions_beside_a_page_are_no_concern(tmp_path: Path) -> None:
    content = _tiff({"image": LARGE, 254: 0, 330: 1}, {"image": SMALL, "beside": True, 254: 1})
    decoded = _decoded(tmp_path, content)
    assert decoded.frames == (0,)
    assert (decoded.pixels[0] == np.asarray(LARGE)).all()


def test_pages_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    content = bytearray(_tiff({"image": LARGE}))
    at = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[at : at + 2])[0]
    content[at + 2 + 12 * count : at + 6 + 12 * count] = content[4:8]
    decoded = _decoded(tmp_path, bytes(content))
    assert (decoded.error, decoded.frames) == (None, (0,))


def test_a_tiff_of_samples_that_cannot_be_read_names_them(tmp_path: Path) -> None:
    content = bytearray(_tiff({"image": LARGE, 339: 3}))
    at = struct.unpack("<I", content[4:8])[0]
    content[at - 6 : at] = struct.pack("<HHH", 32, 32, 32)
    decoded = _decoded(tmp_path, bytes(content))
    assert decoded.fault is Fault.UNSUPPORTED
    assert (decoded.error or "").startswith("a TIFF of 3 floats of 32 bits a pixel")


def test_a_kind_that_the_decoder_does_not_know_is_unsupported(tmp_path: Path) -> None:
    bmp = bytearray(encoded("BMP"))
    bmp[30] = 6  # BI_ALPHABITFIELDS
    decoded = _decoded(tmp_path, bytes(bmp))
    assert decoded.fault is Fault.UNSUPPORTED
    assert "Unsupported BMP compression" in (decoded.error or "")
