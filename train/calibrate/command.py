"""`aivsreal-calibrate`: measure temperature and operating points of a bundle on a labelled split, and write them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import EVALUATION, MODEL
from aivsreal.runtime.bundle.model_card import rewritten
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.text import share
from aivsreal.runtime.verdict import LABELS, p_ai_from_logit
from aivsreal.train.calibrate.points import (
    MeasuredPoint,
    default_point_of,
    doubts_of,
    nll,
    offset_from_logits,
    points_from_logits,
    temperature_from_logits,
    weights_alike,
)
from aivsreal.train.calibrate.recentre import recentred_model
from aivsreal.train.calibrate.views import recalibrated, with_full_views
from aivsreal.train.evaluate.judging import LEAST_REAL, Judged, judged_images
from aivsreal.train.evaluate.metrics import value_of
from aivsreal.train.evaluate.tiers import Tier
from aivsreal.train.samples import in_split, limited, samples_from_data

UNSEEN = "val_unseen"  # what is measured on sources that training saw is true of nothing else
POINTS = ("balanced", "cautious", "sensitive")


@command("aivsreal-calibrate")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--split", help="Split to measure on; never the one you report.  [default: val_unseen, or else the last val*]"
)
@click.option("--bundle", metavar="FOLDER", help="Model to calibrate.  [default: the shipped one]")
@click.option("--backend", default="auto", show_default=True, help="What runs the model.")
@click.option(
    "--views", type=click.Choice(["fast", "full"]), default="fast", show_default=True,
    help="Calibrate one view of an image, or several and their mean, which the bundle then has too.",
)  # fmt: skip
@click.option("--tier", "tiers", multiple=True, type=click.Choice([tier.value for tier in Tier]), default=["clean"])
@click.option(
    "--default-point",
    type=click.Choice(POINTS),
    help="[default: balanced, or cautious where balanced calls more than 5 % of the real images ai]",
)
@click.option("--recentre", is_flag=True, help="Also take a constant from the logit, in the new bundle's model.onnx.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write a new bundle with what was measured.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most this many images of each class.")
def main(
    data: Path, *, split: str | None, bundle: str | None, backend: str, views: str, tiers: Sequence[str],
    default_point: str | None, recentre: bool, out: Path | None, batch_size: int, limit: int | None,
) -> int:  # fmt: skip
    """Calibrate on DATA, a folder as for aivsreal-train; print temperature and operating points as JSON.

    Exit status: 0 fine, 1 some images could not be read, 2 wrong use, no usable model or data.
    """
    from aivsreal.runtime.detector import Detector

    full = views == "full"
    if full and recentre:
        raise click.UsageError("--recentre moves the network's logit, which all views have: leave --views full out")
    opened = Bundle.open(bundle)
    before = replace(opened, manifest=with_full_views(opened.manifest)) if full else opened
    samples = samples_from_data(data)
    if split is None:
        vals = {sample.split for sample in samples if sample.split.startswith("val")}
        split = UNSEEN if UNSEEN in vals else max(vals, default="val")
    part = limited(in_split(samples, split), limit)
    kinds = [Tier(tier) for tier in dict.fromkeys(tiers)]
    with Detector.open(before, backend, full_views=full) as detector:
        what, running, point = detector.bundle, detector.backend, detector.point
        _tell(f"{running.name} {running.precision}, bundle {what.manifest.arch} {what.digest}: {detector.why}")
        results = list(judged_images(detector, part, kinds, batch_size, _tell))
    real, ai = (len({result.sample.path for result in results if result.sample.label == label}) for label in LABELS)
    if not real or not ai:
        raise DataError(f"split {split!r} has no readable image of a class; both are needed")
    temperature, measured, found = _fitted(split, results, what.manifest.temperature_at(point), recentre)
    doubts = doubts_of(real, ai, temperature)
    for doubt in doubts:
        _tell(f"warning: {doubt}")
    chosen = default_point or default_point_of(measured)
    _tell_default(measured[chosen])
    record = {"split": split, "tiers": [tier.value for tier in kinds], "doubts": doubts, **found}
    click.echo(json.dumps({"temperature": temperature, "default_operating_point": chosen, **record}))
    if out is not None:
        points = [
            point.point if real >= LEAST_REAL else replace(point.point, false_alarm_rate=None)
            for point in measured.values()
        ]
        manifest = recalibrated(what.manifest, temperature, points, chosen, record, full)
        written = rewritten(what, manifest, out, _moved(what, found["offset"]))
        _tell(f"written: {out}, digest {written.digest}")
    return 1 if {result.sample.path for result in results} < {sample.path for sample in part} else 0


def _fitted(
    split: str, results: Sequence[Judged], temperature_before: float, recentre: bool
) -> tuple[float, dict[str, MeasuredPoint], dict[str, Any]]:
    """Temperature, points, and what the bundle keeps of how they were found."""
    target_B = np.array([result.sample.target for result in results], dtype=np.int64)
    raw_B = np.array([result.verdict.logit for result in results])
    weight_B = weights_alike(target_B, [result.sample.source or "-" for result in results])
    try:
        offset = offset_from_logits(target_B, raw_B, weight_B) if recentre else 0.0
    except ValueError as error:
        raise DataError(f"split {split!r}: {error}") from None
    logit_B = raw_B - offset
    temperature = temperature_from_logits(target_B, logit_B, weight_B)
    measured = points_from_logits(target_B, logit_B, weight_B, temperature)
    errors = {}
    for name, values_B, divisor in (("_before", raw_B, temperature_before), ("", logit_B, temperature)):
        p_ai_B = np.array([p_ai_from_logit(logit, divisor) for logit in values_B.tolist()])
        errors[f"nll{name}"] = nll(target_B, values_B, weight_B, divisor)
        errors[f"ece{name}"] = value_of("ece", target_B, p_ai_B, weight_B)
    of_label = {label: [result.sample for result in results if result.sample.label == label] for label in LABELS}
    return (
        temperature,
        measured,
        {
            **{label: len(samples) for label, samples in of_label.items()},
            "sources": {label: len({sample.source for sample in samples}) for label, samples in of_label.items()},
            "offset": offset,
            **errors,
            "operating_points": [asdict(point) for point in measured.values()],
        },
    )


def _tell_default(point: MeasuredPoint) -> None:
    _tell(
        f"default point {point.point.name}: {share(point.point.false_alarm_rate)} of the real images are called ai, "
        f"{share(point.miss_rate)} of the AI images real, {share(1 - point.coverage)} of all are unsure, "
        "each source weighing alike"
    )


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _moved(bundle: Bundle, offset: float) -> dict[str, bytes] | None:
    """The files of a bundle whose logit is moved; what was made of the old model is left out."""
    if not offset:
        return None
    left_out = sorted(set(bundle.manifest.files) - {EVALUATION, MODEL, "README.md"})
    if left_out:
        _tell(f"left out, made of the old model: {', '.join(left_out)}; add them again with aivsreal-export")
    return {MODEL: recentred_model(bundle.read(MODEL), offset)}


if __name__ == "__main__":
    main()
