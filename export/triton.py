"""A model repository for NVIDIA Triton: the bundle's graph, and its TensorRT plans, served to more than one machine."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aivsreal.runtime.bundle.engine_key import EngineCard, EngineKind, engines_of
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import ENGINE_SUFFIX, INPUT, LOGITS, MAP, MODEL
from aivsreal.runtime.errors import ExportError

NAME = "aivsreal"
MAX_BATCH = 64  # of the ONNX model, whose batch is free; an engine's is in its profile
QUEUE_DELAY_US = 2000  # how long a request may wait for others to share its batch
_CONFIG, _LABELS = "config.pbtxt", "labels.txt"


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One folder of the repository."""

    name: str
    backend: str
    file: str
    content: bytes
    half_input: bool
    max_batch: int
    has_map: tuple[int, ...] | None
    """Sides of the map; None where the network has none."""
    on_gpu: bool


def write_repository(folder: Path, bundle: Bundle) -> list[str]:
    """Write a model for `model.onnx` and one for each TensorRT engine; other models in the repository are left alone.

    Returns:
        The models' names.

    Raises:
        ExportError: a folder of that name is not ours, or it cannot be written.
    """
    check_repository(folder)
    names = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for model in _models(bundle):
            with tempfile.TemporaryDirectory(prefix=".aivsreal.", dir=folder) as scratch:
                fresh, place = Path(scratch, model.name), folder / model.name
                (fresh / "1").mkdir(parents=True)
                (fresh / "1" / model.file).write_bytes(model.content)
                (fresh / _CONFIG).write_text(config_text(model, bundle), encoding="utf-8")
                # The logit has one class: asked for a classification, Triton answers with this word.
                (fresh / _LABELS).write_text(f"{bundle.manifest.labels[-1]}\n", encoding="utf-8")
                fresh.chmod(0o755)  # the server often is another user
                if place.exists():
                    shutil.rmtree(place)
                os.rename(fresh, place)
            names.append(model.name)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error.strerror}") from None
    return names


def check_repository(folder: Path) -> None:
    """Refuse a place where our models would overwrite somebody's.

    Raises:
        ExportError: it is a file, or holds a model of our name that is not ours.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ExportError(f"{folder} is a file: name a folder for --triton")
    for place in sorted(folder.glob(f"{NAME}_*")):
        config = place / _CONFIG
        if not os.path.isfile(config) or f'key: "{NAME}.bundle"' not in config.read_text(
            encoding="utf-8", errors="replace"
        ):
            raise ExportError(f"{place} is not a model of aivsreal-export: move it away, or name another folder")


def _models(bundle: Bundle) -> Iterator[TritonModel]:
    content = bundle.read(MODEL)
    map_sides = _map_sides(content)
    yield TritonModel(f"{NAME}_onnx", "onnxruntime", "model.onnx", content, False, MAX_BATCH, map_sides, False)
    cards = [card for card in engines_of(bundle) if card.key.kind is EngineKind.TENSORRT]
    for card in cards:
        name = _tensorrt_name(card, len(cards))
        half = card.key.precision == "fp16"
        yield TritonModel(
            name, "tensorrt", "model.plan", bundle.read(card.file), half, card.key.max_batch, map_sides, True
        )


def _tensorrt_name(card: EngineCard, engines: int) -> str:
    """Of several engines the name says all that they may differ in."""
    return f"{NAME}_tensorrt" if engines == 1 else f"{NAME}_tensorrt_{card.file.removesuffix(ENGINE_SUFFIX)}"


def _map_sides(content: bytes) -> tuple[int, ...] | None:
    import onnx

    for output in onnx.load_from_string(content).graph.output:
        if output.name == MAP:
            return tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
    return None


def config_text(model: TritonModel, bundle: Bundle) -> str:
    """`config.pbtxt`: inputs and outputs, batching, instances, and what a client needs to prepare and to judge."""
    manifest = bundle.manifest
    side = manifest.spec.size
    outputs = [_tensor(LOGITS, "TYPE_FP32", (1,), f'label_filename: "{_LABELS}"')]
    if model.has_map is not None:
        outputs.append(_tensor(MAP, "TYPE_FP32", model.has_map))
    facts = {
        "bundle": bundle.digest,
        "preprocess": json.dumps(manifest.spec.to_json()),
        "temperature": repr(manifest.temperature),
        "operating_points": json.dumps(manifest.to_json()["operating_points"]),
        "default_operating_point": manifest.default_point,
        "labels": json.dumps(manifest.labels),
    }
    parameters = "\n".join(
        f'parameters {{ key: "{NAME}.{name}" value {{ string_value: {json.dumps(value)} }} }}'
        for name, value in facts.items()
    )
    preferred = ", ".join(str(size) for size in (4, 8, 16, 32) if size <= model.max_batch) or str(model.max_batch)
    return (
        f'name: "{model.name}"\nbackend: "{model.backend}"\ndefault_model_filename: "{model.file}"\n'
        f"max_batch_size: {model.max_batch}\n"
        f"input [ {_tensor(INPUT, 'TYPE_FP16' if model.half_input else 'TYPE_FP32', (3, side, side))} ]\n"
        f"output [ {', '.join(outputs)} ]\n"
        f"dynamic_batching {{ preferred_batch_size: [ {preferred} ] max_queue_delay_microseconds: {QUEUE_DELAY_US} }}\n"
        f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if model.on_gpu else 'KIND_CPU'} }} ]\n{parameters}\n"
    )


def _tensor(name: str, kind: str, dims: tuple[int, ...], more: str = "") -> str:
    return f'{{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] {more}}}'
