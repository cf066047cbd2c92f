"""Colours of a map over an image, and where its files go.

A map shows what moved the score, never what was edited. Its values are signed: above 0 towards `ai`, below 0 towards
`real`. Orange and blue are told apart with any colour vision; what moved little stays the image itself.

Legend: H, W height and width; h, w those of a map; C channel (3, RGB).
"""

from __future__ import annotations

import hashlib
import os
import re
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.preprocess import MapHW, PixelsHWC
from aivsreal.runtime.results.output import DRAWING, MAP, SOFTWARE, check_replaceable, replacing
from aivsreal.runtime.spec import Box
from aivsreal.runtime.text import escaped
from aivsreal.runtime.verdict import Scanned

TOWARDS_AI = np.array([232, 89, 12], dtype=np.float32)
TOWARDS_REAL = np.array([25, 113, 194], dtype=np.float32)
STRONGEST = 0.62  # opacity of the largest value: the image stays to be seen under it
LEAST_SIDE = 448  # of a heat map of a scan: twice the usual input, so that its picture can be looked at
FLAT = 1.0  # logit; a map whose values all lie below it is not blown up to full colour
SHOWN_SIDE = 1024  # longest side of an overlay in pixels; 4 x 4 values need no more
_SOURCE = re.compile(rb"iTXtSource\0{5}([0-9a-f]{12})")
_NAME_BYTES = 236  # of the 255 that a file name may have: a digest, the suffix and room


def resized_map(map_hw: MapHW, width: int, height: int) -> MapHW:
    """The map as `[H, W]`, interpolated between the centres of its cells."""
    return np.asarray(Image.fromarray(map_hw.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def overlay(pixels_HWC: PixelsHWC, map_hw: MapHW, box: Box | None = None, floor: float = 0.0) -> Image.Image:
    """The image with its map in colour, at most `SHOWN_SIDE` pixels long.

    Args:
        pixels_HWC: uint8 RGB.
        map_hw: signed values; the colours are scaled to the largest of them.
        box: the part that the network saw, outlined; the rest is dimmed. None: it saw all.
        floor: no smaller value than this gets full colour; `FLAT` for maps in logits.
    """
    from PIL import ImageDraw, ImageEnhance  # fonts and all: 8 ms that a scan without maps does not need

    image = Image.fromarray(pixels_HWC)
    scale = min(1.0, SHOWN_SIDE / max(image.size))
    if scale < 1.0:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    left, top, right, bottom = (0, 0, *image.size) if box is None else (round(edge * scale) for edge in box)
    seen = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    value_HW = resized_map(map_hw, *seen.size)
    # The largest value before interpolation, so that a colour means the same in every size.
    alpha_HW1 = np.clip(np.abs(value_HW) / max(float(np.abs(map_hw).max()), floor, 1e-12), 0, 1)[:, :, None] * STRONGEST
    # Grey below the colour: an orange picture would hide an orange map.
    grey_HWC = np.asarray(ImageEnhance.Color(seen).enhance(0.25), dtype=np.float32)
    colour_HWC = np.where(value_HW[:, :, None] > 0, TOWARDS_AI, TOWARDS_REAL)
    mixed_HWC = grey_HWC * (1 - alpha_HW1) + colour_HWC * alpha_HW1
    if box is None:
        return Image.fromarray(np.rint(mixed_HWC).astype(np.uint8))
    result = ImageEnhance.Brightness(image).enhance(0.45)
    result.paste(Image.fromarray(np.rint(mixed_HWC).astype(np.uint8)), (left, top))
    ImageDraw.Draw(result).rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255))
    return result


def path_for(folder: Path, image: Path) -> Path:
    """Where the map of an image goes, without a suffix: its path again, below `folder`, wherever it points to.

    `photos/a.jpg` and `/photos/a.jpg` become `folder/photos/a.jpg`, `../a.jpg` becomes `folder/_/a.jpg`.
    """
    parts = [
        "_" if part == ".." else part for part in Path(os.path.normpath(image)).parts if part != os.sep * len(part)
    ]
    return folder.joinpath(*(_short(part) for part in parts or ["_"]))


