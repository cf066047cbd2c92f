"""Read a training checkpoint: its card, and the network with its weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aivsreal.runtime.bundle.card import TrainingCard, training_card_from_json
from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.fields import object_from_json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose weights match their card's digest, and whose card has all that a bundle tells."""

    weights: Path
    card: TrainingCard


def checkpoint_from_path(path: Path) -> Checkpoint:
    """Open `RUN`, `RUN/best.safetensors` or `RUN/best.json`; a folder stands for its `best`.

    Raises:
        CheckpointError: a file is missing, foreign, or its digest is not the card's.
    """
    card_path = (path / "best.json") if os.path.isdir(path) else path.with_suffix(".json")
    weights = card_path.with_suffix(".safetensors")
    for file in (card_path, weights):
        if not os.path.isfile(file):
            raise CheckpointError(f"{file}: no such file; give a folder or checkpoint that aivsreal-train wrote")
    try:
        card = training_card_from_json(object_from_json(card_path.read_bytes()))
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: cannot be read: {error.strerror}; copy the checkpoint again"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{card_path}: not a card of aivsreal-train: {error}") from None
    if found != card.weights_sha256:
        raise CheckpointError(
            f"{weights}: damaged, or not the weights that {card_path.name} describes; copy both files again"
        )
    return Checkpoint(weights, card)


def network_from_checkpoint(checkpoint: Checkpoint, encoder: str | None = None) -> nn.Module:
    """The network as it was trained, in eval mode.

    Args:
        checkpoint: of a LeViT all of it, of a ViT what was trained.
        encoder: the file of a ViT's encoder, as of `encoder_from_file`.

    Raises:
        CheckpointError: the weights do not fit the arch, or the encoder is missing or not the one it was trained over.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from aivsreal.runtime.networks.arch import network_from_arch
    from aivsreal.runtime.networks.encoder import checked_encoder
    from aivsreal.runtime.networks.vit import vit_from_parts
    from aivsreal.runtime.networks.vit_weights import LOW_RANK

    card = checkpoint.card
    told: Any = (card.started_from or {}).get("encoder")
    try:
        if told is not None:
            if encoder is None:
                raise CheckpointError(
                    f"{checkpoint.weights} holds what was trained over the encoder {told['name']}: name its file with "
                    f"--encoder (SHA-256 {told['sha256']})"
                )
            weights = checked_encoder(encoder, told["sha256"])
            # Low-rank changes in half, as the package keeps them: so a run's bundle is to the bit what it makes.
            trained = {
                name: value.half() if name.endswith(LOW_RANK) else value
                for name, value in load_file(checkpoint.weights).items()
            }
            return vit_from_parts(card.arch, card.spec.size, weights, trained, encoder)
        if encoder is not None:
            raise CheckpointError(f"{checkpoint.weights} is a whole {card.arch}: leave --encoder out")
        network = network_from_arch(card.arch, card.spec.size)
        network.load_state_dict(load_file(checkpoint.weights))
    except (ValueError, RuntimeError, SafetensorError) as error:
        what = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint.weights}: does not fit {checkpoint.card.arch}: {what}; train it again"
        ) from None
    return network.eval()
