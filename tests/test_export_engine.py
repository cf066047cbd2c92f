"""Engines are built by each TensorRT's own rules; the real TensorRT-RTX takes our graph, with no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import write_image
from fake_tensorrt import fake_tensorrt
from onnx import TensorProto, helper, numpy_helper

from aivsreal.export.engine import BuildOptions, EngineBuilder, Gpu, layers_from_inspection
from aivsreal.export.graphs.half import full_from_onnx, half_from_onnx
from aivsreal.runtime.bundle.engine_key import EngineKind, card_from_json
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.spec import PreprocessSpec

SHA256 = "0" * 64
GPU = Gpu("Orin", "8.7")
ALL = ("8.6.1", "10.3.0", "10.16", "11.4")


@pytest.fixture(scope="module")
def shipped() -> Any:
    return onnx.load_from_string(Bundle.open().read("model.onnx"))


@pytest.fixture(scope="module")
def half(shipped: Any) -> bytes:
    return bytes(half_from_onnx(shipped).SerializeToString())


@pytest.fixture(scope="module")
def small(small_model: Any) -> bytes:
    return bytes(half_from_onnx(small_model).SerializeToString())


def _build(trt: Any, graph: bytes, spec: PreprocessSpec | None = None, **options: Any) -> Any:
    wanted = BuildOptions(max_batch=4, **options)
    builder = EngineBuilder(trt, EngineKind.TENSORRT, wanted, GPU)
    return builder.engine_from_onnx(graph, spec or PreprocessSpec(64), SHA256)


@pytest.mark.parametrize("version", ALL)
def test_each_version_builds_a_half_engine_by_its_own_rules(small: bytes, version: str) -> None:
    engine = _build(fake_tensorrt(version), small)
    card = engine.card
    assert card_from_json(json.loads(json.dumps(card.to_json()))) == card
    assert (card.key.precision, card.key.compute_capabilities, card.gpu) == ("fp16", ("8.7",), "Orin")
    assert (card.key.min_batch, card.key.opt_batch, card.key.max_batch) == (1, 4, 4)
    assert card.key.version == fake_tensorrt(version).__version__
    assert card.half_layers > 0.9 * card.layers
    assert card.flags[1] == ("FP16 flag" if version == "8.6.1" else "strongly typed")
    assert engine.plan


@pytest.mark.parametrize("version", ALL)
def test_an_engine_that_did_not_become_half_is_refused(small_model: Any, version: str) -> None:
    full = full_from_onnx(small_model).SerializeToString()
    if version == "8.6.1":  # there the flag makes it half, whatever the graph says
        assert _build(fake_tensorrt(version), full).card.key.precision == "fp16"
        return
    with pytest.raises(ExportError, match=r"0 of \d+ layers are half: it is not an FP16 engine"):
        _build(fake_tensorrt(version), full)
    assert _build(fake_tensorrt(version), full, half=False).card.key.precision == "fp32"


def test_the_options_reach_the_builder(small: bytes, tmp_path: Path) -> None:
    trt = fake_tensorrt("10.3.0", dla_cores=2)
    cache = tmp_path / "cache" / "timings"
    engine = _build(trt, small, workspace_mib=256, version_compatible=True, timing_cache=cache, dla_core=1)
    assert engine.card.flags[1:] == (
        "FP16 flag", "workspace 256 MiB", "version compatible", "DLA core 1 with GPU fallback"
    )  # fmt: skip
    assert engine.card.key.version_compatible
    assert engine.card.key.dla_core == 1
    first = cache.read_bytes()
    assert first
    _build(trt, small, timing_cache=cache)
    assert len(cache.read_bytes()) > len(first)  # what was there was read
    cache.write_bytes(b"damaged\0")
    _build(trt, small, timing_cache=cache)
    assert cache.read_bytes() == first


@pytest.mark.parametrize("version", ["10.3.0", "rtx1.7"])
def test_a_picture_or_a_text_is_no_timing_cache(small: bytes, tmp_path: Path, version: str) -> None:
    photo, notes = write_image(tmp_path / "photo.jpg", 1), tmp_path / "notes.md"
    notes.write_text("my notes")
    for file, what in ((photo, "a JPEG picture"), (notes, "a text")):
        content = file.read_bytes()
        with pytest.raises(ExportError, match=f"is {what}, not a timing cache"):
            _build(fake_tensorrt(version), small, timing_cache=file)
        assert file.read_bytes() == content


def test_on_version_11_a_dla_engine_is_strongly_typed_too(small: bytes) -> None:
    assert _build(fake_tensorrt("11.4", dla_cores=1), small, dla_core=0).card.flags[1] == "strongly typed"
    with pytest.raises(ExportError, match="no DLA core 1: 1 are here"):
        _build(fake_tensorrt("11.4", dla_cores=1), small, dla_core=1)


def test_what_the_builder_says_is_in_the_error(small: bytes) -> None:
    trt = fake_tensorrt("10.3.0")
    trt.refuse_build = "out of workspace"
    with pytest.raises(ExportError, match=r"TensorRT 10\.3\.0 could not build the engine: out of workspace"):
        _build(trt, small)
    with pytest.raises(ExportError, match="does not accept the graph"):
        _build(trt, b"no graph")
    with pytest.raises(ExportError, match="builds only for the GPU that is here"):
        _build(trt, small, compute_capabilities=("8.6",))


def test_an_inspector_without_details_is_not_trusted() -> None:
    for text in ("", "{}", '{"Layers": ["conv1"]}', '{"Layers": [{"Name": "conv1"}]}'):
        with pytest.raises(ExportError, match="inspector"):
            layers_from_inspection(text)


def test_a_layer_that_fuses_everything_counts_by_what_it_reads() -> None:
    fused = {"Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Format/Datatype": "Float"}]}
    shapes = {"Inputs": [{"Format/Datatype": "Int64"}], "Outputs": [{"Format/Datatype": "Int32"}]}
    old = {"Inputs": [], "Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]}
    full = {"Inputs": [{"Format/Datatype": "Row major linear FP32"}], "Outputs": []}
    assert layers_from_inspection(json.dumps({"Layers": [fused, shapes, old, full]})) == (3, 2)


# The real TensorRT-RTX: it has TensorRT 11's parser and builder, and needs no GPU.


def _rtx(trt: Any, half: bytes, options: BuildOptions, gpu: Gpu | None) -> Any:
    return EngineBuilder(trt, EngineKind.TENSORRT_RTX, options, gpu).engine_from_onnx(half, PreprocessSpec(), SHA256)


def test_tensorrt_rtx_builds_our_half_graph_for_three_gpus(half: bytes) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    targets = ("8.0", "8.6", "8.9")
    options = BuildOptions(compute_capabilities=targets)
    engine = _rtx(trt, half, options, None)
    card = engine.card
    assert (card.key.kind, card.key.compute_capabilities, card.key.precision) == (
        EngineKind.TENSORRT_RTX, targets, "fp16"
    )  # fmt: skip
    assert 300 <= card.layers <= 420  # with 190 more that only compute shapes; the linear form has twice as many
    assert card.half_layers >= card.layers - 10  # all but the head's last additions
    assert len(engine.plan) > 20e6
    portable = replace(options, compute_capabilities=(), portable=True)
    engine = _rtx(trt, half, portable, Gpu("H100", "9.0"))
    assert (engine.card.key.compute_capabilities, engine.card.flags[2:]) == (("9.0",), ("portable",))
    orin = replace(options, compute_capabilities=("8.7",))
    with pytest.raises(ExportError, match=r"cannot build for compute capability 8\.7: one of .*8\.6"):
        _rtx(trt, half, orin, None)


def _model(nodes: list[Any], kind: int, shape: list[Any], weights: list[Any] | None = None) -> bytes:
    values = helper.make_tensor_value_info("pixels_BCHW", kind, shape)
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [values], [result], weights or [])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("aivsreal.test", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def _bytes_before_cast() -> bytes:
    nodes = [
        helper.make_node("Transpose", ["pixels_BCHW"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["logits"], to=TensorProto.FLOAT),
    ]
    return _model(nodes, TensorProto.UINT8, ["batch", 64, 64, 3])


def _resize(**attributes: Any) -> bytes:
    scales = numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales")
    node = helper.make_node("Resize", ["pixels_BCHW", "", "scales"], ["logits"], mode="linear", **attributes)
    return _model([node], TensorProto.FLOAT, ["batch", 3, 64, 64], [scales])


def _resize_to(**attributes: Any) -> bytes:
    sizes = numpy_helper.from_array(np.array([1, 3, 32, 32], np.int64), "sizes")
    node = helper.make_node("Resize", ["pixels_BCHW", "", "", "sizes"], ["logits"], mode="linear", **attributes)
    return _model([node], TensorProto.FLOAT, [1, 3, 64, 64], [sizes])


def _mixed(other: Any = np.float16) -> bytes:
    bias = numpy_helper.from_array(np.ones((1, 3, 1, 1), other), "bias")
    nodes = [helper.make_node("Add", ["pixels_BCHW", "bias"], ["logits"])]
    return _model(nodes, TensorProto.FLOAT, ["batch", 3, 64, 64], [bias])


def _unknown() -> bytes:
    nodes = [helper.make_node("Sharpen", ["pixels_BCHW"], ["logits"], domain="aivsreal.test")]
    return _model(nodes, TensorProto.FLOAT, ["batch", 3, 64, 64])


@pytest.mark.parametrize(
    "graph",
    [
        _bytes_before_cast,
        lambda: _resize(antialias=1),
        lambda: _resize_to(keep_aspect_ratio_policy="not_larger"),
        _mixed,
        _unknown,
    ],
    ids=["uint8 before a Cast", "antialiased Resize", "Resize keeping the ratio", "FP32 and FP16 mixed", "unknown op"],
)
def test_tensorrt_rtx_refuses_what_our_graphs_must_not_hold(graph: Callable[[], bytes]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    network = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_network(0)
    assert not trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR)).parse(graph())


@pytest.mark.parametrize("graph", [_resize, _resize_to, lambda: _mixed(np.float32)])
def test_tensorrt_rtx_accepts_the_same_without_the_mistake_so_that_the_refusals_mean_something(
    graph: Callable[[], bytes],
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    network = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_network(0)
    assert trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR)).parse(graph())
