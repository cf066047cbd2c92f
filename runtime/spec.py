"""How decoded pixels become the network's input: one frozen value that training, export and every backend share.

Legend: H, W image height and width; S input size; C channel (3, RGB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from aivsreal.runtime.fields import from_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatC = npt.NDArray[np.float32]

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in whole pixels."""


class Geometry(str, Enum):
    """Which part of an image is resized to the square input."""

    CENTRE_CROP = "centre-crop"  # a centred square; keeps the aspect ratio
    SQUASH = "squash"  # the whole image, whatever its aspect ratio


class ResizeFilter(str, Enum):
    """Resampling kernel, always antialiased: its support grows with the scale, as in Pillow's `Image.resize`."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """Pixels to input: take a box, resize it antialiased to SxS, then `(value / 255 - mean) / std`, RGB, CHW.

    Raises:
        ValueError: a field is out of range.
    """

    size: int = 224
    """Side S of the square input in pixels."""
    geometry: Geometry = Geometry.CENTRE_CROP
    crop_fraction: float = 0.875
    """Side of the centred square over the image's short side; `squash` ignores it."""
    filter: ResizeFilter = ResizeFilter.BICUBIC
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")
        if not 0.0 < self.crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction must be in (0, 1], not {self.crop_fraction}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0.0:
            raise ValueError(f"mean and std need three channels and a positive std, not {self.mean} and {self.std}")

    def box(self, width: int, height: int) -> Box:
        """The part of a `width` x `height` image that is seen, as (left, top, right, bottom) in whole pixels.

        Whole pixels, so that a crop that already has the input's size is a copy: half a pixel of shift would blur it.
        Of a picture so large that it may be decoded at a smaller scale, pixels of that scale: a box that began at half
        of one moved p_ai by 0.005 in the mean, one that begins with a whole one by 0.001.
        """
        if self.geometry is Geometry.SQUASH:
            return (0, 0, width, height)
        step = halvings(min(width, height), self.least_side)
        across, down = -(-width // step), -(-height // step)
        side = max(1, round(min(across, down) * self.crop_fraction))
        left, top = (across - side) // 2, (down - side) // 2
        right, bottom = min(width, (left + side) * step), min(height, (top + side) * step)
        return (left * step, top * step, right, bottom)

    def same_square(self, other: PreprocessSpec) -> bool:
        """Whether both see the same square of an image; what they make of its values may differ."""
        return replace(self, mean=other.mean, std=other.std) == other

    @property
    def least_side(self) -> int:
        """Short side in pixels from which on a picture holds twice the input's size in the box, so that a decoder may
        scale it down to that: the antialiased resize then hides how.
        """
        share = 1.0 if self.geometry is Geometry.SQUASH else self.crop_fraction
        return math.ceil(2 * self.size / share)

    def affine(self) -> tuple[FloatC, FloatC]:
        """`(scale_C, bias_C)` with `input = value * scale_C + bias_C`: /255, mean and std folded into one step."""
        import numpy as np  # so that a bundle can be hashed while a command still loads numpy, see scan

        mean_C = np.asarray(self.mean, dtype=np.float64)
        std_C = np.asarray(self.std, dtype=np.float64)
        return (1.0 / (255.0 * std_C)).astype(np.float32), (-mean_C / std_C).astype(np.float32)

    def to_json(self) -> dict[str, object]:
        """The spec as JSON values; `spec_from_json` is its inverse."""
        return {**asdict(self), "geometry": self.geometry.value, "filter": self.filter.value, "antialias": True}


@dataclass(frozen=True, slots=True)
class Window:
    """A square part of an image that is judged as if it were an image of its own.

    Raises:
        ValueError: a field is out of range.
    """

    share: float
    """Its side over the image's short side."""
    across: float = 0.5
    """Where it lies: 0 touches the left edge, 1 the right one."""
    down: float = 0.5
    """0 touches the top, 1 the bottom."""
    mirrored: bool = False
    """Left and right are exchanged."""

    def __post_init__(self) -> None:
        if not (0.0 < self.share <= 1.0 and 0.0 <= self.across <= 1.0 and 0.0 <= self.down <= 1.0):
            raise ValueError(f"a window has a share in (0, 1] and lies in 0..1 across and down, not as {self}")


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows through which an image is judged; none is the whole image."""

    parts: tuple[Window, ...] = ()
    least_side: int = 1
    """Short side from which on a decoder may scale an image down: `PreprocessSpec.least_side` in the smallest."""

    @staticmethod
    def of(spec: PreprocessSpec, parts: tuple[Window, ...]) -> Windows:
        """For what a spec makes of each of them."""
        return Windows(parts, math.ceil(spec.least_side / min((one.share for one in parts), default=1.0)))

    def boxes(self, width: int, height: int) -> list[Box]:
        """Where they lie in a `width` x `height` image; in whole pixels of a smaller scale, as `PreprocessSpec.box`."""
        if not self.parts:
            return [(0, 0, width, height)]
        step = halvings(min(width, height), self.least_side)
        columns, rows = -(-width // step), -(-height // step)
        boxes = []
        for one in self.parts:
            side = max(1, round(min(columns, rows) * one.share))
            left, top = round((columns - side) * one.across), round((rows - side) * one.down)
            ends = (min(width, (left + side) * step), min(height, (top + side) * step))
            boxes.append((left * step, top * step, *ends))
        return boxes


def halvings(side: int, least: int) -> int:
    """The largest power of two by which a side may be divided, rounded up, without falling below `least`."""
    divisor = 1
    while -(-side // (2 * divisor)) >= max(1, least) and divisor < side:
        divisor *= 2
    return divisor


def spec_from_json(values: object) -> PreprocessSpec:
    """Read what `PreprocessSpec.to_json` wrote.

    Raises:
        ValueError: a field is missing, unknown, of the wrong kind or out of range.
    """
    found = dict(values) if isinstance(values, Mapping) else values
    if isinstance(found, dict) and found.pop("antialias", None) is not True:
        raise ValueError("preprocessing needs the field antialias, which is true: without it is not supported")
    return from_json(PreprocessSpec, found, "preprocessing")
