"""The PyTorch network and backend: the one place that builds LeViT, and the path that has gradients for Grad-CAM."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.bundle import Bundle
from aivsreal.runtime.errors import BundleError, MissingExtra
from aivsreal.runtime.preprocess import BatchBCHW, PixelsHWC, batch_from_pixels, batch_from_squares

try:
    import timm
    import torch
except ImportError as error:
    raise MissingExtra("torch", error.name or "torch", "run or train the network in PyTorch") from None

if TYPE_CHECKING:
    from torch import nn

LogitsB = npt.NDArray[np.float32]
HALF_FROM_ELEMENTS = 1024  # smaller tensors (biases) stay FP32 in model.onnx: they are 1 % of the bytes

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


class FusedLevit(torch.nn.Module):
    """LeViT for inference: BatchNorm folded, attention biases as constants, both distilled heads in one Linear."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        _fuse_children(body)
        heads = [head for head in (body.head, getattr(body, "head_dist", None)) if head is not None]
        self.head = torch.nn.Linear(heads[0].in_features, 1)
        with torch.no_grad():
            self.head.weight.copy_(sum(head.weight for head in heads) / len(heads))
            self.head.bias.copy_(sum(head.bias for head in heads) / len(heads))
        body.head = body.head_dist = torch.nn.Identity()
        self.body = body
        self.eval()
        self.requires_grad_(False)

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """`[B, 1]` logits."""
        tokens = self.body.forward_features(batch_BCHW)
        mean = tokens.mean(dim=(-2, -1)) if tokens.ndim == 4 else tokens.mean(dim=1)
        output: torch.Tensor = self.head(mean)
        return output


def fused_network(network: nn.Module, arch: str, size: int) -> FusedLevit:
    """A fused copy in the convolution form, which has fewer nodes than the linear one and named weights in ONNX."""
    linear = copy.deepcopy(network).eval()
    wanted = arch if arch.startswith("levit_conv_") else arch.replace("levit_", "levit_conv_")
    body = network_from_arch(wanted, size).eval()
    shapes = {name: value.shape for name, value in body.state_dict().items()}
    body.load_state_dict({name: value.reshape(shapes[name]) for name, value in linear.state_dict().items()})
    return FusedLevit(body)


def round_to_half(network: FusedLevit) -> FusedLevit:
    """A copy whose large weights are rounded to FP16 and computed with in FP32, as the stored ONNX has them."""
    rounded = copy.deepcopy(network)
    for value in rounded.state_dict().values():
        if value.is_floating_point() and value.numel() >= HALF_FROM_ELEMENTS:
            value.copy_(value.half().float())
    return rounded


def network_from_bundle(bundle: Bundle) -> FusedLevit:
    """The fused network with the weights of the bundle's `model.onnx`: they are stored once, there.

    Raises:
        BundleError: the file holds other weights than the arch needs.
        MissingExtra: onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise MissingExtra("torch", "onnx", "read the weights of a bundle") from None
    manifest = bundle.manifest
    network = fused_network(network_from_arch(manifest.arch, manifest.spec.size), manifest.arch, manifest.spec.size)
    path = bundle.path / "model.onnx"
    weights = {
        tensor.name.removesuffix(".half"): torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))
        for tensor in onnx.load(path).graph.initializer
    }
    names = set(network.state_dict())
    if names - set(weights):
        raise BundleError(f"{path}: lacks the weights {sorted(names - set(weights))[:3]}; export the checkpoint again")
    network.load_state_dict({name: weights[name] for name in names})
    return network


class TorchBackend:
    """Runs a bundle in PyTorch, on CUDA where there is one."""

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self.spec = bundle.manifest.spec
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network_from_bundle(bundle).to(self.device)
        self.precision = str(self.network.head.weight.dtype).removeprefix("torch.").replace("float", "fp")

    def logits(self, pixels: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of decoded images of any sizes."""
        return self._run(batch_from_pixels(pixels, self.spec))

    def logits_from_squares(self, squares: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of squares that `square_from_pixels` made."""
        return self._run(batch_from_squares(squares, self.spec))

    def _run(self, batch_BCHW: BatchBCHW) -> LogitsB:
        with torch.inference_mode():
            output = self.network(torch.from_numpy(batch_BCHW).to(self.device))
        logits_B: LogitsB = logits_from_output(output).cpu().numpy()
        return logits_B

    def close(self) -> None:
        """Let go of the network."""
        del self.network


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())
        else:
            _fuse_children(child)
    if hasattr(module, "attention_biases"):
        bias = module.attention_biases.detach()[:, module.attention_bias_idxs].clone()
        del module.attention_biases, module.attention_bias_idxs
        module.register_buffer("attention_bias", bias)
        module.get_attention_biases = types.MethodType(_attention_bias, module)


def _attention_bias(module: nn.Module, device: torch.device) -> torch.Tensor:
    return module.attention_bias  # type: ignore[return-value]
