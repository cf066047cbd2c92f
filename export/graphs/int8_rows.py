"""The INT8 graph of a ViT: its linear layers with weights in INT8, and each token quantised by its own largest value.

One scale for a whole batch, as ONNX Runtime's dynamic quantisation takes it, makes the verdict of an image depend on
those beside it, and is coarse where a few channels are a hundred times the others: it moved the logits of a ViT-B/16 by
0.74 (standard deviation; they spread by 3), a scale for each token 0.14, in the same time.
Legend: N token of any image; I, O inputs and outputs of a layer; B image in a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.export.graphs.full import replace_nodes
from aivsreal.export.graphs.half import IN_FULL
from aivsreal.export.graphs.session import cpu_session
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS
from aivsreal.runtime.preprocess import BatchBCHW

SMOOTHING = 0.75
"""How much of the spread of its input's channels a weight takes over: at 0.5 the logits moved by 0.23, here by 0.19."""
_LEVELS = 127
_LEAST = 1e-9  # of a token's scale: one of zeros is divided by it
_MIDDLE = 128  # zero as uint8, which the processors multiply with int8
_CHUNK = 4
HEAD_BIAS = "head.bias"


def has_linear_layers(model: Any) -> bool:
    """Whether it is a ViT's graph, whose linear layers are Gemms."""
    return any(True for _ in _linear_layers(model.graph))


def rows_quantised(model: Any, batches: list[BatchBCHW]) -> Any:
    """The graph with INT8 products in its linear layers, the head apart.

    Args:
        model: in FP32; it is changed.
        batches: images that say how large activations become, and by how much INT8 moves logits on the average: that is
            taken from the head's bias.
    """
    expected_B = _logits(model, batches)
    _smooth(model, batches)
    _quantise(model.graph)
    moved = float((_logits(model, batches) - expected_B).mean())
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == HEAD_BIAS)
    _set(bias, _array(bias) - np.float32(moved))
    return model


def _linear_layers(graph: Any) -> Iterator[Any]:
    tensors = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[1] in tensors and not node.input[1].startswith(IN_FULL):
            yield node


def _smooth(model: Any, batches: list[BatchBCHW]) -> None:
    """Let weights take over what differs between the channels that LayerNorm gives (Xiao et al. 2022, SmoothQuant,
    arXiv:2211.10438): the function stays, and no channel is far larger than the others.
    """
    from onnx import helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    norms = {node.output[0]: node for node in graph.node if node.op_type == "LayerNormalization"}
    used = Counter(name for node in graph.node for name in node.input)
    layers = [node for node in _linear_layers(graph) if node.input[0] in norms and used[node.input[0]] == 1]
    names = [layer.input[0] for layer in layers]
    probe = type(model).FromString(model.SerializeToString())
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    largest = [np.zeros(1, dtype=np.float32)] * len(names)
    for values in _outputs(probe, names, batches):
        largest = [np.maximum(most_I, np.abs(x_NI).max(axis=0)) for most_I, x_NI in zip(largest, values, strict=True)]
    for layer, most_I in zip(layers, largest, strict=True):
        weight_OI = _array(tensors[layer.input[1]])
        reach_I = np.maximum(np.abs(weight_OI).max(axis=0), 1e-5)
        share_I = np.maximum(most_I, 1e-5) ** SMOOTHING / reach_I ** (1 - SMOOTHING)
        share_I /= np.exp(np.log(share_I).mean())
        _set(tensors[layer.input[1]], weight_OI * share_I)
        for name in norms[layer.input[0]].input[1:3]:
            _set(tensors[name], _array(tensors[name]) / share_I)


def _quantise(graph: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = {node.name: node for node in _linear_layers(graph)}
    constants = {
        "int8.step": np.float32(1 / _LEVELS), "int8.least": np.float32(_LEAST), "int8.none": np.float32(0),
        "int8.middle": np.float32(_MIDDLE), "int8.zero": np.array(_MIDDLE, np.uint8), "int8.axis": np.array([1]),
    }  # fmt: skip
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    nodes = []
    for node in graph.node:
        if node.name not in layers:
            nodes.append(node)
            continue
        x, weight, bias = node.input
        y = node.output[0]
        weight_OI = _array(tensors.pop(weight))
        scale_O = np.maximum(np.abs(weight_OI).max(axis=1), _LEAST) / _LEVELS
        levels_IO = np.round(weight_OI / scale_O[:, None]).astype(np.int8).T
        stored = {"levels": np.ascontiguousarray(levels_IO), "scale": scale_O, "zero": np.zeros(len(scale_O), np.int8)}
        made += [numpy_helper.from_array(values, f"{weight}.{part}") for part, values in stored.items()]
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Abs", [x], "abs", {}),
            ("ReduceMax", [f"{y}.abs"], "most", {"axes": [1], "keepdims": 0}),
            ("Mul", [f"{y}.most", "int8.step"], "bare", {}),
            ("Add", [f"{y}.bare", "int8.least"], "step", {}),
            # A zero for each token, since there is a scale for each.
            ("Mul", [f"{y}.step", "int8.none"], "none", {}),
            ("Add", [f"{y}.none", "int8.middle"], "middle", {}),
            ("Cast", [f"{y}.middle"], "zero", {"to": TensorProto.UINT8}),
            ("QuantizeLinear", [x, f"{y}.step", f"{y}.zero"], "levels", {"axis": 0}),
            ("MatMulInteger", [f"{y}.levels", f"{weight}.levels", "int8.zero", f"{weight}.zero"], "whole", {}),
            ("Cast", [f"{y}.whole"], "float", {"to": TensorProto.FLOAT}),
            ("Unsqueeze", [f"{y}.step", "int8.axis"], "column", {}),
            ("Mul", [f"{y}.float", f"{y}.column"], "rows", {}),
            ("Mul", [f"{y}.rows", f"{weight}.scale"], "product", {}),
        ]
        nodes += [
            helper.make_node(kind, inputs, [f"{y}.{output}"], f"{node.name}.{output}", **options)
            for kind, inputs, output, options in steps
        ]
        nodes.append(helper.make_node("Add", [f"{y}.product", bias], [y], f"{node.name}.biased"))
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    left = [type(one).FromString(one.SerializeToString()) for one in (*tensors.values(), *made)]
    del graph.initializer[:]
    graph.initializer.extend(left)


def _logits(model: Any, batches: list[BatchBCHW]) -> npt.NDArray[np.float32]:
    return np.concatenate([logits_B1.ravel() for (logits_B1,) in _outputs(model, [LOGITS], batches)])


def _outputs(model: Any, names: list[str], batches: list[BatchBCHW]) -> Iterator[list[npt.NDArray[np.float32]]]:
    session = cpu_session(model.SerializeToString())
    for batch_BCHW in batches:
        for start in range(0, len(batch_BCHW), _CHUNK):
            yield session.run(names, {INPUT: batch_BCHW[start : start + _CHUNK]})


def _array(tensor: Any) -> npt.NDArray[np.float32]:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)


def _set(tensor: Any, values: npt.NDArray[np.float32]) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
