"""Which part of an image the network should see: the spec's box, the squashed whole, or several views averaged.

Run `python -m aivsreal.benchmarks.studies.geometry DATA --bundle FOLDER`. A view costs one run of the network, so
several must gain more than noise to be worth it on a small device.
Legend: B image; V view; H, W image height and width; C channel (3, RGB); S input size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.backends.protocol import Backend
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC, square_from_pixels
from aivsreal.runtime.spec import Box, Geometry, PreprocessSpec
from aivsreal.train.evaluate.bootstrap import measures
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.samples import Sample, in_split, limited, samples_from_data

Views = Callable[[PixelsHWC, PreprocessSpec], list[PixelsHWC]]
FloatB = npt.NDArray[np.float64]
DRAWS = 500


def one(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """The box of the spec."""
    return [square_from_pixels(pixels_HWC, spec)]


def squash(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """The whole image, its aspect ratio given up."""
    return [square_from_pixels(pixels_HWC, replace(spec, geometry=Geometry.SQUASH))]


def whole_short_side(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """The largest centred square."""
    return [square_from_pixels(pixels_HWC, replace(spec, geometry=Geometry.CENTRE_CROP, crop_fraction=1.0))]


def mirrored(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """The box of the spec and its mirror image."""
    (square_SSC,) = one(pixels_HWC, spec)
    return [square_SSC, np.ascontiguousarray(square_SSC[:, ::-1])]


def five_crops(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """A square of the spec's size at the centre and in each corner."""
    height, width = pixels_HWC.shape[:2]
    side = max(1, round(min(height, width) * spec.crop_fraction))
    right, bottom = width - side, height - side
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    boxes: list[Box] = [(left, top, left + side, top + side) for left, top in corners]
    return [square_from_pixels(pixels_HWC, spec, box) for box in boxes]


def ten_crops(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """The five crops and their mirror images."""
    squares = five_crops(pixels_HWC, spec)
    return squares + [np.ascontiguousarray(square_SSC[:, ::-1]) for square_SSC in squares]


def three_scales(pixels_HWC: PixelsHWC, spec: PreprocessSpec) -> list[PixelsHWC]:
    """Centred squares of three sizes."""
    centred = replace(spec, geometry=Geometry.CENTRE_CROP)
    return [square_from_pixels(pixels_HWC, replace(centred, crop_fraction=share)) for share in (0.7, 0.875, 1.0)]


GEOMETRIES: dict[str, Views] = {
    "spec": one,
    "squash": squash,
    "whole-short-side": whole_short_side,
    "mirrored": mirrored,
    "three-scales": three_scales,
    "five-crops": five_crops,
    "ten-crops": ten_crops,
}


def mean_logits(
    images: Sequence[PixelsHWC], views: Views, spec: PreprocessSpec, backend: Backend
) -> npt.NDArray[np.float32]:
    """`logits_B`, the mean over the views of each image."""
    squares_BV = [views(pixels_HWC, spec) for pixels_HWC in images]
    logits_V = backend.run([square_SSC for squares_V in squares_BV for square_SSC in squares_V]).logits_B
    mean_B: npt.NDArray[np.float32] = logits_V.reshape(len(images), -1).mean(axis=1)
    return mean_B


def auc_gain(target_B: npt.NDArray[np.int64], base_B: FloatB, other_B: FloatB) -> tuple[float, float, float]:
    """AUC of `other_B` less that of `base_B` with its 95 % interval, from a stratified bootstrap of the same images."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(target_B == label) for label in (0, 1)]
    gains = []
    for _ in range(DRAWS):
        at_B = np.concatenate([rng.choice(group, len(group)) for group in groups])
        gains.append(auc(target_B[at_B], other_B[at_B]) - auc(target_B[at_B], base_B[at_B]))
    low, high = np.quantile(gains, (0.025, 0.975))
    return auc(target_B, other_B) - auc(target_B, base_B), float(low), float(high)


def compared(samples: Sequence[Sample], detector: Detector, batch_size: int = 16) -> list[dict[str, object]]:
    """A row for each geometry on one split.

    Raises:
        BackendError: the backend takes no squares.
        ImageError: an image cannot be read.
    """
    backend, spec = detector.backend, detector.bundle.manifest.spec
    if not backend.takes_squares:
        raise BackendError(f"the backend {backend.name} resizes by itself; use --backend onnx")
    target_B = np.array([sample.target for sample in samples])
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in GEOMETRIES}
    for start in range(0, len(samples), batch_size):
        images = [pixels_from_file(sample.path) for sample in samples[start : start + batch_size]]
        for name, views in GEOMETRIES.items():
            parts[name].append(mean_logits(images, views, spec, backend))
    logits = {name: np.concatenate(values).astype(np.float64) for name, values in parts.items()}
    probe_HWC = np.zeros((64, 64, 3), dtype=np.uint8)
    rows = []
    for name, logits_B in logits.items():
        measure = measures(target_B, logits_B, ("auc",))["auc"]
        gain, low, high = auc_gain(target_B, logits["spec"], logits_B)
        rows.append(
            {
                "geometry": name,
                "views": len(GEOMETRIES[name](probe_HWC, spec)),
                "auc": [round(measure.value, 4), round(measure.low, 4), round(measure.high, 4)],
                "auc_gain": [round(gain, 4), round(low, 4), round(high, 4)],
            }
        )
    return rows


@command("geometry")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--bundle", metavar="FOLDER", help="[default: the shipped one]")
@click.option("--split", "splits", multiple=True, default=["val_seen", "val_unseen"], show_default=True)
@click.option("--backend", default="onnx", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most this many images of each class and split.")
def main(data: Path, bundle: str | None, splits: Sequence[str], backend: str, limit: int | None) -> None:
    """Compare geometries on DATA with one bundle and print one JSON line for each and split."""
    with Detector.open(bundle, backend) as detector:
        about = {"benchmark": "geometry", "bundle": detector.bundle.digest, "backend": detector.backend.name}
        samples = samples_from_data(data)
        for split in splits:
            for row in compared(limited(in_split(samples, split), limit), detector):
                click.echo(json.dumps({**about, "split": split, **row, "machine": machine_facts()}))


if __name__ == "__main__":
    main()
