"""ViT in PyTorch: an encoder of timm, a head over the tokens of several blocks, and low-rank changes to train.

Legend: B image in a batch; C channel or feature; H, W input height and width; T token (the class token first); K probed
block; P rank of a low-rank change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from aivsreal.runtime.errors import CheckpointError, MissingExtra
from aivsreal.runtime.networks.mapped import STAGES, MappedNetwork
from aivsreal.runtime.networks.vit_weights import (
    DOWN,
    LOW_RANK,
    PREFIX,
    Weights,
    at_size,
    changed_weight,
    inference_weights,
)

try:
    import timm
    import torch
    from timm.layers.attention import Attention
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

HEADS, HIDDEN = 3, 256
"""Hidden layers that judge the class tokens, each trained by itself, and their width; side by side they are one."""


class ProbedVit(MappedNetwork):
    """A ViT whose logit comes from the class and patch tokens of several blocks.

    Intermediate blocks hold more of how an image was made than the last one (RINE, Koutlis and Papadopoulos 2024,
    arXiv:2402.19091). One hidden layer judges the class tokens, of the whole image; what patches say is affine in them
    and standardised by constants. So the logit is exactly the mean of `map`: what each patch says, and on each cell
    what the class tokens say.

    Args:
        arch: name of a ViT in timm that has a class token.
        size: side of the input in pixels.

    Raises:
        ValueError: timm has no such ViT, or one that is built otherwise.
    """

    def __init__(self, arch: str, size: int) -> None:
        super().__init__()
        if not is_vit(arch):
            raise ValueError(f"unknown arch {arch!r}: timm has no ViT of that name")
        encoder: Any = timm.create_model(arch, pretrained=False, num_classes=0, img_size=size, global_pool="")
        if getattr(encoder, "cls_token", None) is None:
            raise ValueError(f"{arch} has no class token to probe")
        if not all(isinstance(getattr(block, "attn", None), Attention) for block in encoder.blocks):
            raise ValueError(f"{arch} has another attention than a plain ViT's")
        encoder.norm = torch.nn.Identity()  # blocks are probed before it
        self.encoder: Any = encoder
        self.blocks = probed_blocks(len(encoder.blocks))
        width = len(self.blocks) * encoder.embed_dim
        self.resolution = tuple(encoder.patch_embed.grid_size)
        self.hidden = torch.nn.Linear(width, HEADS * HIDDEN)
        self.whole = torch.nn.Linear(HEADS * HIDDEN, 1, bias=False)
        self.head = torch.nn.Linear(width, 1)
        for value in (self.whole.weight, self.head.weight, self.head.bias):
            torch.nn.init.zeros_(value)
        self.register_buffer("shift", torch.zeros(2 * width))
        self.register_buffer("scale", torch.ones(2 * width))

    shift: torch.Tensor
    scale: torch.Tensor

    def tokens(self, batch_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """`tokens_BTC` after each probed block, class token first and registers left out."""
        return list(self._probed(self._embedded(batch_BCHW), 0))

    def _embedded(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """What the first block takes."""
        encoder = self.encoder
        if encoder.cls_token is not None:
            return cast(torch.Tensor, encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(batch_BCHW))))
        # Fused. All sizes but the batch's are written out, so that the graph computes none. Class token and registers
        # lie in the positions, and take the place of zeros. Rows of tokens, not images, go through the blocks: so each
        # linear layer is one Gemm in ONNX, and its weight keeps its name.
        width, patches = encoder.embed_dim, self.resolution[0] * self.resolution[1]
        x_BTC = encoder.patch_embed.proj(batch_BCHW).reshape(-1, width, patches).transpose(1, 2)
        x_BTC = encoder.patch_embed.norm(x_BTC)
        x_BTC = torch.cat([x_BTC.narrow(1, 0, encoder.num_prefix_tokens) * 0, x_BTC], dim=1) + encoder.pos_embed
        return cast(torch.Tensor, encoder.norm_pre(x_BTC).reshape(-1, width))

    def _probed(self, x: torch.Tensor, start: int) -> Iterator[torch.Tensor]:
        """`tokens_BTC` after each probed block from `start` on."""
        for index in range(start, len(self.encoder.blocks)):
            x = self.encoder.blocks[index](x)
            if index in self.blocks:
                yield self._tokens(x)

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        first, (height, width) = self.encoder.num_prefix_tokens, self.resolution
        x_BTC = x.reshape(-1, first + height * width, self.encoder.embed_dim)
        return x_BTC if first == 1 else torch.cat([x_BTC[:, :1], x_BTC[:, first:]], dim=1)

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
        """`[B, 1]` logits; the head is in FP32 whatever the encoder computes in."""
        features_BC = self.features(batch_BCHW)[0]
        with torch.autocast(features_BC.device.type, enabled=False):
            return self.judged(features_BC)

    def judged(self, features_BC: torch.Tensor) -> torch.Tensor:
        """`[B, 1]` logits of standardised features."""
        classes_BC, patches_BC = features_BC.chunk(2, dim=1)
        return cast(torch.Tensor, self._whole(classes_BC) + self.head(patches_BC))

    def _whole(self, classes_BC: torch.Tensor) -> torch.Tensor:
        """`[B, 1]`: what standardised class tokens say."""
        return cast(torch.Tensor, self.whole(quick_gelu(self.hidden(classes_BC))))

    def logits_and_map(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 1]` logits and `map_BHW` over the patches: a logit is the mean of its map."""
        return self._judged(self.tokens(batch_BCHW))

    def _judged(self, found: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        # The shift stays apart: with it in the bias, numbers in the hundreds would cancel, in eight bits of bfloat16.
        half = len(self.blocks) * self.encoder.embed_dim
        class_shift_C, patch_shift_C = torch.split(self.shift, [half, half])
        class_scale_C, patch_scale_C = torch.split(self.scale, [half, half])
        cells = self.resolution[0] * self.resolution[1]
        class_B1C, patches_BTC = torch.split(torch.cat(found, dim=2), [1, cells], dim=1)
        whole_B1 = self._whole((class_B1C.reshape(-1, half) - class_shift_C) / class_scale_C)
        patches_C1 = self.head.weight.reshape(-1, 1) / patch_scale_C.reshape(-1, 1)
        map_BT1 = (patches_BTC - patch_shift_C) @ patches_C1 + (whole_B1 + self.head.bias).reshape(-1, 1, 1)
        return map_BT1.mean(dim=1), map_BT1.reshape(-1, *self.resolution)

    def layer(self, stage: str) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
        """The normalisation before the attention of the last block of each third, as pytorch-grad-cam advises."""
        return self.encoder.blocks[self._last_of(stage)].norm1, self._grid

    def cut(self, stage: str, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """`features_BChw` of the patches there, and the rest of the network: from them to `[B, 1]` logits.

        What else the rest needs, the residual stream and the tokens before the patches, is as the image makes it.
        """
        index = self._last_of(stage)
        found, x = [], self._embedded(batch_BCHW)
        for place, block in enumerate(self.encoder.blocks[:index]):
            x = block(x)
            if place in self.blocks:
                found.append(self._tokens(x))
        block = self.encoder.blocks[index]
        normed = block.norm1(x)
        first = self.encoder.num_prefix_tokens
        before_BTC = normed.reshape(-1, first + self.resolution[0] * self.resolution[1], self.encoder.embed_dim)[
            :, :first
        ]

        def rest(features_BChw: torch.Tensor) -> torch.Tensor:
            patches_BTC = features_BChw.flatten(2).transpose(1, 2)
            y = x + block.ls1(block.attn(torch.cat([before_BTC, patches_BTC], dim=1).reshape(x.shape)))
            y = y + block.ls2(block.mlp(block.norm2(y)))
            here = [self._tokens(y)] if index in self.blocks else []
            return self._judged([*found, *here, *self._probed(y, index + 1)])[0]

        return self._grid(normed), rest

    def _last_of(self, stage: str) -> int:
        return len(self.encoder.blocks) * (STAGES.index(stage) + 1) // len(STAGES) - 1

    def _grid(self, x: torch.Tensor) -> torch.Tensor:
        first, (height, width) = self.encoder.num_prefix_tokens, self.resolution
        patches_BTC = x.reshape(-1, first + height * width, self.encoder.embed_dim)[:, first:]
        return patches_BTC.transpose(1, 2).reshape(-1, self.encoder.embed_dim, height, width)


class _PlainAttention(torch.nn.Module):
    """timm's `Attention` over rows of tokens as products and a softmax; its weights keep their names."""

    def __init__(self, source: Any, tokens: int) -> None:
        super().__init__()
        self.qkv, self.q_norm, self.k_norm = source.qkv, source.q_norm, source.k_norm
        self.norm, self.gate, self.proj = source.norm, source.gate, source.proj
        self.tokens, self.heads, self.width = tokens, source.num_heads, source.head_dim
        self.scale: float | None = None if isinstance(source.q_norm, torch.nn.Identity) else source.scale

    def forward(self, x_NC: torch.Tensor, attn_mask: None = None, is_causal: bool = False) -> torch.Tensor:
        """As timm's, without masks and dropout; queries that are not normalised were scaled in their weights."""
        parts = self.qkv(x_NC).split([self.heads * self.width] * 3, dim=1)
        query, key, value = (part.reshape(-1, self.tokens, self.heads, self.width).transpose(1, 2) for part in parts)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.scale is not None:
            query = query * self.scale
        mixed = (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        mixed_NC = self.norm(mixed.transpose(1, 2).reshape(-1, self.heads * self.width))
        if self.gate is not None:
            mixed_NC = mixed_NC * self.gate(x_NC).sigmoid()
        output: torch.Tensor = self.proj(mixed_NC)
        return output


def fused_vit(network: ProbedVit) -> ProbedVit:
    """A copy for inference: low-rank changes merged, queries scaled, class token in the positions, plain attention."""
    fused: Any = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    merge_low_rank(fused)
    encoder = fused.encoder
    patches = fused.resolution[0] * fused.resolution[1]
    plain = {name: value.numpy() for name, value in fused.state_dict().items()}
    weights = inference_weights(plain, encoder.blocks[0].attn.scale, patches)
    for block in encoder.blocks:
        block.attn = _PlainAttention(block.attn, encoder.num_prefix_tokens + patches)
    encoder.cls_token = encoder.reg_token = None
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(weights[f"{PREFIX}pos_embed"].shape), requires_grad=False)
    fused.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return cast(ProbedVit, fused)


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
        parts = (value.detach().cpu().numpy() for value in (self.weight, self.down, self.up))
        linear = torch.nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(changed_weight(*parts)))
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """CLIP's approximation of GELU, which the head takes over from the encoder."""
    return x * (1.702 * x).sigmoid()


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


def load_encoder(network: ProbedVit, weights: Weights, name: str) -> None:
    """Put an encoder's weights into a network, which may be of another size; what belongs to its own head is left.

    Raises:
        CheckpointError: a weight is missing or of another shape.
    """
    weights = at_size(weights, network.resolution[0] * network.resolution[1])
    for key, value in network.encoder.state_dict().items():
        given = weights.get(key)
        if key.endswith(LOW_RANK):
            continue
        if given is None or given.size != value.numel():
            raise CheckpointError(
                f"{name}: {'lacks' if given is None else 'has another shape for'} {key}; it is no encoder for this arch"
            )
        value.copy_(torch.from_numpy(given).reshape(value.shape))


def vit_from_parts(
    arch: str, size: int, encoder: Weights, trained: Mapping[str, torch.Tensor], name: str = "the encoder"
) -> ProbedVit:
    """The network of an encoder and of what a run trained, with its low-rank changes merged, in eval mode.

    Args:
        arch: as of `ProbedVit`.
        size: as of `ProbedVit`.
        encoder: what `encoder.encoder_from_file` read.
        trained: the tensors of the run's checkpoint.
        name: of the encoder, for errors.

    Raises:
        CheckpointError: one of them does not fit the arch.
    """
    vit = ProbedVit(arch, size)
    load_encoder(vit, encoder, name)
    downs = [key for key in trained if key.endswith(DOWN)]
    if downs:
        blocks = {int(key.split(".")[2]) for key in downs}
        low_rank(vit, trained[downs[0]].shape[0], min(blocks))
    own = vit.state_dict()
    if set(trained) != set(trained_names(vit)) or any(own[key].shape != value.shape for key, value in trained.items()):
        raise CheckpointError(f"the trained part does not fit {arch}")
    vit.load_state_dict({**own, **{key: value.float() for key, value in trained.items()}})
    merge_low_rank(vit)
    return vit.eval()
