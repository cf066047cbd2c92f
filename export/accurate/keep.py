"""Take a trained and measured model as the accurate one, whose parts are shipped: for those who release aivsreal.

python -m aivsreal.export.accurate.keep RUN BUNDLE --encoder FILE
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from aivsreal.export.accurate.make import (
    GRAPH,
    PARTS,
    QUERY_SCALE,
    SCALES,
    TRAINED,
    encoder_of,
    int8_from_parts,
    model_from_parts,
    trained_from_file,
)
from aivsreal.export.graphs.int8_linear import HEAD_BIAS, scales_from_graph
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import EVALUATION, HALF_SUFFIX, INT8_MODEL, MANIFEST, MODEL
from aivsreal.runtime.errors import AivsrealError, ExportError
from aivsreal.runtime.networks.encoder import checked_encoder
from aivsreal.runtime.networks.vit_weights import LOW_RANK, PREFIX, Weights

IN_HALF = (*LOW_RANK, "hidden.weight")  # large; the model stores it in half too


def keep(run: Path, bundle: Bundle, encoder: str, parts: Path = PARTS) -> dict[str, int]:
    """Write the parts of a bundle that its encoder is not, once they are seen to make that bundle's model to the bit.

    Args:
        run: folder of the training run that the bundle was exported from.
        bundle: calibrated and evaluated.
        encoder: its file.
        parts: folder to write to.

    Returns:
        Sizes in bytes by name.

    Raises:
        ExportError: the run is not the bundle's.
    """
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save

    from aivsreal.runtime.networks.arch import network_from_arch

    manifest = bundle.manifest
    model = onnx.load_from_string(bundle.read(MODEL))
    trained = trained_from_file(run / "best.safetensors")
    network = network_from_arch(manifest.arch, manifest.spec.size)
    own = {*network.state_dict(), *trained}
    for tensor in model.graph.initializer:
        if tensor.name == HEAD_BIAS:  # calibration may have moved it
            trained[HEAD_BIAS] = numpy_helper.to_array(tensor)
        if tensor.name.removesuffix(HALF_SUFFIX) in own:
            tensor.raw_data = b""
    trained[QUERY_SCALE] = np.array(network.get_submodule(f"{PREFIX}blocks.0.attn").scale, dtype=np.float32)
    graph: bytes = model.SerializeToString(deterministic=True)
    stored = _stored(trained)
    as_stored = {name: values.astype(np.float32) for name, values in stored.items()}
    made = {MODEL: model_from_parts(graph, as_stored, checked_encoder(encoder, encoder_of(manifest)), encoder)}
    files = {GRAPH: graph, TRAINED: save(stored)}
    if INT8_MODEL in manifest.files:
        scales = _scales(bundle)
        made[INT8_MODEL] = int8_from_parts(made[MODEL], scales)
        files[SCALES] = save(scales)
    kept = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    for name, digest in kept.items():
        if digest != manifest.files[name]:
            raise ExportError(f"{run} and {encoder} do not make the {name} of {bundle.path}: export the run again")
    texts = {MANIFEST: {**manifest.to_json(), "files": kept}, EVALUATION: manifest.told_to_json()}
    files |= {name: json.dumps(values, indent=1, allow_nan=False).encode() + b"\n" for name, values in texts.items()}
    for name, content in files.items():
        (parts / name).write_bytes(content)
    return {name: len(content) for name, content in files.items()}


def _stored(trained: Weights) -> Weights:
    """As it is shipped: what is large in half."""
    return {
        name: np.ascontiguousarray(values, dtype=np.float16 if name.endswith(IN_HALF) else np.float32)
        for name, values in trained.items()
    }


def _scales(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """Of the bundle's INT8 graph; those of channels are numbers that half can hold."""
    import onnx

    scales = scales_from_graph(onnx.load_from_string(bundle.read(INT8_MODEL)))
    return {
        name: values.astype(np.float16) if values.ndim and name != HEAD_BIAS else values
        for name, values in scales.items()
    }


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("bundle")
@click.option("--encoder", required=True, metavar="FILE")
def main(run: Path, bundle: str, encoder: str) -> None:
    """Take RUN, whose BUNDLE is calibrated and evaluated, as the accurate model."""
    try:
        for name, size in keep(run, Bundle.open(bundle), encoder).items():
            click.echo(f"{PARTS / name}: {size / 1e6:.2f} MB")
    except AivsrealError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
