"""Other looks for a training image, drawn alike for both classes, so that a drawn or printed look gives no class away.

The AI images at hand are often painted and the real ones nearly always photographed; without this, a network learns
that difference: comic pages drawn by people are then called AI.
Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

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


def laid_out(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image as a page: a frame, bars of colour, lines of large type, or panels of its own parts.

    Posters are common among the AI images at hand and rare among the real ones; type and frames must not decide.
    """
    page = image.copy()
    width, height = page.size
    if rng.random() < 0.3:  # panels
        columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        gap = int(rng.integers(0, 5))
        for column in range(columns):
            for row in range(rows):
                left, top = (int(rng.integers(0, 1 + side // 2)) for side in (width, height))
                part = image.crop((left, top, left + width // 2, top + height // 2))
                cell = (width // columns - gap, height // rows - gap)
                page.paste(part.resize(cell), (column * width // columns, row * height // rows))
    draw = ImageDraw.Draw(page)
    if rng.random() < 0.3:  # a frame
        draw.rectangle((0, 0, width - 1, height - 1), outline=_colour(rng), width=int(rng.integers(2, 1 + width // 10)))
    for _ in range(int(rng.integers(0, 3))):  # bars, upright or flat
        start, thick = int(rng.integers(0, height)), int(rng.integers(4, height // 4))
        flat = rng.random() < 0.7
        draw.rectangle((0, start, width, start + thick) if flat else (start, 0, start + thick, height), _colour(rng))
    for _ in range(int(rng.integers(1, 5))):  # type
        size = int(height * rng.uniform(0.05, 0.25))
        text = "".join(_LETTERS[int(letter)] for letter in rng.integers(0, len(_LETTERS), int(rng.integers(3, 16))))
        place = (int(rng.integers(-width // 4, width * 3 // 4)), int(rng.integers(0, height - size)))
        outline = int(rng.integers(0, 1 + size // 12))
        draw.text(
            place, text, _colour(rng), ImageFont.load_default(size), stroke_width=outline, stroke_fill=_colour(rng)
        )
    return page


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    if rng.random() < 0.4:  # paper and ink are more common than all other colours
        return (255, 255, 255) if rng.random() < 0.5 else (0, 0, 0)
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return (red, green, blue)


_LETTERS = "ABCDEFGHIKLMNOPRSTUVW abcdefghiklmnoprstuvwxyz 0123456789!?&"
LOOKS: tuple[Look, ...] = (posterised, line_drawing, cartoon, printed_grey, duotone, equalised)
