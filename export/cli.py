"""`aivsreal-export`: a checkpoint or a bundle becomes a bundle with what devices run, or nothing is written."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from aivsreal.runtime.bundle.folder import bundle_folder
from aivsreal.runtime.bundle.manifest import MODEL
from aivsreal.runtime.commands.frame import Number, command
from aivsreal.runtime.verdict import OperatingPoint

if TYPE_CHECKING:
    from aivsreal.export.draft import Draft


_OF_THE_ENGINE = {"max_batch", "workspace", "version_compatible", "timing_cache", "dla", "rtx"}


def _folder(context: click.Context, argument: click.Parameter, text: str | None) -> Path | None:
    return None if text is None else bundle_folder(text)


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
    return tuple(points)


@command("aivsreal-export", "stopped; nothing was written")
@click.argument("source", metavar="[CHECKPOINT]", required=False, callback=_folder)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Bundle folder to write.  [default: where it came from]"
)
@click.option(
    "--accurate", metavar="ENCODER", help="Make the accurate model of its encoder's file; see docs/accuracy.md."
)
@click.option("--reference", type=click.Path(path_type=Path), help="Folder of real images for the parity check.")
@click.option("--fp16", is_flag=True, help="Add the half graph, and an engine of it where TensorRT and a GPU are here.")
@click.option("--int8", is_flag=True, help="Add INT8 for CPUs, if it passes its gate on --data.")
@click.option("--data", type=click.Path(path_type=Path), help="For --int8: folder with train/ and val_unseen/.")
@click.option("--engine/--no-engine", default=None, help="Insist on an engine, or build none.  [default: if it can be]")
@click.option("--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Of the engine.")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Memory that a layer of the engine may use.")
@click.option("--version-compatible", is_flag=True, help="An engine that later TensorRT versions run too.")
@click.option(
    "--timing-cache", type=click.Path(dir_okay=False, path_type=Path), help="Keep the builder's timings here."
)
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="Build for this DLA core of a Jetson.")
@click.option(
    "--rtx", multiple=True, metavar="CAPABILITY",
    help="Build a TensorRT-RTX engine for GPUs of this compute capability, for example 8.6; repeat it for more.",
)  # fmt: skip
@click.option("--triton", type=click.Path(path_type=Path), help="Also write a Triton model repository there.")
@click.option("--verify", is_flag=True, help="Change nothing: compare all that a bundle holds.")
@click.option("--encoder", metavar="FILE", help="Of a ViT's checkpoint: the encoder it was trained over, as of --init.")
@click.option("--opset", type=click.Choice(["17", "20"]), help="Of a checkpoint's graph.  [default: 17]")
@click.option(
    "--crop-fraction", type=Number(0, 1),
    help="Side of the centred square that is seen, over the short side.  [default: as it was trained]",
)  # fmt: skip
@click.option("--temperature", type=Number(0), help="Of a checkpoint.  [default: 1.0]")
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
def main(
    source: Path | None, out: Path | None, accurate: str | None, reference: Path | None, fp16: bool, int8: bool,
    data: Path | None, engine: bool | None, max_batch: int, workspace: int | None, version_compatible: bool,
    timing_cache: Path | None, dla: int | None, rtx: tuple[str, ...], triton: Path | None, verify: bool,
    encoder: str | None, opset: str | None, crop_fraction: float | None, temperature: float | None,
    points: tuple[OperatingPoint, ...], card: Path | None, gradcam: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Export to a bundle that aivsreal-scan opens.

    CHECKPOINT is a run's folder or its best.safetensors, or a bundle to add to; without it, it is the shipped bundle,
    and what is added lies in the user's data folder, where aivsreal-scan finds it by itself.
    """
    given = _given(click.get_current_context())
    if accurate is not None:
        if given - {"accurate", "source", "out"}:
            raise click.UsageError("--accurate makes a bundle as it was measured: it takes -o and nothing else")
        _make_accurate(accurate, source, out)
        return
    from aivsreal.export.draft import Making
    from aivsreal.export.engine import BuildOptions
    from aivsreal.export.run import Wish, run, verified

    if int8 and data is None:
        raise click.UsageError("--int8 needs --data: a folder with train/ and val_unseen/, each of real/ and ai/")
    if verify and given - {"verify", "source", "reference", "as_json"}:
        raise click.UsageError("--verify changes nothing: give it a bundle, --reference and --json alone")
    half = fp16 or bool(rtx)
    if (idle := given & _OF_THE_ENGINE) and (engine is False or not (half or engine)):
        raise click.UsageError(f"{_typed(idle)} is for an engine, and none is to be built: add --fp16 or --engine")
    if data is not None and not int8:
        raise click.UsageError("--data is for --int8, which was not asked for")
    making = Making(
        opset=None if opset is None else int(opset), crop_fraction=crop_fraction, temperature=temperature,
        points=points or None, gradcam=gradcam, encoder=encoder,
    )  # fmt: skip
    build = BuildOptions(
        half=half, max_batch=max_batch, workspace_mib=workspace, version_compatible=version_compatible,
        timing_cache=timing_cache, dla_core=dla, compute_capabilities=rtx,
    )  # fmt: skip
    wish = Wish(
        source=source, out=out, reference=reference, half=half, int8_data=data if int8 else None, engine=engine,
        build=build, triton=triton, making=making, card=card,
    )  # fmt: skip
    draft = verified(source, reference, _say) if verify else run(wish, _say)
    for step in draft.left:
        _say(f"left to do: {step}")
    if as_json:
        click.echo(json.dumps(_result(draft)))
    else:
        _show(draft)


def _given(context: click.Context) -> set[str]:
    """Parameters that were typed."""
    typed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {name for name in context.params if context.get_parameter_source(name) in typed}


def _typed(names: set[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _make_accurate(encoder: str, source: Path | None, out: Path | None) -> None:
    from aivsreal.export.accurate.make import accurate_bundle

    if source is not None:
        raise click.UsageError("--accurate makes a bundle of its encoder alone: leave the CHECKPOINT out")
    bundle = accurate_bundle(encoder, out)
    _say(f"bundle {bundle.digest} written to {bundle.path}")
    _say(f"try: aivsreal-scan --bundle {'accurate' if out is None else shlex.quote(str(out))} IMAGES")


def _result(draft: Draft) -> dict[str, object]:
    return {
        "bundle": None if draft.target is None else str(draft.target),
        "reference_images": draft.reference.kind,
        "files": {name: len(content) for name, content in sorted(draft.files.items())},
        "comparisons": [
            {"file": item.file, "against": item.against, **item.parity.to_json()} for item in draft.comparisons
        ],
        "left": draft.left,
    }


def _show(draft: Draft) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("artefact", "MB", "against", "logit at most", "p_ai at most", "on average", "same label")
    sizes = {name: f"{len(content) / 1e6:.1f}" for name, content in draft.files.items()}
    for item in draft.comparisons:
        figures = item.parity
        differences = (
            f"{value:.2g}" for value in (figures.max_logit, figures.max_probability, figures.mean_probability)
        )
        same = f"{figures.images - figures.flips} of {figures.images}"
        table.add_row(item.file, sizes.get(item.file, ""), item.against, *differences, same)
    compared = {item.file for item in draft.comparisons} | {MODEL}
    for name in sorted(set(draft.files) - compared):
        if not name.endswith((".json", ".md")):
            table.add_row(name, sizes[name], "not compared here", "", "", "", "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
