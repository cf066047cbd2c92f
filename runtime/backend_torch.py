"""The PyTorch network and backend: the one place that builds LeViT, and the path that has gradients for Grad-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aivsreal.runtime.errors import MissingExtra

try:
    import timm
    import torch
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

ARCHS = tuple(
    f"levit_{form}{width}" for form in ("", "conv_") for width in ("128s", "128", "192", "256", "384")
)


def network_from_arch(arch: str, size: int) -> nn.Module:
    """A LeViT (Graham et al. 2021, arXiv:2104.01136) with one logit and fresh weights, in training mode.

    Args:
        arch: one of `ARCHS`. The `levit_conv_*` form has the same weights as 1x1 convolutions.
        size: side of the input in pixels; LeViT's attention biases fix it when the network is made.

    Raises:
        ValueError: `arch` is not known.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}; one of {', '.join(ARCHS)}")
    network: nn.Module = timm.create_model(arch, pretrained=False, num_classes=1, img_size=size)
    return network.train()


def logits_from_output(output: torch.Tensor) -> torch.Tensor:
    """`logits_B` from the network's `[B, 1]` output, as float32."""
    return output.float().squeeze(1)
