"""From the name of an arch to its network: the one place that knows which kinds there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aivsreal.runtime.networks.levit import ARCHS, fused_levit, levit_from_arch
from aivsreal.runtime.networks.mapped import MappedNetwork
from aivsreal.runtime.networks.vit import ProbedVit, fused_vit, is_vit

if TYPE_CHECKING:
    from torch import nn


def network_from_arch(arch: str, size: int) -> nn.Module:
    """A network with one logit and fresh weights, in training mode.

    Args:
        arch: one of `levit.ARCHS`, or a ViT of timm that has a class token.
        size: side of the input in pixels, which is fixed with it.

    Raises:
        ValueError: `arch` is not known.
    """
    if is_vit(arch):
        return ProbedVit(arch, size)
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}: use a ViT of timm or one of {', '.join(ARCHS)}")
    return levit_from_arch(arch, size)


def fused_network(network: nn.Module, arch: str, size: int) -> MappedNetwork:
    """A copy of a trained network for inference, on the CPU, in eval mode and without gradients of its weights.

    Args:
        network: what `network_from_arch(arch, size)` made; it is left as it is.
        arch: as it was made.
        size: side of the input in pixels.
    """
    if isinstance(network, ProbedVit):
        return fused_vit(network)
    return fused_levit(network, arch, size)
