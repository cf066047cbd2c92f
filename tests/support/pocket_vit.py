"""A ViT that timm knows by name and that is trained in seconds: three blocks like CLIP's, 32 wide, patches of 8 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer

from aivsreal.runtime.networks.vit import ProbedVit

NAME, SIZE = "vit_pocket_patch8_32", 32
REGISTERS = "vit_pocket_patch8_reg_32"
"""With registers, positions of patches alone, layer scale, and queries and keys that are normalised."""


def _known(name: str, **options: Any) -> None:
    def made(img_size: int = SIZE, global_pool: str = "", **_: Any) -> VisionTransformer:
        return VisionTransformer(
            img_size=img_size, global_pool=global_pool, num_classes=0, patch_size=8, embed_dim=32, depth=3, num_heads=2,
            pre_norm=True, act_layer="quick_gelu", **options,
        )  # fmt: skip

    made.__name__, made.__module__ = name, VisionTransformer.__module__  # timm keeps what it knows by module of its own
    timm.models.register_model(made)


_known(NAME)
_known(REGISTERS, reg_tokens=2, no_embed_class=True, init_values=0.5, qk_norm=True)


def pocket_vit(seed: int = 0, arch: str = NAME) -> ProbedVit:
    """With weights and constants that all matter."""
    torch.manual_seed(seed)
    network = ProbedVit(arch, SIZE).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape))
        network.shift.normal_(0, 0.5)
        network.scale.uniform_(0.5, 2)
    return network


def encoder_file(path: Path, seed: int = 0) -> Path:
    """The encoder of `pocket_vit` as safetensors."""
    save_file({name: value.clone() for name, value in pocket_vit(seed).encoder.state_dict().items()}, path)
    return path
