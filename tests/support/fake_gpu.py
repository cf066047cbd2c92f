"""A GPU for tests: the fake driver, a fake TensorRT whose work waits in its streams, and a bundle with an engine."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import CARD, FakeDriver
from fake_tensorrt import fake_tensorrt

from aivsreal.runtime.bundle.engine_key import EngineCard, EngineKey, EngineKind, this_platform
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS, MAP, Manifest
from aivsreal.runtime.gpu import backend as backend_tensorrt
from aivsreal.runtime.gpu import driver as cuda
from aivsreal.runtime.gpu.calls import Gpu
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, OperatingPoint

SIDE = 24


def installed_gpu(
    monkeypatch: pytest.MonkeyPatch, kernel: Path, version: str = "10.3.0", gpu: Gpu = CARD, **driver: Any
) -> FakeDriver:
    """What `TensorrtBackend` then finds: that TensorRT, and the fake driver that is returned."""
    trt = fake_tensorrt(version, "{}.{}".format(*gpu.capability))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, trt if name == trt.__name__ else None)
    opened = [FakeDriver(kernel, gpu, **driver)]

    def open_driver(device: int = 0) -> FakeDriver:
        if opened[-1].closed:
            opened.append(FakeDriver(kernel, gpu, **driver))
        return opened[-1]

    for module in (backend_tensorrt, cuda):
        monkeypatch.setattr(module, "open_driver", open_driver)
    run = trt.IExecutionContext.execute_async_v3

    def execute(context: Any, stream: int) -> bool:
        """As TensorRT does: what it works on is settled now, the work is done in the stream."""
        driver_now = opened[-1]
        shapes, addresses = dict(context._shapes), dict(context._addresses)
        if context.infer_shapes() or len(addresses) != context._engine.num_io_tensors:
            return False

        def work() -> None:
            assert (context._shapes, context._addresses) == (shapes, addresses), "a recorded context was changed"
            for name in addresses:
                driver_now.check_live(addresses[name], context._array(name).nbytes)
            assert run(context, stream)

        driver_now.enqueue(stream, work)
        return True

    monkeypatch.setattr(trt.IExecutionContext, "execute_async_v3", execute)
    return opened[0]


def small_bundle(folder: Path) -> Bundle:
    """A bundle whose network is four operations, with the inputs and outputs of a real one: nothing need be trained."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.array([3, -5, 4], np.float32).reshape(1, 3, 1, 1), "weights")
    axes = [
        numpy_helper.from_array(np.array(values, np.int64), name) for name, values in (("one", [1]), ("two", [1, 2]))
    ]
    nodes = [
        helper.make_node("AveragePool", [INPUT], ["pooled"], kernel_shape=[6, 6], strides=[6, 6]),
        helper.make_node("Conv", ["pooled", "weights"], ["tokens"]),
        helper.make_node("Squeeze", ["tokens", "one"], [MAP]),
        helper.make_node("ReduceMean", [MAP], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], [LOGITS]),
    ]
    shapes = {INPUT: (3, SIDE, SIDE), LOGITS: (1,), MAP: (4, 4)}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(nodes, "small", [values[INPUT]], [values[LOGITS], values[MAP]], [weights, *axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    points = (OperatingPoint("balanced", 0.6, 0.4),)
    manifest = Manifest("small", LABELS, PreprocessSpec(SIDE), 1.0, points, "balanced")
    return write_bundle(folder, {"model.onnx": model.SerializeToString()}, manifest)


def bundle_with_engine(
    folder: Path,
    source: Bundle,
    version: str = "10.3.0",
    *,
    gpu: Gpu = CARD,
    half: bool = False,
    batches: Any = (1, 4, 32),
) -> Bundle:
    """The bundle with an engine that the fake of that version built of its network, where `half` with half input."""
    network = source.read("model.onnx")
    trt = fake_tensorrt(version, "{}.{}".format(*gpu.capability))
    plan, graph = _plan(trt, _half(network) if half else network, source.manifest.spec.size, batches)
    rtx = trt.__name__ == "tensorrt_rtx"
    digest = hashlib.sha256(network).hexdigest()
    key = EngineKey(
        EngineKind.TENSORRT_RTX if rtx else EngineKind.TENSORRT, trt.__version__, ("{}.{}".format(*gpu.capability),),
        this_platform(), "fp16" if half else "fp32", *batches, digest,
    )  # fmt: skip
    card = EngineCard(key, source.manifest.spec, gpu.name, (), 1, int(half), hashlib.sha256(graph).hexdigest())
    files = {"model.onnx": network, card.file: plan, card.card_file: json.dumps(card.to_json()).encode()}
    return write_bundle(folder, files, source.manifest)


def _plan(trt: Any, graph: bytes, size: int, batches: tuple[int, int, int]) -> tuple[bytes, bytes]:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    kinds = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(kinds.EXPLICIT_BATCH) if hasattr(kinds, "EXPLICIT_BATCH") else 0)
    assert trt.OnnxParser(network, logger).parse(graph)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *((count, 3, size, size) for count in batches))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config)), graph


def _half(network: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(network)
    (given,) = model.graph.input
    for node in model.graph.node:
        node.input[:] = ["widened" if name == given.name else name for name in node.input]
    cast = onnx.helper.make_node("Cast", [given.name], ["widened"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    given.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return bytes(model.SerializeToString())
