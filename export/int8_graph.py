"""The INT8 graph for CPUs: `model.onnx` with its convolutions quantised statically, for ONNX Runtime.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aivsreal.runtime.bundle.manifest import INPUT
from aivsreal.runtime.errors import MissingExtra
from aivsreal.runtime.preprocess import BatchBCHW

# In the convolution form all linear layers are 1x1 convolutions. Attention's products stay in float, and so does the
# head, which is a MatMul of 384 numbers.
QUANTISED = ("Conv",)


def int8_from_onnx(full: bytes, batches: Iterable[BatchBCHW]) -> bytes:
    """Quantise the FP32 graph per channel, with the ranges that its activations take on `batches`.

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnxruntime", "quantise the network") from None
    import onnx

    class Reader:
        """What `quantize_static` calls a CalibrationDataReader."""

        def __init__(self) -> None:
            self.batches: Iterator[BatchBCHW] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch_BCHW = next(self.batches, None)
            return None if batch_BCHW is None else {INPUT: batch_BCHW}

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger().addFilter(_silent)
        source, target = Path(scratch, "full.onnx"), Path(scratch, "int8.onnx")
        source.write_bytes(full)
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(QUANTISED),
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        logging.getLogger().removeFilter(_silent)
        model = onnx.load(target)
    entry = model.metadata_props.add()
    entry.key, entry.value = "precision", "int8"  # the runtime reads it back from the loaded session
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _silent(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def quantised_share(content: bytes) -> float:
    """Share of the convolutions whose weight is INT8."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in graph.initializer}
    made = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kinds = [stored.get(made.get(node.input[1], node.input[1])) for node in graph.node if node.op_type == "Conv"]
    return sum(kind == np.int8 for kind in kinds) / max(1, len(kinds))
