"""Logits of prepared images in PyTorch, ONNX Runtime and an engine, for parity.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aivsreal.export.graphs.reference import Reference
from aivsreal.runtime.bundle.manifest import LOGITS
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.preprocess import BatchBCHW, LogitsB

if TYPE_CHECKING:
    from torch import nn

    from aivsreal.runtime.bundle.manifest import Manifest

CHUNK = 32  # images at once: bounds memory, and shows that the batch is dynamic when the last chunk is shorter
SLOW_COUNT = 8  # images where only onnx's own evaluator is there: it takes 6 s for one on a desktop's core


def torch_logits(network: nn.Module, batch_BCHW: BatchBCHW) -> LogitsB:
    """`logits_B` of a network in eval mode."""
    import torch

    with torch.inference_mode():
        parts = [network(torch.from_numpy(batch_BCHW[i : i + CHUNK])) for i in range(0, len(batch_BCHW), CHUNK)]
        logits: LogitsB = torch.cat(parts).float().flatten().numpy()
    return logits


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime is here; a Jetson may have TensorRT and onnx alone."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def onnx_logits(content: bytes, batch_BCHW: BatchBCHW) -> LogitsB:
    """`logits_B` of a serialised ONNX model on the CPU, with ONNX Runtime or, where it is not, onnx's own evaluator.

    Raises:
        ExportError: it is no ONNX model, or not one that can be run.
    """
    try:
        return (_run if has_onnxruntime() else _evaluated)(content, batch_BCHW)
    except Exception as error:  # the errors of protobuf, onnx and ONNX Runtime have no common class below this one
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"the ONNX graph cannot be run: {what}; make the bundle again from its checkpoint") from None


def cpu_session(content: bytes, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU; 0 threads are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # what goes wrong is raised
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _run(content: bytes, batch_BCHW: BatchBCHW) -> LogitsB:
    session = cpu_session(content)
    entry = session.get_inputs()[0]
    batch = batch_BCHW.astype(np.float16 if entry.type == "tensor(float16)" else np.float32, copy=False)
    parts = [session.run([LOGITS], {entry.name: batch[i : i + CHUNK]})[0] for i in range(0, len(batch), CHUNK)]
    return np.concatenate(parts).astype(np.float32).ravel()


def _evaluated(content: bytes, batch_BCHW: BatchBCHW) -> LogitsB:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(content)
    entry = model.graph.input[0]
    half = entry.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    batch = batch_BCHW.astype(np.float16 if half else np.float32, copy=False)
    outputs: Any = ReferenceEvaluator(model).run([LOGITS], {entry.name: batch})
    return np.asarray(outputs[0], dtype=np.float32).ravel()


def engine_logits(files: Mapping[str, bytes], manifest: Manifest, reference: Reference) -> LogitsB:
    """`logits_B` of the engine that fits this GPU, through the backend that a scan uses, preprocessing and all.

    Raises:
        BackendError: there is no GPU, or no engine among the files that fits it.
    """
    from aivsreal.runtime.bundle.folder import write_bundle
    from aivsreal.runtime.gpu.backend import TensorrtBackend

    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        backend = TensorrtBackend(write_bundle(Path(scratch, "bundle"), files, manifest))
        try:
            pixels = reference.pixels()
            while chunk := list(islice(pixels, CHUNK)):
                parts.append(backend.run(chunk).logits_B)
        finally:
            backend.close()
    return np.concatenate(parts)
