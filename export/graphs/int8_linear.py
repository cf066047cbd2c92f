"""The INT8 graph of a ViT: its linear layers with weights and inputs in INT8, all scales constants.

It is in the form that both runtimes for CPUs know (QuantizeLinear and DequantizeLinear around each layer, its bias in
INT32): ONNX Runtime ran a ViT-B/16 2.0 times as fast as in FP32, OpenVINO 1.5 times as fast as in bfloat16.
Legend: N token of any image; I, O inputs and outputs of a layer; B image in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.export.graphs.full import replace_nodes
from aivsreal.export.graphs.half import IN_FULL
from aivsreal.export.graphs.session import cpu_session
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS
from aivsreal.runtime.preprocess import BatchBCHW

SMOOTHING = 0.85
"""How much of the spread of its input's channels a weight takes over: at 0.85 logits moved by 0.17, at 0.75 by 0.24."""
HEAD_BIAS = "head.bias"
_LEVELS, _STEPS = 127, 255
_LEAST = np.float32(1e-6)
_MOST_BIAS = 2**30  # of a channel whose weights are all but zero
_CHUNK = 4

Array = npt.NDArray[np.float32]
Scales = Mapping[str, npt.NDArray[Any]]
"""How the input of each linear layer is quantised, `round(x_NI * smooth_I / step) + middle` in 8 bits, by the names of
these constants in the graph (that of the layer's weight first), and the head's bias."""


def has_linear_layers(model: Any) -> bool:
    """Whether it is a ViT's graph, whose linear layers are Gemms."""
    return any(True for _ in _linear_layers(model.graph))


def scales_from_images(model: Any, batches: list[BatchBCHW]) -> Scales:
    """The scales for the values that layers take on `batches`; the head's bias takes away what INT8 moves logits by.

    What differs between channels goes into the weights (Xiao et al. 2022, SmoothQuant, arXiv:2211.10438). The largest
    values count: ranges with the least squared error, which cut them off, moved logits by 0.9 on the average.

    Args:
        model: in FP32.
    """
    layers = list(_linear_layers(model.graph))
    names = [layer.input[0] for layer in layers]
    low_high = [(np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))] * len(layers)
    for values in _outputs(model, names, batches):
        low_high = [
            (np.minimum(low_I, x_NI.min(axis=0)), np.maximum(high_I, x_NI.max(axis=0)))
            for (low_I, high_I), x_NI in zip(low_high, values, strict=True)
        ]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scales: dict[str, npt.NDArray[Any]] = {}
    for layer, (low_I, high_I) in zip(layers, low_high, strict=True):
        weight = layer.input[1]
        reach_I = np.maximum(np.abs(_array(tensors[weight])).max(axis=0), _LEAST)
        smooth_I = reach_I ** (1 - SMOOTHING) / np.maximum(np.maximum(high_I, -low_I), _LEAST) ** SMOOTHING
        smooth_I /= np.exp(np.log(smooth_I).mean())
        # In half it is stored in little, and is the same number wherever the graph is made again.
        smooth_I = np.clip(smooth_I, 1e-3, 1e3).astype(np.float16).astype(np.float32)
        least, most = (low_I * smooth_I).min(), (high_I * smooth_I).max()
        step = np.float32(max(most - least, _LEAST) / _STEPS)
        scales[f"{weight}.smooth"], scales[f"{weight}.step"] = smooth_I, np.asarray(step)
        scales[f"{weight}.middle"] = np.asarray(np.clip(np.round(-least / step), 0, _STEPS).astype(np.uint8))
    bias = _array(tensors[HEAD_BIAS])
    trial = quantised(type(model).FromString(model.SerializeToString()), {**scales, HEAD_BIAS: bias})
    moved_B = _logits(trial, batches) - _logits(model, batches)
    return {**scales, HEAD_BIAS: bias - moved_B.mean(dtype=np.float32)}


def scales_from_graph(model: Any) -> Scales:
    """Those that an INT8 graph was made with."""
    from onnx import numpy_helper

    ends = (".smooth", ".step", ".middle")
    stored = [tensor for tensor in model.graph.initializer if tensor.name.endswith(ends) or tensor.name == HEAD_BIAS]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}


