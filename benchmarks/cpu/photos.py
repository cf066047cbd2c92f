"""Large photographs to time and to compare decoding with, made of smaller ones: real ones of that size are not at hand.

An image is enlarged and gets grain before it is saved, so that its finest frequencies are not empty, as an enlarged
picture's are, and decoding has as much to do as with a camera's file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC

GRAIN = 6.0  # standard deviation of the noise in 8-bit values: a 12-megapixel file then has 3 to 4 MB, as cameras write
_TILE = 512  # side of the noise that is repeated
LINKED = 50  # photographs at most that many files are links to
SHAPES = {"12-megapixel": (4000, 3000), "1024px": (1024, 768), "256px": (340, 256)}


def enlarged(pixels_HWC: PixelsHWC, width: int, height: int, seed: int, grain: float = GRAIN) -> PixelsHWC:
    """The image filled into `width` x `height`, cropped around its centre, with grain."""
    image = Image.fromarray(pixels_HWC)
    scale = min(image.width / width, image.height / height)
    across, down = width * scale, height * scale
    left, top = max(0.0, (image.width - across) / 2), max(0.0, (image.height - down) / 2)
    box = (left, top, min(image.width, left + across), min(image.height, top + down))
    large_HWC = np.array(image.resize((width, height), Image.Resampling.BICUBIC, box))
    tile_HW = np.rint(np.random.default_rng(seed).normal(0, grain, (_TILE, _TILE))).astype(np.int16)
    noise_HW = np.tile(tile_HW, (1, -(-width // _TILE)))[:, :width]
    for top in range(0, height, _TILE):  # in strips: whole arrays of 30 megapixels took longer to allocate than to fill
        strip_HWC = large_HWC[top : top + _TILE].astype(np.int16) + noise_HW[: height - top, :, None]
        large_HWC[top : top + _TILE] = np.clip(strip_HWC, 0, 255)
    return large_HWC


def jpeg_from_pixels(pixels_HWC: PixelsHWC, quality: int = 90) -> bytes:
    """A JPEG with 4:2:0 chroma."""
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def spread(folder: Path, count: int) -> list[Path]:
    """`count` images of a folder, spread evenly over it in the order of their names.

    Raises:
        DataError: it holds fewer.
    """
    paths = [path for path in image_paths(folder) if "originals" not in path.parts]
    if len(paths) < count:
        raise DataError(f"{folder}: holds {len(paths)} images, and {count} are wanted: name another folder or fewer")
    return [paths[index * len(paths) // count] for index in range(count)]


def write_photos(sources: Sequence[Path], folder: Path, shape: str) -> list[Path]:
    """A JPEG of each source in one of `SHAPES`, written to `folder`.

    Raises:
        ImageError: a source cannot be read.
    """
    width, height = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, source in enumerate(sources):
        path = folder / f"{index:05d}.jpg"
        path.write_bytes(jpeg_from_pixels(enlarged(pixels_from_file(source), width, height, index)))
        written.append(path)
    return written


def write_linked_photos(sources: Sequence[Path], folder: Path, shape: str, count: int) -> Path:
    """A folder below `folder` of `count` files: hard links to some tens of photographs, so that it fits into any disk.

    Raises:
        ImageError: a source cannot be read.
    """
    photos = write_photos(sources[:LINKED], folder / f"photos for {count}", shape)
    linked = folder / f"of {count}"
    for index in range(count):
        part = linked / f"{index // 1000:04d}"
        part.mkdir(parents=True, exist_ok=True)
        os.link(photos[index % len(photos)], part / f"{index % 1000:04d}.jpg")
    return linked
