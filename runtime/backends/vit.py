"""ViT in PyTorch: an encoder of timm, a linear head over the tokens of several blocks, and low-rank changes to train.

Legend: B image in a batch; C channel or feature; H, W input height and width; T token (the class token first); K probed
block; P rank of a low-rank change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from aivsreal.runtime.errors import MissingExtra

try:
    import timm
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

PREFIX = "encoder."  # of the names of the encoder's weights, before those that timm gives
LOW_RANK = (".down", ".up")  # of the weights of a low-rank change, in the trained part alone


class ProbedVit(torch.nn.Module):
    """A ViT whose logit is affine in the class and patch tokens of several blocks.

    Intermediate blocks hold more of how an image was made than the last one (RINE, Koutlis and Papadopoulos 2024,
    arXiv:2402.19091). The features are standardised by constants, not by LayerNorm: so the logit is exactly the mean
    of `map`, what each patch says plus what the class tokens say of the whole image.

    Args:
        arch: name of a ViT in timm that has a class token.
        size: side of the input in pixels.

    Raises:
        ValueError: timm has no such ViT.
    """

    def __init__(self, arch: str, size: int) -> None:
        super().__init__()
        if not is_vit(arch):
            raise ValueError(f"unknown arch {arch!r}: timm has no ViT of that name")
        encoder: Any = timm.create_model(arch, pretrained=False, num_classes=0, img_size=size, global_pool="")
        if getattr(encoder, "cls_token", None) is None:
            raise ValueError(f"{arch} has no class token to probe")
        encoder.norm = torch.nn.Identity()  # blocks are probed before it
        self.encoder: Any = encoder
        self.blocks = probed_blocks(len(encoder.blocks))
        width = len(self.blocks) * encoder.embed_dim
        self.resolution: tuple[int, int] = tuple(encoder.patch_embed.grid_size)
        self.head: nn.Linear = torch.nn.Linear(2 * width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(2 * width))
        self.register_buffer("scale", torch.ones(2 * width))

    shift: torch.Tensor
    scale: torch.Tensor

    def tokens(self, batch_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """`tokens_BTC` after each probed block, class token first and registers left out."""
        encoder = self.encoder
        x_BTC = encoder._pos_embed(encoder.patch_embed(batch_BCHW))
        x_BTC = encoder.norm_pre(x_BTC)
        first = encoder.num_prefix_tokens
        found = []
        for index, block in enumerate(encoder.blocks):
            x_BTC = block(x_BTC)
            if index in self.blocks:
                found.append(x_BTC if first == 1 else torch.cat([x_BTC[:, :1], x_BTC[:, first:]], dim=1))
        return found

    def raw_features(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`features_BC`: class tokens of the blocks, then means of their patches; and the `tokens_BTC` themselves."""
        found = self.tokens(batch_BCHW)
        parts = [x_BTC[:, 0] for x_BTC in found] + [x_BTC[:, 1:].mean(dim=1) for x_BTC in found]
        return torch.cat(parts, dim=1).float(), found

    def features(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`features_BC` as the head sees them, standardised; and the `tokens_BTC` that they come from."""
        raw_BC, found = self.raw_features(batch_BCHW)
        return (raw_BC - self.shift) / self.scale, found

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """`[B, 1]` logits."""
        logits: torch.Tensor = functional.linear(self.features(batch_BCHW)[0], self.head.weight, self.head.bias)
        return logits

    def logits_and_map(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 1]` logits and `map_BHW` over the patches: a logit is the mean of its map."""
        found = self.tokens(batch_BCHW)
        weight_C = self.head.weight[0] / self.scale
        bias = self.head.bias - (weight_C * self.shift).sum()
        classes_C, patches_C = weight_C.chunk(2)
        every_BTC = torch.cat(found, dim=2)
        whole_B1 = every_BTC[:, 0] @ classes_C[:, None] + bias
        map_BT = (every_BTC[:, 1:] @ patches_C[:, None]).squeeze(2) + whole_B1
        return map_BT.mean(dim=1, keepdim=True), map_BT.reshape(-1, *self.resolution)

    def fold_scale(self) -> None:
        """Put the standardisation into the head, as inference has it."""
        with torch.no_grad():
            self.head.weight /= self.scale
            self.head.bias.sub_((self.head.weight[0] * self.shift).sum())
            self.shift.zero_()
            self.scale.fill_(1)


class LowRankLinear(torch.nn.Module):
    """A linear layer that stays as it is, and a trained change of low rank (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # under their old names: an encoder's file fits as it is
        self.down = torch.nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = torch.nn.Parameter(torch.zeros(linear.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed = functional.linear(functional.linear(x, self.down), self.up)
        return functional.linear(x, self.weight, self.bias) + changed

    def merged(self) -> nn.Linear:
        """The plain layer of the same function."""
        linear = torch.nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.weight + self.up @ self.down)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


def is_vit(arch: str) -> bool:
    """Whether timm has a ViT of that name."""
    return arch.startswith("vit_") and arch in timm.list_models("vit_*")


def probed_blocks(depth: int) -> tuple[int, ...]:
    """Indices of the blocks that the head sees: all but the first third."""
    return tuple(range(depth // 3, depth))


def low_rank(network: nn.Module, rank: int, first: int = 0) -> None:
    """Give every linear layer of the blocks from `first` on a low-rank change of that rank, none yet."""
    for block in cast(Any, network).encoder.blocks[first:]:
        for parent, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            setattr(parent, name, LowRankLinear(getattr(parent, name), rank))


def merge_low_rank(network: nn.Module) -> None:
    """Replace each changed layer by the plain one of the same function."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(module, name, child.merged())


def trained_names(network: nn.Module) -> Iterator[str]:
    """Names of what training changes: low-rank changes, head and its constants; the encoder stays in its own file."""
    for name in network.state_dict():
        if not name.startswith(PREFIX) or name.endswith(LOW_RANK):
            yield name
