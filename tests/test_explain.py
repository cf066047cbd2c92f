"""Grad-CAM of a bundle: equal to pytorch-grad-cam called the plain way, for many images, written by the command."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_image
from onnx import helper, numpy_helper
from PIL import Image

from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import INT8_MODEL
from aivsreal.runtime.commands.explain import main
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import BackendError, MissingExtra
from aivsreal.runtime.explain import _CLASSES, Explainer, Layer, Method, explain
from aivsreal.runtime.preprocess import batch_from_pixels
from aivsreal.runtime.verdict import Label


def _pixels(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> Explainer:
    return Explainer(tiny_bundle)


@pytest.mark.parametrize("layer", Layer)
@pytest.mark.parametrize("method", Method)
def test_a_map_is_that_of_pytorch_grad_cam(explainer: Explainer, method: Method, layer: Layer) -> None:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image

    network: Any = explainer.network
    batch_BCHW = torch.from_numpy(batch_from_pixels([_pixels(1)], explainer.bundle.manifest.spec)).requires_grad_(True)
    for sign, of in ((1.0, Label.AI), (-1.0, Label.REAL)):
        with getattr(pytorch_grad_cam, _CLASSES[method])(network, [network.body.stages[int(layer[-1]) - 1]]) as cam:
            reference_HW = cam(batch_BCHW, [lambda output, sign=sign: sign * output.sum()])[0]
        explanation = explainer.explain(_pixels(1), method, layer, of)
        assert explanation.map_hw.shape == {"stage1": (4, 4), "stage2": (2, 2), "stage3": (1, 1)}[layer.value]
        assert explanation.map_hw.any() or explanation.map_hw.size == 1  # EigenGradCAM centres: one cell becomes 0
        scaled_HW = scale_cam_image(scale_cam_image(explanation.positive_hw[None], (64, 64)))[0]
        np.testing.assert_allclose(scaled_HW, reference_HW, atol=1e-4)


def test_maps_are_held_against_fp32_where_a_cpu_runs_int8(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(tiny_bundle)
    model = onnx.load_from_string(opened.read("model.onnx"))
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.05), "head.bias"))
    files = {name: opened.read(name) for name in opened.manifest.files}
    content = {**files, INT8_MODEL: model.SerializeToString()}  # as far from FP32 as INT8 may be
    bundle = write_bundle(tmp_path / "bundle", content, opened.manifest)
    monkeypatch.setattr("aivsreal.runtime.backends.protocol.has_int8_products", lambda: True)
    assert Explainer(bundle).explain(_pixels(0), layer=Layer.STAGE1).map_hw.shape == (4, 4)


def test_many_images_can_be_explained_and_their_verdicts_are_the_detectors(explainer: Explainer) -> None:
    found = [explainer.explain(_pixels(seed), layer=Layer.STAGE1) for seed in range(3)]
    again = explain(_pixels(0), explainer.bundle, layer=Layer.STAGE1)
    with Detector.open(explainer.bundle.path, "onnx") as detector:
        for seed, explanation in enumerate(found):
            verdict = detector.judge(_pixels(seed))
            assert explanation.verdict.label is verdict.label
            assert explanation.verdict.logit == pytest.approx(verdict.logit, abs=1e-4)
            assert explanation.of is (Label.AI if verdict.logit >= 0 else Label.REAL)
    np.testing.assert_array_equal(again.map_hw, found[0].map_hw)
    assert (found[0].map_hw != found[1].map_hw).all()


def test_the_class_asked_for_turns_gradcam_over(explainer: Explainer) -> None:
    ai, real = (explainer.explain(_pixels(3), layer=Layer.STAGE1, of=of) for of in (Label.AI, Label.REAL))
    np.testing.assert_allclose(ai.map_hw, -real.map_hw, rtol=1e-4)
    assert (ai.signed_hw >= 0).all()
    assert (real.signed_hw <= 0).all()
    with pytest.raises(ValueError, match="unsure"):
        explainer.explain(_pixels(3), of=Label.UNSURE)


def test_an_explanation_leaves_no_hooks_and_no_gradients(explainer: Explainer) -> None:
    network: Any = explainer.network
    explainer.explain(_pixels(0))
    assert not any(module._forward_hooks for module in network.modules())
    assert all(weight.grad is None for weight in network.parameters())


def test_a_network_that_is_not_the_exported_one_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = onnx.load_from_string(bundle.read("model.onnx"))
    maker = next(node for node in model.graph.node if "logits" in node.output)
    maker.output[list(maker.output).index("logits")] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.25, dtype=np.float32), "shift"))
    model.graph.node.append(helper.make_node("Add", ["before", "shift"], ["logits"]))
    files = {"model.onnx": model.SerializeToString()}
    other = write_bundle(tmp_path / "other", files, replace(bundle.manifest, files={}))
    with pytest.raises(BackendError, match=r"differs from model\.onnx by 0\.25"):
        Explainer(other)


def test_without_grad_cam_the_extra_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(MissingExtra, match=r"pip install 'aivsreal\[explain\]'"):
        Explainer(tiny_bundle)


def _explain(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_writes_pictures_and_arrays(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("photos/a.jpg"), 1, size=(90, 120))
    write_image(Path("photos/b/a.jpg"), 2)
    Path("photos/broken.png").write_bytes(b"words")
    result = _explain("photos", "-o", "maps", "--bundle", tiny_bundle, "--layer", "stage1", "--class", "ai")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [row[0] for row in rows] == ["photos/a.jpg", "photos/b/a.jpg", "photos/broken.png"]
    assert rows[0][3:] == ["ai", "maps/photos/a.jpg.png"]
    assert rows[2][1] == "error"
    picture = Image.open("maps/photos/a.jpg.png")
    assert picture.size == (90, 120)
    assert "towards ai" in picture.text["Title"]
    assert "not what was edited" in picture.text["Description"]
    assert np.load("maps/photos/b/a.jpg.npy").shape == (4, 4)
    assert "logits within" in result.stderr
    assert "drew 2, errors 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.jpg"], "--out"),
        (["x.jpg", "-o", "maps", "--method", "lime"], "gradcam"),
        (["x.jpg", "-o", "maps", "--bundle", "absent"], "absent"),
    ],
)
def test_wrong_use_is_one_message_and_exit_status_2(arguments: list[str], words: str) -> None:
    result = _explain(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_folder_that_cannot_be_written_is_one_message(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "photos").touch()
    image = write_image(tmp_path / "photos" / "a.png", 1)
    (tmp_path / "maps" / "photos").unlink()
    (tmp_path / "maps").rmdir()
    (tmp_path / "maps").touch()
    result = CliRunner().invoke(main, [str(image), "-o", str(tmp_path / "maps" / "x"), "--bundle", str(tiny_bundle)])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
