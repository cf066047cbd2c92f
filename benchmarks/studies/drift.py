"""What decoding at a smaller DCT scale does to p_ai, against decoding every pixel.

Images are enlarged with grain to sizes that are decoded at a half, a quarter and an eighth: see `photos`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aivsreal.benchmarks.cpu.photos import enlarged, jpeg_from_pixels
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.pixels.images import pixels_from_file, pixels_from_image
from aivsreal.runtime.verdict import Label

MEAN_BOUND = 3e-3
SIDES = (1200, 2400, 4800)  # short sides: decoded at 1/2, 1/4, 1/8 for an input of 224 pixels
_AT_ONCE = 8

Row = dict[str, Any]


def drift_row(detector: Detector, paths: Sequence[Path], grain: float, sides: Sequence[int] = SIDES) -> Row:
    """Mean and greatest difference of p_ai, and how many labels flip between `real` and `ai`.

    Raises:
        ImageError: an image cannot be read.
    """
    whole, scaled, divisors = [], [], []
    for pair in _pairs(detector, paths, grain, sides):
        whole.append(pair[0])
        scaled.append(pair[1])
        divisors.append(pair[2])
    point = detector.point
    difference = np.abs(np.subtract(whole, scaled))
    labels = [(point.label(a), point.label(b)) for a, b in zip(whole, scaled, strict=True)]
    flips = sum(a is not b and Label.UNSURE not in (a, b) for a, b in labels)
    by_divisor = {
        str(divisor): round(
            float(difference[[index for index, one in enumerate(divisors) if one == divisor]].mean()), 6
        )
        for divisor in sorted(set(divisors))
    }
    mean = float(difference.mean())
    return {
        "images": len(whole), "grain": grain, "short_sides": list(sides), "mean": round(mean, 6),
        "p99": round(float(np.quantile(difference, 0.99)), 6), "max": round(float(difference.max()), 6),
        "mean_by_divisor": by_divisor, "mean_bound": MEAN_BOUND, "flips_outside_unsure": flips,
        "labels_changed": sum(a is not b for a, b in labels), "holds": mean <= MEAN_BOUND and flips == 0,
    }  # fmt: skip


def _pairs(
    detector: Detector, paths: Sequence[Path], grain: float, sides: Sequence[int]
) -> Iterator[tuple[float, float, int]]:
    """p_ai of the whole picture, of the scaled one, and the divisor, of each image."""
    least = detector.bundle.manifest.spec.least_side
    for start in range(0, len(paths), _AT_ONCE):
        images, divisors = [], []
        for index, path in enumerate(paths[start : start + _AT_ONCE], start):
            side = sides[index % len(sides)]
            content = jpeg_from_pixels(enlarged(pixels_from_file(path), side * 4 // 3, side, index, grain))
            with Image.open(io.BytesIO(content)) as image:
                images.append(pixels_from_image(image))
            small = _scaled(content, least)
            images.append(small)
            divisors.append(round(images[-2].shape[0] / small.shape[0]))
        p_ai = [verdict.p_ai for verdict in detector.judge_many(images, batch_size=2 * _AT_ONCE)]
        yield from zip(p_ai[::2], p_ai[1::2], divisors, strict=True)


def _scaled(content: bytes, least_side: int) -> Any:
    """As a scan decodes it: through a file, since that is what a scan reads."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(content)
        file.flush()
        return pixels_from_file(Path(file.name), least_side=least_side)
