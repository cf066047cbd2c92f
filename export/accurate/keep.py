"""Take a trained and measured model as the accurate one, whose parts are shipped: for those who release aivsreal.

python -m aivsreal.export.accurate.keep RUN BUNDLE --encoder FILE
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click
import numpy as np

from aivsreal.export.accurate.make import (
    GRAPH,
    PARTS,
    QUERY_SCALE,
    TRAINED,
    encoder_of,
    model_from_parts,
    trained_from_file,
)
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import EVALUATION, HALF_SUFFIX, MANIFEST, MODEL
from aivsreal.runtime.errors import AivsrealError, ExportError
from aivsreal.runtime.networks.encoder import checked_encoder
from aivsreal.runtime.networks.vit_weights import LOW_RANK, PREFIX

HEAD_BIAS = "head.bias"
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
    stored = {
        name: np.ascontiguousarray(values, dtype=np.float16 if name.endswith(IN_HALF) else np.float32)
        for name, values in trained.items()
    }
    as_stored = {name: values.astype(np.float32) for name, values in stored.items()}
    made = model_from_parts(graph, as_stored, checked_encoder(encoder, encoder_of(manifest)), encoder)
    if hashlib.sha256(made).hexdigest() != manifest.files[MODEL]:
        raise ExportError(f"{run} and {encoder} do not make the {MODEL} of {bundle.path}: export the run again")
    kept = {name: digest for name, digest in manifest.files.items() if name == MODEL}
    texts = {MANIFEST: {**manifest.to_json(), "files": kept}, EVALUATION: manifest.told_to_json()}
    files = {GRAPH: graph, TRAINED: save(stored)}
    files |= {name: json.dumps(values, indent=1, allow_nan=False).encode() + b"\n" for name, values in texts.items()}
    for name, content in files.items():
        (parts / name).write_bytes(content)
    return {name: len(content) for name, content in files.items()}


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
