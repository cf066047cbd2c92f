"""Is a heat map any good: deletion, insertion, ROAD, pointing game and IoU, and whether it hangs on the weights at all.

Run `python -m aivsreal.benchmarks.studies.maps DATA --bundle FOLDER`; it prints one JSON line for each method and
layer, and exits with 1 where a new head leaves a map as it was. A blob in the centre that looks at nothing is the
baseline.

Composites are a square of a generated picture in a real one, at a place that is known. Where the square is real too,
the same pointing shows how much its border alone attracts. What is measured is whether a map names what moved the
score; that it names what was edited is never promised.

Legend: B image; C channel (3, RGB); H, W height and width; S input size; h, w cells of a map.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.machine import PACKAGES, machine_facts
from aivsreal.benchmarks.studies.faithfulness import FloatHW, Probabilities, deletion_and_insertion, ranked, road
from aivsreal.benchmarks.timing import rounded, with_interval
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.explain import Explainer, Layer, Method, map_from_network
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC, batch_from_squares, square_from_pixels
from aivsreal.runtime.results.heatmap import resized_map
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import Label, p_ai_from_logit
from aivsreal.train.samples import Sample, in_split, limited, samples_from_data

if TYPE_CHECKING:
    from aivsreal.runtime.networks.mapped import MappedNetwork

EXACT, CENTRE = "exact", "centre blob"
PATCH = 3 / 7  # side of the square in a composite over the input's
CHANGED_BELOW = 0.9  # rank correlation with the map of a new head, on average
Column = tuple[str, Layer | None]


def columns(methods: Sequence[Method], layers: Sequence[Layer]) -> list[Column]:
    """What is compared: the exact map, each method on each layer, and the baseline."""
    return [(EXACT, None), *((method.value, layer) for method in methods for layer in layers), (CENTRE, None)]


def map_of(network: MappedNetwork, square_SSC: PixelsHWC, spec: PreprocessSpec, column: Column, of: Label) -> FloatHW:
    """The map of one column, `[S, S]`: large where it says that the class `of` comes from."""
    import torch

    name, layer = column
    if name == CENTRE:
        axis = np.linspace(-1, 1, spec.size, dtype=np.float32)
        blob_SS: FloatHW = np.exp(-2 * (axis[:, None] ** 2 + axis[None, :] ** 2))
        return blob_SS
    batch_BCHW = batch_from_squares([square_SSC], spec)
    if name == EXACT:
        with torch.inference_mode():
            map_hw = network.logits_and_map(torch.from_numpy(batch_BCHW))[1][0].numpy()
        map_hw = map_hw if of is Label.AI else -map_hw
    else:
        assert layer is not None
        map_hw = map_from_network(network, batch_BCHW, Method(name), layer, of)[2]
    return resized_map(map_hw, spec.size, spec.size)


def with_new_head(network: MappedNetwork) -> MappedNetwork:
    """A copy whose head is drawn anew, with the old weights' spread."""
    import torch

    other = copy.deepcopy(network)
    weight = other.head.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std())
    return other


def rank_correlation(one_HW: FloatHW, other_HW: FloatHW) -> float:
    """Spearman's, of two maps."""
    return float(np.corrcoef(ranked(one_HW).ravel(), ranked(other_HW).ravel())[0, 1])


def composite(
    real_SSC: PixelsHWC, other_SSC: PixelsHWC, rng: np.random.Generator
) -> tuple[PixelsHWC, npt.NDArray[np.bool_]]:
    """`real_SSC` with a square of `other_SSC` at a random place, and the mask of that place."""
    size = real_SSC.shape[0]
    side = round(size * PATCH)
    top, left, up, across = rng.integers(0, size - side + 1, 4)
    mask_SS = np.zeros((size, size), dtype=bool)
    mask_SS[top : top + side, left : left + side] = True
    pasted_SSC = real_SSC.copy()
    pasted_SSC[mask_SS] = other_SSC[up : up + side, across : across + side].reshape(-1, 3)
    return pasted_SSC, mask_SS


