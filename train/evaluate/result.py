"""How good a bundle is on one split after each delivery: what `aivsreal-evaluate` measures.

Legend: B image; F pixel statistic. `target_B` is 1 for ai and 0 for real.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import DataError, ImageError
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.verdict import LABELS, Label
from aivsreal.train.evaluate.bootstrap import Measure, measures, share
from aivsreal.train.evaluate.judging import Judged
from aivsreal.train.evaluate.metrics import Floats, ReliabilityBin, Roc, TargetB, reliability, roc
from aivsreal.train.evaluate.shortcuts import Baseline, baseline_from_statistics, property_aucs, statistics_from_pixels
from aivsreal.train.evaluate.tiers import Tier
from aivsreal.train.samples import Sample

BoolB = npt.NDArray[np.bool_]

MISTAKES = 3  # that are named, of each class
BASELINE_IMAGES = 1000  # of each class that the statistics are fitted on: sixteen numbers need no more


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source; shares are of its images."""

    source: str
    label: str
    images: int
    called_ai: float
    unsure: float
    right: Measure
    """On the right side of `p_ai` 0.5, whatever the operating point."""
    auc: Measure
    """Of its images against all images of the other class."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """What is said of the images of a class that show one kind of thing, at the operating point."""

    kind: str
    label: str
    images: int
    sources: int
    called_ai: Measure
    """Share of its images."""
    called_ai_macro: float
    """Mean of the shares of its sources."""
    unsure: float


@dataclass(frozen=True, slots=True)
class Called:
    """What an operating point does, each source of a class weighing alike."""

    real_called_ai: float
    ai_called_ai: float
    unsure_real: float
    unsure_ai: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image on the wrong side of `p_ai` 0.5."""

    name: str
    """Of its file, without the folder."""
    source: str
    label: str
    p_ai: float


@dataclass(frozen=True, slots=True, eq=False)
class TierResult:
    """One split after one delivery. Measures look at `p_ai` alone, `called_*` at the labels of the operating point."""

    split: str
    tier: Tier
    real: int
    ai: int
    measures: dict[str, Measure]
    baseline_auc: Measure | None
    """AUC of the pixel statistics on the same pixels; None where there was nothing to fit them on."""
    real_right: float
    """Share of real images with `p_ai` below 0.5."""
    macro: dict[str, Measure]
    """The same measures with each source of a class weighing alike: a large source does not hide a small one."""
    real_called_ai: float
    ai_called_ai: float
    unsure: float
    macro_called: Called
    sources: list[SourceRow]
    kinds: list[KindRow]
    """Empty where the data do not say what their images show."""
    mistakes: list[Mistake]
    """The surest ones of each class."""
    roc: Roc
    reliability: list[ReliabilityBin]


@dataclass(frozen=True, slots=True, eq=False)
class SplitResult:
    """One split after all deliveries."""

    split: str
    skipped: int
    tiers: list[TierResult]
    stability: float | None
    """Share of images with the same label after every delivery; None for one delivery."""
    properties: dict[str, float]
    """AUC of each file property alone."""


def baseline_from_samples(samples: Sequence[Sample]) -> Baseline:
    """Fit the pixel statistics on clean images; those that cannot be read are left out.

    Raises:
        DataError: no readable image of a class is left.
    """
    rows, targets = [], []
    for sample in samples:
        try:
            rows.append(statistics_from_pixels(pixels_from_file(sample.path)))
        except ImageError:
            continue
        targets.append(sample.target)
    if len(set(targets)) < len(LABELS):
        raise DataError("the baseline has no readable image of a class in split train; add --no-baseline")
    return baseline_from_statistics(np.stack(rows), np.asarray(targets))


def split_result(
    split: str, samples: Sequence[Sample], results: Sequence[Judged], baseline: Baseline | None
) -> SplitResult:
    """All that is said of one split.

    Raises:
        DataError: no image of a class could be read.
    """
    by_tier: dict[Tier, list[Judged]] = defaultdict(list)
    labels: dict[Path, set[Label]] = defaultdict(set)
    for result in results:
        by_tier[result.tier].append(result)
        labels[result.sample.path].add(result.verdict.label)
    for label in LABELS:
        if not any(result.sample.label == label for result in results):
            raise DataError(f"split {split!r} has no readable image labelled {label}; both classes are needed")
    tiers = [_tier_result(split, tier, judged, baseline) for tier, judged in by_tier.items()]
    stability = float(np.mean([len(seen) == 1 for seen in labels.values()])) if len(tiers) > 1 else None
    return SplitResult(split, len(samples) - tiers[0].real - tiers[0].ai, tiers, stability, property_aucs(samples))


