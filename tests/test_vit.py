"""A ViT is exported, halved, explained and judged as a LeViT is; its checkpoint is the trained part alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose
from pocket_vit import NAME, REGISTERS, SIZE, encoder_file, pocket_vit
from safetensors.torch import save_file

from aivsreal.export.cli import main as export
from aivsreal.export.gradcam import gradcam_graph_from_network
from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
from aivsreal.export.graphs.half import half_from_onnx
from aivsreal.export.graphs.parity import HALF, SAME_WEIGHTS, check, parity
from aivsreal.export.graphs.reference import Reference
from aivsreal.export.graphs.session import onnx_logits, torch_logits
from aivsreal.runtime.backends.torch import network_from_bundle
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.explain import Layer, Method, map_from_network
from aivsreal.runtime.networks.arch import fused_network, network_from_arch
from aivsreal.runtime.networks.mapped import STAGES, MappedNetwork, round_to_half
from aivsreal.runtime.networks.vit import ProbedVit, low_rank, trained_names
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import Label

SPEC = PreprocessSpec(SIZE, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


def vit(arch: str = NAME, seed: int = 0) -> ProbedVit:
    """With low-rank changes that count."""
    network = pocket_vit(seed, arch)
    low_rank(network, 3, first=1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def network() -> ProbedVit:
    return vit()


@pytest.fixture(scope="module")
def fused(network: ProbedVit) -> MappedNetwork:
    return fused_network(network, NAME, SIZE)


@pytest.fixture(scope="module")
def stored(fused: MappedNetwork) -> Any:
    return with_half_weights(onnx_from_network(fused, SPEC))


@pytest.fixture(scope="module")
def batch_BCHW() -> np.ndarray[Any, Any]:
    return Reference(count=5).batch(SPEC)


@pytest.mark.parametrize("arch", [NAME, REGISTERS])
def test_a_fused_vit_computes_what_the_trained_one_does(arch: str) -> None:
    network = vit(arch)
    batch_BCHW = torch.randn(3, 3, SIZE, SIZE)
    fused = fused_network(network, arch, SIZE)
    assert not any("down" in name or "token" in name for name in fused.state_dict())
    with torch.inference_mode():
        expected_B1 = network(batch_BCHW)
        assert expected_B1.std() > 0.05
        for logits_B1, map_Bhw in (network.logits_and_map(batch_BCHW), fused.logits_and_map(batch_BCHW)):
            assert_allclose(logits_B1, expected_B1, atol=1e-5)
            assert map_Bhw.shape == (3, *network.resolution)
            assert_allclose(map_Bhw.mean(dim=(1, 2)), expected_B1[:, 0], atol=1e-5)
            assert map_Bhw.std(dim=(1, 2)).min() > 1e-3
        assert_allclose(fused(batch_BCHW), expected_B1, atol=1e-5)


def test_the_graph_is_lean_names_its_weights_and_computes_what_pytorch_does(
    network: ProbedVit, fused: MappedNetwork, stored: Any, batch_BCHW: np.ndarray[Any, Any]
) -> None:
    kinds = {node.op_type for node in stored.graph.node}
    assert not kinds & {
        "Shape",
        "Gather",
        "Expand",
        "Where",
        "Pad",
        "ConstantOfShape",
        "BatchNormalization",
        "Identity",
    }
    names = {tensor.name.removesuffix(".half") for tensor in stored.graph.initializer}
    assert names >= set(fused.state_dict())
    logits_B = onnx_logits(stored.SerializeToString(), batch_BCHW)
    check("ONNX", parity(torch_logits(round_to_half(fused), batch_BCHW), logits_B), SAME_WEIGHTS)
    assert_allclose(logits_B, torch_logits(network, batch_BCHW), atol=0.01)


def test_half_holds_its_tolerance_and_its_head_is_full(stored: Any, batch_BCHW: np.ndarray[Any, Any]) -> None:
    half = half_from_onnx(stored)
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == 3  # one probed block, and both parts of the last one
    full_B, half_B = (onnx_logits(model.SerializeToString(), batch_BCHW) for model in (stored, half))
    assert np.abs(half_B - full_B).max() > 0
    check("half", parity(full_B, half_B), HALF)


def test_the_tensorrt_builder_takes_both_graphs_of_half(fused: MappedNetwork, stored: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from aivsreal.export.engine import BuildOptions, EngineBuilder
    from aivsreal.runtime.bundle.engine_key import EngineKind

    options = BuildOptions(max_batch=4, compute_capabilities=("8.0",))
    builder = EngineBuilder(trt, EngineKind.TENSORRT_RTX, options, None)
    engine = builder.engine_from_onnx(half_from_onnx(stored).SerializeToString(), SPEC, "0" * 64)
    assert engine.card.half_layers > 0.7 * engine.card.layers
    assert engine.plan


@pytest.mark.parametrize("stage", STAGES)
def test_grad_cam_as_a_graph_and_of_pytorch_grad_cam_agree(
    fused: MappedNetwork, batch_BCHW: np.ndarray[Any, Any], stage: str
) -> None:
    import onnxruntime

    graph = gradcam_graph_from_network(fused, SPEC, stage)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    logits_B1, maps_Bhw = session.run(["logits", "map"], {"pixels_BCHW": batch_BCHW})
    assert_allclose(logits_B1.ravel(), torch_logits(fused, batch_BCHW), atol=1e-4)
    assert maps_Bhw.shape == (5, 4, 4)
    for index in range(len(batch_BCHW)):
        one = batch_BCHW[index : index + 1]
        _, _, map_hw = map_from_network(fused, one, Method.GRADCAM, Layer(stage), Label.AI)
        assert np.abs(map_hw).max() > 0
        assert_allclose(maps_Bhw[index], map_hw, atol=1e-4 * float(np.abs(map_hw).max()))


def run_of(network: ProbedVit, folder: Path, encoder_sha256: str) -> Path:
    """What `aivsreal-train` leaves of it."""
    folder.mkdir()
    values = network.state_dict()
    save_file({name: values[name].contiguous() for name in trained_names(network)}, folder / "best.safetensors")
    card = {
        "format": 1, "arch": NAME, "labels": ["real", "ai"], "spec": SPEC.to_json(),
        "config": {"preset": "accurate", "seed": 0, "epochs": 1, "spec": SPEC.to_json(), "encoder": encoder_sha256},
        "chosen_on": "val_unseen", "data_digest": "0" * 64, "data_counts": {"train/ai": {"one": 1}},
        "data_licences": {"one": "CC0"}, "versions": {"torch": "2"}, "epoch": 1, "metrics": {"epoch": 1},
        "started_from": {"encoder": {"name": "encoder.safetensors", "sha256": encoder_sha256}},
        "weights": "best.safetensors",
        "weights_sha256": hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest(),
    }  # fmt: skip
    (folder / "best.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of its encoder, as others publish one."""
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def test_a_run_and_its_encoder_become_a_bundle_and_no_other_encoder_does(
    network: ProbedVit, encoder: Path, batch_BCHW: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(encoder.read_bytes()).hexdigest()
    run = run_of(network, tmp_path / "run", sha256)
    arguments = [str(run), "-o", str(tmp_path / "bundle"), "--fp16", "--no-engine"]
    missing = CliRunner().invoke(export, arguments)
    assert missing.exit_code == 2
    assert "--encoder" in missing.stderr
    assert sha256 in missing.stderr.replace("\n", "").replace(" ", "") or sha256[:8] in missing.stderr
    result = CliRunner().invoke(export, [*arguments, "--encoder", str(encoder)])
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.arch == NAME
    assert "encoder.safetensors" in bundle.read("README.md").decode()
    judged = network_from_bundle(bundle)
    assert_allclose(torch_logits(judged, batch_BCHW), torch_logits(network, batch_BCHW), atol=0.01)
    other = tmp_path / "other.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 32)}, other)
    refused = CliRunner().invoke(export, [*arguments, "--encoder", str(other)])
    assert refused.exit_code == 2
    assert "another encoder" in refused.stderr


def test_weights_of_an_unknown_name_are_no_arch() -> None:
    for arch in ("vit_none", "vit_wee_patch16_reg1_gap_256", "resnet50"):
        with pytest.raises(ValueError, match=arch):
            network_from_arch(arch, SIZE)


def test_the_kept_weights_of_a_graph_are_the_networks(stored: Any, fused: MappedNetwork) -> None:
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stored.graph.initializer}
    name = "encoder.blocks.1.mlp.fc1.weight"
    assert_allclose(tensors[f"{name}.half"], fused.state_dict()[name].half())
