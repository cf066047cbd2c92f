"""The half graph holds no FP32 weight, computes what FP32 does, and needs no torch to be made."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aivsreal.export.graphs.half import check_half, full_from_onnx, half_from_onnx
from aivsreal.export.graphs.parity import HALF, check, parity
from aivsreal.export.graphs.reference import Reference
from aivsreal.export.graphs.session import onnx_logits
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.spec import PreprocessSpec


def _tensor(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _largest(model: Any) -> Any:
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def test_all_that_has_weights_is_half_and_the_outputs_are_not(small_model: Any) -> None:
    half = half_from_onnx(small_model)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert {kinds.get(name, TensorProto.FLOAT16) for name in node.input} == {TensorProto.FLOAT16}, node.name
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in half.graph.output} == {TensorProto.FLOAT}
    assert Counter(node.op_type for node in half.graph.node)["Cast"] == 1
    used = {name for node in half.graph.node for name in node.input}
    assert set(kinds) <= used


def test_half_agrees_with_full_and_full_with_what_is_stored(small_model: Any) -> None:
    batch_BCHW = Reference(count=32).batch(PreprocessSpec(64))
    stored_B = onnx_logits(small_model.SerializeToString(), batch_BCHW)
    full = full_from_onnx(small_model)
    assert "Cast" not in {node.op_type for node in full.graph.node}
    assert np.abs(onnx_logits(full.SerializeToString(), batch_BCHW) - stored_B).max() < 1e-5
    half_B = onnx_logits(half_from_onnx(small_model).SerializeToString(), batch_BCHW)
    assert np.abs(half_B - stored_B).max() > 0  # it did compute in half
    check("half", parity(stored_B, half_B), HALF)


def test_the_shipped_bundle_holds_the_half_tolerance_and_its_graph_has_the_map_s_mean_as_logit() -> None:
    content = Bundle.open().read("model.onnx")
    half = half_from_onnx(onnx.load_from_string(content)).SerializeToString()
    batch_BCHW = Reference(count=12).batch(PreprocessSpec())
    check("half", parity(onnx_logits(content, batch_BCHW), onnx_logits(half, batch_BCHW)), HALF)


def test_a_planted_full_weight_is_caught(small_model: Any) -> None:
    half = half_from_onnx(small_model)
    check_half(half)
    tensor = _largest(half)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    with pytest.raises(ExportError, match=f"FP32 weight {tensor.name}"):
        check_half(half)


def test_a_full_weight_behind_a_cast_is_caught_too(small_model: Any) -> None:
    half = half_from_onnx(small_model)
    name = _largest(half).name
    values = numpy_helper.to_array(_tensor(half, name)).astype(np.float32)
    _tensor(half, name).CopyFrom(numpy_helper.from_array(values, f"{name}.full"))
    cast = helper.make_node("Cast", [f"{name}.full"], [name], to=TensorProto.FLOAT16)
    half.graph.node.insert(0, cast)
    with pytest.raises(ExportError, match=f"FP32 weight {name}"):
        check_half(half)


def test_mixed_arithmetic_is_caught(small_model: Any) -> None:
    half = half_from_onnx(small_model)
    node = next(node for node in half.graph.node if node.op_type == "Add" and node.input[1].endswith("attention_bias"))
    tensor = _tensor(half, node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    with pytest.raises(ExportError, match="not consistent"):
        check_half(half)


def test_a_weight_past_half_is_refused(small_model: Any) -> None:
    model = full_from_onnx(small_model)
    tensor = _largest(model)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ExportError, match="past FP16"):
        half_from_onnx(model)


def test_a_graph_without_weights_is_refused() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    with pytest.raises(ExportError, match="no weights"):
        half_from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
