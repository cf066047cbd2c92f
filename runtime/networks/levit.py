"""LeViT in PyTorch, as it is trained and fused for inference.

Legend: B image in a batch; C channel; H, W height and width; T token of the last stage; Q, K queries and keys of an
attention head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from aivsreal.runtime.errors import MissingExtra
from aivsreal.runtime.networks.mapped import STAGES, MappedNetwork

try:
    import timm
    import torch
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

ARCHS = tuple(f"levit_{form}{width}" for form in ("", "conv_") for width in ("128s", "128", "192", "256", "384"))


def levit_from_arch(arch: str, size: int) -> nn.Module:
    """A LeViT (Graham et al. 2021, arXiv:2104.01136) with one logit and fresh weights, in training mode.

    Args:
        arch: one of `ARCHS`. The `levit_conv_*` form has the same weights as 1x1 convolutions.
        size: side of the input in pixels; LeViT's attention biases fix it when the network is made.
    """
    network: Any = timm.create_model(arch, pretrained=False, num_classes=1, img_size=size)
    return cast("nn.Module", network.train())


class FusedLevit(MappedNetwork):
    """LeViT for inference: BatchNorm and attention scale folded, attention biases constant, distilled heads merged.

    Args:
        body: timm's network in the `levit_conv_*` form; it is taken over and changed.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        _fuse_children(body)
        _make_attentions_static(body)
        fold_attention_scale(body)
        heads = [head for head in (body.head, getattr(body, "head_dist", None)) if head is not None]
        self.head = torch.nn.Linear(heads[0].in_features, 1)
        with torch.no_grad():
            self.head.weight.copy_(sum(head.weight for head in heads) / len(heads))
            self.head.bias.copy_(sum(head.bias for head in heads) / len(heads))
        body.head = body.head_dist = torch.nn.Identity()
        last = [module for module in body.modules() if isinstance(module, _Attention)][-1]
        self.resolution = (last.resolution[0], last.resolution[1])
        self.body: nn.Module = body
        self.eval()
        self.requires_grad_(False)

    def logits_and_map(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, 1]` logits and `map_BHW`, what each token of the last stage says: a logit is the mean of its map.

        The head is affine, so the mean over tokens may be taken after it; that is the network as it was trained.
        """
        height, width = self.resolution
        features_BCHW = cast(Any, self.body).forward_features(batch_BCHW)
        features_BCT = features_BCHW.reshape(-1, self.head.in_features, height * width)
        # The weight stands on the left: on the right it would be transposed, and the graph's copy would lose its name.
        map_B1T = self.head.weight @ features_BCT + self.head.bias
        return map_B1T.mean(dim=-1), map_B1T.reshape(-1, height, width)

    def layer(self, stage: str) -> tuple[nn.Module, None]:
        """The stage itself, whose tokens are maps already."""
        return cast(Any, self.body).stages[STAGES.index(stage)], None

    def cut(self, stage: str, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """`features_BChw` of a stage, and the rest of the network: from them to `[B, 1]` logits."""
        body: Any = self.body
        place = STAGES.index(stage) + 1
        # As a convolution, the head needs no weight that is spread over the batch, whose size a trace would fix.
        head_K111 = self.head.weight.detach()[:, :, None, None]

        def rest(features_BChw: torch.Tensor) -> torch.Tensor:
            last_BChw = body.stages[place:](features_BChw)
            return torch.nn.functional.conv2d(last_BChw, head_K111, self.head.bias).mean(dim=(-2, -1))

        return body.stages[:place](body.stem(batch_BCHW)), rest


def fused_levit(network: nn.Module, arch: str, size: int) -> FusedLevit:
    """A fused copy of a trained network, on the CPU, in eval mode and without gradients of its weights.

    It has the convolution form whatever `arch` is: the weights are the same and keep their names in ONNX, and ONNX
    Runtime takes 7.7 to 8.4 ms for levit_192 on one core, against 8.4 to 9.1 ms for the linear form.

    Args:
        network: what `levit_from_arch(arch, size)` made; it is left as it is.
        arch: one of `ARCHS`.
        size: side of the input in pixels.
    """
    wanted = arch if arch.startswith("levit_conv_") else arch.replace("levit_", "levit_conv_")
    body = levit_from_arch(wanted, size).eval()
    shapes = {name: value.shape for name, value in body.state_dict().items()}
    body.load_state_dict({name: value.reshape(shapes[name]) for name, value in network.state_dict().items()})
    return FusedLevit(body)


def fold_attention_scale(module: nn.Module, *, undo: bool = False) -> None:
    """Multiply the weights of the queries by the attention's scale, which the forward pass then leaves out."""
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, (_Attention, _AttentionDownsample)):
                for query in child.query_parameters():
                    query.mul_(1 / child.scale if undo else child.scale)


class _Attention(torch.nn.Module):
    """timm's `Attention` for one input size: no shape arithmetic and no gather, the weights keep their names."""

    attention_bias: torch.Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.qkv: nn.Conv2d = source.qkv
        self.proj: nn.Module = source.proj
        self.parts: list[int] = [source.key_dim, source.key_dim, source.val_dim]
        self.heads: int = source.num_heads
        self.scale: float = source.scale
        self.resolution: tuple[int, int] = source.resolution
        self.register_buffer("attention_bias", source.attention_biases.detach()[:, source.attention_bias_idxs].clone())

    def query_parameters(self) -> list[torch.Tensor]:
        """Views of the weights and biases that make queries."""
        return [_per_head(value, self.heads)[:, : self.parts[0]] for value in self.qkv.parameters()]

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        height, width = self.resolution
        heads_BHCK = self.qkv(x_BCHW).reshape(-1, self.heads, sum(self.parts), height * width)
        query, key, value = heads_BHCK.split(self.parts, dim=2)
        weight_BHQK = (query.transpose(-2, -1) @ key + self.attention_bias).softmax(dim=-1)
        mixed = (value @ weight_BHQK.transpose(-2, -1)).reshape(-1, self.heads * self.parts[-1], height, width)
        output: torch.Tensor = self.proj(mixed)
        return output


class _AttentionDownsample(torch.nn.Module):
    """timm's `AttentionDownsample` for one input size; the stride of its queries moves into their 1x1 convolution."""

    attention_bias: torch.Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        assert source.q.down.kernel_size == 1  # pooled queries exist in none of ARCHS
        self.kv: nn.Module = source.kv
        self.proj: nn.Module = source.proj
        source.q.ln.stride = (source.stride, source.stride)
        self.q = torch.nn.Sequential(OrderedDict(ln=source.q.ln))
        self.parts: list[int] = [source.key_dim, source.val_dim]
        self.heads: int = source.num_heads
        self.scale: float = source.scale
        self.tokens: int = source.resolution[0] * source.resolution[1]
        self.resolution: list[int] = [-(-side // source.stride) for side in source.resolution]
        self.register_buffer("attention_bias", source.attention_biases.detach()[:, source.attention_bias_idxs].clone())

    def query_parameters(self) -> list[torch.Tensor]:
        """Views of the weights and biases that make queries."""
        return list(self.q.parameters())

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        height, width = self.resolution
        key, value = self.kv(x_BCHW).reshape(-1, self.heads, sum(self.parts), self.tokens).split(self.parts, dim=2)
        query = self.q(x_BCHW).reshape(-1, self.heads, self.parts[0], height * width)
        weight_BHQK = (query.transpose(-2, -1) @ key + self.attention_bias).softmax(dim=-1)
        mixed = (value @ weight_BHQK.transpose(-2, -1)).reshape(-1, self.heads * self.parts[-1], height, width)
        output: torch.Tensor = self.proj(mixed)
        return output


def _per_head(value: torch.Tensor, heads: int) -> torch.Tensor:
    return value.view(heads, -1, *value.shape[1:])


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            setattr(module, name, cast(Any, child).fuse())
        else:
            _fuse_children(child)


def _make_attentions_static(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "attention_biases"):
            setattr(module, name, _Attention(child) if hasattr(child, "qkv") else _AttentionDownsample(child))
        else:
            _make_attentions_static(child)
