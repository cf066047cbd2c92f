"""Colours as a viewer shows them: ICC profiles, wide primaries and HDR become sRGB; what is sRGB stays as it is."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture, with_chunk
from icc import ADOBE, P3, SRGB, SRGB_CURVE, SRGB_TABLE, Xyz, cmyk_profile, gamma_curve, icc_profile, rgb_profile
from PIL import Image, ImageCms

from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file
from aivsreal.runtime.pixels.colour import MOST_PROFILE, is_srgb
from aivsreal.runtime.pixels.images import pixels_from_image


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
    "Adobe RGB": (ADOBE, gamma_curve(2.19921875), 2.19921875),
    "linear light": (SRGB, b"curv" + bytes(8), 1.0),
}


@pytest.mark.parametrize(("colorants", "curve", "gamma"), WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_another_space_become_srgb(
    tmp_path: Path, kind: str, colorants: tuple[Xyz, Xyz, Xyz], curve: bytes, gamma: float | None
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    profile = rgb_profile(colorants, curve)
    decoded = _decoded(tmp_path, encoded(kind, picture(), icc_profile=profile, **options))
    off = np.abs(decoded.pixels[0] - _expected(colorants, gamma))
    assert (off.max() <= 3, off.mean() < 0.6) == (True, True)
    assert np.abs(decoded.pixels[0] - np.asarray(picture()).astype(float)).max() > 10  # else there was nothing to do
    with Image.open(tmp_path / "image") as image:
        assert (pixels_from_image(image) == decoded.pixels[0]).all()


PLAIN = {
    "as others name it": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "by formula": rgb_profile(SRGB, SRGB_CURVE),
    "by table": rgb_profile(SRGB, SRGB_TABLE),
    "for grey": icc_profile(b"GRAY", b"XYZ ", {b"kTRC": gamma_curve(1.0)}),
    "broken": b"no profile at all",
    "cut": rgb_profile(P3, SRGB_CURVE)[:200],
    "too large": rgb_profile(P3, SRGB_CURVE).ljust(MOST_PROFILE + 1, b"\0"),
}


@pytest.mark.parametrize("profile", PLAIN.values(), ids=PLAIN)
def test_a_profile_that_is_srgb_or_useless_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    decoded = _decoded(tmp_path, encoded("TIFF", picture(), icc_profile=profile))
    assert (decoded.pixels[0] == np.asarray(picture())).all()
    said = [one.detail for one in decoded.evidence]
    assert len(said) == (not is_srgb(profile) and profile[16:20] == b"RGB ")


def test_a_profile_that_calls_itself_srgb_and_is_not_is_seen_through() -> None:
    assert is_srgb(rgb_profile(SRGB, SRGB_CURVE))
    assert not is_srgb(rgb_profile(P3, SRGB_CURVE))
    assert not is_srgb(rgb_profile(SRGB, gamma_curve(1.8)))
    assert not is_srgb(rgb_profile(SRGB, SRGB_CURVE, A2B0=b"mft1" + bytes(60)))


def test_a_profile_that_is_srgb_loads_no_library(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encoded("JPEG", icc_profile=rgb_profile(SRGB, SRGB_TABLE)))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from aivsreal.runtime.pixels.images import pixels_from_file\n"
        "pixels_from_file(Path(sys.argv[1]))\n"
        "assert 'PIL.ImageCms' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "image.jpg")], check=True)


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("LA", {}), ("L", {"transparency": 255})])
def test_grey_of_another_gamma_becomes_srgb(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    grey = picture().convert("L")
    profile = icc_profile(b"GRAY", b"XYZ ", {b"kTRC": gamma_curve(1.5)})
    decoded = _decoded(tmp_path, encoded("PNG", grey.convert(mode), icc_profile=profile, **options))
    light = (np.asarray(grey) / 255.0) ** 1.5
    levels = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(decoded.pixels[0] - levels[..., None]).max() <= 3


def test_inks_are_mixed_by_their_profile(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (96, 72), (0, 0, 0, 128))
    inks.paste((0, 0, 0, 0), (0, 0, 48, 72))
    (pixels_HWC,) = _decoded(tmp_path, encoded("TIFF", inks, icc_profile=cmyk_profile())).pixels
    assert (pixels_HWC[:, :48] >= 254).all()
    assert np.abs(pixels_HWC[:, 48:].astype(int) - 118).max() <= 2  # L* 49.8; without the profile it is 127


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
    content = with_chunk(encoded("PNG", bands.convert("RGB")), b"cICP", bytes([primaries, transfer, 0, 1]))
    decoded = _decoded(tmp_path, content)
    for index, wanted in enumerate(levels.values()):
        assert np.abs(decoded.pixels[0][10, 20 * index + 10].astype(int) - wanted).max() <= 3
    (note,) = decoded.evidence
    assert note.detail.startswith("its colours are HDR (")
    profile = rgb_profile(P3, SRGB_CURVE, cicp=b"cicp\0\0\0\0" + bytes([primaries, transfer, 0, 1]))
    by_profile = _decoded(tmp_path, encoded("PNG", bands.convert("RGB"), icc_profile=profile))
    assert (by_profile.pixels[0] == decoded.pixels[0]).all()


def test_wide_primaries_of_a_png_without_a_profile_become_srgb(tmp_path: Path) -> None:
    content = with_chunk(encoded("PNG", picture()), b"cICP", bytes([12, 13, 0, 1]))
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