def write_map(
    folder: Path, image: Path, picture: Image.Image, map_hw: MapHW, about: dict[str, str], *,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a picture with `about` in its text chunks, and an array with the values, and give the picture's path.

    They are `path_for(folder, image)` with .png and .npy; where that is taken by another image, whose path comes to the
    same, or a folder whose path does, the name gets a digest of this one's.

    Args:
        about: of the picture, besides `Software` and `Source`.
        overwrite: replace an array that is not ours too; a picture that is not ours never is.

    Raises:
        OutputError: they cannot be written, or something else is there.
    """
    from PIL import PngImagePlugin

    stem, source = path_for(folder, image), hashlib.sha256(os.fsencode(os.path.abspath(image))).hexdigest()[:12]
    png = stem.with_name(f"{stem.name}.png")
    if png.is_dir() or _source_of(png) not in (None, source):
        stem = stem.with_name(f"{stem.name}-{source}")
    elif not next(place for place in stem.parents if place.exists()).is_dir():  # a map is where a folder would be
        stem = folder / f"{_short(image.name)}-{source}"
    text = PngImagePlugin.PngInfo()
    for key, value in {"Software": SOFTWARE, "Source": source, **about}.items():
        # A file name may hold bytes that are no UTF-8, which a PNG cannot.
        text.add_itxt(key, value.encode("utf-8", "backslashreplace").decode())
    png, npy = (stem.with_name(stem.name + suffix) for suffix in (".png", ".npy"))
    _make_folder(stem.parent)
    check_replaceable(png, DRAWING, overwrite=overwrite)
    if not png.exists():
        check_replaceable(npy, MAP, overwrite=overwrite)
    # The picture first: by it the array is known to be ours, should there be no room for that.
    with replacing(png) as stream:
        picture.save(stream, "PNG", pnginfo=text)
    with replacing(npy) as stream:
        np.save(stream, map_hw)
    return png


class HeatMaps:
    """A `Writer` that draws the network's own map of each result that has one.

    Raises:
        OutputError: its folder cannot be made; known before the first image is judged.
    """

    def __init__(self, folder: Path, bundle: Bundle, overwrite: bool = False, second: Bundle | None = None) -> None:
        self._folder, self._overwrite = folder, overwrite
        self._names = (bundle.name, bundle.name if second is None else second.name)
        _make_folder(folder)
        self.count = 0
        """Maps that were drawn."""

    def write(self, scanned: Scanned) -> None:
        """Draw the map of one result.

        Raises:
            OutputError: the disk is full, or a file cannot be written.
        """
        view, verdict = scanned.view, scanned.verdict
        if view is None or view.map_hw is None or verdict is None:
            return
        side = max(LEAST_SIDE, len(view.square_SSC))
        square = Image.fromarray(view.square_SSC).resize((side, side), Image.Resampling.BICUBIC)
        about = {
            "Software": f"{SOFTWARE}, bundle {self._names[scanned.first is not None]}",
            "Title": f"What moved the score of {scanned.path.name}",
            "Description": "Orange towards ai, blue towards real; the mean of the values is this view's logit. "
            "What moved the score, not what was edited.",
            "Comment": f"{verdict.label.value}: {verdict.reason}",
        }
        picture = overlay(np.asarray(square), view.map_hw, floor=FLAT)
        write_map(self._folder, scanned.path, picture, view.map_hw, about, overwrite=self._overwrite)
        self.count += 1


def _make_folder(folder: Path) -> None:
    # Not by pathlib's own way, which is recursive and ends at a thousand folders.
    for place in reversed(list(takewhile(lambda place: not place.is_dir(), [folder, *folder.parents]))):
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{escaped(place)}: cannot be written: {error.strerror or error}") from None


def _source_of(png: Path) -> str | None:
    try:
        with png.open("rb") as file:
            found = _SOURCE.search(file.read(1 << 16))
    except OSError:
        return None
    return found[1].decode() if found else None


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= _NAME_BYTES:
        return name
    return f"{encoded[: _NAME_BYTES - 20].decode('utf-8', 'ignore')}-{hashlib.sha256(encoded).hexdigest()[:12]}"