def quantised(model: Any, scales: Scales) -> Any:
    """The graph with INT8 products in its linear layers, the head apart; the same bytes everywhere.

    Args:
        model: in FP32; it is changed.
    """
    from onnx import numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = {node.name for node in _linear_layers(graph)}
    constants: dict[str, npt.NDArray[Any]] = {}
    nodes = []
    for node in graph.node:
        if node.name in layers:
            weight, bias = node.input[1:]
            constants |= _int8_constants(weight, bias, _array(tensors.pop(weight)), _array(tensors.pop(bias)), scales)
            nodes += _int8_nodes(node)
        nodes.append(node)
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    constants |= {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    constants[HEAD_BIAS] = scales[HEAD_BIAS].astype(np.float32)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items())
    return model


def _int8_constants(
    weight: str, bias: str, weight_OI: Array, bias_O: Array, scales: Scales
) -> dict[str, npt.NDArray[Any]]:
    step, smooth_I = scales[f"{weight}.step"], scales[f"{weight}.smooth"].astype(np.float32)
    smoothed_OI = weight_OI / smooth_I
    scale_O = np.maximum(np.abs(smoothed_OI).max(axis=1), _LEAST) / np.float32(_LEVELS)
    product_O = scale_O * np.float32(step)
    return {
        f"{weight}.smooth": smooth_I,
        f"{weight}.step": step,
        f"{weight}.middle": scales[f"{weight}.middle"],
        f"{weight}.levels": np.round(smoothed_OI / scale_O[:, None]).astype(np.int8),
        f"{weight}.scale": scale_O,
        f"{weight}.zero": np.zeros(len(scale_O), np.int8),
        # In INT32 and in units of the product, or ONNX Runtime does not see a layer of INT8 in this.
        f"{bias}.levels": np.clip(np.round(bias_O / product_O), -_MOST_BIAS, _MOST_BIAS).astype(np.int32),
        f"{bias}.scale": product_O,
        f"{bias}.zero": np.zeros(len(scale_O), np.int32),
    }


def _int8_nodes(layer: Any) -> list[Any]:
    """What comes before a layer, whose inputs are changed."""
    from onnx import helper

    x, weight, bias = layer.input
    size = [f"{weight}.step", f"{weight}.middle"]
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Mul", [x, f"{weight}.smooth"], f"{weight}.x", {}),
        ("QuantizeLinear", [f"{weight}.x", *size], f"{weight}.x8", {}),
        ("DequantizeLinear", [f"{weight}.x8", *size], f"{weight}.x32", {}),
        *(
            ("DequantizeLinear", [f"{name}.{part}" for part in ("levels", "scale", "zero")], f"{name}.32", {"axis": 0})
            for name in (weight, bias)
        ),
    ]
    layer.input[:] = [f"{weight}.x32", f"{weight}.32", f"{bias}.32"]
    nodes: list[Any] = []
    for kind, inputs, output, options in steps:
        nodes.append(helper.make_node(kind, inputs, [output], output, **options))
    return nodes


def _linear_layers(graph: Any) -> Iterator[Any]:
    tensors = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gemm" and node.input[1] in tensors and not node.input[1].startswith(IN_FULL):
            yield node


def _logits(model: Any, batches: list[BatchBCHW]) -> Array:
    return np.concatenate([logits_B1.ravel() for (logits_B1,) in _outputs(model, [LOGITS], batches)])


def _outputs(model: Any, names: list[str], batches: list[BatchBCHW]) -> Iterator[list[Array]]:
    """Values within the graph, of a few images at a time."""
    from onnx import helper

    probe = type(model).FromString(model.SerializeToString())
    known = {output.name for output in probe.graph.output}
    inner = [name for name in dict.fromkeys(names) if name not in known]
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in inner)
    session = cpu_session(probe.SerializeToString())
    for batch_BCHW in batches:
        for start in range(0, len(batch_BCHW), _CHUNK):
            yield session.run(names, {INPUT: batch_BCHW[start : start + _CHUNK]})


def _array(tensor: Any) -> Array:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
