"""The ONNX graph of a fused network: no BatchNorm, one head, dynamic batch, weights stored in half.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.spec import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "pixels_BCHW", "logits"


def onnx_from_network(network: nn.Module, spec: PreprocessSpec, opset: int = 17) -> Any:
    """Export a fused network to an `onnx.ModelProto` with input `pixels_BCHW` and output `logits` [B, 1].

    Raises:
        ExportError: BatchNormalization is left in the graph.
    """
    import onnx
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 3, spec.size, spec.size),), buffer, dynamo=False, opset_version=opset,
        input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
    )  # fmt: skip
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        node.doc_string = ""
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise ExportError("the graph still holds BatchNormalization: the network was not fused; nothing was written")
    onnx.checker.check_model(model, full_check=True)
    return model


def with_half_weights(model: Any) -> Any:
    """Store large weights as FP16 and cast them to FP32 in the graph: half the file, FP32 arithmetic.

    Raises:
        ExportError: a weight is too large for FP16.
    """
    import onnx
    from onnx import helper, numpy_helper

    from aivsreal.runtime.backend_torch import HALF_FROM_ELEMENTS

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
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], name=name + ".cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result
