"""What every network here is to those who run it: one logit, which is exactly the mean of a map.

Legend: B image in a batch; C channel; H, W input height and width; h, w cells of a map.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from aivsreal.runtime.bundle.manifest import HALF_FROM_ELEMENTS
from aivsreal.runtime.errors import MissingExtra

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

STAGES = ("stage1", "stage2", "stage3")
"""Where Grad-CAM may look: of a LeViT at 224 pixels 14x14, 7x7 and 4x4 cells, of a ViT the patches in each third."""

AnyNetwork = TypeVar("AnyNetwork", bound="MappedNetwork")


class MappedNetwork(torch.nn.Module, ABC):
    """A network whose logit is the mean of its map: what export, the PyTorch backend and Grad-CAM ask of any arch."""

    head: nn.Linear
    """What is affine in the features of each cell, so that the mean over cells may be taken after it."""
    resolution: tuple[int, int]
    """Height and width of the map."""

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """`[B, 1]` logits."""
        return self.logits_and_map(batch_BCHW)[0]

    @abstractmethod
    def logits_and_map(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 1]` logits and `map_Bhw`, what each cell says: a logit is the mean of its map."""

    @abstractmethod
    def layer(self, stage: str) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
        """The module whose output Grad-CAM looks at, and what makes `[B, C, h, w]` of that where it is not yet so."""

    @abstractmethod
    def cut(self, stage: str, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """`features_BChw` of the same module, and the rest of the network: from them to `[B, 1]` logits."""


def logits_from_output(output: torch.Tensor) -> torch.Tensor:
    """`logits_B` from the network's `[B, 1]` output, as float32."""
    return output.float().squeeze(1)


def round_to_half(network: AnyNetwork) -> AnyNetwork:
    """A copy whose large weights are rounded to FP16 and computed with in FP32, as the stored ONNX has them."""
    rounded = copy.deepcopy(network)
    for value in rounded.state_dict().values():
        if value.is_floating_point() and value.numel() >= HALF_FROM_ELEMENTS:
            value.copy_(value.half().float())
    return rounded
