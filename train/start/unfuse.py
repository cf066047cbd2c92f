"""Train on from a bundle: its network has no BatchNorm left, and training needs it back.

Each BatchNorm gets the mean and the variance that its input has on real images, and a scale and a shift that undo both.
So the network computes what the bundle does, and does so from the first step with the statistics of a batch too.
Legend: B image in a batch; C channel; H, W height and width; F feature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from aivsreal.runtime.backends.torch import network_from_bundle
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import MODEL
from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.networks.arch import network_from_arch
from aivsreal.runtime.networks.levit import FusedLevit, fold_attention_scale
from aivsreal.runtime.preprocess import batch_from_squares
from aivsreal.train.batches.data import PixelsOf, val_batches
from aivsreal.train.config import TrainConfig
from aivsreal.train.samples import Sample

_IMAGES = 512
_LEAST_VARIANCE = 1e-12  # of a feature that is the same everywhere, which no scale can bring to 1


def told_of_bundle(bundle: Bundle, arch: str) -> dict[str, Any]:
    """What a run's card says of the bundle that it starts from.

    Raises:
        CheckpointError: it is of another arch.
    """
    manifest = bundle.manifest
    if manifest.arch != arch:
        raise CheckpointError(f"{bundle.path} is a {manifest.arch}, and this run trains a {arch}; give --arch")
    told = ("config", "epoch", "data_digest", "started_from")
    return {
        "arch": arch,
        "bundle": bundle.digest,
        "weights_sha256": manifest.files[MODEL],
        **{name: manifest.provenance[name] for name in told if name in manifest.provenance},
    }


def weights_from_bundle(
    bundle: Bundle, samples: Sequence[Sample], config: TrainConfig, pixels_of: PixelsOf
) -> dict[str, torch.Tensor]:
    """The state of a network to train on, with the function of a bundle's; 512 of the images give its BatchNorm.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: it holds a ViT.
        MissingExtra: onnx is not installed.
    """
    manifest = bundle.manifest
    network = network_from_bundle(bundle)
    if not isinstance(network, FusedLevit):
        raise CheckpointError(f"{bundle.path} is a {manifest.arch}: train on from its run, which has what was trained")
    config = replace(config, spec=manifest.spec, batch_size=64)
    seen = val_batches(samples[:: -(-len(samples) // _IMAGES)], config, pixels_of, 2)
    batches = (torch.from_numpy(batch_from_squares(list(part.numpy()), manifest.spec)) for part in seen)
    return unfused(network, manifest.arch, manifest.spec.size, batches).state_dict()


def unfused(fused: FusedLevit, arch: str, size: int, batches: Iterable[torch.Tensor]) -> nn.Module:
    """A network to train on, in eval mode, with the function of a fused one.

    Args:
        fused: of a bundle; it is left as it is.
        arch: what the bundle says.
        size: side of its input in pixels.
        batches: `batch_BCHW` of images as it will see them, some hundreds in all.

    Raises:
        ValueError: there are no batches.
    """
    source = copy.deepcopy(fused)
    fold_attention_scale(source.body, undo=True)
    values = dict(source.body.state_dict())
    for head in ("head", "head_dist"):  # the mean of two equal heads is the one that was merged
        values |= {f"{head}.{name}": value for name, value in source.head.state_dict().items()}
    network = network_from_arch(arch, size).eval()
    pairs = {name: module for name, module in network.named_modules() if hasattr(module, "bn")}
    with torch.no_grad():
        for name, module in network.named_modules():
            if name in pairs:
                _set(module, values[f"{name}.weight"], values[f"{name}.bias"])
            elif isinstance(biases_AN := getattr(module, "attention_biases", None), torch.Tensor):
                places = getattr(module, "attention_bias_idxs")  # noqa: B009  untyped in timm
                biases_AN[:, places.flatten()] = values[f"{name}.attention_bias"].flatten(1)
        moments = {name: _Moments() for name in pairs}
        hooks = [pairs[name].get_submodule("bn").register_forward_pre_hook(one.take) for name, one in moments.items()]
        for batch_BCHW in batches:
            network(batch_BCHW)
        for hook in hooks:
            hook.remove()
        for name, module in pairs.items():
            _normalise(module, *moments[name].mean_and_variance())
    # timm's LeViT keeps the attention biases of its last forward pass in eval(); train() drops them.
    return network.train().eval()


class _Moments:
    """Sums over what reaches a BatchNorm."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(1), torch.zeros(1)

    def take(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows_FN = inputs[0].transpose(0, 1).flatten(1).double()
        self._count += rows_FN.shape[1]
        self._sum = self._sum + rows_FN.sum(1)
        self._squares = self._squares + rows_FN.square().sum(1)

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._count:
            raise ValueError("no images to take the statistics of BatchNorm from")
        mean_F = self._sum / self._count
        return mean_F, (self._squares / self._count - mean_F.square()).clamp_min(_LEAST_VARIANCE)


def _set(module: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """The fused weights, and a BatchNorm that changes nothing but for the fused bias."""
    module.linear.weight.copy_(weight.reshape(module.linear.weight.shape))
    module.bn.running_mean.zero_()
    module.bn.running_var.fill_(1.0 - module.bn.eps)
    module.bn.weight.fill_(1.0)
    (module.bn.bias if module.linear.bias is None else module.linear.bias).copy_(bias)


def _normalise(module: Any, mean_F: torch.Tensor, variance_F: torch.Tensor) -> None:
    """The same function with the BatchNorm's input at a variance of 1, about as fresh weights have it."""
    eps = module.bn.eps  # a batch's variance gets it too
    if module.linear.bias is None:  # BatchNorm after the layer: y = std (W/std x - mean/std) + (bias + mean)
        std_F = variance_F.sqrt()
        shape = (-1, *[1] * (module.linear.weight.ndim - 1))
        module.linear.weight.div_(std_F.reshape(shape))
        module.bn.running_mean.copy_(mean_F / std_F)
        module.bn.running_var.fill_(1.0)
        module.bn.weight.copy_(std_F * (1.0 + eps) ** 0.5)
        module.bn.bias.add_(mean_F)
    else:  # before it: y = (W std) (x - mean)/std + (bias + W mean)
        module.linear.bias.add_(module.linear.weight @ mean_F.float())
        module.linear.weight.mul_((variance_F + eps).sqrt())
        module.bn.running_mean.copy_(mean_F)
        module.bn.running_var.copy_(variance_F)