def _tier_result(split: str, tier: Tier, results: Sequence[Judged], baseline: Baseline | None) -> TierResult:
    target_B = np.array([result.sample.target for result in results])
    p_ai_B = np.array([result.verdict.p_ai for result in results])
    called_B = np.array([result.verdict.label is Label.AI for result in results])
    unsure_B = np.array([result.verdict.label is Label.UNSURE for result in results])
    right_B = (p_ai_B >= 0.5) == (target_B == 1)
    rows = _source_rows(results, target_B, p_ai_B, called_B, unsure_B)
    baseline_auc = None
    if baseline is not None:
        statistics_BF = np.stack([result.statistics_F for result in results if result.statistics_F is not None])
        baseline_auc = measures(target_B, baseline.logits(statistics_BF), ("auc",))["auc"]
    return TierResult(
        split, tier, int((target_B == 0).sum()), int((target_B == 1).sum()),
        measures=measures(target_B, p_ai_B),
        baseline_auc=baseline_auc,
        real_right=float(right_B[target_B == 0].mean()),
        macro=measures(target_B, p_ai_B, source_B=[result.sample.source or "-" for result in results]),
        real_called_ai=float(called_B[target_B == 0].mean()),
        ai_called_ai=float(called_B[target_B == 1].mean()),
        unsure=float(unsure_B.mean()),
        macro_called=_macro_called(rows),
        sources=rows,
        kinds=_kind_rows(results, called_B, unsure_B),
        mistakes=_surest_mistakes(results),
        roc=roc(target_B, p_ai_B),
        reliability=reliability(target_B, p_ai_B),
    )  # fmt: skip


def _groups(results: Sequence[Judged], name_of: Callable[[Sample], str]) -> Iterator[tuple[str, str, list[int]]]:
    """Label, name and indices of the images that have both, real ones first; `-` is without a name."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, result in enumerate(results):
        groups[LABELS.index(result.sample.label), name_of(result.sample) or "-"].append(index)
    for (target, name), at in sorted(groups.items()):
        yield LABELS[target], name, at


def _source_rows(
    results: Sequence[Judged], target_B: TargetB, p_ai_B: Floats, called_B: BoolB, unsure_B: BoolB
) -> list[SourceRow]:
    right_B = (p_ai_B >= 0.5) == (target_B == 1)
    rows = []
    for label, source, at in _groups(results, lambda sample: sample.source):
        # Of the source and of all that it must be told apart from: accuracy is the source's own, AUC that of both.
        among_B = np.concatenate([at, np.flatnonzero(target_B != LABELS.index(label))])
        area = measures(target_B[among_B], p_ai_B[among_B], ("auc",))["auc"]
        called, unsure = (float(so_B[at].mean()) for so_B in (called_B, unsure_B))
        rows.append(SourceRow(source, label, len(at), called, unsure, share(right_B[at]), area))
    return rows


def _macro_called(rows: Sequence[SourceRow]) -> Called:
    real, ai = ([row for row in rows if row.label == label] for label in LABELS)
    return Called(
        *(fmean(row.called_ai for row in part) for part in (real, ai)),
        *(fmean(row.unsure for row in part) for part in (real, ai)),
    )


def _kind_rows(results: Sequence[Judged], called_B: BoolB, unsure_B: BoolB) -> list[KindRow]:
    rows = []
    for label, kind, at in _groups(results, lambda sample: sample.kind):
        sources: dict[str, list[bool]] = defaultdict(list)
        for index in at:
            sources[results[index].sample.source].append(bool(called_B[index]))
        macro = fmean(fmean(called) for called in sources.values())
        rows.append(KindRow(kind, label, len(at), len(sources), share(called_B[at]), macro, float(unsure_B[at].mean())))
    return rows if any(row.kind != "-" for row in rows) else []


def _surest_mistakes(results: Sequence[Judged]) -> list[Mistake]:
    mistakes = []
    for label, wrongly in zip(LABELS, (1.0, 0.0), strict=True):
        wrong = [
            Mistake(result.sample.path.name, result.sample.source or "-", label, result.verdict.p_ai)
            for result in results
            if result.sample.label == label and (result.verdict.p_ai >= 0.5) == (wrongly > 0.5)
        ]
        mistakes += sorted(wrong, key=lambda mistake: (abs(wrongly - mistake.p_ai), mistake.name))[:MISTAKES]
    return mistakes
