"""Move a network's decision: a constant is taken from its logit where it is computed, in the bias of the head.

A temperature alone cannot mend logits that lie too high for both classes, as they do on sources that training never
saw. The constant goes into `model.onnx` and nowhere else, so every backend, the map (whose mean is the logit) and all
that is exported from the bundle later follow without knowing of it.
"""

from __future__ import annotations

import numpy as np

from aivsreal.runtime.errors import BundleError, MissingExtra

HEAD_BIAS = "head.bias"


def recentred_model(content: bytes, offset: float) -> bytes:
    """The ONNX model with `offset` taken from its logit.

    Raises:
        BundleError: it is no model that `aivsreal-export` wrote.
        MissingExtra: onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtra("train", error.name or "onnx", "change a model") from None
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError, whose class differs between its versions
        raise BundleError(f"model.onnx: no ONNX model ({type(error).__name__}); leave --recentre out") from None
    biases = [tensor for tensor in model.graph.initializer if tensor.name == HEAD_BIAS and list(tensor.dims) == [1]]
    if len(biases) != 1:
        raise BundleError(f"model.onnx: has no {HEAD_BIAS}, so its logit cannot be moved; leave --recentre out")
    value = numpy_helper.to_array(biases[0]) - np.float32(offset)
    biases[0].CopyFrom(numpy_helper.from_array(value.astype(np.float32), HEAD_BIAS))
    moved: bytes = model.SerializeToString(deterministic=True)
    return moved
