"""Logits of a prepared batch in PyTorch and in ONNX Runtime, for parity.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aivsreal.export.parity import LogitsB
from aivsreal.runtime.backend import LOGITS
from aivsreal.runtime.preprocess import BatchBCHW

if TYPE_CHECKING:
    from torch import nn

CHUNK = 32  # images at once: bounds memory, and shows that the batch is dynamic when the last chunk is shorter


def torch_logits(network: nn.Module, batch_BCHW: BatchBCHW) -> LogitsB:
    """`logits_B` of a network in eval mode."""
    import torch

    with torch.inference_mode():
        parts = [network(torch.from_numpy(batch_BCHW[i : i + CHUNK])) for i in range(0, len(batch_BCHW), CHUNK)]
        logits: LogitsB = torch.cat(parts).float().flatten().numpy()
    return logits


def onnx_logits(content: bytes, batch_BCHW: BatchBCHW) -> LogitsB:
    """`logits_B` of a serialised ONNX model on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run([LOGITS], {name: batch_BCHW[i : i + CHUNK]})[0] for i in range(0, len(batch_BCHW), CHUNK)]
    return np.concatenate(parts).astype(np.float32).ravel()
