"""One buffer, one upload: the parts of a batch that are seen, and the tables by which the kernel resizes them.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.gpu.resample import AxisWeights, axis_weights
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import PreprocessSpec

ALIGNMENT = 16  # the kernel's vector loads
# `Image` in kernels/preprocess.cu. Offsets are bytes from the buffer's start, so it may lie at any address.
IMAGE = np.dtype(
    [(name, "<i8") for name in "pixels pitch x_bounds x_weights y_bounds y_weights".split()]
    + [(name, "<i4") for name in "width height x_stride y_stride".split()]
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Staging:
    """What a batch puts where in a buffer of `size` bytes: images, tables, then pixels with rows 16-byte aligned."""

    images_B: npt.NDArray[np.void]
    tables: tuple[tuple[int, npt.NDArray[np.int32]], ...]
    parts: tuple[tuple[int, int, PixelsHWC], ...]
    size: int

    def write(self, buffer: Bytes) -> None:
        """Fill the first `size` bytes of `buffer`; the bytes between rows keep what they were."""
        images = self.images_B.view(np.uint8).reshape(-1)
        buffer[: images.size] = images
        for offset, table in self.tables:
            buffer[offset : offset + table.nbytes] = table.reshape(-1).view(np.uint8)
        for offset, pitch, part_HWC in self.parts:
            height, row = part_HWC.shape[0], 3 * part_HWC.shape[1]
            lines = buffer[offset : offset + height * pitch].reshape(height, pitch)
            # As an image, not as lines: a box of a larger image has no two-dimensional view.
            np.copyto(lines[:, :row].reshape(height, row // 3, 3), part_HWC)


def staging_from_pixels(pixels: Sequence[PixelsHWC], spec: PreprocessSpec) -> Staging:
    """Plan the upload of decoded images of any sizes: of each the box that the spec shows to the network.

    Raises:
        ValueError: an image is not uint8 RGB.
    """
    images_B = np.zeros(len(pixels), IMAGE)
    tables: list[tuple[int, npt.NDArray[np.int32]]] = []
    parts: list[tuple[int, int, PixelsHWC]] = []
    placed: dict[int, tuple[int, int, int]] = {}
    end = _aligned(images_B.nbytes)

    def table(values: npt.NDArray[np.int32]) -> int:
        nonlocal end
        offset, end = end, _aligned(end + values.nbytes)
        tables.append((offset, values))
        return offset

    def axis(length: int) -> tuple[int, int, int]:
        """Offsets of bounds and weights, and the weights' stride; images of one size share them."""
        if length not in placed:
            weights: AxisWeights = axis_weights(length, spec.size, spec.filter)
            placed[length] = (table(weights.bounds_S2), table(weights.weights_SK), weights.weights_SK.shape[1])
        return placed[length]

    for pixels_HWC in pixels:
        if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 [H, W, 3] in RGB order, not {pixels_HWC.dtype} {pixels_HWC.shape}")
        left, top, right, bottom = spec.box(pixels_HWC.shape[1], pixels_HWC.shape[0])
        parts.append((0, _aligned(3 * (right - left)), pixels_HWC[top:bottom, left:right]))
    for index, (_, pitch, part_HWC) in enumerate(parts):
        height, width = part_HWC.shape[:2]
        x_bounds, x_weights, x_stride = axis(width)
        y_bounds, y_weights, y_stride = axis(height)
        tail = (width, height, x_stride, y_stride)
        images_B[index] = (0, pitch, x_bounds, x_weights, y_bounds, y_weights, *tail)
    for index, (_, pitch, part_HWC) in enumerate(parts):
        parts[index] = (end, pitch, part_HWC)
        images_B[index]["pixels"] = end
        end += pitch * part_HWC.shape[0]
    return Staging(images_B, tuple(tables), tuple(parts), end)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