def points_into(map_HW: FloatHW, mask_HW: npt.NDArray[np.bool_]) -> bool:
    """Whether the map's largest value lies inside; a flat top counts by its middle."""
    top = np.argwhere(map_HW >= map_HW.max() - 1e-7)
    row, column = top[len(top) // 2]
    return bool(mask_HW[row, column])


def overlap(map_HW: FloatHW, mask_HW: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of the mask and as many pixels as it has that the map names first."""
    named_HW = ranked(map_HW) < mask_HW.mean()
    return float((named_HW & mask_HW).sum() / (named_HW | mask_HW).sum())


def measured(
    explainer: Explainer, real: Sequence[PixelsHWC], ai: Sequence[PixelsHWC], compared: Sequence[Column]
) -> Iterator[dict[str, object]]:
    """A row of figures for each column, of the same squares and composites."""
    import torch

    manifest, network = explainer.bundle.manifest, explainer.network
    spec, other = manifest.spec, with_new_head(network)

    def logits(squares: list[PixelsHWC]) -> list[float]:
        with torch.inference_mode():
            output: list[float] = network(torch.from_numpy(batch_from_squares(squares, spec))).flatten().tolist()
        return output

    def probabilities_of(sign: int) -> Probabilities:
        return lambda squares: np.array([p_ai_from_logit(sign * one, manifest.temperature) for one in logits(squares)])

    squares = [*real, *ai]
    signs = [1 if logit >= 0 else -1 for logit in (logits([square])[0] for square in squares)]
    rng = np.random.default_rng(0)
    pairs = [(one, ai[index % len(ai)], real[index - 1]) for index, one in enumerate(real)]
    fakes = [composite(one, generated, rng) for one, generated, _ in pairs]
    controls = [composite(one, also_real, rng) for one, _, also_real in pairs]
    for column in compared:
        figures: dict[str, list[float]] = {name: [] for name in ("deletion", "insertion", "road", "new_head")}
        for square_SSC, sign in zip(squares, signs, strict=True):
            of, probabilities = (Label.AI if sign > 0 else Label.REAL), probabilities_of(sign)
            map_HW = map_of(network, square_SSC, spec, column, of)
            deleted, inserted = deletion_and_insertion(square_SSC, map_HW, probabilities)
            figures["deletion"].append(deleted)
            figures["insertion"].append(inserted)
            figures["road"].append(road(square_SSC, map_HW, probabilities, np.random.default_rng(0)))
            figures["new_head"].append(rank_correlation(map_HW, map_of(other, square_SSC, spec, column, of)))
        for name, pasted in (("generated", fakes), ("control", controls)):
            maps = [map_of(network, square_SSC, spec, column, Label.AI) for square_SSC, _ in pasted]
            masks = [mask_SS for _, mask_SS in pasted]
            figures[f"pointing_{name}"] = [float(points_into(*both)) for both in zip(maps, masks, strict=True)]
            figures[f"iou_{name}"] = [overlap(*both) for both in zip(maps, masks, strict=True)]
        changed = column[0] == CENTRE or float(np.mean(figures["new_head"])) < CHANGED_BELOW
        yield {
            "map": column[0],
            "layer": column[1].value if column[1] else None,
            **{name: rounded(with_interval(values, np.mean), 4) for name, values in figures.items()},
            "chance_pointing": round((round(spec.size * PATCH) / spec.size) ** 2, 4),
            "head_changes_it": changed,
        }


@command("maps")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--bundle", metavar="FOLDER", help="[default: the shipped one]")
@click.option("--split", default="test", show_default=True)
@click.option("--limit", type=click.IntRange(2), default=8, show_default=True, help="Images of each class.")
@click.option(
    "--method", "methods", multiple=True, type=click.Choice([method.value for method in Method]),
    default=["gradcam", "hirescam", "layercam"], show_default=True,
)  # fmt: skip
@click.option(
    "--layer", "layers", multiple=True, type=click.Choice([layer.value for layer in Layer]),
    default=[layer.value for layer in Layer], show_default=True,
)  # fmt: skip
def main(
    data: Path, bundle: str | None, split: str, limit: int, methods: Sequence[str], layers: Sequence[str]
) -> int:  # fmt: skip
    """Measure the maps of one bundle on DATA; intervals are 95 % bootstrap ones over images."""
    explainer = Explainer(bundle)
    samples = limited(in_split(samples_from_data(data), split), limit)
    real, ai = (_squares(samples, target, explainer.bundle.manifest.spec) for target in (0, 1))
    if min(len(real), len(ai)) < 2:
        raise DataError(f"the split {split} needs two images of each class")
    about = {
        "benchmark": "maps", "bundle": explainer.bundle.digest, "split": split, "real": len(real), "ai": len(ai),
    }  # fmt: skip
    held = True
    machine = machine_facts((*PACKAGES, "grad-cam"))
    for row in measured(explainer, real, ai, columns([Method(name) for name in methods], [Layer(n) for n in layers])):
        click.echo(json.dumps({**about, **row, "machine": machine}))
        held = held and bool(row["head_changes_it"])
    return 0 if held else 1


def _squares(samples: Sequence[Sample], target: int, spec: PreprocessSpec) -> list[PixelsHWC]:
    return [square_from_pixels(pixels_from_file(one.path), spec) for one in samples if one.target == target]


if __name__ == "__main__":
    main()
