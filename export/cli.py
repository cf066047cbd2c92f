"""`aivsreal-export`: a checkpoint becomes a bundle, or is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from aivsreal.runtime.errors import AivsrealError, MissingExtra


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option("--reference", type=click.Path(path_type=Path), help="Folder of real images for the parity check.")
@click.option("--opset", type=click.Choice(["17", "20"]), default="17", show_default=True)
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.version_option(package_name="aivsreal")
def main(
    checkpoint: Path, out: Path, reference: Path | None, opset: str, temperature: float, as_json: bool
) -> None:
    """Export CHECKPOINT (a run's folder or its best.safetensors) to a bundle that aivsreal-scan opens."""
    try:
        _export(checkpoint, out, reference, int(opset), temperature, as_json)
    except AivsrealError as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        click.echo("\nstopped; no bundle was written", err=True)
        sys.exit(130)


def _export(
    path: Path, out: Path, reference: Path | None, opset: int, temperature: float, as_json: bool
) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import safetensors  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnx", "export") from None
    from aivsreal.export.checkpoint import checkpoint_from_path, network_from_checkpoint
    from aivsreal.export.model_card import model_card
    from aivsreal.export.onnx_graph import onnx_from_network, with_half_weights
    from aivsreal.export.parity import check_rounding, check_same_weights, parity, reference_pixels
    from aivsreal.export.session import onnx_logits, torch_logits
    from aivsreal.runtime.backend_torch import fused_network, round_to_half
    from aivsreal.runtime.bundle import Manifest, write_bundle
    from aivsreal.runtime.preprocess import batch_from_pixels
    from aivsreal.runtime.verdict import OperatingPoint

    source = checkpoint_from_path(path)
    network = network_from_checkpoint(source)
    batch_BCHW = batch_from_pixels(reference_pixels(reference), source.spec)
    trained_B = torch_logits(network, batch_BCHW)
    fused = fused_network(network, source.arch, source.spec.size)
    model = with_half_weights(onnx_from_network(fused, source.spec, opset))
    content = model.SerializeToString(deterministic=True)
    click.echo(f"ONNX: {len(model.graph.node)} nodes, {len(content) / 1e6:.1f} MB, opset {opset}", err=True)
    exported_B = onnx_logits(content, batch_BCHW)
    rounding = parity(trained_B, exported_B)
    check_rounding(rounding)
    same = parity(torch_logits(round_to_half(fused), batch_BCHW), exported_B)
    check_same_weights(same)
    for name, figures in (("ONNX against PyTorch", same), ("half weights against trained", rounding)):
        click.echo(
            f"{name}: {figures.images} {'real' if reference else 'synthetic'} images, logit differs by at most "
            f"{figures.max_logit:.2g}, p_ai by {figures.max_probability:.2g}, {figures.flips} labels flip",
            err=True,
        )
    card = source.card
    manifest = Manifest(
        arch=source.arch,
        labels=source.labels,
        spec=source.spec,
        temperature=temperature,
        points=(OperatingPoint("balanced", 0.5, 0.5),),
        default_point="balanced",
        files={},
        metrics=card["metrics"],
        provenance={
            **{name: card[name] for name in ("config", "chosen_on", "epoch", "data_digest", "data_counts")},
            "checkpoint_sha256": card["weights_sha256"],
            "versions": {**card["versions"], "export_torch": torch.__version__, "onnx": onnx.__version__},
            "reference_images": "real" if reference else "synthetic",
            "parity_onnx_torch": same.to_json(),
            "parity_half_trained": rounding.to_json(),
        },
    )
    write_bundle(out, {"model.onnx": content, "README.md": model_card(manifest).encode()}, manifest)
    click.echo(f"bundle written; try: aivsreal-scan --bundle {out} IMAGES", err=True)
    if as_json:
        click.echo(json.dumps({"bundle": str(out), "bytes": len(content), "parity": same.to_json()}))
