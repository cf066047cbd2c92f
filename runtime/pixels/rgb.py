"""Any picture that Pillow decodes, as 8-bit RGB that looks as a viewer shows it; nothing to see is an error.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.pixels.colour import from_coded, from_profile
from aivsreal.runtime.pixels.containers import Coded
from aivsreal.runtime.pixels.integrity import Unfit

FLAT = "nothing can be seen: every pixel has one colour"
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262
_DEEP_COLOURS = ("RGB;16", "RGBX;16", "RGBA;16")
_OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

Values = npt.NDArray[Any]
Again = Callable[[], Image.Image]


def raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words; to be asked for before they are loaded."""
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        return str(args[0] if isinstance(args, tuple) and args else args)
    return ""


def rgb_from_image(
    image: Image.Image, raw: str, notes: list[str], again: Again | None = None, coded: Coded | None = None
) -> Image.Image:
    """8-bit sRGB of one frame: deep values scaled, transparency on white, no turn applied.

    Args:
        image: the loaded frame.
        raw: its `raw_mode` before it was loaded.
        notes: gets what a person should know of the scale that was taken.
        again: opens the same frame once more, unloaded: where colours have 16 bits Pillow keeps the upper ones alone.
        coded: what `colour.coded_colours` says of the file.

    Raises:
        Unfit: the range of its values is not known, or nothing can be seen in it.
    """
    key, profile = image.info.get("transparency"), image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _from_deep_grey(image, raw, notes, key if isinstance(key, int) else None)
    elif raw.startswith(_DEEP_COLOURS) and again is not None and (isinstance(key, tuple) or _is_dim(image)):
        image = _from_deep_colours(image, again(), notes, key if isinstance(key, tuple) else None)
    elif isinstance(key, tuple) and max(key) > 255:  # an image that its owner opened: its upper bytes are all there is
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        image = _on_white(image).convert("L" if image.mode in ("L", "LA", "La") else "RGB")  # grey has grey's profile
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if coded is not None:
        image = from_coded(image if image.mode == "RGB" else image.convert("RGB"), coded, notes)
    elif isinstance(profile, bytes) and profile:
        image = from_profile(image, profile, notes)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if _is_flat(rgb):
        raise Unfit(FLAT, Fault.BLANK)
    return rgb


def _from_deep_grey(image: Image.Image, raw: str, notes: list[str], key: int | None) -> Image.Image:
    values_HW = np.asarray(image)
    if raw.startswith("I;32N"):
        values_HW = values_HW.view(np.uint32)  # Pillow's integers have a sign, the file's have none
    if image.mode == "F":
        low, high = _range_of_floats(values_HW, notes)
    elif image.mode == "I":
        low, high = _range_of_integers(values_HW, notes)
    else:
        low, high = 0.0, 4095.0 if raw == "I;12" else _top_of_16_bits(values_HW, notes)
    grey_HW = _eight_bit(values_HW, low, high)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    if key is not None:
        grey_HW = np.where(values_HW == key, np.uint8(255), grey_HW)  # transparent lies on white
    return Image.fromarray(grey_HW)


