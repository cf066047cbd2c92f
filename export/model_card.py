"""The model card of a bundle, rendered from its manifest."""

from __future__ import annotations

from typing import Any, cast

from aivsreal.runtime.bundle import Manifest


def model_card(manifest: Manifest) -> str:
    """Markdown: what the model is, its data by source, its numbers as measured in training, its limits."""
    provenance = cast(dict[str, Any], manifest.provenance)
    config = provenance["config"]
    lines = [
        f"# {manifest.arch}, {manifest.spec.size} px: real or AI-generated",
        "",
        f"Trained from scratch with the preset `{config['preset']}` (epoch {provenance['epoch']} of {config['epochs']}, "
        f"the best by AUC on `{provenance['chosen_on']}`), exported by `aivsreal-export`.",
        "",
        "| split | accuracy at 0.5 | AUC | loss |",
        "| --- | --- | --- | --- |",
    ]
    for split, value in manifest.metrics.items():
        if isinstance(value, dict) and "auc" in value:
            lines.append(f"| {split} | {value['accuracy']:.4f} | {value['auc']:.4f} | {value['loss']:.4f} |")
    lines += ["", f"The split `{provenance['chosen_on']}` chose the epoch, so its figure is optimistic.", "", "## Data"]
    lines += ["", "| split | source | images |", "| --- | --- | --- |"]
    for split, sources in provenance["data_counts"].items():
        lines += [f"| {split} | {source} | {count} |" for source, count in sources.items()]
    lines += [
        "",
        f"SHA-256 of the data list: `{provenance['data_digest']}`.",
        "",
        "## Intended use and limits",
        "",
        "For research and evaluation: several sources state no licence or allow research only. It errs often on sources "
        "and generators that it never saw; a verdict is a hint for a person who looks, never evidence against anyone. "
        "Probabilities are not calibrated unless the manifest's temperature says so.",
        "",
    ]
    return "\n".join(lines)
