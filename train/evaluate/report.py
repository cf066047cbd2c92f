"""An evaluation as tables, JSON lines, a Markdown report and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.model_card import rewritten
from aivsreal.runtime.errors import DataError, MissingExtra
from aivsreal.runtime.results.output import DRAWING, EVALUATION, SOFTWARE, check_replaceable, replacing
from aivsreal.runtime.text import interval, markdown_table, share, share_interval

if TYPE_CHECKING:
    from aivsreal.train.evaluate.result import SplitResult, TierResult

FORMAT = 1
JSON, MARKDOWN = "report.json", "report.md"
_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "tpr_at_5_fpr": "TPR at 5 % FPR",
    "ece": "ECE",
}
_PLOT_POINTS = 1000  # a curve is thinned to this many: more cannot be seen
Table = tuple[str, list[str], list[list[str]]]  # caption, header, rows


def json_from_tier(tier: TierResult) -> dict[str, object]:
    """One split after one delivery as JSON values, without the curves; an empty share is null."""
    values = asdict(tier)
    del values["roc"], values["reliability"]
    return {**values, "tier": tier.tier.value}


def json_from_split(split: SplitResult) -> dict[str, object]:
    """One split as JSON values, with the reliability bins."""
    tiers = []
    for tier in split.tiers:
        bins = [
            {name: None if math.isnan(value) else value for name, value in asdict(row).items()}
            for row in tier.reliability
        ]
        tiers.append({**json_from_tier(tier), "reliability": bins})
    return {**asdict(split), "tiers": tiers}


def print_json(about: Mapping[str, object], splits: Sequence[SplitResult]) -> None:
    """One JSON object a line for each split and delivery."""
    for split in splits:
        for tier in split.tiers:
            line = {"format": FORMAT, **about, "skipped": split.skipped, "stability": split.stability}
            click.echo(json.dumps({**line, **json_from_tier(tier)}, allow_nan=False))


def print_tables(about: Mapping[str, object], splits: Sequence[SplitResult]) -> None:
    """Tables on stdout."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file has no width of its own: 80 columns would fold the numbers
    for split in splits:
        for caption, header, rows in _tables(split, str(about["operating_point"])):
            console.print(caption, highlight=False)
            table = RichTable()
            for index, name in enumerate(header):
                table.add_column(name, justify="right" if index else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)


def write_report(
    folder: Path, about: Mapping[str, object], splits: Sequence[SplitResult], tell: Callable[[str], None],
    overwrite: bool = False,
) -> None:  # fmt: skip
    """`report.json`, `report.md` and, where matplotlib is installed, `roc-SPLIT.png` and `reliability-SPLIT.png`.

    Raises:
        DataError: the folder cannot be written.
        OutputError: something else lies there.
    """
    check_report(folder, (split.split for split in splits), overwrite)
    values = {"format": FORMAT, **about, "splits": [json_from_split(split) for split in splits]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / JSON) as stream:
            stream.write(json.dumps(values, indent=1, allow_nan=False).encode() + b"\n")
        plots = True
        try:
            for split in splits:
                _draw(folder, split)
        except MissingExtra as error:
            plots = False
            tell(f"no plots: {error}")
        with replacing(folder / MARKDOWN) as stream:
            stream.write(_markdown(about, splits, plots).encode())
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from None


def check_report(folder: Path, splits: Iterable[str], overwrite: bool) -> None:
    """Refuse a folder where a file of the report would replace something else; `overwrite` allows it but for pictures.

    Raises:
        OutputError: one would.
    """
    for name in (JSON, MARKDOWN):
        check_replaceable(folder / name, EVALUATION, overwrite=overwrite)
    for split in splits:
        for kind in ("roc", "reliability"):
            check_replaceable(folder / _plot(kind, split), DRAWING, overwrite=overwrite)


def record_in_bundle(bundle: Bundle, about: Mapping[str, object], splits: Sequence[SplitResult]) -> Bundle:
    """Write the numbers into the bundle's manifest and render its model card from them.

    Raises:
        BundleError: the bundle cannot be written; the old one is kept.
    """
    evaluation = {"about": dict(about), "results": [json_from_tier(tier) for split in splits for tier in split.tiers]}
    manifest = bundle.manifest
    return rewritten(bundle, manifest.with_evaluation(manifest.point(str(about["operating_point"])), evaluation))


