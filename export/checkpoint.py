"""Read a training checkpoint: its card, and the network with its weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.spec import PreprocessSpec, spec_from_json
from aivsreal.runtime.verdict import LABELS

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
_TOLD_IN_A_BUNDLE = (
    "config",
    "chosen_on",
    "data_digest",
    "data_counts",
    "data_licences",
    "versions",
    "epoch",
    "metrics",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose weights match their card's digest, and whose card has all that a bundle tells."""

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
    card_path = (path / "best.json") if os.path.isdir(path) else path.with_suffix(".json")
    weights = card_path.with_suffix(".safetensors")
    for file in (card_path, weights):
        if not os.path.isfile(file):
            raise CheckpointError(f"{file}: no such file; give a folder or checkpoint that aivsreal-train wrote")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, and this version reads {FORMAT}")
        if tuple(card["labels"]) != LABELS:
            raise ValueError(f"labels {card['labels']!r}, and a bundle has {list(LABELS)}")
        absent = [name for name in _TOLD_IN_A_BUNDLE if name not in card]
        if absent:
            raise ValueError(f"it lacks {', '.join(absent)}")
        checkpoint = Checkpoint(weights, str(card["arch"]), LABELS, spec_from_json(card["spec"]), card)
        digest = card["weights_sha256"]
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: cannot be read: {error.strerror}; copy the checkpoint again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{card_path}: not a card of aivsreal-train ({type(error).__name__}: {error})") from None
    if found != digest:
        raise CheckpointError(
            f"{weights}: damaged, or not the weights that {card_path.name} describes; copy both files again"
        )
    return checkpoint


def network_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The network as it was trained, in eval mode.

    Raises:
        CheckpointError: the weights do not fit the arch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from aivsreal.runtime.backends.networks import network_from_arch

    try:
        network = network_from_arch(checkpoint.arch, checkpoint.spec.size)
        network.load_state_dict(load_file(checkpoint.weights))
    except (ValueError, RuntimeError, SafetensorError) as error:
        what = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint.weights}: does not fit {checkpoint.arch}: {what}; train it again") from None
    return network.eval()
