"""Checkpoints on disk: weights as safetensors, a card in JSON that can rebuild everything, and what resuming needs.

`best.safetensors` + `best.json` are for export. `last.*` are the newest; `last.state.pt` holds optimizer and
random state.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from aivsreal.runtime.bundle.card import TrainingCard, training_card_from_json
from aivsreal.runtime.errors import CheckpointError
from aivsreal.runtime.fields import object_from_json
from aivsreal.runtime.networks.vit import ProbedVit, trained_names

STATE, METRICS, CURVES = "last.state.pt", "metrics.jsonl", "curves.png"


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What steps change, and how."""

    network: nn.Module
    learner: nn.Module
    """The network, or a `Learner` around it."""
    average: nn.Module
    """What is validated and kept."""
    optimizer: torch.optim.Optimizer


def check_unused(run: Path) -> None:
    """Refuse a folder to begin a run in where one lies, or anything that a run would replace.

    Raises:
        CheckpointError: there is something.
    """
    if os.path.exists(run / STATE):  # False, and no error, where it may not be looked into
        raise CheckpointError(f"{run} already holds a run: add --resume, or give another folder with -o")
    for name in ("best.safetensors", "best.json", "last.safetensors", "last.json", METRICS, CURVES):
        if os.path.lexists(run / name):
            raise CheckpointError(f"{run} already holds {name}: move it away, or give another folder with -o")


def save_best(run: Path, network: nn.Module, card: TrainingCard) -> None:
    """Write `best.safetensors`, then its card with the weights' digest; each file appears whole or not at all."""
    _save(run, "best", network, card)


def save_last(run: Path, trained: Trained, card: TrainingCard, progress: Progress) -> None:
    """Write the newest weights with card, and the state that `load_progress` continues from."""
    _save(run, "last", trained.average, replace(card, chosen_on=""))  # it was chosen by nothing
    state = {
        "card_digest": _digest_of_card(card), "learner": _kept(trained.learner), "average": _kept(trained.average),
        "optimizer": trained.optimizer.state_dict(), "random": torch.get_rng_state(),
        "chosen_on": card.chosen_on, "data_counts": card.data_counts,
        "epoch": progress.epoch, "best": progress.best, "history": progress.history,
    }  # fmt: skip
    part = run / f"{STATE}.part"
    torch.save(state, part)
    os.replace(part, run / STATE)


def load_progress(run: Path, card: TrainingCard, trained: Trained) -> Progress:
    """Restore everything from `last.state.pt`, so that training goes on as if it had not stopped.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another configuration or data list.
    """
    path = run / STATE
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such file; train without --resume first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        counts = state.get("data_counts", card.data_counts)  # sources decide how often an image is drawn
        if (state["card_digest"], counts) != (_digest_of_card(card), card.data_counts):
            raise CheckpointError(
                f"{path} is of another configuration or data list; give the options it was started with (see last.json)"
            )
        if state.get("chosen_on", card.chosen_on) != card.chosen_on:
            raise CheckpointError(f"{path}: its best epoch is chosen on {state['chosen_on']}; give that --choose-on")
        for module, name in ((trained.learner, "learner"), (trained.average, "average")):
            module.load_state_dict({**module.state_dict(), **state[name]})
        trained.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        return Progress(state["epoch"], state["best"], state["history"])
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises whatever unpickling does
        raise CheckpointError(
            f"{path}: damaged or not ours ({type(error).__name__}); train without --resume"
        ) from error


def starting_point(path: Path, arch: str | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights to start from, and what their card says of them.

    Args:
        path: a run's folder, which stands for its `best`, or a `.safetensors` with its card beside it.

    Raises:
        CheckpointError: a file is missing or damaged, or of another arch.
    """
    weights = path / "best.safetensors" if os.path.isdir(path) else path.with_suffix(".safetensors")
    try:
        card = training_card_from_json(object_from_json(weights.with_suffix(".json").read_bytes()))
        if card.weights_sha256 != hashlib.sha256(weights.read_bytes()).hexdigest():
            raise CheckpointError(f"{weights}: not the weights that its card describes; copy both files again")
        values = load_file(weights)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or weights}: {error.strerror or error}; name a run with --init"
        ) from None
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: not a checkpoint of aivsreal-train ({error})") from None
    if arch is not None and card.arch != arch:
        raise CheckpointError(f"{weights} is a {card.arch}, and this run trains a {arch}; give --arch")
    names = ("arch", "config", "epoch", "data_digest", "weights_sha256", "started_from")
    return values, {name: getattr(card, name) for name in names if getattr(card, name) is not None}


def _kept(network: nn.Module) -> dict[str, torch.Tensor]:
    """What training changed: the whole network, or of a ViT all but the encoder, which its own file holds."""
    values = network.state_dict()
    return {name: values[name] for name in trained_names(network)} if isinstance(network, ProbedVit) else values


def _digest_of_card(card: TrainingCard) -> str:
    fixed = {"arch": card.arch, "labels": list(card.labels), "config": card.config, "data_digest": card.data_digest}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _save(run: Path, name: str, network: nn.Module, card: TrainingCard) -> None:
    weights = run / f"{name}.safetensors"
    part = run / f"{name}.safetensors.part"
    save_file({key: value.contiguous().clone() for key, value in _kept(network).items()}, part)
    full = replace(card, weights=weights.name, weights_sha256=hashlib.sha256(part.read_bytes()).hexdigest())
    os.replace(part, weights)
    card_part = run / f"{name}.json.part"
    card_part.write_text(json.dumps(full.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(card_part, run / f"{name}.json")
