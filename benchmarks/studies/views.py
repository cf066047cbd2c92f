"""Whether several views of an image tell more than one: the mean of their logits against the view of the spec.

Run `python -m aivsreal.benchmarks.studies.views DATA`. A view costs a run of the network, so several must gain more
than their interval, on images as they are and after the web's delivery.
Legend: B image; S source; T delivery; W window.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.files.decode import cut
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import Window, Windows
from aivsreal.train.calibrate.points import weights_alike
from aivsreal.train.calibrate.views import FULL_WINDOWS
from aivsreal.train.evaluate.metrics import FloatB, Floats, TargetB, value_of
from aivsreal.train.evaluate.tiers import Tier, delivered
from aivsreal.train.samples import Sample, in_split, limited, samples_from_data

DRAWS = 500
TIERS = (Tier.CLEAN, Tier.WEB)
WHOLE = Window(1.0)
MIRRORED = Window(1.0, mirrored=True)
TOP_LEFT, BOTTOM_RIGHT, TOP_RIGHT, BOTTOM_LEFT = (Window(0.9, x, y) for x, y in ((0, 0), (1, 1), (1, 0), (0, 1)))
ENDS = (Window(1.0, 0.0, 0.0), Window(1.0, 1.0, 1.0))
CANDIDATES: dict[str, tuple[Window, ...]] = {
    "the spec's": (WHOLE,),
    "mirrored": (WHOLE, MIRRORED),
    "three sizes": (WHOLE, Window(0.8), Window(0.6)),
    "both ends": (WHOLE, *ENDS),
    "both ends, mirrored": (WHOLE, *ENDS, MIRRORED),
    "both ends and two corners": (WHOLE, *ENDS, TOP_LEFT, BOTTOM_RIGHT),
    "two corners": (TOP_LEFT, BOTTOM_RIGHT),
    "whole and two corners": (WHOLE, TOP_LEFT, BOTTOM_RIGHT),
    "whole, two corners, mirrored": (WHOLE, TOP_LEFT, BOTTOM_RIGHT, MIRRORED),
    "whole, two corners, all mirrored too": FULL_WINDOWS,
    "whole and four corners": (WHOLE, TOP_LEFT, BOTTOM_RIGHT, TOP_RIGHT, BOTTOM_LEFT),
    "whole, four corners, mirrored": (WHOLE, TOP_LEFT, BOTTOM_RIGHT, TOP_RIGHT, BOTTOM_LEFT, MIRRORED),
}
WINDOWS = tuple(dict.fromkeys(window for windows in CANDIDATES.values() for window in windows))


def logits_of(detector: Detector, samples: Sequence[Sample], batch_size: int) -> npt.NDArray[np.float64]:
    """`logits_BTW`, of each window of each image after each delivery.

    Raises:
        ImageError: an image cannot be read.
    """
    windows = Windows.of(detector.bundle.manifest.spec, WINDOWS)

    def views() -> Iterator[PixelsHWC]:
        for sample in samples:
            pixels_HWC = pixels_from_file(sample.path)
            for tier in TIERS:
                yield from cut(delivered(pixels_HWC, tier), windows)

    logits = [verdict.logit for verdict in detector.judge_many(views(), batch_size)]
    return np.array(logits).reshape(len(samples), len(TIERS), len(WINDOWS))


def gain(
    target_B: TargetB, source_B: Sequence[str], base_B: FloatB, other_B: FloatB, macro: bool
) -> tuple[float, float, float]:
    """AUC of `other_B` less that of `base_B`, with the 95 % interval of a paired bootstrap.

    The images of each source are drawn again; where sources weigh alike the sources first, as in `measures`.
    """
    weight_B = weights_alike(target_B, source_B) if macro else np.ones(len(target_B))
    classes: dict[int, dict[str, list[int]]] = {0: {}, 1: {}}
    for index, (target, source) in enumerate(zip(target_B.tolist(), source_B, strict=True)):
        classes[target].setdefault(source, []).append(index)
    rng = np.random.default_rng(0)

    def difference(drawn_B: Floats) -> float:
        return value_of("auc", target_B, other_B, drawn_B) - value_of("auc", target_B, base_B, drawn_B)

    gains = []
    for _ in range(DRAWS):
        count_B = np.zeros(len(target_B))
        for groups in classes.values():
            alike_S = np.full(len(groups), 1 / len(groups))
            times_S = rng.multinomial(len(groups), alike_S) if macro else np.ones(len(groups), dtype=np.int64)
            for at, times in zip(groups.values(), times_S, strict=True):
                count_B[at] = rng.multinomial(len(at) * times, np.full(len(at), 1 / len(at)))
        gains.append(difference(weight_B * count_B))
    low, high = np.quantile(gains, (0.025, 0.975))
    return difference(weight_B), float(low), float(high)


@command("views")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--bundle", metavar="FOLDER", help="[default: the shipped one]")
@click.option("--split", default="val_unseen", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most this many images of each class.")
def main(data: Path, bundle: str | None, split: str, backend: str, batch_size: int, limit: int | None) -> None:
    """Compare views on DATA with one bundle and print one JSON line for each and for each delivery."""
    samples = limited(in_split(samples_from_data(data), split), limit)
    target_B, source_B = np.array([one.target for one in samples]), [one.source or "-" for one in samples]
    machine = machine_facts()
    with Detector.open(bundle, backend) as detector:
        about = {"benchmark": "views", "bundle": detector.bundle.digest, "split": split}
        about |= {"backend": f"{detector.backend.name} {detector.backend.precision}"}
        logits_BTW = logits_of(detector, samples, batch_size)
        for at, tier in enumerate(TIERS):
            logits_BW = logits_BTW[:, at]
            for name, windows in CANDIDATES.items():
                logit_B = logits_BW[:, [WINDOWS.index(window) for window in windows]].mean(axis=1)
                row: dict[str, object] = {"tier": tier.value, "geometry": name, "views": len(windows)}
                for kind, macro in (("auc", False), ("macro_auc", True)):
                    weight_B = weights_alike(target_B, source_B) if macro else None
                    row[kind] = round(value_of("auc", target_B, logit_B, weight_B), 4)
                    changed = gain(target_B, source_B, logits_BW[:, 0], logit_B, macro)
                    row[f"{kind}_gain"] = [round(value, 4) for value in changed]
                click.echo(json.dumps({**about, **row, "machine": machine}))


if __name__ == "__main__":
    main()
