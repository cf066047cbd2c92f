"""Read a training checkpoint: its card, and the network with its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.spec import PreprocessSpec, spec_from_json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose weights match their card's digest."""

    weights: Path
    arch: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    card: dict[str, Any]


def checkpoint_from_path(path: Path) -> Checkpoint:
    """Open `RUN`, `RUN/best.safetensors` or `RUN/best.json`; a folder stands for its `best`.

    Raises:
        CheckpointError: a file is missing, foreign, or its digest is not the card's.
    """
    card_path = (path / "best.json") if path.is_dir() else path.with_suffix(".json")
    weights = card_path.with_suffix(".safetensors")
    for file in (card_path, weights):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; give a folder or checkpoint that aivsreal-train wrote")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        checkpoint = Checkpoint(weights, card["arch"], tuple(card["labels"]), spec_from_json(card["spec"]), card)
        digest = card["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{card_path}: not a card of aivsreal-train ({type(error).__name__}: {error})") from None
    if hashlib.sha256(weights.read_bytes()).hexdigest() != digest:
        raise CheckpointError(f"{weights}: damaged, or not the weights that {card_path.name} describes; copy both again")
    return checkpoint


def network_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The network as it was trained, in eval mode.

    Raises:
        CheckpointError: the weights do not fit the arch.
    """
    from safetensors.torch import load_file

    from aivsreal.runtime.backend_torch import network_from_arch

    try:
        network = network_from_arch(checkpoint.arch, checkpoint.spec.size)
        network.load_state_dict(load_file(checkpoint.weights))
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.weights}: does not fit {checkpoint.arch}: {error}") from None
    return network.eval()
