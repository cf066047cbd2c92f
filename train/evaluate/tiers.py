"""How images are delivered: as they are, through a web page, or through a chat; the same for both classes.

Legend: H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

from enum import Enum
from io import BytesIO

import numpy as np
from PIL import Image

from aivsreal.runtime.pixels.images import MIN_SIDE
from aivsreal.runtime.preprocess import PixelsHWC


class Tier(str, Enum):
    """What happened to an image on its way."""

    CLEAN = "clean"  # nothing
    WEB = "web"  # long side at most 768, JPEG quality 60
    HARD = "hard"  # long side at most 512, JPEG quality 40


_LONG_SIDE_AND_QUALITY = {Tier.WEB: (768, 60), Tier.HARD: (512, 40)}
_CHROMA_420 = 2  # Pillow's number for 4:2:0


def delivered(pixels_HWC: PixelsHWC, tier: Tier) -> PixelsHWC:
    """The pixels as they arrive: bicubic to the tier's long side, never enlarged, then JPEG with 4:2:0."""
    if tier is Tier.CLEAN:
        return pixels_HWC
    long_side, quality = _LONG_SIDE_AND_QUALITY[tier]
    image = Image.fromarray(pixels_HWC)
    scale = long_side / max(image.size)
    if scale < 1:
        # MIN_SIDE: a banner of 5000 x 20 must still be an image that can be judged.
        width, height = (min(side, max(MIN_SIDE, round(side * scale))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=_CHROMA_420)
    with Image.open(buffer, formats=("JPEG",)) as received:
        return np.asarray(received.convert("RGB"))
