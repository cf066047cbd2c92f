"""The reference preprocessing against Pillow, against the formula, and against stored vectors.

`python tests/test_preprocess.py` writes the vectors anew: only after a change that is meant to move every score.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aivsreal.runtime.preprocess import PixelsHWC, batch_from_pixels, batch_from_squares, square_from_pixels
from aivsreal.runtime.spec import Geometry, PreprocessSpec, ResizeFilter, spec_from_json

VECTORS = Path(__file__).parent / "data" / "reference.json.gz"
SIZES = ((32, 32), (37, 51), (64, 20), (150, 101))  # height, width
SPECS = [PreprocessSpec(24, geometry, 0.875, kernel) for geometry in Geometry for kernel in ResizeFilter]


def _pixels(height: int, width: int) -> PixelsHWC:
    """Waves and an edge from integer arithmetic alone, so that they are the same everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 7 + y * 3) % 256, (x * y) % 251, np.where(x > width // 2, 255, (y * y) % 97)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def reference_vectors() -> list[dict[str, Any]]:
    """Inputs by size; by spec the exact square and the digest of the exact float32 batch."""
    vectors: list[dict[str, Any]] = []
    for height, width in SIZES:
        pixels_HWC = _pixels(height, width)
        outputs = []
        for spec in SPECS:
            square_SSC = square_from_pixels(pixels_HWC, spec)
            digest = hashlib.sha256(batch_from_squares([square_SSC], spec).astype("<f4").tobytes()).hexdigest()
            outputs.append({"spec": spec.to_json(), "square": _text(square_SSC), "batch_sha256": digest})
        vectors.append({"height": height, "width": width, "pixels": _text(pixels_HWC), "outputs": outputs})
    return vectors


def _text(values: PixelsHWC) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _bytes(text: str) -> PixelsHWC:
    return np.frombuffer(base64.b64decode(text), np.uint8)


@pytest.fixture(scope="module")
def stored() -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads(gzip.decompress(VECTORS.read_bytes()))
    return vectors


def test_every_stored_vector_is_met_to_the_bit(stored: list[dict[str, Any]]) -> None:
    for vector in stored:
        pixels_HWC = _bytes(vector["pixels"]).reshape(vector["height"], vector["width"], 3)
        for output in vector["outputs"]:
            spec = spec_from_json(output["spec"])
            square_SSC = _bytes(output["square"]).reshape(spec.size, spec.size, 3)
            assert (square_from_pixels(pixels_HWC, spec) == square_SSC).all()
            batch_BCHW = batch_from_pixels([pixels_HWC], spec)
            assert hashlib.sha256(batch_BCHW.astype("<f4").tobytes()).hexdigest() == output["batch_sha256"]


def test_the_generator_still_writes_the_stored_vectors(stored: list[dict[str, Any]]) -> None:
    assert json.loads(json.dumps(reference_vectors())) == stored


def test_a_square_is_pillows_crop_and_resize() -> None:
    image = Image.fromarray(_pixels(151, 200))
    expected = image.crop((34, 9, 166, 141)).resize((224, 224), Image.Resampling.BICUBIC)
    assert (square_from_pixels(np.asarray(image), PreprocessSpec()) == np.asarray(expected)).all()


def test_a_box_of_the_inputs_size_is_a_copy() -> None:
    pixels_HWC = _pixels(256, 300)
    assert (square_from_pixels(pixels_HWC, PreprocessSpec()) == pixels_HWC[16:240, 38:262]).all()


def test_shrinking_averages_and_never_skips() -> None:
    stripes_HWC = np.zeros((256, 256, 3), np.uint8)
    stripes_HWC[:, ::2] = 255
    for kernel in ResizeFilter:
        square_SSC = square_from_pixels(stripes_HWC, PreprocessSpec(32, Geometry.SQUASH, filter=kernel))
        assert np.abs(square_SSC[:, 2:-2].astype(int) - 127.5).max() <= 2


def test_a_batch_is_normalised_and_laid_out() -> None:
    spec = PreprocessSpec(8, Geometry.SQUASH, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    squares = [_pixels(8, 8), _pixels(8, 8)[::-1]]
    batch_BCHW = batch_from_squares(squares, spec)
    assert (batch_BCHW.shape, batch_BCHW.dtype) == ((2, 3, 8, 8), np.float32)
    for b, c, y, x in ((0, 0, 1, 2), (1, 2, 7, 5), (1, 1, 3, 3)):
        expected = (squares[b][y, x, c] / 255 - spec.mean[c]) / spec.std[c]
        assert batch_BCHW[b, c, y, x] == pytest.approx(expected, abs=1e-6)


def test_an_empty_batch_has_its_shape() -> None:
    assert batch_from_pixels([], PreprocessSpec()).shape == (0, 3, 224, 224)


@pytest.mark.parametrize("pixels", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_what_is_not_rgb_bytes_is_refused(pixels: PixelsHWC) -> None:
    with pytest.raises(ValueError, match="uint8"):
        square_from_pixels(pixels, PreprocessSpec())


if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_bytes(gzip.compress(json.dumps(reference_vectors()).encode(), mtime=0))


@pytest.mark.parametrize(
    "change",
    [
        {"size": float("inf")}, {"size": 224.5}, {"size": True}, {"size": "224"}, {"mean": [0.5, float("inf"), 0.5]},
        {"std": [float("nan"), 1.0, 1.0]}, {"mean": [0.5]},
    ],
)  # fmt: skip
def test_nonsense_in_a_manifest_is_a_value_error(change: dict[str, object]) -> None:
    values = json.loads(json.dumps(PreprocessSpec().to_json()))
    assert spec_from_json(values) == PreprocessSpec()
    with pytest.raises(ValueError, match=r"whole number|finite|needs 3 values"):
        spec_from_json({**values, **change})
