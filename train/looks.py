"""Other looks for a training image, drawn alike for both classes, so that a drawn or printed look gives no class away.

The AI images at hand are often painted and the real ones nearly always photographed; without this, a network learns
that difference: comic pages drawn by people are then called AI.
Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Look = Callable[[Image.Image, np.random.Generator], Image.Image]


def restyled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The RGB image in one of `LOOKS`, which `rng` chooses; the size stays."""
    return LOOKS[int(rng.integers(len(LOOKS)))](image, rng)


def posterised(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Few flat colours."""
    return ImageOps.posterize(image.filter(ImageFilter.MedianFilter(3)), int(rng.integers(2, 5)))


def line_drawing(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark edges on white paper."""
    soft = image.convert("L").filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    return ImageOps.autocontrast(ImageOps.invert(soft.filter(ImageFilter.FIND_EDGES))).convert("RGB")


def cartoon(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Smooth areas with dark outlines."""
    smooth_HWC = np.asarray(image.filter(ImageFilter.MedianFilter(5)), dtype=np.float32)
    edge_HW = np.asarray(image.convert("L").filter(ImageFilter.FIND_EDGES), dtype=np.float32)
    ink_HW = np.clip((edge_HW - 30) / 60, 0, 1) * rng.uniform(0.3, 1.0)
    return Image.fromarray((smooth_HWC * (1 - ink_HW[..., None])).astype(np.uint8))


def printed_grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black and white with hard contrast, as a comic page is printed."""
    grey_HW = np.asarray(ImageOps.autocontrast(image.convert("L")), dtype=np.float32)
    hard_HW = np.clip((grey_HW - 128) * rng.uniform(1.5, 4.0) + 128, 0, 255)
    return Image.fromarray(hard_HW.astype(np.uint8)).convert("RGB")


def duotone(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """From one random dark colour to one random light one."""
    dark, light = rng.integers(0, 128, 3).tolist(), rng.integers(128, 256, 3).tolist()
    return ImageOps.colorize(ImageOps.autocontrast(image.convert("L")), tuple(dark), tuple(light))


def equalised(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Each channel's histogram made flat, mixed with the image."""
    return Image.blend(image, ImageOps.equalize(image), rng.uniform(0.4, 1.0))


LOOKS: tuple[Look, ...] = (posterised, line_drawing, cartoon, printed_grey, duotone, equalised)
