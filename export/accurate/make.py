"""Make the accurate model of the encoder that its user has: numpy and onnx alone, the same to the bit everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.bundle.folder import ACCURATE, Bundle, named_folder, write_bundle
from aivsreal.runtime.bundle.manifest import (
    EVALUATION,
    HALF_SUFFIX,
    INT8_MODEL,
    MANIFEST,
    MAP,
    MODEL,
    Manifest,
    manifest_from_json,
)
from aivsreal.runtime.errors import ExportError, MissingExtra
from aivsreal.runtime.fields import object_from_json
from aivsreal.runtime.networks.encoder import checked_encoder
from aivsreal.runtime.networks.vit_weights import Array, Weights, at_size, inference_weights, joined

PARTS = Path(__file__).resolve().parent
GRAPH, TRAINED, SCALES = "graph.onnx", "trained.safetensors", "int8.safetensors"
QUERY_SCALE = "query_scale"
"""Among the trained tensors: what the attention multiplies its queries by."""


def accurate_bundle(encoder: str, target: Path | None = None, parts: Path = PARTS) -> Bundle:
    """Write the accurate model's bundle.

    Args:
        encoder: file of the encoder that it was trained over, as of `encoder_from_file`.
        target: folder to write; None is where `--bundle accurate` looks.
        parts: folder of the parts that are shipped.

    Raises:
        CheckpointError: the encoder is another one, or cannot be read.
        ExportError: what comes out is not the model that was measured, or there is nowhere to put it.
        BundleError: it cannot be written.
        MissingExtra: onnx or safetensors is not installed.
    """
    from aivsreal.runtime.bundle.model_card import model_card

    place = target or named_folder(ACCURATE)
    if place is None:
        raise ExportError("there is no home folder to keep the accurate model in: name a folder with -o")
    try:
        values, told = (object_from_json((parts / name).read_bytes()) for name in (MANIFEST, EVALUATION))
        manifest = manifest_from_json(values, told)
        graph, trained = (parts / GRAPH).read_bytes(), trained_from_file(parts / TRAINED)
        scales = tensors_from_file(parts / SCALES) if INT8_MODEL in manifest.files else {}
    except FileNotFoundError as error:
        raise ExportError(f"this aivsreal carries no accurate model ({error.filename}): install a release") from None
    content = model_from_parts(graph, trained, checked_encoder(encoder, encoder_of(manifest)), encoder)
    files = {MODEL: content}
    if scales:
        files[INT8_MODEL] = int8_from_parts(content, scales)
    for name, made in files.items():
        found = hashlib.sha256(made).hexdigest()
        if found != manifest.files[name]:
            raise ExportError(
                f"{encoder}: the {name} that came out (SHA-256 {found}) is not the one that was measured "
                f"({manifest.files[name]}): run pip install -U onnx numpy, and try again"
            )
    return write_bundle(place, {**files, "README.md": model_card(manifest).encode()}, manifest)


def encoder_of(manifest: Manifest) -> str:
    """SHA-256 of the encoder that a bundle's network was trained over.

    Raises:
        ExportError: it names none.
    """
    started: Any = manifest.provenance.get("started_from", {})
    try:
        return str(started["encoder"]["sha256"])
    except (KeyError, TypeError):
        raise ExportError(f"the bundle's {manifest.arch} was not trained over an encoder") from None


def trained_from_file(file: Path) -> Weights:
    """What was trained, as floats; errors as of `tensors_from_file`."""
    return {name: np.asarray(values, dtype=np.float32) for name, values in tensors_from_file(file).items()}


def tensors_from_file(file: Path) -> dict[str, npt.NDArray[Any]]:
    """All of a file of safetensors.

    Raises:
        OSError: the file cannot be read.
        MissingExtra: safetensors is not installed.
    """
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingExtra("accurate", error.name or "safetensors", "make the accurate model") from None
    found: dict[str, npt.NDArray[Any]] = load(file.read_bytes())
    return found


def int8_from_parts(model: bytes, scales: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The INT8 graph of `model.onnx`, with scales that were found when it was measured: see `int8_linear`."""
    import onnx

    from aivsreal.export.graphs.half import full_from_onnx
    from aivsreal.export.graphs.int8 import int8_from_scales

    return int8_from_scales(full_from_onnx(onnx.load_from_string(model)), scales)


def model_from_parts(graph: bytes, trained: Mapping[str, Array], encoder: Weights, named: str) -> bytes:
    """`model.onnx`: the graph, with the weights of the encoder and of what was trained over it.

    Args:
        graph: the model without those weights' values.
        trained: the tensors of the run, and `QUERY_SCALE`.
        encoder: by timm's names.
        named: the encoder, for errors.

    Raises:
        CheckpointError: a change is of a weight that the encoder has not.
        ExportError: a weight is missing.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtra("accurate", error.name or "onnx", "make the accurate model") from None
    model = onnx.load_from_string(graph)
    (drawn,) = (output for output in model.graph.output if output.name == MAP)
    height, width = (dim.dim_value for dim in drawn.type.tensor_type.shape.dim[1:])
    added = {name: values for name, values in trained.items() if name != QUERY_SCALE}
    whole = joined(at_size(encoder, height * width), added, named)
    whole = {name: values.reshape(_shape(name, values)) for name, values in whole.items()}
    weights = inference_weights(whole, trained[QUERY_SCALE].item(), height * width)
    for tensor in model.graph.initializer:
        if tensor.raw_data:
            continue  # a constant of the graph
        name = tensor.name.removesuffix(HALF_SUFFIX)
        if name not in weights or weights[name].size != np.prod(tensor.dims, dtype=int):
            raise ExportError(f"{named}: has no {name} that fits; give the encoder that the model was trained over")
        kind = np.float16 if tensor.name.endswith(HALF_SUFFIX) else np.float32
        values = weights[name].astype(kind).reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _shape(name: str, values: Array) -> tuple[int, ...]:
    """Of tokens and positions, which files of encoders keep with and without a batch."""
    if name.endswith(("cls_token", "reg_token", "pos_embed")):
        return (1, values.size // values.shape[-1], values.shape[-1])
    return values.shape
