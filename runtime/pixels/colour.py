"""Colours as sRGB, which the network was trained on: ICC profiles, wide primaries, and HDR cut to what a screen shows.

Measured on 160 test pictures whose colours were written in another space and then taken for sRGB: p_ai moved by 0.033
in the mean for Display P3 (8 % of the labels changed), 0.052 for Adobe RGB (11 %), 0.115 for ProPhoto (26 %), 0.124 for
HLG (21 %) and 0.247 for PQ (47 %). Converted back, p_ai is within 0.001 in the mean, and no label changed.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.pixels.containers import Coded, bmff_colour, png_chunks

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MOST_PROFILE = 1 << 22  # bytes; profiles of printers have up to 2 MB
_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
_SRGB = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
_CURVES = (b"rTRC", b"gTRC", b"bTRC")
_ALIKE = 2  # levels of 255 that a profile may be off sRGB and count as it

BT2020, DISPLAY_P3 = 9, 12
PQ, HLG, LINEAR = 16, 18, 8
# To BT.709, from ITU-R BT.2087 and from the primaries of SMPTE EG 432-1.
_TO_BT709 = {
    BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    DISPLAY_P3: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
_BT2020_LUMINANCE = (0.2627, 0.6780, 0.0593)
_WHITE_NITS = 203.0  # of ITU-R BT.2408: what a page of paper has beside HDR pictures
_HLG_NITS, _HLG_GAMMA = 1000.0, 1.2
_NAMES = {PQ: "PQ", HLG: "HLG"}

Floats = npt.NDArray[np.float32]


def coded_colours(image: Image.Image, content: bytes) -> Coded | None:
    """The code points of a file's colours, where its container states any that count beside its ICC profile."""
    if image.format in ("AVIF", "HEIF"):
        return None if image.info.get("icc_profile") else bmff_colour(content)
    if image.format == "PNG":  # its code points count before a profile
        for chunk in png_chunks(content):
            if chunk.name == b"cICP" and chunk.behind - chunk.start >= 16:
                return Coded(content[chunk.start + 8], content[chunk.start + 9])
            if chunk.name == b"IDAT":
                break
    return None


