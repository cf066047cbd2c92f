"""The shortcut audit: how far global pixel statistics and file properties alone tell the classes apart.

A detector that does not clearly beat these has learned the data set and not the images.

Legend: B image; H, W image height and width; C channel (3, RGB); F statistic; P parameter, F and a bias.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.train.evaluate.logistic import logistic_weights
from aivsreal.train.evaluate.metrics import Floats, TargetB, auc
from aivsreal.train.samples import Sample

STATISTICS = (
    "red_mean", "green_mean", "blue_mean", "red_std", "green_std", "blue_std", "saturation_mean", "saturation_std",
    "gradient_energy", "laplacian_variance", "high_frequency_share", "edge_density", "blockiness", "entropy",
    "noise_std",
)  # fmt: skip
_SIDE = 1024  # of the centred part that is looked at: bounds the time for camera files
_EDGE = 30.0  # grey levels between neighbours that count as an edge
_BLOCK = 8  # pixels of a JPEG block


def statistics_from_pixels(pixels_HWC: PixelsHWC) -> Floats:
    """The fifteen `STATISTICS` of an image as `statistics_F`; energy, variance and noise on a `log(1 + x)` scale.

    Gradients are differences of neighbouring grey values (Rec. 601); the high frequencies are those beyond half the
    Nyquist frequency, as a share of the windowed spectrum's power; blockiness is the mean step across the 8x8 grid over
    the mean step elsewhere; the noise is what a 3x3 median takes away.
    """
    height, width = pixels_HWC.shape[:2]
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    part_HWC = np.ascontiguousarray(pixels_HWC[top : top + _SIDE, left : left + _SIDE])
    colour_HWC = part_HWC.astype(np.float32)
    grey = Image.fromarray(part_HWC).convert("L")
    grey_HW = np.asarray(grey, dtype=np.float32)

    brightest_HW, darkest_HW = colour_HWC.max(axis=2), colour_HWC.min(axis=2)
    saturation_HW = (brightest_HW - darkest_HW) / np.maximum(brightest_HW, 1.0)
    across_HW, down_HW = np.abs(np.diff(grey_HW, axis=1)), np.abs(np.diff(grey_HW, axis=0))
    laplacian_HW = (
        grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:] - 4 * grey_HW[1:-1, 1:-1]
    )
    share_256 = np.asarray(grey.histogram(), dtype=np.float64) / grey_HW.size
    noise_HW = grey_HW - np.asarray(grey.filter(ImageFilter.MedianFilter(3)), dtype=np.float32)
    values = [
        *colour_HWC.mean(axis=(0, 1)),
        *colour_HWC.std(axis=(0, 1)),
        saturation_HW.mean(),
        saturation_HW.std(),
        np.log1p((across_HW**2).mean() + (down_HW**2).mean()),
        np.log1p(laplacian_HW.var()),
        _high_frequency_share(grey_HW),
        ((across_HW[1:] + down_HW[:, 1:]) > _EDGE).mean(),
        (_grid_step(across_HW.mean(axis=0)) + _grid_step(down_HW.mean(axis=1))) / 2,
        -(share_256 * np.log2(np.maximum(share_256, 1e-12))).sum(),
        np.log1p(noise_HW.std()),
    ]
    return np.asarray(values, dtype=np.float64)


def _high_frequency_share(grey_HW: npt.NDArray[np.float32]) -> float:
    height, width = grey_HW.shape
    # The window keeps the image's border, a step for the Fourier transform, out of the high frequencies.
    window_HW = np.outer(np.hanning(height), np.hanning(width))
    power_HW = np.abs(np.fft.rfft2((grey_HW - grey_HW.mean()) * window_HW)) ** 2
    radius_HW = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return float(power_HW[radius_HW > 0.25].sum() / max(power_HW.sum(), 1e-9))


def _grid_step(step_W: npt.NDArray[np.float32]) -> float:
    on_grid_W = np.arange(1, len(step_W) + 1) % _BLOCK == 0
    return float((step_W[on_grid_W].mean() + 1e-3) / (step_W[~on_grid_W].mean() + 1e-3))


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """A logistic regression on `STATISTICS`."""

    mean_F: Floats
    std_F: Floats
    weight_F: Floats
    bias: float
    images: int
    """How many it was fitted on."""

    def logits(self, statistics_BF: Floats) -> Floats:
        """`logits_B`: above 0 is ai."""
        logits_B: Floats = (statistics_BF - self.mean_F) / self.std_F @ self.weight_F + self.bias
        return logits_B


def baseline_from_statistics(statistics_BF: Floats, target_B: TargetB, l2: float = 1.0) -> Baseline:
    """A `Baseline` on standardised statistics, whose weights are penalised by `l2/2 |weight|^2`; its bias is not.

    Raises:
        ValueError: a class is empty.
    """
    if not (target_B == 1).any() or not (target_B == 0).any():
        raise ValueError("the baseline needs images of both classes")
    mean_F, std_F = statistics_BF.mean(axis=0), np.maximum(statistics_BF.std(axis=0), 1e-9)
    inputs_BP = np.column_stack([(statistics_BF - mean_F) / std_F, np.ones(len(target_B))])
    weights_P = logistic_weights(inputs_BP, target_B, np.append(np.full(statistics_BF.shape[1], l2), 1e-9))
    return Baseline(mean_F, std_F, weights_P[:-1], float(weights_P[-1]), len(target_B))


def property_aucs(samples: Sequence[Sample]) -> dict[str, float]:
    """AUC of each file property alone, `max(auc, 1 - auc)`: 0.5 gives nothing away, 1 gives the class away.

    Formats have no order of their own: they are put in that of their share of AI images among these samples. Files
    whose header cannot be read are left out.

    Raises:
        ValueError: no readable file of a class is left.
    """
    columns: dict[str, list[float]] = defaultdict(list)
    formats, targets = [], []
    for sample in samples:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large or odd files: only the header is read
                with Image.open(sample.path) as image:
                    width, height, name = image.width, image.height, image.format or ""
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        columns["width"].append(width)
        columns["height"].append(height)
        columns["pixels"].append(width * height)
        columns["aspect"].append(width / height)
        columns["bytes_per_pixel"].append(sample.path.stat().st_size / (width * height))
        formats.append(name)
        targets.append(sample.target)
    files, of_ai = Counter(formats), Counter(name for name, target in zip(formats, targets, strict=True) if target)
    columns["format"] = [of_ai[name] / files[name] for name in formats]
    target_B = np.asarray(targets)
    areas = {name: auc(target_B, np.asarray(column)) for name, column in columns.items()}
    return {name: max(area, 1 - area) for name, area in areas.items()}
