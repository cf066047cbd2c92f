"""Grad-CAM exported as a graph: equal to pytorch-grad-cam, for any batch, taken by the TensorRT-RTX builder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aivsreal.export.gradcam import gradcam_from_network, gradcam_graph_from_network
from aivsreal.export.graphs.full import with_half_weights
from aivsreal.runtime.backends.torch import network_from_bundle
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.networks.levit import FusedLevit
from aivsreal.runtime.networks.mapped import STAGES


@pytest.fixture(scope="module")
def network(map_bundle: Path) -> FusedLevit:
    return network_from_bundle(Bundle.open(map_bundle))


@pytest.fixture(scope="module")
def graph(network: FusedLevit, map_bundle: Path) -> Any:
    """Of stage 2: at stage 3 it would be the exact map, and stage 1 is traced by the command's test below."""
    return with_half_weights(gradcam_graph_from_network(network, Bundle.open(map_bundle).manifest.spec, "stage2"))


def test_the_graphs_map_is_that_of_pytorch_grad_cam(network: FusedLevit, graph: Any) -> None:
    import onnxruntime
    from pytorch_grad_cam import GradCAM

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    layer = network.body.stages[STAGES.index("stage2")]  # type: ignore[index]
    for count in (1, 3):  # the trace had two
        batch_BCHW = np.random.default_rng(count).normal(size=(count, 3, 224, 224)).astype(np.float32)
        logits_B1, maps_Bhw = session.run(["logits", "map"], {"pixels_BCHW": batch_BCHW})
        assert maps_Bhw.shape == (count, 7, 7)
        with torch.inference_mode():
            expected_B1 = network(torch.from_numpy(batch_BCHW)).numpy()
        np.testing.assert_allclose(logits_B1, expected_B1, atol=1e-4)
        with GradCAM(network, [layer]) as cam:
            pixels = torch.from_numpy(batch_BCHW).requires_grad_(True)
            shown_BHW = cam(pixels, [lambda output: output.sum()] * count)
            kept = cam.activations_and_grads
            values = [part[0].numpy() for part in (kept.activations, kept.gradients)]
            raw_Bhw = cam.get_cam_image(pixels, layer, [], *values)
        largest_B11 = np.abs(raw_Bhw).max(axis=(1, 2), keepdims=True)  # Grad-CAM has no unit
        np.testing.assert_allclose(maps_Bhw / largest_B11, raw_Bhw / largest_B11, atol=1e-4)
        from pytorch_grad_cam.utils.image import scale_cam_image

        ours_BHW = scale_cam_image(scale_cam_image(np.maximum(maps_Bhw, 0), (224, 224)))
        np.testing.assert_allclose(ours_BHW, shown_BHW, atol=1e-4)


def test_weights_are_stored_once_and_in_half(graph: Any, map_bundle: Path) -> None:
    plain = (map_bundle / "model.onnx").stat().st_size
    assert len(graph.SerializeToString()) < 1.1 * plain


def test_the_tensorrt_builder_takes_the_graph(graph: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    taken = parser.parse(graph.SerializeToString())
    assert taken, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels_BCHW", (1, 3, 224, 224), (4, 3, 224, 224), (8, 3, 224, 224))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert {network.get_output(index).name for index in range(network.num_outputs)} == {"logits", "map"}


def test_an_unknown_stage_is_refused(network: FusedLevit, map_bundle: Path) -> None:
    with pytest.raises(ExportError, match="stage1"):
        gradcam_graph_from_network(network, Bundle.open(map_bundle).manifest.spec, "stage4")


def test_the_export_command_puts_the_graph_into_the_bundle(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from aivsreal.export.cli import main

    arguments = [tiny_run, "-o", tmp_path / "bundle", "--reference", tiny_data, "--gradcam", "stage1"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "gradcam.onnx: Grad-CAM of stage1" in result.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    assert set(bundle.manifest.files) == {"README.md", "evaluation.json", "gradcam.onnx", "model.onnx"}
    noted: Any = bundle.manifest.provenance["gradcam"]
    assert noted["layer"] == "stage1"
    assert 0 <= noted["parity"] <= 1e-4


def test_a_map_that_is_not_pytorchs_is_refused(
    network: FusedLevit, graph: Any, map_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aivsreal.export.gradcam.gradcam_graph_from_network", lambda *_: graph)
    spec = Bundle.open(map_bundle).manifest.spec
    batch_BCHW = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    content, worst = gradcam_from_network(network, spec, "stage2", 17, batch_BCHW)
    assert content == graph.SerializeToString(deterministic=True)
    assert worst <= 1e-4
    with pytest.raises(ExportError, match="nothing was written"):  # the graph is of another head
        gradcam_from_network(with_other_head(network), spec, "stage2", 17, batch_BCHW)


def with_other_head(network: FusedLevit) -> FusedLevit:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.weight.mul_(torch.linspace(0.5, 1.5, other.head.weight.shape[1]))
    return other
