"""The README's accuracy table, from what `aivsreal-evaluate --record` wrote into a bundle.

Run `python -m aivsreal.benchmarks.accuracy [BUNDLE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.text import markdown_table

HEADER = [
    "split", "delivery", "AUC", "AUC, sources alike", "AUC of the baseline", "accuracy", "TPR at 5 % FPR", "ECE",
    "real called `ai`", "`unsure`",
]  # fmt: skip


def row_of(result: Mapping[str, Any]) -> list[str]:
    """The cells of one split after one delivery."""
    measures = result["measures"]
    areas = (measures["auc"], result["macro"]["auc"], result["baseline_auc"], measures["accuracy"])
    return [
        result["split"],
        result["tier"],
        *(f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" for value in areas),
        *(f"{measures[name]['value']:.2f}" for name in ("tpr_at_5_fpr", "ece")),
        *(f"{100 * result[name]:.0f} %" for name in ("real_called_ai", "unsure")),
    ]


def table_from_results(results: list[Mapping[str, Any]]) -> str:
    """Markdown: seen sources first, the ones that nothing was chosen on last."""
    ordered = sorted(results, key=lambda result: ["val_seen", "val_unseen", "test"].index(result["split"]))
    return markdown_table(HEADER, [row_of(result) for result in ordered])


@command("accuracy")
@click.argument("bundle", required=False)
def main(bundle: str | None) -> None:
    """Print the table of BUNDLE, by default the shipped one."""
    opened = Bundle.open(bundle)
    metrics: Mapping[str, Any] = opened.manifest.metrics
    if "evaluation" not in metrics:
        raise BundleError(f"{opened.path}: not evaluated; run aivsreal-evaluate DATA --bundle FOLDER --record")
    click.echo(table_from_results(metrics["evaluation"]["results"]))


if __name__ == "__main__":
    main()