def _eight_bit(values: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = np.nan_to_num((values.astype(np.float64) - low) * (255.0 / (high - low)), posinf=255.0, neginf=0.0)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _top_of_16_bits(values: Values, notes: list[str]) -> float:
    """65535, or less where two bits and more are never used, as in pictures of 10, 12 and 14 bits."""
    peak = int(values.max())
    bits = max(8, peak.bit_length())
    if bits > 14:
        return 65535.0
    notes.append(f"its 16-bit values end at {peak:,}: taken as {bits} bits")
    return float((1 << bits) - 1)


def _range_of_integers(values: Values, notes: list[str]) -> tuple[float, float]:
    """Integers of 32 bits are scaled by what they hold; no picture uses them whole."""
    low, high = _bulk(values)
    if float(values.min()) < 0.0 or high > 65535.0:
        return _own_range(low, high, notes)
    bits = max(8, int(high).bit_length())
    bits = bits if bits <= 14 else 16
    notes.append(f"its 32-bit integers end at {int(values.max()):,}: taken as {bits} bits")
    return 0.0, float((1 << bits) - 1)


def _range_of_floats(values: Values, notes: list[str]) -> tuple[float, float]:
    """0 to 1 where all but highlights lie there, 0 to 255 where the values are plainly those, else their own range."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise Unfit("nothing can be seen: none of its values is a number", Fault.BLANK)
    low, high = _bulk(finite)
    least, most = float(finite.min()), float(finite.max())
    if least >= 0.0 and np.mean(finite > 1.0) <= 0.01:
        if most > 1.0:
            notes.append(f"its floats reach to {most:.4g}: taken as 0 to 1, and what is above that as white")
        return 0.0, 1.0
    if least >= 0.0 and most <= 255.0 and (high >= 64.0 or not np.mod(finite, 1.0).any()):
        return 0.0, 255.0
    return _own_range(low, high, notes)


def _bulk(values: Values) -> tuple[float, float]:
    """Between which all values lie but one in a thousand on either side: a dead pixel sets no scale."""
    low, high = np.percentile(values.astype(np.float64), (0.1, 99.9))
    return float(low), float(high)


def _own_range(low: float, high: float, notes: list[str]) -> tuple[float, float]:
    if not low < high:
        raise Unfit("nothing can be seen: all its values are one", Fault.BLANK)
    notes.append(f"the range of its values is not stated: taken as {low:.6g} to {high:.6g}, between which they lie")
    return low, high


def _is_dim(image: Image.Image) -> bool:
    """Whether the upper bytes of 16-bit colours leave two bits and more unused."""
    return bool(np.asarray(image)[..., :3].max() < 64)


def _from_deep_colours(
    image: Image.Image, unloaded: Image.Image, notes: list[str], key: tuple[int, ...] | None
) -> Image.Image:
    """8-bit colours of 16-bit ones: with their transparent colour, and on the scale that they use.

    Pillow unpacks the first or the second byte of a value, as the byte order says: told of the other order, it gives
    the lower bytes.
    """
    unloaded.tile = [tile._replace(args=_swapped(tile.args)) for tile in unloaded.tile]  # type: ignore[attr-defined]
    unloaded.load()
    rgb, lower = image.convert("RGB"), unloaded.convert("RGB")
    values_HWC = (np.asarray(rgb).astype(np.uint16) << 8) | np.asarray(lower)
    if _is_dim(rgb):
        rgb = Image.fromarray(_eight_bit(values_HWC, 0.0, _top_of_16_bits(values_HWC, notes)))
    if image.mode == "RGBA":
        rgb.putalpha(image.getchannel("A"))
    elif key is not None:
        rgb.putalpha(Image.fromarray(np.where((values_HWC == key).all(axis=2), 0, 255).astype(np.uint8)))
    return rgb


def _swapped(args: object) -> object:
    if isinstance(args, tuple):
        return (_swapped(args[0]), *args[1:])
    raw = str(args)
    return raw[:-1] + _OTHER_BYTES.get(raw[-1], raw[-1])


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        if image.format not in ("BMP", "DIB"):
            raise Unfit("nothing can be seen: every pixel is transparent", Fault.BLANK)
        return rgba.convert("RGB")  # writers of BMP leave the fourth byte at 0, and every viewer passes it over
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)


def _is_flat(rgb: Image.Image) -> bool:
    # All pixels are only looked at where a few are alike: that took 1 ms a megapixel.
    width, height = rgb.size
    first = rgb.getpixel((0, 0))
    if any(rgb.getpixel((width * step // 8, height * (3 * step % 8) // 8)) != first for step in range(1, 8)):
        return False
    return all(low == high for low, high in map(Image.Image.getextrema, rgb.split()))
