"""The images that parity is measured on: a folder's, or synthetic ones that are always the same.

Legend: B image; H, W image height and width; C channel (3, RGB); S input size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import BatchBCHW, PixelsHWC, batch_from_squares, square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec

COUNT = 256


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference images, read anew each time, so that large ones are never all in memory."""

    folder: Path | None = None
    """Spread evenly over its files; None makes synthetic images."""
    count: int = COUNT

    @property
    def kind(self) -> str:
        """What the images are."""
        return "synthetic" if self.folder is None else "real"

    def pixels(self) -> Iterator[PixelsHWC]:
        """Decoded images, one in memory at a time.

        Raises:
            ExportError: the folder holds no images.
            ImageError: one of them cannot be decoded.
        """
        if self.folder is None:
            yield from _synthetic(self.count)
            return
        paths = list(image_paths(self.folder)) if os.path.isdir(self.folder) else []
        if not paths:
            raise ExportError(f"{self.folder}: no images for parity; give a folder of images with --reference")
        for index in np.unique(np.linspace(0, len(paths) - 1, min(self.count, len(paths))).astype(int)):
            yield pixels_from_file(paths[index])

    def batch(self, spec: PreprocessSpec) -> BatchBCHW:
        """All of them as the network's input."""
        return batch_from_squares([square_from_pixels(pixels_HWC, spec) for pixels_HWC in self.pixels()], spec)


def _synthetic(count: int) -> Iterator[PixelsHWC]:
    """Slopes of colour with a rectangle and an ellipse under noise, of several sizes and always the same."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(64, 400, 2)
        y_H1, x_1W = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        turn = rng.uniform(0, 2 * np.pi)
        slope_HW = 0.5 + (np.cos(turn) * x_1W + np.sin(turn) * y_H1) / 3
        values_HWC = slope_HW[:, :, None] * rng.uniform(0, 255, 3)
        centre_x, centre_y, radius_x, radius_y = rng.uniform((-0.8, -0.8, 0.1, 0.1), (0.8, 0.8, 0.7, 0.7))
        values_HWC[(abs(x_1W - centre_y) < radius_y) & (abs(y_H1 - centre_x) < radius_x)] = rng.uniform(0, 255, 3)
        inside_HW = ((x_1W - centre_x) / radius_x) ** 2 + ((y_H1 - centre_y) / radius_y) ** 2 < 1
        values_HWC[inside_HW] = rng.uniform(0, 255, 3)
        values_HWC += rng.standard_normal((height, width, 3)) * rng.uniform(0, 60)
        yield np.clip(values_HWC, 0, 255).astype(np.uint8)
