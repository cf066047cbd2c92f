"""The reference preprocessing in numpy and Pillow: what every other implementation must equal.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size;
h, w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from aivsreal.runtime.spec import Box, PreprocessSpec, ResizeFilter

PixelsHWC = npt.NDArray[np.uint8]
BatchBCHW = npt.NDArray[np.float32]
LogitsB = npt.NDArray[np.float32]
MapsBhw = npt.NDArray[np.float32]
MapHW = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a network said of a batch, before calibration."""

    logits_B: LogitsB
    maps_Bhw: MapsBhw | None = None
    """Where they were asked for: a logit is the mean of its map."""


_RESAMPLING = {
    ResizeFilter.BILINEAR: Image.Resampling.BILINEAR,
    ResizeFilter.BICUBIC: Image.Resampling.BICUBIC,
    ResizeFilter.LANCZOS: Image.Resampling.LANCZOS,
}


def square_from_pixels(pixels_HWC: PixelsHWC, spec: PreprocessSpec, box: Box | None = None) -> PixelsHWC:
    """The box of an image, resized antialiased to `square_SSC`, uint8.

    Args:
        pixels_HWC: uint8 RGB.
        spec: gives size, filter and, where `box` is None, the box.
        box: another part of the image in whole pixels; training passes its random crops.

    Raises:
        ValueError: `pixels_HWC` is not uint8 RGB.
    """
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 [H, W, 3] in RGB order, not {pixels_HWC.dtype} {pixels_HWC.shape}")
    height, width = pixels_HWC.shape[:2]
    left, top, right, bottom = spec.box(width, height) if box is None else box
    part_HWC = pixels_HWC[top:bottom, left:right]
    if part_HWC.shape[:2] == (spec.size, spec.size):
        return part_HWC
    # Crop first, then resize: the kernel's support ends at the box, so the pixels outside never reach the input.
    return np.asarray(_resized(Image.fromarray(part_HWC), spec))


def square_from_image(image: Image.Image, spec: PreprocessSpec) -> PixelsHWC:
    """`square_from_pixels` of a loaded RGB image of Pillow, to the bit, with two copies of the pixels fewer.

    Raises:
        ValueError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image must be RGB, not {image.mode}")
    part = image.crop(spec.box(image.width, image.height))
    return np.asarray(part if part.size == (spec.size, spec.size) else _resized(part, spec))


def _resized(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    resampling = _RESAMPLING[spec.filter]
    if image.width != image.height:
        # Across first, then down, in two calls: each pass rounds, and Pillow 13 turns the order round where a box is
        # tall, Pillow 12 does not, so a verdict would depend on Pillow's version. A square box is always taken so.
        image = image.resize((spec.size, image.height), resampling)
    return image.resize((spec.size, spec.size), resampling)


def batch_from_squares(squares: Sequence[PixelsHWC], spec: PreprocessSpec) -> BatchBCHW:
    """Normalise squares of the input size and lay them out as `batch_BCHW`, float32."""
    scale_C, bias_C = spec.affine()
    batch_BCHW = np.empty((len(squares), 3, spec.size, spec.size), dtype=np.float32)
    for index, square_HWC in enumerate(squares):
        np.multiply(square_HWC.transpose(2, 0, 1), scale_C[:, None, None], out=batch_BCHW[index])
    batch_BCHW += bias_C[:, None, None]
    return batch_BCHW


def batch_from_pixels(images: Sequence[PixelsHWC], spec: PreprocessSpec) -> BatchBCHW:
    """The network's input for decoded images of any sizes: `batch_BCHW`, float32.

    Raises:
        ValueError: an image is not uint8 RGB.
    """
    return batch_from_squares([square_from_pixels(pixels_HWC, spec) for pixels_HWC in images], spec)
