"""Colours as a viewer shows them: ICC profiles, wide primaries and HDR become sRGB; what is sRGB stays as it is."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture
from PIL import Image, ImageCms

from aivsreal.runtime.files.colour import MOST_PROFILE, is_srgb
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file
from aivsreal.runtime.files.images import pixels_from_image

Xyz = tuple[float, float, float]
# Colorants on the white of D50, as profiles hold them.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * value))


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SRGB_TABLE = b"curv\0\0\0\0" + struct.pack(
    ">I1024H", 1024, *(round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)) for v in
    (i / 1023 for i in range(1024)))
)  # fmt: skip


def _profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"sRGB\0" + bytes(78),
        b"wtpt": _xyz((0.9642, 1, 0.8249)),
        **tags,
    }
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"scnr", space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body


def _xyz(colorant: Xyz) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*colorant)


def _rgb_profile(colorants: tuple[Xyz, Xyz, Xyz], curve: bytes, **more: bytes) -> bytes:
    tags = {name: _xyz(one) for name, one in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"RGB ", b"XYZ ", tags | {name.encode(): data for name, data in more.items()})


def _decoded(folder: Path, content: bytes) -> Decoded:
    (folder / "image").write_bytes(content)
    return decoded_from_file(folder / "image", DecodePlan())


def _expected(colorants: tuple[Xyz, Xyz, Xyz], gamma: float | None, image: Image.Image | None = None) -> np.ndarray:
    """By the definition: to light, to XYZ, to the light of sRGB, to levels."""
    levels = np.asarray(image or picture()) / 255.0
    light = levels**gamma if gamma else np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ np.array(colorants) @ np.linalg.inv(np.array(SRGB)), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


WIDE = {
    "Display P3": (P3, SRGB_CURVE, None),
    "Adobe RGB": (ADOBE, _gamma(2.19921875), 2.19921875),
    "linear light": (SRGB, b"curv" + bytes(8), 1.0),
}


@pytest.mark.parametrize(("colorants", "curve", "gamma"), WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_another_space_become_srgb(
    tmp_path: Path, kind: str, colorants: tuple[Xyz, Xyz, Xyz], curve: bytes, gamma: float | None
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    profile = _rgb_profile(colorants, curve)
    decoded = _decoded(tmp_path, encoded(kind, picture(), icc_profile=profile, **options))
    off = np.abs(decoded.pixels[0] - _expected(colorants, gamma))
    assert (off.max() <= 3, off.mean() < 0.6) == (True, True)
    assert np.abs(decoded.pixels[0] - np.asarray(picture()).astype(float)).max() > 10  # else there was nothing to do
    with Image.open(tmp_path / "image") as image:
        assert (pixels_from_image(image) == decoded.pixels[0]).all()


PLAIN = {
    "as others name it": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "by formula": _rgb_profile(SRGB, SRGB_CURVE),
    "by table": _rgb_profile(SRGB, SRGB_TABLE),
    "for grey": _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(1.0)}),
    "broken": b"no profile at all",
    "cut": _rgb_profile(P3, SRGB_CURVE)[:200],
    "too large": _rgb_profile(P3, SRGB_CURVE).ljust(MOST_PROFILE + 1, b"\0"),
}


@pytest.mark.parametrize("profile", PLAIN.values(), ids=PLAIN)
def test_a_profile_that_is_srgb_or_useless_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    decoded = _decoded(tmp_path, encoded("TIFF", picture(), icc_profile=profile))
    assert (decoded.pixels[0] == np.asarray(picture())).all()
    said = [one.detail for one in decoded.evidence]
    assert len(said) == (not is_srgb(profile) and profile[16:20] == b"RGB ")


def test_a_profile_that_calls_itself_srgb_and_is_not_is_seen_through() -> None:
    assert is_srgb(_rgb_profile(SRGB, SRGB_CURVE))
    assert not is_srgb(_rgb_profile(P3, SRGB_CURVE))
    assert not is_srgb(_rgb_profile(SRGB, _gamma(1.8)))
    assert not is_srgb(_rgb_profile(SRGB, SRGB_CURVE, A2B0=b"mft1" + bytes(60)))


def test_a_profile_that_is_srgb_loads_no_library(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encoded("JPEG", icc_profile=_rgb_profile(SRGB, SRGB_TABLE)))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from aivsreal.runtime.files.images import pixels_from_file\n"
        "pixels_from_file(Path(sys.argv[1]))\n"
        "assert 'PIL.ImageCms' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "image.jpg")], check=True)


def test_grey_of_another_gamma_becomes_srgb(tmp_path: Path) -> None:
    grey = picture().convert("L")
    profile = _profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(1.5)})
    decoded = _decoded(tmp_path, encoded("TIFF", grey, icc_profile=profile))
    light = (np.asarray(grey) / 255.0) ** 1.5
    levels = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(decoded.pixels[0] - levels[..., None]).max() <= 3


def _cmyk_profile() -> bytes:
    """Every ink makes the same grey: L* falls from 100 to 0 with the most of the four."""
    corners = [bytes([0 if any(index >> bit & 1 for bit in range(4)) else 255, 128, 128]) for index in range(16)]
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += bytes(range(256)) * 4 + b"".join(corners) + bytes(range(256)) * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table})


def test_inks_are_mixed_by_their_profile(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (96, 72), (0, 0, 0, 128))
    inks.paste((0, 0, 0, 0), (0, 0, 48, 72))
    (pixels_HWC,) = _decoded(tmp_path, encoded("TIFF", inks, icc_profile=_cmyk_profile())).pixels
    assert (pixels_HWC[:, :48] >= 254).all()
    assert np.abs(pixels_HWC[:, 48:].astype(int) - 118).max() <= 2  # L* 49.8; without the profile it is 127


def _with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]


# By ITU-R BT.2408: 203 nits are white, at 58 % of PQ and 75 % of HLG; 100 nits are 51 % of PQ.
HDR = {
    "PQ": (16, {148: 255, 230: 255, 130: 187, 0: 0}),
    "HLG": (18, {191: 255, 240: 255, 0: 0}),
}


@pytest.mark.parametrize(("transfer", "levels"), HDR.values(), ids=HDR)
@pytest.mark.parametrize("primaries", [1, 9, 12])
def test_hdr_is_shown_at_the_brightness_of_paper(
    tmp_path: Path, primaries: int, transfer: int, levels: dict[int, int]
) -> None:
    bands = Image.new("L", (96, 72))
    for index, level in enumerate(levels):
        bands.paste(level, (20 * index, 0, 96, 72))
    content = _with_chunk(encoded("PNG", bands.convert("RGB")), b"cICP", bytes([primaries, transfer, 0, 1]))
    decoded = _decoded(tmp_path, content)
    for index, wanted in enumerate(levels.values()):
        assert np.abs(decoded.pixels[0][10, 20 * index + 10].astype(int) - wanted).max() <= 3
    (note,) = decoded.evidence
    assert note.detail.startswith("its colours are HDR (")
    profile = _rgb_profile(P3, SRGB_CURVE, cicp=b"cicp\0\0\0\0" + bytes([primaries, transfer, 0, 1]))
    by_profile = _decoded(tmp_path, encoded("PNG", bands.convert("RGB"), icc_profile=profile))
    assert (by_profile.pixels[0] == decoded.pixels[0]).all()


def test_wide_primaries_of_a_png_without_a_profile_become_srgb(tmp_path: Path) -> None:
    content = _with_chunk(encoded("PNG", picture()), b"cICP", bytes([12, 13, 0, 1]))
    assert np.abs(_decoded(tmp_path, content).pixels[0] - _expected(P3, None)).max() <= 3


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_code_points_of_an_avif_or_heic_count_where_it_has_no_profile(tmp_path: Path, kind: str) -> None:
    x, y = np.meshgrid(np.linspace(10, 250, 96), np.linspace(10, 250, 72))
    smooth = Image.fromarray(np.dstack((x, y, 260 - x)).astype(np.uint8))
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        container = heif.from_pillow(smooth)
        container.save(tmp_path / "plain.heic", quality=-1, color_primaries=1, transfer_characteristics=13)
        content = (tmp_path / "plain.heic").read_bytes()
    else:
        content = encoded("AVIF", smooth, quality=100)
    at = content.index(b"colrnclx") + 8
    plain = _decoded(tmp_path, content)
    assert (np.abs(plain.pixels[0] - np.asarray(smooth).astype(float)).mean() < 2, plain.evidence) == (True, ())
    wide = _decoded(tmp_path, content[:at] + struct.pack(">HH", 12, 13) + content[at + 4 :])
    assert np.abs(wide.pixels[0] - _expected(P3, None, smooth)).mean() < 2
    assert np.abs(wide.pixels[0].astype(int) - plain.pixels[0]).mean() > 5
    pq = _decoded(tmp_path, content[:at] + struct.pack(">HH", 9, 16) + content[at + 4 :])
    assert [one.source for one in pq.evidence] == ["decoding"]
