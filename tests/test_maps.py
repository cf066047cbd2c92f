"""Maps that come with the logits: their mean is the logit, they are last-stage Grad-CAM, and all backends agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import squares_of, write_image

from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.explain import Explainer
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.verdict import Label


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    folder = tmp_path_factory.mktemp("images")
    sizes = ((300, 260), (224, 500), (90, 120))
    return [pixels_from_file(write_image(folder / f"{i}.png", i, size)) for i, size in enumerate(sizes)]


def _open(path: Path, kind: str) -> Any:
    return open_backend(Bundle.open(path), kind, threads=1)[0]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_logit_is_the_mean_of_its_map(map_bundle: Path, images: list[np.ndarray], kind: str) -> None:
    backend = _open(map_bundle, kind)
    squares = squares_of(Bundle.open(map_bundle), images)
    scores = backend.run(squares, maps=True)
    logits_B, maps_Bhw = scores.logits_B, scores.maps_Bhw
    assert maps_Bhw.shape == (3, 4, 4)
    assert maps_Bhw.dtype == np.float32
    assert np.ptp(maps_Bhw, axis=(1, 2)).min() > 0.02
    np.testing.assert_allclose(maps_Bhw.mean(axis=(1, 2)), logits_B, atol=1e-5)
    alone = backend.run(squares)
    np.testing.assert_allclose(alone.logits_B, logits_B, atol=1e-6)
    assert alone.maps_Bhw is None
    none = backend.run([], maps=True)
    assert [len(none.logits_B), len(none.maps_Bhw)] == [0, 0]
    backend.close()


def test_onnx_and_pytorch_give_the_same_map(map_bundle: Path, images: list[np.ndarray]) -> None:
    squares = squares_of(Bundle.open(map_bundle), images)
    ours, theirs = (_open(map_bundle, kind).run(squares, maps=True).maps_Bhw for kind in ("onnx", "torch"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_map_is_last_stage_gradcam_before_the_relu(map_bundle: Path, images: list[np.ndarray]) -> None:
    """Grad-CAM has the gradient of the mean over the tokens, and not the bias: so map = tokens * Grad-CAM + bias."""
    explainer = Explainer(map_bundle)
    bias = float(explainer.network.head.bias)  # type: ignore[arg-type]
    squares = squares_of(explainer.bundle, images)
    maps_Bhw = _open(map_bundle, "onnx").run(squares, maps=True).maps_Bhw
    for pixels_HWC, map_hw in zip(images, maps_Bhw, strict=True):
        gradcam_hw = explainer.explain(pixels_HWC, of=Label.AI).map_hw
        np.testing.assert_allclose(map_hw, gradcam_hw * gradcam_hw.size + bias, atol=1e-5)


def test_a_bundle_from_before_maps_says_what_to_do(map_bundle: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    bundle = Bundle.open(map_bundle)
    model = onnx.load_from_string(bundle.read("model.onnx"))
    del model.graph.output[1]
    files = {"model.onnx": model.SerializeToString()}
    old = write_bundle(tmp_path / "old", files, replace(bundle.manifest, files={}))
    backend = _open(old.path, "onnx")
    assert not backend.has_maps
    squares = squares_of(bundle, images)
    assert len(backend.run(squares).logits_B) == 3
    with pytest.raises(BackendError, match="aivsreal-export"):
        backend.run(squares, maps=True)
