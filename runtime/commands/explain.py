"""aivsreal-explain: draw what in an image moved its score, by Grad-CAM over the PyTorch network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.cache import usable_cache_folder
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import ImageError
from aivsreal.runtime.explain import Explainer, Explanation, Layer, Method

if TYPE_CHECKING:
    from aivsreal.runtime.bundle.folder import Bundle
    from aivsreal.runtime.preprocess import PixelsHWC

NOTE = "A map shows what moved the score, not what was edited."


@command("aivsreal-explain", "stopped; the maps above are whole, the rest was not drawn")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.UNPROCESSED)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to."
)
@click.option(
    "--method",
    type=click.Choice([one.value for one in Method]),
    default="gradcam",
    show_default=True,
    help="How the map is made.",
)
@click.option(
    "--layer", type=click.Choice([one.value for one in Layer]), default="stage3", show_default=True,
    help="Of which stage: 14x14, 7x7 or 4x4 cells at an input of 224 pixels.",
)  # fmt: skip
@click.option(
    "--class", "of", type=click.Choice(["ai", "real"]), help="What the map shall speak for.  [default: the likelier]"
)
@click.option("--overwrite", is_flag=True, help="Replace arrays that aivsreal did not write too; never a picture.")
@click.option("--bundle", metavar="MODEL", help="Model to use: accurate, or a folder.  [default: the shipped one]")
@click.option("--operating-point", metavar="NAME", help="Bounds between real, unsure and ai.  [default: the model's]")
def main(
    *, paths: tuple[str, ...], out: Path, method: str, layer: str, of: str | None, overwrite: bool, bundle: str | None,
    operating_point: str | None,
) -> int:  # fmt: skip
    """Draw what in an image moved its score: orange towards ai, blue towards real.

    PATH is an image, a folder (searched with its subfolders), or - for a list of paths on standard input.

    For each image photos/a.jpg two files are written below the output folder: photos/a.jpg.png, the image with its map,
    and photos/a.jpg.npy, the map's raw values as float32 before the ReLU. A row on standard output has the path, the
    label, p_ai, the class that the map speaks for, and the picture, between tabs.

    A map shows what moved the score, not what was edited. Exit status: 0 all were drawn, 1 some could not be, 2 wrong
    use or no usable model.
    """
    # pytorch-grad-cam loads matplotlib, which would list the fonts in the home folder.
    if (fonts := usable_cache_folder("matplotlib")) is not None:
        os.environ.setdefault("MPLCONFIGDIR", str(fonts))
    from aivsreal.runtime.commands.stop import ended_by_sigterm
    from aivsreal.runtime.files.own_process import set_up_pillow
    from aivsreal.runtime.verdict import Label

    explainer = Explainer(bundle, operating_point)
    click.echo(f"{_description(explainer)} | {method} of {layer}", err=True)
    asked = None if of is None else Label(of)

    def explained(pixels_HWC: PixelsHWC) -> Explanation:
        return explainer.explain(pixels_HWC, Method(method), Layer(layer), asked)

    set_up_pillow()
    with ended_by_sigterm():
        return _explain(explained, explainer.bundle, paths, out, overwrite)


def _explain(
    explained: Callable[[PixelsHWC], Explanation], bundle: Bundle, paths: tuple[str, ...], out: Path, overwrite: bool
) -> int:
    from aivsreal.runtime.files.find import Search, argument_paths
    from aivsreal.runtime.pixels.images import pixels_from_file
    from aivsreal.runtime.results.heatmap import overlay, write_map
    from aivsreal.runtime.text import escaped

    drawn, failed, notes, search = 0, 0, list[str](), Search(own=frozenset([os.path.realpath(out)]))
    for path in argument_paths(paths, notes, search):
        if path is None:  # rows are written as they come
            continue
        try:
            pixels_HWC = pixels_from_file(path)
        except ImageError as error:
            failed += 1
            click.echo(f"{escaped(path)}\terror\t{escaped(str(error).removeprefix(f'{path}: '))}")
            continue
        explanation = explained(pixels_HWC)
        picture, about = overlay(pixels_HWC, explanation.signed_hw, explanation.box), _about(bundle, explanation, path)
        png = write_map(out, path, picture, explanation.map_hw, about, overwrite=overwrite)
        drawn += 1
        verdict = explanation.verdict
        row = (escaped(path), verdict.label.value, f"{verdict.p_ai:.6f}", explanation.of.value, escaped(png))
        click.echo("\t".join(row))
    passed = search.told()
    for note in [*notes, *([passed] if passed else []), f"drew {drawn}, errors {failed}. {NOTE}"]:
        click.echo(note, err=True)
    return 1 if failed or notes else 0


def _about(bundle: Bundle, explanation: Explanation, path: Path) -> dict[str, str]:
    from aivsreal.runtime.results.output import SOFTWARE

    return {
        "Title": f"What moved the score of {path.name} towards {explanation.of.value}",
        "Description": f"{explanation.method.value} of {explanation.layer.value}. {NOTE}",
        "Software": f"{SOFTWARE}, bundle {bundle.name}",
        "Comment": f"{explanation.verdict.label.value}: {explanation.verdict.reason}",
    }


def _description(explainer: Explainer) -> str:
    parity = (
        "not compared with model.onnx, as onnxruntime is not installed"
        if explainer.parity is None
        else f"logits within {explainer.parity:.1g} of model.onnx"
    )
    return f"backend torch, fp32 ({parity}) | bundle {explainer.bundle.described}"


if __name__ == "__main__":
    main()
