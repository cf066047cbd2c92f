"""Labelled images in, verdicts out: what evaluation and calibration have in common.

Legend: F pixel statistic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from aivsreal.runtime.errors import ImageError
from aivsreal.runtime.machine import usable_cores
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.verdict import Verdict
from aivsreal.train.evaluate.metrics import Floats
from aivsreal.train.evaluate.shortcuts import statistics_from_pixels
from aivsreal.train.evaluate.tiers import Tier, delivered
from aivsreal.train.samples import Sample

if TYPE_CHECKING:
    from aivsreal.runtime.detector import Detector

Arrived = list[tuple[PixelsHWC, Floats | None]]  # pixels after each delivery, with their statistics

LEAST_REAL = 100  # images: of fewer, 1 % is less than one
LEAST_AI = 20  # images: of fewer, 5 % is less than one


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What was said of one image after one delivery."""

    sample: Sample
    tier: Tier
    verdict: Verdict
    statistics_F: Floats | None = None


def judged_images(
    detector: Detector,
    samples: Sequence[Sample],
    tiers: Sequence[Tier],
    batch_size: int,
    tell: Callable[[str], None],
    *,
    statistics: bool = False,
) -> Iterator[Judged]:
    """Decode each image once, deliver it in each way and judge it; one that cannot be read is told and left out.

    Images stream: about a batch of them is in memory, and some for each core, where they are decoded and delivered
    ahead. With `statistics` their pixel statistics are taken too.
    """
    waiting: deque[tuple[Sample, Tier, Floats | None]] = deque()

    def arrived(sample: Sample) -> Arrived:
        pixels_HWC = pixels_from_file(sample.path)
        ones = [delivered(pixels_HWC, tier) for tier in tiers]
        return [(one_HWC, statistics_from_pixels(one_HWC) if statistics else None) for one_HWC in ones]

    def deliveries() -> Iterator[PixelsHWC]:
        rest, ahead, workers = iter(samples), deque[tuple[Sample, Future[Arrived]]](), usable_cores()
        with ThreadPoolExecutor(workers) as pool:
            while True:
                for sample in islice(rest, 2 * workers - len(ahead)):
                    ahead.append((sample, pool.submit(arrived, sample)))
                if not ahead:
                    return
                sample, coming = ahead.popleft()
                try:
                    ones = coming.result()
                except ImageError as error:
                    tell(f"skipped: {error}")
                    continue
                for tier, (arrived_HWC, statistics_F) in zip(tiers, ones, strict=True):
                    waiting.append((sample, tier, statistics_F))
                    yield arrived_HWC

    for verdict in detector.judge_many(deliveries(), batch_size=batch_size):
        sample, tier, statistics_F = waiting.popleft()
        yield Judged(sample, tier, verdict, statistics_F)


def too_few(real: int, ai: int, so: str = "") -> list[str]:
    """What so few images of a class cannot claim, in words; empty where there is nothing.

    Args:
        real: images of that class, however often each was judged.
        ai: the same.
        so: what follows where the real ones are too few.
    """
    doubts = []
    if real < LEAST_REAL:
        rate = f"a false-alarm rate of {100 / LEAST_REAL:g} %"
        doubts.append(f"{real} real images are too few: {rate} needs {LEAST_REAL} or more{so}")
    if ai < LEAST_AI:
        doubts.append(f"{ai} AI images are too few: a miss rate of {100 / LEAST_AI:g} % needs {LEAST_AI} or more")
    return doubts
