"""The ONNX graph of a fused network: no BatchNorm, one head, dynamic batch, weights stored in half.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aivsreal.runtime.bundle.manifest import HALF_FROM_ELEMENTS, HALF_SUFFIX, INPUT, LOGITS, MAP
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.spec import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn


def onnx_from_network(network: nn.Module, spec: PreprocessSpec, opset: int = 17) -> Any:
    """Export a fused network to an `onnx.ModelProto`: `pixels_BCHW` to `logits` [B, 1] and their `map` [B, H, W].

    Each weight is an initialiser with its state-dict name, and the same weights give the same bytes.

    Raises:
        ExportError: BatchNormalization or a node without use is left, or a weight lost its name.
    """
    import torch
    from onnx import numpy_helper

    from aivsreal.runtime.networks.mapped import MappedNetwork

    if not isinstance(network, MappedNetwork):
        raise ExportError("the network was not fused; nothing was written")
    # The exporter merges weights of equal value (all zero, say) into one, and their names are lost. So the graph is
    # traced with noise, and the weights are filled in afterwards.
    shell: Any = copy.deepcopy(network).eval()
    shell.forward = shell.logits_and_map
    generator = torch.Generator().manual_seed(0)
    for value in shell.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.01)
    example = torch.zeros(2, 3, spec.size, spec.size)
    cells = shell.logits_and_map(example)[1].shape[1:]
    model = graph_from_module(shell, example, opset)
    # The exporter loses sight of the map's height and width, and a runtime wants to know how much memory it needs.
    (drawn,) = (output for output in model.graph.output if output.name == MAP)
    for dim, size in zip(drawn.type.tensor_type.shape.dim[1:], cells, strict=True):
        dim.dim_value = size
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in network.state_dict().items():
        if name not in initialisers:
            raise ExportError(f"the graph has no weight {name}: the network was not fused; nothing was written")
        initialisers[name].CopyFrom(numpy_helper.from_array(value.detach().cpu().numpy(), name))
    lift_constants(model)
    _check(model)
    return model


def graph_from_module(module: Any, example_BCHW: Any, opset: int) -> Any:
    """What PyTorch's exporter makes of a module: an `onnx.ModelProto` whose batch is free, with our tensors' names."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of the tracer for fixed sizes; the exporter that replaces it writes no opset 17
        file = Path(scratch, "model.onnx")
        torch.onnx.export(
            module, (example_BCHW,), file, dynamo=False, opset_version=opset, do_constant_folding=False,
            input_names=[INPUT], output_names=[LOGITS, MAP],
            dynamic_axes={name: {0: "batch"} for name in (INPUT, LOGITS, MAP)},
        )  # fmt: skip
        return onnx.load(file)


def lift_constants(model: Any) -> None:
    """Constant nodes become initialisers, equal ones one; what is left are the nodes that compute."""
    from onnx import numpy_helper

    names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    renamed = {}
    nodes = []
    for node in model.graph.node:
        node.doc_string = ""
        if node.op_type != "Constant":
            nodes.append(node)
            continue
        values = numpy_helper.to_array(node.attribute[0].t)
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in names:
            names[key] = f"constant.{len(names)}"
            model.graph.initializer.append(numpy_helper.from_array(values, names[key]))
        renamed[node.output[0]] = names[key]
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    replace_nodes(model.graph, nodes)


def replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Let a graph have these nodes, of which some may be its own."""
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _check(model: Any) -> None:
    import onnx

    graph = model.graph
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        raise ExportError("the graph still holds BatchNormalization: the network was not fused; nothing was written")
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    if made - used:
        raise ExportError(f"the graph makes {sorted(made - used)[:3]}, which nothing uses; nothing was written")
    onnx.checker.check_model(model, full_check=True)


def with_half_weights(model: Any) -> Any:
    """Store large weights as FP16 and cast them to FP32 in the graph: half the file, FP32 arithmetic.

    ONNX Runtime folds the casts when it loads the model, so they cost nothing for each image.

    Raises:
        ExportError: a weight is too large for FP16.
    """
    import onnx
    from onnx import helper, numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < HALF_FROM_ELEMENTS:
            continue
        name = tensor.name
        if not np.abs(values).max() < np.finfo(np.float16).max:
            raise ExportError(f"weight {name} reaches {np.abs(values).max():.3g}, past FP16; nothing was written")
        stored = name + HALF_SUFFIX
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=name + ".cast", to=onnx.TensorProto.FLOAT))
    replace_nodes(result.graph, [*casts, *result.graph.node])
    _check(result)
    return result
