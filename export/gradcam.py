"""Grad-CAM as an ONNX graph: the forward pass and the backward pass down to one stage, so that an engine gives it.

An engine has no gradients. But those of one logit by a stage's output are an ordinary function of the image: traced
once with `torch.func.vjp`, they become nodes like any others.

Legend: B image in a batch; C channel; H, W input height and width; h, w those of the stage's map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from aivsreal.runtime.bundle.manifest import INPUT, MAP
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.preprocess import BatchBCHW
from aivsreal.runtime.spec import PreprocessSpec

if TYPE_CHECKING:
    import torch

    from aivsreal.runtime.networks.mapped import MappedNetwork

MAX_MAP_DIFFERENCE = 1e-4  # of the map's largest value, ONNX against PyTorch
REFERENCES = 8  # images of the parity check: the backward pass in eager PyTorch is slow


def gradcam_graph_from_network(network: MappedNetwork, spec: PreprocessSpec, stage: str, opset: int = 17) -> Any:
    """An `onnx.ModelProto` with input `pixels_BCHW`, outputs `logits` [B, 1] and `map` [B, h, w].

    The map is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the logit of `ai` at the stage's output, before
    its ReLU: above 0 towards `ai`, below 0 towards `real`. The batch is dynamic.

    Args:
        network: a fused network; it is left as it is.
        spec: gives the input's size.
        stage: one of `mapped.STAGES`.
        opset: of ONNX.

    Raises:
        ExportError: the stage is unknown, or the trace would fix the batch.
    """
    import onnx
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from aivsreal.export.graphs.full import graph_from_module, lift_constants

    logits_and_gradcam = _logits_and_gradcam(network, stage)
    batch_BCHW = torch.zeros(2, 3, spec.size, spec.size)
    traced = make_fx(logits_and_gradcam, decomposition_table=_decompositions())(batch_BCHW)
    _free_the_batch(traced)
    model = graph_from_module(traced, batch_BCHW, opset)
    lift_constants(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def gradcam_from_network(
    network: MappedNetwork, spec: PreprocessSpec, stage: str, opset: int, batch_BCHW: BatchBCHW
) -> tuple[bytes, float]:
    """The graph as a file with its weights stored in half, and how far its maps are from PyTorch's on a batch.

    The difference is of maps over the largest value of each, since Grad-CAM has no unit.

    Raises:
        ExportError: past `MAX_MAP_DIFFERENCE`, or as `gradcam_graph_from_network` says.
    """
    import torch

    from aivsreal.export.graphs.full import with_half_weights
    from aivsreal.export.graphs.session import cpu_session
    from aivsreal.runtime.networks.mapped import round_to_half

    rounded = round_to_half(network)
    model = with_half_weights(gradcam_graph_from_network(rounded, spec, stage, opset))
    content: bytes = model.SerializeToString(deterministic=True)
    found_Bhw = cpu_session(content).run([MAP], {INPUT: batch_BCHW})[0]
    expected_Bhw = _logits_and_gradcam(rounded, stage)(torch.from_numpy(batch_BCHW))[1].numpy()
    scale_B = np.maximum(np.abs(expected_Bhw).max(axis=(1, 2)), 1e-12)
    worst = float((np.abs(found_Bhw - expected_Bhw).max(axis=(1, 2)) / scale_B).max())
    if not worst <= MAX_MAP_DIFFERENCE:
        raise ExportError(
            f"the map of the Grad-CAM graph differs from PyTorch by {worst:.2g} of its largest value (at most "
            f"{MAX_MAP_DIFFERENCE:g}); nothing was written"
        )
    return content, worst


def _logits_and_gradcam(
    network: MappedNetwork, stage: str
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """From pixels to logits and Grad-CAM, in one function of tensors that can be traced."""
    import torch

    from aivsreal.runtime.networks.mapped import STAGES

    if stage not in STAGES:
        raise ExportError(f"unknown stage {stage!r}: use one of {', '.join(STAGES)}")

    def logits_and_gradcam(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features_BChw, rest = network.cut(stage, pixels_BCHW)
        logits_B1, pull = torch.func.vjp(rest, features_BChw)[:2]
        (gradient_BChw,) = pull(torch.ones_like(logits_B1))
        return logits_B1, (gradient_BChw.mean(dim=(-2, -1), keepdim=True) * features_BChw).sum(dim=1)

    return logits_and_gradcam


def _decompositions() -> dict[Any, Any]:
    """Backward operators that ONNX lacks, as operators that it has."""
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    unknown = [
        aten.hardswish_backward, aten._softmax_backward_data, aten.native_layer_norm, aten.native_layer_norm_backward,
        aten.gelu_backward, aten.sigmoid_backward,
    ]  # fmt: skip
    return {
        **get_decompositions(unknown),
        aten.convolution_backward.default: _convolution_backward,
    }


def _convolution_backward(
    gradient: torch.Tensor, source: torch.Tensor, weight: torch.Tensor, _biases: Any, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, _output_padding: list[int], groups: int,
    wanted: list[bool],
) -> tuple[torch.Tensor, None, None]:  # fmt: skip
    """The gradient of a convolution's input is a transposed convolution; those of its weights are not asked for."""
    import torch

    assert not transposed
    assert list(wanted) == [True, False, False]
    sides = zip(source.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    left_over = [
        have - ((made - 1) * step - 2 * pad + reach * (kernel - 1) + 1)
        for have, made, kernel, step, pad, reach in sides
    ]
    arguments = (stride, padding, dilation, True, left_over, groups)
    return torch.ops.aten.convolution(gradient, weight, None, *arguments), None, None


def _free_the_batch(traced: Any) -> None:
    """Let each shape that the trace wrote down begin with -1: all else is fixed, so that is the batch.

    In an `expand`, -1 leaves the axis as it is; no tensor here is spread over the batch.
    """
    import torch

    aten = torch.ops.aten
    for node in traced.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
            source, shape = node.args[0], list(node.args[1])
            if node.target == aten.expand.default and source.meta["val"].shape[0] != shape[0]:
                raise ExportError(f"{node.name} is spread over the batch, which would fix its size")
            node.args = (source, [-1, *shape[1:]])
            if node.target == aten._unsafe_view.default:
                node.target = aten.reshape.default
        elif node.target == aten._softmax.default:
            node.target, node.args = aten.softmax.int, node.args[:2]
    traced.graph.lint()
    traced.recompile()
