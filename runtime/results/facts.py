"""What a report says of the model: the operating point in plain words, what judged, how often it errs, its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import MODEL, Manifest
from aivsreal.runtime.spec import Geometry
from aivsreal.runtime.text import interval, share
from aivsreal.runtime.verdict import Judge, OperatingPoint

Json = Mapping[str, Any]  # what the commands wrote into the manifest; a bundle of another may lack any of it
NOT_SAID = "not stated"


@dataclass(frozen=True, slots=True)
class Ran:
    """What judged a scan, as its report tells it."""

    bundle: Bundle
    point: OperatingPoint
    backend: str
    precision: str
    why: str
    """Why this backend was chosen."""
    arguments: Sequence[str]
    """What was scanned, as it was typed."""
    second: Judge | None = None
    """Who judged again what it did not call real."""
    second_bundle: Bundle | None = None
    """None where it is not at hand."""

    @property
    def second_point(self) -> OperatingPoint | None:
        """Of the second opinion; None where there is none, or its bundle is not at hand."""
        if self.second is None or self.second_bundle is None:
            return None
        return self.second_bundle.manifest.point(self.second.operating_point)


def meaning_of_point(ran: Ran) -> list[str]:
    """Sentences for somebody who never heard of an operating point."""
    point, again = ran.point, ran.second_point
    between = (
        "Between them the model does not say: unsure is an answer."
        if point.ai_at_or_above > point.real_below
        else "It always decides."
    )
    if point.false_alarm_rate is None:
        alarm = "How many real images it calls ai was not measured."
    else:
        alarm = (
            f"When this point was set, it called {_of_hundred(point.false_alarm_rate)} real images ai. "
            "Expect more on kinds of images that it does not know."
        )
    meaning = [f"An image is called {_called(point)}. {between}", alarm]
    if ran.second is not None:
        own = "which are in its bundle" if again is None else _called(again)
        meaning.append(f"What is not real so far is judged again by a second model with bounds of its own, {own}.")
    return meaning


def bounds_of(point: OperatingPoint | None) -> list[float]:
    """Below the first an image is real, from the last on it is ai; nothing of a point that is not known."""
    return [] if point is None else [point.real_below, point.ai_at_or_above]


def _called(point: OperatingPoint) -> str:
    return f"ai from a p_ai of {point.ai_at_or_above:.3f} on, and real below {point.real_below:.3f}"


def model_facts(ran: Ran) -> list[tuple[str, str]]:
    """Terms and what they are for this scan."""
    manifest = ran.bundle.manifest
    spec, provenance = manifest.spec, manifest.provenance
    where = "came with aivsreal" if ran.bundle.is_shipped else str(ran.bundle.path)
    part = _seen(ran) + (
        "the whole image, made square"
        if spec.geometry is Geometry.SQUASH
        else f"the middle square, {100 * spec.crop_fraction:.4g} % of the short side"
    )
    facts = [
        ("Model", f"{manifest.arch}, bundle {ran.bundle.digest} ({where})"),
        ("Run by", f"{ran.backend} in {ran.precision} ({ran.why})"),
        ("It sees", f"{part}, resized to {spec.size} x {spec.size} pixels ({spec.filter.value}, antialiased)"),
        ("Calibration", f"temperature {manifest.temperature_at(ran.point):.3f}{_calibrated_on(manifest, ran.point)}"),
        (MODEL, f"SHA-256 {manifest.files.get(MODEL, NOT_SAID)}"),
    ]
    if ran.second is not None:
        who = f"bundle {ran.second.bundle} at point {ran.second.operating_point}, run by {ran.second.backend}"
        facts.insert(1, ("Second opinion", f"{who}: judges again what this model does not call real"))
    config = provenance.get("config")
    if isinstance(config, Mapping):
        kept = f"epoch {provenance.get('epoch', NOT_SAID)} of {config.get('epochs', NOT_SAID)}"
        chosen = provenance.get("chosen_on") or "nothing: the last one"
        facts.append(("Trained", f"preset {config.get('preset', NOT_SAID)}, {kept}, chosen on {chosen}"))
    if "data_digest" in provenance:
        facts.append(("Data list", f"SHA-256 {provenance['data_digest']}"))
    return facts


def _seen(ran: Ran) -> str:
    count = len(ran.bundle.manifest.windows(ran.point).parts)
    return f"{count} parts of the image, the mean of which counts; of each " if count else ""


def _calibrated_on(manifest: Manifest, point: OperatingPoint) -> str:
    calibration = manifest.measured_at(point).get("calibration")
    if not isinstance(calibration, Mapping):
        return ", not calibrated on images"
    deliveries = max(1, len(calibration.get("tiers", ())))  # each image was judged in each
    real, ai = (int(calibration.get(label, 0)) // deliveries for label in ("real", "ai"))
    doubts = "".join(f"; beware: {doubt}" for doubt in calibration.get("doubts", ()))
    return f", with the operating points on {real:,} real and {ai:,} AI images{doubts}"


def accuracy(ran: Ran) -> dict[str, object]:
    """A table of the recorded evaluations of the models, empty where there are none."""
    models = {"": (ran.bundle.manifest, ran.point)}
    if ran.second_bundle is not None:
        second = ran.second_bundle.manifest
        models["second model, "] = (second, ran.second_point or second.point())
    found = {whose: one.measured_at(point).get("evaluation") for whose, (one, point) in models.items()}
    evaluations = {whose: one for whose, one in found.items() if isinstance(one, Mapping)}
    if not evaluations:
        return {"head": [], "rows": [], "note": ""}
    rows = [
        [
            f"{whose}{result['split']}", str(result["tier"]), f"{result['real']} / {result['ai']}",
            interval(**result["measures"]["auc"]), interval(**result["macro"]["auc"]),
            interval(**result["measures"]["accuracy"]),
            interval(**result["measures"]["tpr_at_5_fpr"]), share(result["real_called_ai"]), share(result["unsure"]),
        ]
        for whose, evaluation in evaluations.items()
        for result in evaluation["results"]
    ]  # fmt: skip
    head = [
        "images", "delivery", "real / ai", "AUC", "AUC, sources alike", "accuracy at 0.5", "TPR at 5 % FPR",
        "real called ai", "unsure",
    ]  # fmt: skip
    points = sorted({str(evaluation["about"]["operating_point"]) for evaluation in evaluations.values()})
    note = (
        "Measured by aivsreal-evaluate, with 95 % intervals; the last two columns at the operating point "
        f"{' and '.join(points)}. Splits whose sources the training does not hold are the better guide to what you see "
        "here."
    )
    return {"head": head, "rows": rows, "note": note}


def sources(manifest: Manifest) -> dict[str, object]:
    """A table of the images that the model was trained and chosen on."""
    counts, licences = manifest.provenance.get("data_counts"), manifest.provenance.get("data_licences")
    if not isinstance(counts, Mapping):
        return {"head": [], "rows": []}
    known: Json = licences if isinstance(licences, Mapping) else {}
    rows = [
        [str(split), str(source), f"{count:,}", str(known.get(source) or NOT_SAID)]
        for split, named in counts.items()
        for source, count in named.items()
    ]
    return {"head": ["split / label", "source", "images", "licence as its source states it"], "rows": rows}


def _of_hundred(rate: float) -> str:
    """`about 22 of 100`, or of 1,000 where that says more."""
    if rate == 0.0:
        return "none of the"
    return f"about {round(1000 * rate)} of 1,000" if rate < 0.02 else f"about {round(100 * rate)} of 100"