def from_profile(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """The picture as sRGB by its ICC profile; as it is where that is sRGB, broken, or of another kind of picture.

    Args:
        image: grey, RGB or CMYK.
        notes: gets what a person should know.
    """
    if profile[16:20] != _SPACES.get(image.mode) or is_srgb(profile):
        return image
    coded = _coded_in_profile(profile)
    if coded is not None and coded.transfer in _NAMES and image.mode == "RGB":
        return from_coded(image, coded, notes)
    if len(profile) > MOST_PROFILE:
        notes.append(f"its colour profile of {len(profile):,} bytes was passed over")
        return image
    try:
        transform = _transform(profile, image.mode)
    except (OSError, ValueError, TypeError):
        notes.append("its colour profile cannot be read: its colours were taken as sRGB")
        return image
    return image if transform is None else transform.apply(image)


def from_coded(image: Image.Image, coded: Coded, notes: list[str]) -> Image.Image:
    """An RGB picture as sRGB by its code points: of PQ and HLG what is brighter than a page of paper becomes white."""
    matrix = _TO_BT709.get(coded.primaries)
    if matrix is None and coded.transfer not in (*_NAMES, LINEAR):
        return image
    linear_HWC = _linear(coded.transfer)[np.asarray(image)]
    if coded.transfer == HLG:  # its system gamma works on what all three say together
        luminance_HW1 = linear_HWC @ np.array(_BT2020_LUMINANCE, np.float32)[:, None]
        linear_HWC *= luminance_HW1 ** np.float32(_HLG_GAMMA - 1.0) * np.float32(_HLG_NITS / _WHITE_NITS)
    if matrix is not None:
        linear_HWC = linear_HWC @ np.array(matrix, np.float32).T
    if coded.transfer in _NAMES:
        name = _NAMES[coded.transfer]
        notes.append(f"its colours are HDR ({name}): shown as {_WHITE_NITS:g} nits for white, what is brighter cut off")
    levels = _levels_of_light()
    steps_HWC = np.clip(linear_HWC, 0.0, 1.0) * np.float32(levels.size - 1) + np.float32(0.5)
    return Image.fromarray(levels[steps_HWC.astype(np.uint16)])


def is_srgb(profile: bytes) -> bool:
    """Whether a profile has the primaries and curves of sRGB, whatever it is called; needs no library."""
    return len(profile) <= MOST_PROFILE and _is_srgb(profile)


@lru_cache(maxsize=32)
def _is_srgb(profile: bytes) -> bool:
    tags = _tags(profile)
    if b"A2B0" in tags:
        return False  # a table comes before primaries
    try:
        for name, wanted in _SRGB.items():
            have = [value / 65536 for value in struct.unpack_from(">3i", tags[name], 8)]
            if max(abs(a - b) for a, b in zip(have, wanted, strict=True)) > 0.003:
                return False
        points = [step / 16 for step in range(17)]
        return all(abs(_curve(tags[name], at) - _linear_of_srgb(at)) <= 0.005 for name in _CURVES for at in points)
    except (KeyError, ValueError, IndexError, OverflowError, ZeroDivisionError, TypeError, struct.error):
        return False


def _tags(profile: bytes) -> dict[bytes, bytes]:
    count = min(int.from_bytes(profile[128:132], "big"), 100)
    tags = {}
    for at in range(132, 132 + 12 * count, 12):
        start, size = (int.from_bytes(profile[at + skip : at + skip + 4], "big") for skip in (4, 8))
        tags[profile[at : at + 4]] = profile[start : start + size]
    return tags


def _curve(data: bytes, at: float) -> float:
    """Value of a tone curve, `curv` or `para` of ICC.1."""
    count = int.from_bytes(data[8:12], "big")
    if data[:4] == b"curv":
        if count < 2:
            return float(at ** (int.from_bytes(data[12:14], "big") / 256)) if count else at
        index = at * (count - 1)
        low = min(int(index), count - 2)
        first, second = struct.unpack_from(">2H", data, 12 + 2 * low)
        return float(first + (second - first) * (index - low)) / 65535
    kind = count >> 16
    if data[:4] != b"para" or kind not in (0, 3):
        raise ValueError("a curve that no sRGB has")
    values = [value / 65536 for value in struct.unpack_from(">5i" if kind else ">1i", data, 12)]
    if kind == 0:
        return float(at ** values[0])
    g, a, b, c, d = values
    return float((a * at + b) ** g if at >= d else c * at)


def _coded_in_profile(profile: bytes) -> Coded | None:
    data = _tags(profile).get(b"cicp", b"")
    return Coded(data[8], data[9]) if len(data) >= 12 else None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """How a profile's colours become sRGB; None where they are that already.

    Raises:
        OSError, ValueError, TypeError: the profile is broken.
    """
    from PIL import ImageCms  # 3 ms, and only pictures of other colours need it

    intent = ImageCms.Intent.PERCEPTUAL
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB", intent
        )
    except ImageCms.PyCMSError as error:
        raise ValueError(str(error)) from None
    if mode != "RGB":
        return transform
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    moved = np.abs(np.asarray(transform.apply(Image.fromarray(grid))).astype(int) - grid)
    return None if moved.max() <= _ALIKE else transform


def _linear_of_srgb(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


@lru_cache(maxsize=1)
def _levels_of_light() -> npt.NDArray[np.uint8]:
    light = np.linspace(0.0, 1.0, 1 << 14)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    rounded: npt.NDArray[np.uint8] = np.rint(255 * levels).astype(np.uint8)
    return rounded


@lru_cache(maxsize=8)
def _linear(transfer: int) -> Floats:
    """Light of each level, 1 for white; scene light for HLG."""
    levels = np.linspace(0.0, 1.0, 256)
    if transfer == PQ:  # SMPTE ST 2084
        root = levels ** (1 / 78.84375)
        nits = 10_000.0 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (nits / _WHITE_NITS).astype(np.float32)
    if transfer == HLG:  # ITU-R BT.2100
        low, high = levels**2 / 3, (np.exp((levels - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.where(levels <= 0.5, low, high).astype(np.float32)
    if transfer == LINEAR:
        return levels.astype(np.float32)
    return np.array([_linear_of_srgb(level) for level in levels], np.float32)
