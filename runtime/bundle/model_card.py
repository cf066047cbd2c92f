"""The model card of a bundle, its README.md: rendered from the manifest alone, so that it says what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import FULL, FULL_VIEWS, FullViews, Manifest
from aivsreal.runtime.text import NOT_MEASURED, interval, markdown_table, share, share_interval

Json = Mapping[str, Any]  # what the commands wrote into the manifest; this is where it leaves JSON

_FAILS_BELOW = 0.7  # a source of which fewer images than this are on the right side is named under "fails"
_MEASURES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "tpr_at_5_fpr": "TPR at 5 % FPR",
    "ece": "ECE",
}
_LIMITS = """\
For research and evaluation: several sources state no licence or allow research only, and weights that were trained on
them inherit that doubt. A verdict is a hint for a person who looks; it is never evidence against anyone. It does not
say who made an image, which part of it was edited, or whether a photo shows what its caption claims. An image that was
cropped, screenshotted, recompressed, or made by a generator that the training data do not hold is judged less well, and
the splits of unseen sources above are the better guide to what a user will see.
"""


def model_card(manifest: Manifest) -> str:
    """Markdown: what the model is, how well it does and where it fails, its data with licences, its limits.

    Raises:
        KeyError: the provenance lacks what `aivsreal-export` writes.
    """
    metrics: Json = manifest.metrics
    return "\n\n".join(
        [
            _head(manifest),
            *_numbers(metrics.get("evaluation")),
            *_int8(metrics.get("int8")),
            *_training(metrics["training"], manifest.provenance),
            f"## Operating points\n\n{_points(manifest, metrics.get('calibration'))}",
            *_full_views(manifest.full_views, metrics.get(FULL_VIEWS, {})),
            _data(manifest.provenance),
            f"## Intended use and limits\n\n{_LIMITS}",
        ]
    )


def rewritten(
    bundle: Bundle, manifest: Manifest, target: Path | None = None, files: Mapping[str, bytes] | None = None
) -> Bundle:
    """The bundle with another manifest and the model card that follows from it, in its place or at `target`.

    Args:
        files: what it holds besides the card, in place of its own files.

    Raises:
        BundleError: a file of the bundle is damaged, or the new one cannot be written.
    """
    files = {name: bundle.read(name) for name in bundle.manifest.files} if files is None else files
    return write_bundle(target or bundle.path, {**files, "README.md": model_card(manifest).encode()}, manifest)


def _head(manifest: Manifest) -> str:
    provenance: Json = manifest.provenance
    config: Json = provenance["config"]
    return (
        f"# {manifest.arch}, {manifest.spec.size} px: AI-generated or real\n\n"
        f"Trained {_origin(provenance)} with the preset `{config['preset']}` (seed {config['seed']}); epoch "
        f"{provenance['epoch']} of {config['epochs']} is kept, {_choice(provenance)}. "
        "Exported by `aivsreal-export`; this file is written by the commands that measured its numbers."
    )


def _origin(provenance: Json) -> str:
    start: Json = provenance.get("started_from") or {}
    encoder: Json | None = start.get("encoder")
    over = "" if encoder is None else f"over the encoder `{encoder['name']}` (SHA-256 `{encoder['sha256'][:12]}`)"
    taught = f", taught by `{start['teacher'][:12]}`" if "teacher" in start else ""
    if "config" not in start:
        return f"{over or 'from scratch'}{taught}"
    what = f"bundle `{start['bundle']}`" if "bundle" in start else f"weights `{start['weights_sha256'][:12]}`"
    return (
        f"on from the {what} (epoch {start['epoch']} of the preset "
        f"`{start['config']['preset']}`, trained {_origin(start)}){over and ' '}{over}{taught}"
    )


def _choice(provenance: Json) -> str:
    splits = [f"`{split}`" for split in provenance["chosen_on"].split("+") if split]
    return f"the best by mean AUC on {' and '.join(splits)}" if splits else "the last one"


def _numbers(evaluation: Json | None) -> Iterable[str]:
    if evaluation is None:
        yield "## Numbers\n\nNot evaluated yet: run `aivsreal-evaluate DATA --bundle FOLDER --record`."
        return
    results = evaluation["results"]
    first = [result for result in results if result["tier"] == results[0]["tier"]]
    yield f"## Numbers\n\n{_split_table(evaluation['about'], results)}"
    yield _by_source(first)
    yield _macro(results)
    yield from _kinds(first)
    yield from _failing(first)
    yield from _mistakes(first)


def _int8(gate: Json | None) -> Iterable[str]:
    if gate is not None:
        yield (
            "On a CPU with products of INT8 the bundle's INT8 graph runs in place of the one that these numbers are "
            f"of. Its AUC was {gate['auc_int8']:.4f}, that of FP32 {gate['auc_full']:.4f}, on {gate['images']:,} "
            "labelled images. `p_ai` differs a little in it: `--backend torch` runs the other."
        )


def _split_table(about: Json, results: Sequence[Json]) -> str:
    rows = [
        [
            result["split"], result["tier"], f"{result['real']} / {result['ai']}",
            *(interval(**result["measures"][name]) for name in _MEASURES),
            interval(**(result["baseline_auc"] or {})), share(result["real_called_ai"]), share(result["unsure"]),
        ]
        for result in results
    ]  # fmt: skip
    header = ["split", "delivery", "real / ai", *_MEASURES.values()]
    header += ["AUC of pixel statistics", "real called ai", "unsure"]
    return (
        f"By `aivsreal-evaluate` with {about['backend']} {about['precision']}; 95 % intervals, where sources weigh "
        "alike for other sources like these, else for these. Accuracies at `p_ai` 0.5; the last two columns at the "
        f"point `{about['operating_point']}`. The pixel statistics are fifteen global numbers of an image in a linear "
        "model: a detector that does not beat them has "
        f"learned nothing.\n\n{markdown_table(header, rows)}"
    )


def _by_source(results: Sequence[Json]) -> str:
    rows = [
        [
            result["split"], row["source"], row["label"], str(row["images"]), share_interval(**row["right"]),
            interval(**row["auc"]), share(row["called_ai"]),
        ]
        for result in results
        for row in result["sources"]
    ]  # fmt: skip
    header = ["split", "source", "label", "images", "right side of 0.5", "AUC against the other class", "called ai"]
    return f"### By source, {results[0]['tier']}\n\n{markdown_table(header, rows)}"


def _failing(results: Sequence[Json]) -> Iterable[str]:
    failing = sorted(
        (
            row["right"]["value"],
            f"- `{row['source']}` ({row['label']}, {result['split']}): {share(row['right']['value'])} right",
        )
        for result in results
        for row in result["sources"]
        if row["right"]["value"] < _FAILS_BELOW
    )
    if failing:
        lines = "\n".join(line for _, line in failing)
        yield f"### Where it fails\n\nSources of which less than {100 * _FAILS_BELOW:.0f} % come out right:\n\n{lines}"


def _macro(results: Sequence[Json], title: str = "Macro average over sources") -> str:
    rows = []
    for result in results:
        called: Json = result.get("macro_called", {})  # earlier evaluations had none
        shares = (share(called.get(name)) for name in ("real_called_ai", "ai_called_ai"))
        rows.append(
            [
                result["split"],
                result["tier"],
                *(interval(**result["macro"][name]) for name in _MEASURES),
                *shares,
            ]
        )
    header = ["split", "delivery", *_MEASURES.values(), "real called ai", "ai called ai"]
    return (
        f"### {title}\n\nEach source of a class weighs the same, whatever its size: the AUC is the "
        f"mean over pairs of a real and an AI source.\n\n{markdown_table(header, rows)}"
    )


def _kinds(results: Sequence[Json]) -> Iterable[str]:
    rows = [
        [
            result["split"], row["kind"], row["label"], str(row["images"]), str(row["sources"]),
            share_interval(**row["called_ai"]), share(row["called_ai_macro"]), share(row["unsure"]),
        ]
        for result in results
        for row in result.get("kinds", ())
    ]  # fmt: skip
    if rows:
        header = ["split", "kind", "label", "images", "sources", "called ai", "sources alike", "unsure"]
        yield f"### By kind of image, {results[0]['tier']}\n\n{markdown_table(header, rows)}"


def _mistakes(results: Sequence[Json]) -> Iterable[str]:
    rows = [
        [result["split"], mistake["name"], mistake["source"], mistake["label"], f"{mistake['p_ai']:.3f}"]
        for result in results
        for mistake in result["mistakes"]
    ]
    if rows:
        yield f"The surest mistakes:\n\n{markdown_table(['split', 'file', 'source', 'is', 'p_ai'], rows)}"


def _training(training: Json, provenance: Json) -> Iterable[str]:
    rows = [
        [split, f"{value['accuracy']:.3f}", f"{value['auc']:.3f}", f"{value['loss']:.3f}"]
        for split, value in training.items()
        if isinstance(value, dict) and "auc" in value
    ]
    yield (
        "### As validated in training\n\n"
        f"{markdown_table(['split', 'accuracy at logit 0', 'AUC', 'loss'], rows)}\n\n"
        + (
            "Figures of splits that chose the epoch are optimistic."
            if provenance["chosen_on"]
            else "No split chose it."
        )
    )


def _full_views(views: FullViews | None, measured: Json) -> Iterable[str]:
    if views is None:
        return
    yield (
        f"## Several views\n\nWith `--views full` {len(views.windows)} windows of an image are judged and the mean of "
        f"their logits decides. {_points(views, measured.get('calibration'))}"
    )
    if "evaluation" in measured:
        evaluation: Json = measured["evaluation"]
        yield f"### Numbers with them\n\n{_split_table(evaluation['about'], evaluation['results'])}"
        yield _macro(evaluation["results"], "Macro average with them")


def _points(manifest: Manifest | FullViews, calibration: Json | None) -> str:
    measured = {row["point"]["name"]: row for row in calibration["operating_points"]} if calibration else {}
    rows = []
    for point in manifest.points:
        row = measured.get(point.name.removesuffix(FULL))
        rows.append(
            [
                point.name + (" (default)" if point.name == manifest.default_point else ""),
                f"{point.ai_at_or_above:.3f}", f"{point.real_below:.3f}",
                share(point.false_alarm_rate),
                *((share(row["miss_rate"]), share(1 - row["coverage"])) if row else (NOT_MEASURED, NOT_MEASURED)),
            ]
        )  # fmt: skip
    header = ["point", "ai from p_ai", "real below", "real called ai", "ai called real", "unsure"]
    how = (
        f"Temperature {manifest.temperature:.3f}, fitted with the points on {_images(calibration)}: figures on the "
        f"images that they were chosen on.{_moved(calibration)}{_doubts(calibration)}"
        if calibration
        else f"Temperature {manifest.temperature:g}: not calibrated, `p_ai` is the bare sigmoid."
    )
    return f"{how}\n\n{markdown_table(header, rows)}"


def _images(calibration: Json) -> str:
    deliveries = len(calibration["tiers"])  # each image was judged in each
    real, ai = (calibration[label] // deliveries for label in ("real", "ai"))
    sources: Json | None = calibration.get("sources")  # earlier calibrations weighed images, not sources
    alike = f" of {sources['real']} and {sources['ai']} sources, each weighing alike" if sources else ""
    return f"{real:,} real and {ai:,} AI images of `{calibration['split']}`{alike}"


def _doubts(calibration: Json) -> str:
    return "".join(f"\n\n**Beware:** {doubt}." for doubt in calibration.get("doubts", ()))


def _moved(calibration: Json) -> str:
    offset = float(calibration.get("offset", 0.0))
    return f" Before that {offset:.3f} was taken from the network's logit, in its head's bias." if offset else ""


def _data(provenance: Json) -> str:
    licences: Json = provenance["data_licences"]
    rows = [
        [split, source, str(count), licences.get(source) or "not stated"]
        for split, sources in provenance["data_counts"].items()
        for source, count in sources.items()
    ]
    header = ["split / label", "source", "images", "licence as its source states it"]
    return f"## Data\n\n{markdown_table(header, rows)}\n\nSHA-256 of the data list: `{provenance['data_digest']}`."
