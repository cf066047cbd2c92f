"""Accuracy tables, from what `aivsreal-evaluate --record` wrote into bundles.

Run `python -m aivsreal.benchmarks.accuracy FOLDER` for all of one, with `--brief` for several beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from aivsreal.runtime.bundle.manifest import EVALUATION, FULL_VIEWS
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.fields import object_from_json
from aivsreal.runtime.text import NOT_MEASURED, interval, markdown_table, share
from aivsreal.runtime.verdict import LABELS

Result = Mapping[str, Any]
HEADER = [
    "split", "delivery", "AUC", "AUC, sources alike", "AUC of the baseline", "accuracy", "TPR at 5 % FPR", "ECE",
    "real called `ai`", "AI called `ai`", "`unsure`",
]  # fmt: skip
# Sources that training held first, the ones that nothing was tuned on last.
SPLITS = {
    "val_seen": "of sources in its training (`val_seen`)",
    "val_unseen": "of sources that recipes and bounds were chosen on (`val_unseen`)",
    "test": "of sources that nothing was tuned on (`test`)",
}


def results_of(folder: Path, full: bool = False) -> list[Result]:
    """What was recorded for each split and delivery, of one view or of several; empty where there is no evaluation.

    Raises:
        BundleError: what is there cannot be read.
    """
    file = folder / EVALUATION
    try:
        told: Mapping[str, Any] = object_from_json(file.read_bytes())
        metrics = told["metrics"].get(FULL_VIEWS, {}) if full else told["metrics"]
        found = metrics.get("evaluation", {}).get("results", [])
        order = list(SPLITS)  # splits of other names come last
        return sorted(found, key=lambda result: [*order, result["split"]].index(result["split"]))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{file}: not an evaluation; run aivsreal-evaluate DATA --bundle FOLDER --record") from None


def table(results: Sequence[Result]) -> str:
    """Each split after each delivery."""
    rows = []
    for result in results:
        measures, macro = result["measures"], result.get("macro", {})
        areas = (measures["auc"], macro.get("auc"), result.get("baseline_auc"), measures["accuracy"])
        figures = (f"{measures[name]['value']:.3f}" for name in ("tpr_at_5_fpr", "ece"))
        shares = (share(result.get(name)) for name in ("real_called_ai", "ai_called_ai", "unsure"))
        rows.append([result["split"], result["tier"], *(interval(**(area or {})) for area in areas), *figures, *shares])
    return markdown_table(HEADER, rows)


def brief_table(models: Mapping[str, Sequence[Result]]) -> str:
    """A row a split, images as they are, with the same cells for each model; in AUC each source weighs alike."""
    parts = ("AUC", "real called `ai`", "AI called `ai`")
    header = ["images", *(f"{name}: {part}" for name in models for part in parts)]
    rows = []
    for split, meaning in SPLITS.items():
        cells = [meaning]
        for results in models.values():
            found = [result for result in results if (result["split"], result["tier"]) == (split, "clean")]
            cells += _brief(found[0]) if found else [NOT_MEASURED] * len(parts)
        rows.append(cells)
    return markdown_table(header, rows)


def _brief(result: Result) -> list[str]:
    shares = (share(result.get(f"{label}_called_ai")) for label in LABELS)
    return [interval(**result.get("macro", {}).get("auc", {})), *shares]


@command("accuracy")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--brief", is_flag=True, help="One table: a row a split, the folders' models beside each other.")
@click.option("--views", type=click.Choice(["fast", "full"]), default="fast", show_default=True)
def main(folders: Sequence[Path], brief: bool, views: str) -> None:
    """Print the tables of FOLDERS, each a bundle or the parts of one."""
    alike = len({folder.name for folder in folders}) < len(folders)
    models = {str(folder) if alike else folder.name: results_of(folder, views == "full") for folder in folders}
    if brief:
        click.echo(brief_table(models))
        return
    for name, results in models.items():
        click.echo(table(results) if results else f"`{name}`: {NOT_MEASURED} yet.")


if __name__ == "__main__":
    main()
