"""INT8 is admitted by what was measured: accuracy on unseen sources, and speed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import write_image
from pocket_vit import NAME, SIZE, pocket_vit

from aivsreal.export.graphs.full import onnx_from_network
from aivsreal.export.graphs.half import full_from_onnx
from aivsreal.export.graphs.int8 import (
    Int8Gate,
    auc,
    check_gate,
    int8_from_onnx,
    int8_from_scales,
    labelled_batches,
    measure,
)
from aivsreal.export.graphs.int8_linear import scales_from_graph
from aivsreal.runtime.errors import DataError, ExportError
from aivsreal.runtime.machine import has_int8_products
from aivsreal.runtime.networks.arch import fused_network
from aivsreal.runtime.spec import PreprocessSpec

SPEC = PreprocessSpec(64)
GOOD = Int8Gate(885, 0.74, 0.738, 8.0, 4.0, 2.0, True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("int8")
    for split in ("train", "val_unseen"):
        for label in ("real", "ai"):
            for index in range(6):
                write_image(root / split / label / f"{index}.png", index, smooth=label == "ai")
    return root


def _quantised_share(content: bytes) -> float:
    """Share of the convolutions whose weight is INT8."""
    graph = onnx.load_from_string(content).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor).dtype for tensor in graph.initializer}
    made = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kinds = [stored.get(made.get(node.input[1], node.input[1])) for node in graph.node if node.op_type == "Conv"]
    return sum(kind == np.int8 for kind in kinds) / max(1, len(kinds))


def test_the_convolutions_become_int8_and_the_gate_measures_both_graphs(small_model: Any, data: Path) -> None:
    full = full_from_onnx(small_model).SerializeToString()
    content = int8_from_onnx(full, labelled_batches(data / "train", SPEC, 8))
    assert _quantised_share(content) == 1.0
    assert _quantised_share(full) == 0.0
    assert len(content) < 0.5 * len(full)
    session = onnxruntime.InferenceSession(content)
    assert session.get_modelmeta().custom_metadata_map["precision"] == "int8"
    gate = measure(full, content, data / "val_unseen", SPEC)
    assert gate.images == 12
    assert 0.0 <= gate.auc_int8 <= 1.0
    assert min(gate.ms_full, gate.ms_int8, gate.speedup) > 0
    batch_BCHW = next(labelled_batches(data / "val_unseen", SPEC, 12))
    outputs = [
        onnxruntime.InferenceSession(graph).run(["logits"], {"pixels_BCHW": batch_BCHW})[0] for graph in (full, content)
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 0
    assert np.corrcoef(outputs[0].ravel(), outputs[1].ravel())[0, 1] > 0.9


def test_the_linear_layers_of_a_vit_become_int8_and_its_head_does_not() -> None:
    fused = fused_network(pocket_vit(), NAME, SIZE)
    full = full_from_onnx(onnx_from_network(fused, PreprocessSpec(SIZE))).SerializeToString()
    rng = np.random.default_rng(0)
    batch_BCHW = rng.normal(size=(64, 3, SIZE, SIZE)).astype(np.float32)
    content = int8_from_onnx(full, [batch_BCHW])
    model = onnx.load_from_string(content)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (4 * 3, 3 * 4 * 3)
    levels = {
        tensor.name.removesuffix(".levels"): onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.endswith(".levels")
    }
    left = {node.input[1] for node in model.graph.node if node.op_type == "Gemm" and node.input[1].endswith(".weight")}
    assert left <= {"hidden.weight", "whole.weight"}
    assert Counter(values.dtype.name for values in levels.values()) == {"int8": 4 * 3, "int32": 4 * 3}
    assert all(np.abs(values).max() == 127 for name, values in levels.items() if name.endswith(".weight"))
    session = onnxruntime.InferenceSession(content)
    assert session.get_modelmeta().custom_metadata_map["precision"] == "int8"
    expected_B1 = onnxruntime.InferenceSession(full).run(["logits"], {"pixels_BCHW": batch_BCHW})[0]
    found_B1, maps_Bhw = session.run(["logits", "map"], {"pixels_BCHW": batch_BCHW})
    assert np.abs(found_B1 - expected_B1).max() > 1e-4
    assert np.corrcoef(found_B1.ravel(), expected_B1.ravel())[0, 1] > 0.99
    scales = scales_from_graph(model)
    assert int8_from_scales(onnx.load_from_string(full), scales) == content, "its own scales make it again"
    seen = slice(None, None, 8)
    assert (found_B1 - expected_B1)[seen].mean() == pytest.approx(0, abs=1e-4), "what INT8 moves all by is taken away"
    np.testing.assert_allclose(maps_Bhw.mean(axis=(1, 2)), found_B1.ravel(), atol=1e-4)
    alone_11 = session.run(["logits"], {"pixels_BCHW": batch_BCHW[5:6]})[0]
    assert alone_11.item() == pytest.approx(found_B1[5].item(), abs=1e-5), "an image does not depend on those beside it"


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (replace(GOOD, auc_int8=0.7349), "loses too much accuracy: AUC 0.7349 against 0.7400"),
        (replace(GOOD, speedup=1.59), "not fast enough: "),
        (replace(GOOD, speedup=1.0, cpu_has_int8_products=False), "this CPU has no instructions"),
        (replace(GOOD, auc_int8=float("nan")), "loses too much accuracy"),
    ],
)
def test_the_gate_says_by_how_much_it_was_missed(gate: Int8Gate, words: str) -> None:
    check_gate(GOOD)
    check_gate(replace(GOOD, auc_int8=0.7351, speedup=1.6))
    with pytest.raises(ExportError, match="INT8 stays out") as error:
        check_gate(gate)
    assert words in str(error.value)


def test_the_auc_counts_pairs_and_halves_ties() -> None:
    rng = np.random.default_rng(0)
    logits_B = rng.integers(0, 8, 60).astype(np.float32)  # with ties
    truth_B = rng.integers(0, 2, 60)
    ai_B1, real_1B = logits_B[truth_B == 1][:, None], logits_B[truth_B == 0][None]
    pairs = (ai_B1 > real_1B) + 0.5 * (ai_B1 == real_1B)
    assert auc(logits_B, truth_B) == pytest.approx(pairs.mean())


def test_data_without_a_class_is_one_clear_error(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "real" / "0.png", 0)
    with pytest.raises(DataError, match=r"train/ai: no images; --int8 needs --data"):
        next(labelled_batches(tmp_path / "train", SPEC, 4))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags : avx_vnni\n", True),
        ("Features\t: fp asimd asimddp\n", True),
        ("flags\t\t: fpu avx2\n", False),
        ("model name : avx512_vnni\n", False),
    ],
)
def test_the_processor_is_asked_for_int8_products(tmp_path: Path, text: str, found: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_int8_products(tmp_path / "cpuinfo") is found
    assert not has_int8_products(tmp_path / "absent")