def _tables(split: SplitResult, point: str) -> Iterable[Table]:
    tiers = split.tiers
    rows = [["images, real / ai", *(f"{tier.real} / {tier.ai}" for tier in tiers)]]
    for name, title in _NAMES.items():
        rows += [
            [title, *(interval(**asdict(tier.measures[name])) for tier in tiers)],
            [f"{title}, sources alike", *(interval(**asdict(tier.macro[name])) for tier in tiers)],
        ]
    rows += [
        [
            "baseline AUC (pixel statistics)",
            *(interval(**(asdict(tier.baseline_auc) if tier.baseline_auc else {})) for tier in tiers),
        ],
        ["real images right", *(share(tier.real_right) for tier in tiers)],
        ["real called ai", *(share(tier.real_called_ai) for tier in tiers)],
        ["real called ai, sources alike", *(share(tier.macro_called.real_called_ai) for tier in tiers)],
        ["ai called ai", *(share(tier.ai_called_ai) for tier in tiers)],
        ["ai called ai, sources alike", *(share(tier.macro_called.ai_called_ai) for tier in tiers)],
        ["unsure", *(share(tier.unsure) for tier in tiers)],
    ]
    note = (
        f"split {split.split}: 95 % intervals; accuracies at p_ai 0.5, 'called' and 'unsure' at point {point}; "
        "'sources alike': each source of a class weighs the same, so that the AUC is the mean over pairs of sources"
    )
    if split.stability is not None:
        note += f"; {share(split.stability)} of the images keep their label in every delivery"
    if split.skipped:
        note += f"; {split.skipped} images skipped"
    yield note, ["", *(tier.tier.value for tier in tiers)], rows
    yield f"split {split.split}, by source", *_by_source(tiers)
    if tiers[0].kinds:
        yield f"split {split.split}, by kind of image", *_by_kind(tiers)
    alone = [[name, f"{area:.3f}"] for name, area in split.properties.items()]
    yield f"split {split.split}, what file properties alone give away", ["property", "AUC"], alone


def _by_source(tiers: Sequence[TierResult]) -> tuple[list[str], list[list[str]]]:
    header = ["source", "label", "images"]
    for tier in tiers:
        header += [f"{tier.tier.value}: called ai", "unsure", "right", "AUC"]
    rows = []
    for alike in zip(*(tier.sources for tier in tiers), strict=True):
        row = [alike[0].source, alike[0].label, str(alike[0].images)]
        for one in alike:
            row += [
                share(one.called_ai),
                share(one.unsure),
                share_interval(**asdict(one.right)),
                interval(**asdict(one.auc)),
            ]
        rows.append(row)
    return header, rows


def _by_kind(tiers: Sequence[TierResult]) -> tuple[list[str], list[list[str]]]:
    header = ["kind", "label", "images", "sources"]
    for tier in tiers:
        header += [f"{tier.tier.value}: called ai", "sources alike", "unsure"]
    rows = []
    for alike in zip(*(tier.kinds for tier in tiers), strict=True):
        row = [alike[0].kind, alike[0].label, str(alike[0].images), str(alike[0].sources)]
        for one in alike:
            row += [share_interval(**asdict(one.called_ai)), share(one.called_ai_macro), share(one.unsure)]
        rows.append(row)
    return header, rows


def _markdown(about: Mapping[str, object], splits: Sequence[SplitResult], plots: bool) -> str:
    lines = ["# Evaluation", "", "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in about.items()), ""]
    for split in splits:
        for caption, header, rows in _tables(split, str(about["operating_point"])):
            lines += [f"## {caption}", "", markdown_table(header, rows), ""]
        if plots:
            lines += [f"![ROC]({_plot('roc', split.split)}) ![reliability]({_plot('reliability', split.split)})", ""]
    return "\n".join(lines)


def _plot(kind: str, split: str) -> str:
    return f"{kind}-{split.replace('/', '_')}.png"


def _draw(folder: Path, split: SplitResult) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("train", "matplotlib", "draw the plots") from None
    for kind, title, axes in (
        ("roc", "ROC", ("real images called ai", "AI images called ai")),
        ("reliability", "reliability", ("mean p_ai", "share of AI images")),
    ):
        figure = Figure(figsize=(5, 5), layout="constrained")
        plot = figure.subplots()
        plot.plot([0, 1], [0, 1], color="0.7", linestyle="--")
        for tier in split.tiers:
            if kind == "roc":
                step = max(1, len(tier.roc.fpr_T) // _PLOT_POINTS)
                label = f"{tier.tier.value}, AUC {tier.measures['auc'].value:.3f}"
                plot.plot([*tier.roc.fpr_T[::step], 1.0], [*tier.roc.tpr_T[::step], 1.0], label=label)
            else:
                bins = [row for row in tier.reliability if row.images]
                label = f"{tier.tier.value}, ECE {tier.measures['ece'].value:.3f}"
                plot.plot([row.p_ai_mean for row in bins], [row.ai_share for row in bins], "o-", label=label)
        plot.set(xlabel=axes[0], ylabel=axes[1], title=f"{title}, split {split.split}", xlim=(0, 1), ylim=(0, 1))
        plot.legend(loc="lower right")
        with replacing(folder / _plot(kind, split.split)) as stream:
            figure.savefig(stream, dpi=120, format="png", metadata={"Software": SOFTWARE})
