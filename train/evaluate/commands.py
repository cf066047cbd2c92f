"""`aivsreal-evaluate`: how good a bundle is, split by split and after each delivery, beside the pixel statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.evaluate.judging import judged_images, too_few
from aivsreal.train.evaluate.result import BASELINE_IMAGES, baseline_from_samples, split_result
from aivsreal.train.evaluate.shortcuts import Baseline
from aivsreal.train.evaluate.tiers import Tier
from aivsreal.train.samples import Sample, in_split, limited, samples_from_data, samples_under


@command("aivsreal-evaluate")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--real", type=click.Path(path_type=Path), help="Folder of real images, in place of DATA.")
@click.option("--ai", type=click.Path(path_type=Path), help="Folder of AI images, in place of DATA.")
@click.option("--split", "splits", multiple=True, help="Split to judge, repeatable.  [default: all but train]")
@click.option("--bundle", metavar="MODEL", help="Model: accurate, or a folder.  [default: the shipped one]")
@click.option("--backend", default="auto", show_default=True, help="What runs the model.")
@click.option("--operating-point", metavar="NAME", help="Bounds between real, unsure and ai.  [default: the model's]")
@click.option("--views", type=click.Choice(["fast", "full"]), default="fast", show_default=True, help="As in a scan.")
@click.option("--tier", "tiers", multiple=True, type=click.Choice([tier.value for tier in Tier]), default=["clean"])
@click.option("--baseline/--no-baseline", default=True, help="Fit fifteen pixel statistics on split train beside it.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for report.json, report.md and plots.")
@click.option(
    "--overwrite", is_flag=True, help="With --out, replace files that aivsreal did not write; never a picture."
)
@click.option("--record", is_flag=True, help="Put the numbers and a fresh model card into the bundle of --bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each split and delivery.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most this many images of each class and split.")
def main(
    data: Path | None, *, real: Path | None, ai: Path | None, splits: Sequence[str], bundle: str | None, backend: str,
    operating_point: str | None, views: str, tiers: Sequence[str], baseline: bool, out: Path | None,
    overwrite: bool, record: bool, as_json: bool, batch_size: int, limit: int | None,
) -> int:  # fmt: skip
    """Evaluate on DATA: a folder with SPLIT/real and SPLIT/ai, one with an images.csv, or --real DIR --ai DIR.

    Where DATA names no splits a tenth is judged, the one that aivsreal-train holds out; --real and --ai judge all.

    Exit status: 0 fine, 1 some images could not be read, 2 wrong use, no usable model or data.
    """
    from aivsreal.runtime.detector import Detector
    from aivsreal.train.evaluate.report import check_report, print_json, print_tables, record_in_bundle, write_report

    if record and bundle is None:
        raise DataError("--record changes a bundle: name it with --bundle FOLDER")
    samples = chosen_samples(data, real, ai)
    names = list(dict.fromkeys(splits)) or sorted({sample.split for sample in samples} - {"train"})
    if not names:
        raise DataError("there is nothing to judge: no image was found, or all are in the split train; see --split")
    chosen = {name: limited(in_split(samples, name), limit) for name in names}
    left = sum(sample.split == "train" for sample in samples)
    if left and not splits:  # of a folder without splits that is all but a tenth
        _tell(
            f"judging split {', '.join(names)}; the {left} images of split train are left out: --split train for them"
        )
    kinds = [Tier(tier) for tier in dict.fromkeys(tiers)]
    if out is not None:
        check_report(out, names, overwrite)  # known now and not after hours of judging
    with Detector.open(bundle, backend, operating_point, full_views=views == "full") as detector:
        what, running = detector.bundle, detector.backend
        _tell(f"{running.name} {running.precision}, bundle {what.manifest.arch} {what.digest}: {detector.why}")
        fitted = _baseline(samples, names) if baseline else None
        results = []
        for name, part in chosen.items():
            judged = list(judged_images(detector, part, kinds, batch_size, _tell, statistics=fitted is not None))
            results.append(split_result(name, part, judged, fitted))
            for doubt in too_few(results[-1].tiers[0].real, results[-1].tiers[0].ai):
                _tell(f"split {name}: {doubt}")
        about: dict[str, object] = {
            "arch": what.manifest.arch, "bundle": what.digest, "backend": running.name, "precision": running.precision,
            "operating_point": detector.point.name, "baseline_fitted_on": fitted.images if fitted else 0,
        }  # fmt: skip
    # Files first: a reader of the tables who goes away (`| head`) must not cost them.
    if out is not None:
        write_report(out, about, results, _tell, overwrite)
    if record:
        _tell(f"recorded in {what.path}, digest {record_in_bundle(what, about, results).digest}")
    (print_json if as_json else print_tables)(about, results)
    return 1 if any(result.skipped for result in results) else 0


def _baseline(samples: Sequence[Sample], judged: Sequence[str]) -> Baseline | None:
    train = [sample for sample in samples if sample.split == "train"]
    if {sample.label for sample in train} < set(LABELS) or "train" in judged:
        _tell("no baseline: it is fitted on a split train with both classes that is not judged itself")
        return None
    return baseline_from_samples(limited(train, BASELINE_IMAGES))


def _tell(line: str) -> None:
    click.echo(line, err=True)


def chosen_samples(data: Path | None, real: Path | None, ai: Path | None) -> list[Sample]:
    """The images named by DATA or by `--real` and `--ai`.

    Raises:
        DataError: neither or both are given, or nothing is there.
    """
    if data is not None and real is None and ai is None:
        return samples_from_data(data)
    if data is None and real is not None and ai is not None:
        return [*samples_under(real, "real", "all"), *samples_under(ai, "ai", "all")]
    raise DataError("name the images once: either DATA, or both --real DIR and --ai DIR")


if __name__ == "__main__":
    main()
