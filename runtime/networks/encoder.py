"""Read an encoder that others trained, from ONNX, safetensors or timm's hub, under timm's names.

Legend: I, O inputs and outputs of a linear layer.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from aivsreal.runtime.errors import CheckpointError, MissingExtra
from aivsreal.runtime.networks.vit_weights import Weights

HUB = "hub:"
ENCODER_SUFFIXES = (".onnx", ".whl", ".zip", ".safetensors")

# A ViT as transformers names its parts, and timm's names for the same.
_PLACES = (
    (r"(.*\.)?embeddings\.class_embedding", "cls_token"),
    (r"(.*\.)?embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
    (r"(.*\.)?embeddings\.position_embedding\.weight", "pos_embed"),
    (r"(.*\.)?pre_layrnorm\.(weight|bias)", r"norm_pre.\2"),  # the typing error is theirs
    (r"(.*\.)?layers\.(\d+)\.layer_norm([12])\.(weight|bias)", r"blocks.\2.norm\3.\4"),
    (r"(.*\.)?layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\2.attn.proj.\3"),
    (r"(.*\.)?layers\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"blocks.\2.mlp.\3.\4"),
    (r"(.*\.)?layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"blocks.\2.attn.\3.\4"),
)


def names_encoder(name: str) -> bool:
    """Whether it names an encoder, and no checkpoint with its card."""
    return name.startswith(HUB) or (name.endswith(ENCODER_SUFFIXES) and not Path(name).with_suffix(".json").exists())


def encoder_from_file(path: str) -> tuple[Weights, str]:
    """Weights of an encoder, by timm's names, and the SHA-256 that pins them.

    Args:
        path: an ONNX file of a CLIP or ViT image encoder as transformers exports it (weights that were quantised
            dynamically become floats: `(W - zero point) * scale`), a wheel or ZIP archive that holds one, a
            safetensors file with timm's names, or `hub:NAME` for timm's hub.

    Raises:
        CheckpointError: the file cannot be read, or holds no such encoder.
    """
    if path.startswith(HUB):
        return _from_hub(path.removeprefix(HUB))
    content = _content(Path(path))
    digest = hashlib.sha256(content).hexdigest()
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return {name: values.astype(np.float32) for name, values in load(content).items()}, digest
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
    return _from_onnx(path, content), digest


def checked_encoder(path: str, sha256: str) -> Weights:
    """As `encoder_from_file`, of one encoder alone.

    Raises:
        CheckpointError: it is another one.
    """
    weights, found = encoder_from_file(path)
    if found != sha256:
        raise CheckpointError(f"{path}: another encoder (SHA-256 {found}) than the one that is wanted ({sha256})")
    return weights


def _content(path: Path) -> bytes:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = [name for name in archive.namelist() if name.endswith(".onnx")]
                if len(found) != 1:
                    raise CheckpointError(f"{path}: an archive with one ONNX file is needed, this one has {len(found)}")
                return archive.read(found[0])
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; name an encoder's file") from None
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: damaged ({error}); download it again") from None


def _from_hub(name: str) -> tuple[Weights, str]:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("torch", error.name or "timm", "fetch an encoder from timm's hub") from None
    try:
        network: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises its own and those of its transport
        raise CheckpointError(f"hub:{name}: not to be had ({type(error).__name__}); give a file instead") from None
    weights: Weights = {key: value.float().contiguous().numpy() for key, value in network.state_dict().items()}
    sha = hashlib.sha256()
    for key, values in sorted(weights.items()):
        sha.update(key.encode() + values.tobytes())
    return weights, sha.hexdigest()


def _from_onnx(path: str, content: bytes) -> Weights:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("accurate", error.name or "onnx", "read an encoder") from None
    try:
        graph = onnx.load_from_string(content).graph
    except Exception as error:  # protobuf's DecodeError, whose class differs between its versions
        raise CheckpointError(f"{path}: no ONNX model ({type(error).__name__})") from None
    named = dict(_named_arrays(graph))
    weights: Weights = {}
    for name, values in named.items():
        for pattern, place in _PLACES:
            if match := re.fullmatch(pattern, name):
                weights[match.expand(place)] = np.array(values, dtype=np.float32)
    for key in [key for key in weights if ".attn.q." in key]:
        parts = [weights.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        weights[key.replace(".q.", ".qkv.")] = np.concatenate(parts)
    if "patch_embed.proj.weight" not in weights:
        raise CheckpointError(f"{path}: no image encoder with the names that transformers gives")
    return weights


def _named_arrays(graph: Any) -> Any:
    """Each weight as floats under the name of its place: of the initialiser, or of the MatMul that takes it."""
    from onnx import numpy_helper

    arrays = {tensor.name: tensor for tensor in graph.initializer}
    for name, tensor in arrays.items():
        if not name.startswith("onnx::"):
            yield name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type not in ("MatMul", "MatMulInteger") or node.input[1] not in arrays:
            continue
        place = node.name.strip("/").replace("/", ".").split(".MatMul")[0] + ".weight"
        weight_IO = numpy_helper.to_array(arrays[node.input[1]]).astype(np.float32)
        if node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix("_quantized")
            zero, scale = (numpy_helper.to_array(arrays[stem + part]) for part in ("_zero_point", "_scale"))
            weight_IO = (weight_IO - zero.astype(np.float32)) * scale
        yield place, weight_IO.T
