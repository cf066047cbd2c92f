"""Draw a run's curves from its `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from aivsreal.runtime.results.output import SOFTWARE, replacing


def draw_curves(metrics: Path, image: Path) -> None:
    """Loss and accuracy per epoch for training and each validation split, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    splits = [name for name, value in rows[-1].items() if isinstance(value, dict)]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, measure in zip(axes, ("loss", "accuracy"), strict=True):
        for split in splits:
            points = [(row["epoch"], row[split][measure]) for row in rows if split in row]  # epoch 0 has no training
            axis.plot(*zip(*points, strict=True), label=split, marker=".")
        axis.set(xlabel="epoch", title=measure)
        axis.grid(alpha=0.3)
    axes[0].legend()
    with replacing(image) as stream:
        figure.savefig(stream, dpi=110, format="png", metadata={"Software": SOFTWARE})
    pyplot.close(figure)
