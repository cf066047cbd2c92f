"""The fake TensorRT has what each version's bindings have, lacks what they lack, and computes what its graph says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_tensorrt import SURFACE, VERSIONS, fake_tensorrt
from onnx import TensorProto, helper, numpy_helper


def _has(module: Any, name: str) -> bool:
    owner, _, member = name.partition(".")
    return hasattr(module, owner) and (not member or hasattr(getattr(module, owner), member))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_exactly_the_names_that_its_bindings_had(version: str) -> None:
    module = fake_tensorrt(version)
    wrong = {name for name, versions in SURFACE.items() if _has(module, name) != (version in versions)}
    assert not wrong


def test_a_name_that_a_version_lacks_can_be_neither_read_nor_set() -> None:
    trt = fake_tensorrt("11.4")
    config = trt.Builder(trt.Logger()).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.max_worksspace_size = 1
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.FP16
    with pytest.raises(NotImplementedError):
        trt.Refitter()


def _graph(kind: int) -> bytes:
    weight = numpy_helper.from_array(np.ones((1024, 1), helper.tensor_dtype_to_np_dtype(kind)), "weight")
    values = helper.make_tensor_value_info("x", kind, ["batch", 1024])
    result = helper.make_tensor_value_info("y", kind, ["batch", 1])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "g", [values], [result], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _built(trt: Any, graph: bytes, strong: bool = False) -> Any:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = "STRONGLY_TYPED" if strong else "EXPLICIT_BATCH"
    kinds = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(getattr(kinds, flag)) if hasattr(kinds, flag) else 0)
    assert trt.OnnxParser(network, logger).parse(graph)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 1024), (2, 1024), (4, 1024))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4"])
def test_an_engine_computes_what_onnx_runtime_does(version: str) -> None:
    trt = fake_tensorrt(version)
    plan = bytes(_built(trt, _graph(TensorProto.FLOAT)))
    context = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan).create_execution_context()
    x = np.random.default_rng(0).standard_normal((3, 1024)).astype(np.float32)
    y = np.zeros((3, 1), np.float32)
    assert not context.set_input_shape("x", (5, 1024))
    assert context.set_input_shape("x", x.shape)
    assert context.get_tensor_shape("y") == (3, 1)
    assert not context.execute_async_v3(0)  # no addresses yet
    assert context.set_tensor_address("x", x.ctypes.data)
    assert context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(0)
    expected = onnxruntime.InferenceSession(_graph(TensorProto.FLOAT)).run(None, {"x": x})[0]
    assert np.array_equal(y, expected)


@pytest.mark.parametrize(
    ("version", "kind", "strong", "words"),
    [
        ("11.4", TensorProto.FLOAT, True, "Float"),  # no flag can make it half: the silent FP32 engine
        ("11.4", TensorProto.FLOAT16, True, "Half"),
        ("10.3.0", TensorProto.FLOAT16, True, "Half"),
        ("10.3.0", TensorProto.FLOAT16, False, "Float"),
        ("8.6.1", TensorProto.FLOAT16, False, "FP32"),
    ],
)
def test_precision_comes_from_where_that_version_takes_it(version: str, kind: int, strong: bool, words: str) -> None:
    trt = fake_tensorrt(version)
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(bytes(_built(trt, _graph(kind), strong)))
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    assert words in json.loads(text)["Layers"][0]["Outputs"][0]["Format/Datatype"]


def test_a_foreign_or_truncated_engine_does_not_load() -> None:
    orin = fake_tensorrt("10.3.0", "8.7")
    plan = bytes(_built(orin, _graph(TensorProto.FLOAT)))
    for trt, content in (
        (fake_tensorrt("10.3.0", "9.0"), plan),
        (fake_tensorrt("10.7.0", "8.7"), plan),
        (orin, plan[:-100]),
        (orin, b"other"),
    ):
        assert trt.Runtime(trt.Logger()).deserialize_cuda_engine(content) is None
    assert orin.Runtime(orin.Logger()).deserialize_cuda_engine(plan) is not None


def test_the_surface_lies_in_the_test_data() -> None:
    assert len(SURFACE) > 100
    assert set().union(*SURFACE.values()) == set(VERSIONS)
    assert (Path(__file__).parent / "data" / "tensorrt_api_surface.json").is_file()
