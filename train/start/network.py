"""What a run starts from: a network with fresh weights, an encoder's, another run's or a bundle's; and its teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import MANIFEST
from aivsreal.runtime.errors import CheckpointError, DataError
from aivsreal.runtime.networks.arch import network_from_arch
from aivsreal.runtime.networks.encoder import HUB, encoder_from_file, names_encoder
from aivsreal.runtime.networks.levit import ARCHS
from aivsreal.runtime.networks.vit import ProbedVit, is_vit, load_encoder, low_rank, vit_from_parts
from aivsreal.runtime.networks.vit_weights import Weights
from aivsreal.runtime.spec import spec_from_json
from aivsreal.train.batches.data import PixelsOf
from aivsreal.train.config import DistilConfig, TrainConfig
from aivsreal.train.fit.checkpoint import starting_point
from aivsreal.train.fit.distil import Teacher
from aivsreal.train.samples import Sample
from aivsreal.train.start.resolution import weights_at_size
from aivsreal.train.start.unfuse import told_of_bundle, weights_from_bundle


@dataclass(slots=True)
class Start:
    """What `--init` names: an encoder's file, and a run or bundle; each at most once."""

    encoder: Weights | None = None
    encoder_name: str = ""
    encoder_digest: str = ""
    weights: Path | None = None


def start_from_names(names: Sequence[str]) -> Start:
    """Tell the encoder from the run or bundle.

    Raises:
        CheckpointError: an encoder cannot be read.
        DataError: two of a kind are given.
    """
    start = Start()
    for name in names:
        if names_encoder(name):
            if start.encoder is not None:
                raise DataError(f"--init {name}: one encoder is enough")
            start.encoder, start.encoder_digest = encoder_from_file(name)
            start.encoder_name = name if name.startswith(HUB) else Path(name).name
        elif start.weights is not None:
            raise DataError(f"--init {name}: weights come from one run or bundle, and {start.weights} is given too")
        else:
            start.weights = Path(name)
    return start


def network_to_train(
    config: TrainConfig, start: Start, samples: Sequence[Sample], pixels_of: PixelsOf
) -> tuple[nn.Module, TrainConfig, dict[str, Any]]:
    """The network, the configuration with the digests of what it starts from, and what the card says of that.

    Args:
        samples: some of them give BatchNorm its statistics where a bundle's network has none.
        pixels_of: gives their views.

    Raises:
        CheckpointError: something does not fit.
        DataError: the arch is unknown, or a ViT has no encoder.
    """
    if not is_vit(config.arch) and config.arch not in ARCHS:
        raise DataError(f"--arch {config.arch}: unknown; use a ViT of timm or one of {', '.join(ARCHS)}")
    told: dict[str, Any] = {}
    values: dict[str, torch.Tensor] | None = None
    torch.manual_seed(config.seed)
    if start.encoder is not None and not is_vit(config.arch) and not config.distil.asks_a_teacher:
        raise DataError(f"--init {start.encoder_name}: {config.arch} has no encoder; that of a --teacher is one")
    if start.weights is not None:
        if os.path.isfile(start.weights / MANIFEST):
            bundle = Bundle.open(start.weights)
            told = told_of_bundle(bundle, config.arch)
            values = weights_from_bundle(bundle, samples, config, pixels_of)
        else:
            values, told = starting_point(start.weights, config.arch)
        config = replace(config, init=told["weights_sha256"])
    if not is_vit(config.arch):
        network = network_from_arch(config.arch, config.spec.size)
        if values is not None:
            network.load_state_dict(weights_at_size(values, network.state_dict()))
        return network, config, told
    if start.encoder is None:
        raise DataError(f"--arch {config.arch} starts from an encoder: name its file with --init, or {HUB}NAME")
    vit = ProbedVit(config.arch, config.spec.size)
    load_encoder(vit, start.encoder, start.encoder_name)
    vit.encoder.requires_grad_(False)
    if config.rank:
        low_rank(vit, config.rank, config.freeze)
    if values is not None:
        vit.load_state_dict({**vit.state_dict(), **values})
    told["encoder"] = {"name": start.encoder_name, "sha256": start.encoder_digest}
    return vit, replace(config, encoder=start.encoder_digest), told


def teacher_from_path(path: Path, start: Start, config: DistilConfig) -> tuple[Teacher, str]:
    """A teacher from a bundle, or from a run of a ViT whose encoder `--init` names; and its digest.

    Raises:
        CheckpointError: it does not fit, or is no ViT.
    """
    if os.path.isfile(path / MANIFEST):
        from aivsreal.runtime.backends.torch import network_from_bundle

        bundle = Bundle.open(path)
        network: Any = network_from_bundle(bundle)
        if not isinstance(network, ProbedVit):
            raise CheckpointError(f"{path} is a {bundle.manifest.arch}: a teacher is a ViT")
        return Teacher(network, bundle.manifest.spec, config), bundle.digest
    values, told = starting_point(path, None)
    if not is_vit(told["arch"]):
        raise CheckpointError(f"{path} is a {told['arch']}: a teacher is a ViT")
    if start.encoder is None or start.encoder_digest != told["config"]["encoder"]:
        raise CheckpointError(f"{path}: name the file of its encoder with --init (SHA-256 {told['config']['encoder']})")
    spec = spec_from_json(told["config"]["spec"])
    vit = vit_from_parts(told["arch"], spec.size, start.encoder, values)
    return Teacher(vit, spec, config), told["weights_sha256"]
