"""`aivsreal-export`: a checkpoint becomes a bundle, or is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.errors import AivsrealError, ExportError, MissingExtra
from aivsreal.runtime.verdict import OperatingPoint

if TYPE_CHECKING:
    from aivsreal.export.parity import Parity

BALANCED = OperatingPoint("balanced", 0.5, 0.5)
_PROVENANCE = ("config", "chosen_on", "epoch", "data_digest", "data_counts", "data_licences")


def _point(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[OperatingPoint, ...]:
    points = []
    for text in texts:
        name, *numbers = text.split(":")
        try:
            if not name or len(numbers) not in (2, 3):
                raise ValueError("it needs a name and two or three numbers")
            points.append(OperatingPoint(name, *(float(number) for number in numbers)))
        except ValueError as error:
            raise click.BadParameter(f"{text}: {error}", context, option) from None
    if len({point.name for point in points}) != len(points):
        raise click.BadParameter("each operating point needs a name of its own", context, option)
    return tuple(points) or (BALANCED,)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option("--reference", type=click.Path(path_type=Path), help="Folder of real images for the parity check.")
@click.option("--opset", type=click.Choice(["17", "20"]), default="17", show_default=True)
@click.option(
    "--crop-fraction", type=click.FloatRange(0, 1, min_open=True),
    help="Side of the centred square that is seen, over the short side.  [default: as it was trained]",
)  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--point", "points", multiple=True, callback=_point, metavar="NAME:AI_AT_OR_ABOVE:REAL_BELOW[:FALSE_ALARM_RATE]",
    help="An operating point; repeat it for more, the first is the default.  [default: balanced:0.5:0.5]",
)  # fmt: skip
@click.option("--card", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Model card to put in.")
@click.option(
    "--gradcam", type=click.Choice(["stage1", "stage2", "stage3"]),
    help="Also write gradcam.onnx, which gives Grad-CAM of a stage (14x14, 7x7 or 4x4 cells) without PyTorch.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.version_option(package_name="aivsreal")
def main(
    checkpoint: Path, out: Path, reference: Path | None, opset: str, crop_fraction: float | None, temperature: float,
    points: tuple[OperatingPoint, ...], card: Path | None, gradcam: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Export CHECKPOINT (a run's folder or its best.safetensors) to a bundle that aivsreal-scan opens."""
    try:
        _export(checkpoint, out, reference, int(opset), crop_fraction, temperature, points, card, gradcam, as_json)
    except AivsrealError as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        click.echo("\nstopped; no bundle was written", err=True)
        sys.exit(130)


def _export(
    path: Path, out: Path, reference: Path | None, opset: int, crop_fraction: float | None, temperature: float,
    points: tuple[OperatingPoint, ...], card: Path | None, gradcam: str | None, as_json: bool,
) -> None:  # fmt: skip
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import safetensors  # noqa: F401
        import timm
        import torch
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnx", "export") from None
    from aivsreal.export.checkpoint import checkpoint_from_path, network_from_checkpoint
    from aivsreal.export.onnx_graph import onnx_from_network, with_half_weights
    from aivsreal.export.parity import check_rounding, check_same_weights, parity, reference_pixels
    from aivsreal.export.session import onnx_logits, torch_logits
    from aivsreal.runtime.backend_torch import fused_network, round_to_half
    from aivsreal.runtime.bundle import Manifest, write_bundle
    from aivsreal.runtime.model_card import model_card
    from aivsreal.runtime.preprocess import batch_from_squares, square_from_pixels

    source = checkpoint_from_path(path)
    network = network_from_checkpoint(source)
    click.echo(f"loaded {source.weights}: {source.arch}, epoch {source.card['epoch']}", err=True)
    spec = source.spec if crop_fraction is None else replace(source.spec, crop_fraction=crop_fraction)
    squares = [square_from_pixels(pixels_HWC, spec) for pixels_HWC in reference_pixels(reference)]
    batch_BCHW = batch_from_squares(squares, spec)
    trained_B = torch_logits(network, batch_BCHW)
    fused = fused_network(network, source.arch, source.spec.size)
    model = with_half_weights(onnx_from_network(fused, spec, opset))
    content: bytes = model.SerializeToString(deterministic=True)
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    nodes = len(model.graph.node) - casts
    click.echo(
        f"fused to ONNX: {nodes} nodes and {casts} casts of stored half weights, "
        f"{len(content) / 1e6:.1f} MB, opset {opset}",
        err=True,
    )
    exported_B = onnx_logits(content, batch_BCHW)
    rounding = parity(trained_B, exported_B)
    same = parity(torch_logits(round_to_half(fused), batch_BCHW), exported_B)
    kind = "real" if reference else "synthetic"
    comparisons = {"ONNX against PyTorch": same, "half weights against trained": rounding}
    for name, figures in comparisons.items():
        click.echo(
            f"{name}: {figures.images} {kind} images, logit differs by at most {figures.max_logit:.2g}, "
            f"p_ai by {figures.max_probability:.2g}, {figures.flips} labels flip",
            err=True,
        )
    check_same_weights(same)
    check_rounding(rounding)
    extra_files, extra_provenance = {}, {}
    if gradcam is not None:
        from aivsreal.export.gradcam_graph import REFERENCES, gradcam_from_network

        graph, worst = gradcam_from_network(fused, spec, gradcam, int(opset), batch_BCHW[:REFERENCES])
        extra_files["gradcam.onnx"], extra_provenance["gradcam"] = graph, {"layer": gradcam, "parity": worst}
        click.echo(f"gradcam.onnx: Grad-CAM of {gradcam}, map differs from PyTorch by {worst:.2g} at most", err=True)
    manifest = Manifest(
        arch=source.arch,
        labels=source.labels,
        spec=spec,
        temperature=temperature,
        points=points,
        default_point=points[0].name,
        metrics={"training": source.card["metrics"]},
        provenance={
            **{name: source.card[name] for name in (*_PROVENANCE, "started_from") if name in source.card},
            "checkpoint_sha256": source.card["weights_sha256"],
            "versions": {
                **source.card["versions"], "export_torch": torch.__version__, "timm": timm.__version__,
                "onnx": onnx.__version__, "aivsreal": version("aivsreal"),
            },
            "reference_images": kind,
            "parity_onnx_torch": same.to_json(),
            "parity_half_trained": rounding.to_json(),
            **extra_provenance,
        },
    )  # fmt: skip
    try:
        readme = model_card(manifest).encode() if card is None else card.read_bytes()
    except OSError as error:
        raise ExportError(f"{card}: cannot be read: {error.strerror}; nothing was written") from None
    bundle = write_bundle(out, {"model.onnx": content, "README.md": readme, **extra_files}, manifest)
    click.echo(f"bundle {bundle.digest} written; try: aivsreal-scan --bundle {out} IMAGES", err=True)
    if as_json:
        parities = {"parity": same.to_json(), "rounding": rounding.to_json(), "reference_images": kind}
        click.echo(json.dumps({"bundle": str(out), "bytes": len(content), "nodes": nodes, "casts": casts, **parities}))
    elif sys.stdout.isatty():
        _show(f"{out}/model.onnx", len(content), comparisons)


def _show(name: str, size: int, comparisons: dict[str, Parity]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("artefact", "size", "compared", "max logit", "max p_ai", "flips")
    for compared, figures in comparisons.items():
        differences = (f"{figures.max_logit:.2g}", f"{figures.max_probability:.2g}")
        table.add_row(name, f"{size / 1e6:.1f} MB", compared, *differences, f"{figures.flips} of {figures.images}")
    Console().print(table)
