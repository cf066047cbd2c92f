"""The half graph: what `model.onnx` says, in FP16 arithmetic. Made with onnx and no torch, so on the device too."""

from __future__ import annotations

from typing import Any

import numpy as np

from aivsreal.export.graphs.full import replace_nodes
from aivsreal.runtime.bundle.manifest import HALF_SUFFIX
from aivsreal.runtime.errors import ExportError

WEIGHTED = ("Conv", "MatMul", "Gemm")
IN_FULL = ("hidden.", "whole.")  # layers of a ViT's head: it standardises sums of hundreds, which half would round


def full_from_onnx(model: Any) -> Any:
    """A copy of `model.onnx` with its stored half weights as FP32 initialisers and no Casts: what FP32 engines take."""
    import onnx
    from onnx import numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored and node.input[0].endswith(HALF_SUFFIX):
            tensor = stored[node.input[0]]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
    replace_nodes(graph, kept)
    onnx.checker.check_model(result, full_check=True)
    return result


def half_from_onnx(model: Any) -> Any:
    """The graph of `model.onnx` in half: FP16 input, weights and activations, FP32 outputs of the same names.

    What follows the last weight stays FP32, and what it takes of the rest is cast once: it is the head's bias and the
    mean over a few tokens, and of a ViT the whole head, which sums thousands of features. It costs nothing, and so the
    logit is exactly the mean of the map here too.

    Raises:
        ExportError: a value does not fit FP16, or the graph holds something that half cannot express.
    """
    import onnx
    from onnx import helper, numpy_helper

    result = full_from_onnx(model)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = {name for name in tensors if not name.startswith(IN_FULL)}
    weighted = [at for at, node in enumerate(graph.node) if node.op_type in WEIGHTED and set(node.input) & weights]
    if not weighted:
        raise ExportError("the graph has no weights: give a bundle that aivsreal-export wrote")
    last = weighted[-1]
    head, tail = list(graph.node)[: last + 1], list(graph.node)[last + 1 :]
    used = {name for node in head for name in node.input}
    shared = sorted(used & {name for node in tail for name in node.input} & _floating(tensors))
    for name in shared:
        if np.prod(tensors[name].dims) > 1:
            raise ExportError(f"{name} is used before and after the last weight: the graph is not one of aivsreal")
        own = graph.initializer.add()
        own.CopyFrom(tensors[name])
        own.name = f"{name}.tail"
        for node in tail:
            node.input[:] = [own.name if given == name else given for given in node.input]
    for name in sorted(used & _floating(tensors)):
        values = numpy_helper.to_array(tensors[name])
        if not np.abs(values).max(initial=0.0) < np.finfo(np.float16).max:
            raise ExportError(f"weight {name} reaches {np.abs(values).max():.3g}, past FP16; nothing was written")
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
    crossing = sorted({name for node in head for name in node.output} & {name for node in tail for name in node.input})
    for node in tail:
        node.input[:] = [f"{name}.full" if name in crossing else name for name in node.input]
    casts = [
        helper.make_node("Cast", [name], [f"{name}.full"], f"{name}.to_full", to=onnx.TensorProto.FLOAT)
        for name in crossing
    ]
    replace_nodes(graph, [*head, *casts, *tail])
    for value in graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del graph.value_info[:]
    check_half(result)
    return result


def check_half(model: Any) -> None:
    """Refuse a half graph that holds an FP32 weight, or that mixes FP16 and FP32 otherwise.

    Raises:
        ExportError: it names the weight or the mistake.
    """
    import onnx

    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for node in model.graph.node:
        weights = [casts.get(name, name) for name in node.input] if node.op_type in WEIGHTED else []
        wrong = [
            name
            for name in weights
            if tensors.get(name, onnx.TensorProto.FLOAT16) != onnx.TensorProto.FLOAT16 and not name.startswith(IN_FULL)
        ]
        if wrong or any(name in casts and casts[name] in tensors for name in node.input):
            raise ExportError(
                f"the half graph has an FP32 weight {(wrong or list(node.input))[0]} in {node.name}: refused"
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's and shape inference's errors have no common class
        raise ExportError(f"the half graph is not consistent: {str(error).splitlines()[0]}") from None


def _floating(tensors: Any) -> set[str]:
    return {name for name, tensor in tensors.items() if tensor.data_type == 1}
