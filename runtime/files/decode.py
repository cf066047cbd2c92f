"""From a path to what the network needs of that file, as one job that a thread or a process of its own can do.

Legend: H, W image height and width; S input size; C channel (3, RGB).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.evidence.provenance import evidence_from_image
from aivsreal.runtime.pixels.images import MAX_PIXELS, opened
from aivsreal.runtime.pixels.read import Reader, snapshot_from_file, stamp_of
from aivsreal.runtime.preprocess import PixelsHWC, square_from_image, square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec, Window, Windows
from aivsreal.runtime.verdict import Evidence, FileStamp, Origin


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How files are decoded."""

    spec: PreprocessSpec | None = None
    """Reduce the pixels to the input's square; None keeps them, for a backend that resizes by itself."""
    frames: int = 1
    """At most so many frames of an animation or pages of a TIFF, spread evenly."""
    max_pixels: int = MAX_PIXELS
    by_content: bool = False
    """Put the SHA-256 of the content into the stamp."""
    least_side: int = 0
    """Short side that a JPEG may be decoded at, as of `images.pixels_from_file`; 0 decodes every pixel."""
    second: PreprocessSpec | None = None
    """Also reduce the pixels as a second model sees them, where that is another square; without `spec` they stay."""
    windows: Windows = field(default_factory=Windows)
    """Parts of each frame that are kept one by one; a second model is shown the whole."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.max_pixels < 1:
            raise ValueError(f"frames and max_pixels must be positive, not {self.frames} and {self.max_pixels}")
        if self.least_side < 0:
            raise ValueError(f"least_side must not be negative, not {self.least_side}")
        if self.second is not None and self.spec is None and not self.windows.parts:
            raise ValueError("whole pixels are kept: a second square can be made of them later")

    @property
    def largest(self) -> int:
        """Pixels of the largest array that comes of it."""
        return max([self.max_pixels, *(spec.size**2 for spec in (self.spec, self.second) if spec is not None)])

    def kept(self, frame: Image.Image) -> tuple[list[PixelsHWC], list[PixelsHWC]]:
        """What is kept of a loaded RGB frame: of each window for the first model, and of the whole for a second one."""
        if self.spec is None:
            pixels_HWC = np.asarray(frame)
            return cut(pixels_HWC, self.windows), [] if self.second is None else [pixels_HWC]
        first = [square_from_image(part, self.spec) for part in _parts(frame, self.windows)]
        return first, [] if self.second is None else [square_from_image(frame, self.second)]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of one file: pixels of its frames, or the error that prevented them."""

    path: Path
    stamp: FileStamp | None
    pixels: tuple[PixelsHWC, ...] = ()
    """`square_SSC` where the plan has a spec, else `pixels_HWC`; of each frame one for each window."""
    frames: tuple[int, ...] = ()
    """Index of each frame."""
    evidence: tuple[Evidence, ...] = ()
    error: str | None = None
    fault: Fault | None = None
    second: tuple[PixelsHWC, ...] = ()
    """Squares of the same frames for a second model, where the plan has a spec for it."""


def decoded_from_file(path: Path, plan: DecodePlan, read: Reader = snapshot_from_file) -> Decoded:
    """Read, check and decode one file. What is wrong with it is part of the result; nothing is raised for it."""
    stamp = None
    try:
        snapshot = read(path, plan.by_content)
        stamp = snapshot.stamp
        with opened(snapshot, plan.max_pixels) as picture:
            # Each frame is reduced before the next is decoded, and straight from Pillow's image: two copies fewer.
            frames = [(index, plan.kept(frame)) for index, frame in picture.frames(plan.frames, plan.least_side)]
            evidence = evidence_from_image(picture.image, snapshot.content)
            evidence += tuple(Evidence("decoding", Origin.UNSTATED, note) for note in dict.fromkeys(picture.notes))
    except ImageError as error:
        return undecoded(path, str(error), error.fault, stamp or stamp_of(path, plan.by_content))
    first, second = (tuple(one for _, kept in frames for one in kept[at]) for at in (0, 1))
    return Decoded(path, stamp, first, tuple(index for index, _ in frames), evidence, second=second)


def undecoded(path: Path, error: str, fault: Fault, stamp: FileStamp | None) -> Decoded:
    """A file that came to nothing; the message loses the path that it begins with, since the row has it."""
    return Decoded(path, stamp, error=error.removeprefix(f"{path}: "), fault=fault)


def decoded_too_late(path: Path, limit_s: float, stamp: FileStamp | None) -> Decoded:
    """A file that took longer than it may."""
    message = f"decoding took more than {limit_s:g} s: allow more with --time-limit"
    return undecoded(path, message, Fault.TIME_LIMIT, stamp)


def cut(pixels_HWC: PixelsHWC, windows: Windows) -> list[PixelsHWC]:
    """Each window of an image; what is not mirrored shares its memory."""
    height, width = pixels_HWC.shape[:2]
    boxes = windows.boxes(width, height)
    parts = [pixels_HWC[top:bottom, left:right] for left, top, right, bottom in boxes]
    return [
        np.ascontiguousarray(part_HWC[:, ::-1]) if window.mirrored else part_HWC
        for part_HWC, window in zip(parts, windows.parts or (Window(1.0),), strict=True)
    ]


def _parts(frame: Image.Image, windows: Windows) -> list[Image.Image]:
    if not windows.parts:
        return [frame]
    boxes = windows.boxes(*frame.size)
    return [
        frame.crop(box).transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else frame.crop(box)
        for box, window in zip(boxes, windows.parts, strict=True)
    ]


def reduced(pixels_HWC: PixelsHWC, spec: PreprocessSpec | None) -> PixelsHWC:
    """The square that the network sees, owning its memory; the pixels as they are where there is no spec."""
    if spec is None:
        return pixels_HWC
    square_SSC = square_from_pixels(pixels_HWC, spec)
    # A crop that already has the input's size is a view, which would keep the whole image alive.
    return square_SSC.copy() if square_SSC.base is not None else square_SSC
