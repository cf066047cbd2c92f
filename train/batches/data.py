"""What loads the images of a training run, in which order.

Legend: B image in a batch; H, W image height and width; C channel; S input size.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.preprocess import PixelsHWC, square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.batches.cache import CachedPixels
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import TrainConfig
from aivsreal.train.samples import Sample, weights_of

Ints = npt.NDArray[np.int64]
PixelsOf = Callable[[Sample], PixelsHWC]
Batch = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]
"""Groups of `crops_BHWC`, uint8; `window_B3`: left, top and side of each crop in sides of its view's middle square;
`target_B`, NaN without a label; `index_B` of the samples."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from and is chosen on."""

    train: Sequence[Sample]
    val: dict[str, list[Sample]]
    choose_on: Sequence[str]
    pixels_of: PixelsOf
    """Gives a sample's view."""
    unlabelled: Sequence[Sample] = ()
    """Images whose label nobody knows or uses: a teacher alone says what they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """Squares of one side that are to be cut out of views."""

    index_B: Ints
    side: int
    place_B2: npt.NDArray[np.float64] | None = None
    """Where in the room that is left, down and across, 0..1; None is the middle."""

    def corners(self, height_B: Ints, width_B: Ints) -> tuple[Ints, Ints]:
        """`top_B` and `left_B` in views of these sizes; nobody decodes a view to know where it will be cut."""
        room_B2 = np.stack([height_B, width_B], axis=1) - self.side
        corner_B2 = room_B2 // 2 if self.place_B2 is None else (self.place_B2 * (room_B2 + 1)).astype(np.int64)
        return corner_B2[:, 0], corner_B2[:, 1]

    def window(self, height_B: Ints, width_B: Ints) -> torch.Tensor:
        """`window_B3` of a `Batch`, in views of these sizes."""
        top_B, left_B = self.corners(height_B, width_B)
        short_B = np.minimum(height_B, width_B)
        place_3B = [left_B - (width_B - short_B) / 2, top_B - (height_B - short_B) / 2, np.full(len(top_B), self.side)]
        return torch.from_numpy((np.stack(place_3B) / short_B).T.astype(np.float32))


class TrainBatches:
    """The batches of an epoch: views are cut by threads ahead of their use, or on the GPU that holds them all.

    Seed and epoch alone determine the order, whatever the number of workers. Each rank takes its part of every batch,
    so that a run on several GPUs sees the same batches as a run on one.
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, pixels_of: PixelsOf, machine: Machine) -> None:
        self.samples, self.config, self.pixels_of = list(samples), config, pixels_of
        self.ranks, self.workers = machine.ranks, max(1, machine.workers)
        self.weights_N = weights_of([(sample.label, sample.source) for sample in samples], config.source_power)
        """How often each image is drawn in a pass, as a share of all draws."""
        self.size = config.batch_size // self.ranks.world
        mine = len(samples) // self.ranks.world
        # A rest that is smaller than a batch is left out, unless it is all there is and no other rank waits.
        self.whole = mine // self.size or (1 if self.ranks.world == 1 and mine > 1 else 0)
        if not self.whole:
            raise DataError(
                f"{len(samples)} training images are too few: each of {self.ranks.world} processes takes {self.size} "
                "at a time; give a smaller --batch-size"
            )
        self.resident = None
        if machine.device.type == "cuda" and isinstance(pixels_of, CachedPixels):
            self.resident = ResidentViews(pixels_of, self.samples, machine.device)

    def __len__(self) -> int:
        return self.whole * self.config.passes

    def known(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`target_N`, NaN without a label, and `weight_N`: how often each image is drawn in a pass, 1 in the mean."""
        target_N = torch.tensor([_target(sample) for sample in self.samples])
        weight_N = torch.from_numpy(self.weights_N * len(self.samples)).float()
        return target_N.to(device), weight_N.to(device)

    @property
    def sources(self) -> list[str]:
        """Of each image; those of two classes are two."""
        return [f"{sample.label}/{sample.source}" for sample in self.samples]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Groups of crops and their targets, in the order of the draws."""
        for number in range(epoch * self.config.passes, (epoch + 1) * self.config.passes):
            order_N = self.order(number)
            firsts = range(0, self.whole * self.size, self.size)
            yield from self._made([self._random(number, first, order_N[first : first + self.size]) for first in firsts])

    def order(self, number: int) -> Ints:
        """Indices of the samples that this rank draws in a pass, the how manieth of the run."""
        rng = np.random.default_rng((self.config.seed, number))
        count = len(self.samples)
        # Systematic sampling: an image with weight w is drawn floor(w) or ceil(w) times, never by luck more often.
        edges_N = np.cumsum(self.weights_N * count)
        drawn_N = np.searchsorted(edges_N, np.arange(count) + rng.random(), side="right")
        mine_N = rng.permutation(np.minimum(drawn_N, count - 1))[self.ranks.rank :: self.ranks.world]
        return mine_N[: count // self.ranks.world]

    def plain(self, spec: PreprocessSpec, index_N: Ints) -> Iterator[Batch]:
        """These images once, in order, cut as the runtime cuts them for a network of that spec."""
        side = round(spec.crop_fraction * self.config.view_side)
        starts = range(0, len(index_N), self.size)
        yield from self._made([[Crops(index_N[start : start + self.size], side)] for start in starts])

    def _made(self, plans: Sequence[list[Crops]]) -> Iterator[Batch]:
        if self.resident is not None:
            for plan in plans:
                yield *self._joined([self.resident.cut(crops) for crops in plan]), *self._told(plan)
            return
        waiting: deque[Future[tuple[list[torch.Tensor], torch.Tensor]]] = deque()
        ahead = 2 * self.workers
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number, plan in enumerate(plans):
                    while len(waiting) <= ahead and number + len(waiting) < len(plans):
                        waiting.append(pool.submit(self._cut, plans[number + len(waiting)]))
                    yield *waiting.popleft().result(), *self._told(plan)
            finally:
                for late in waiting:
                    late.cancel()

    def _random(self, number: int, first: int, index_B: Ints) -> list[Crops]:
        rng = np.random.default_rng((self.config.seed, number, first * self.ranks.world + self.ranks.rank))
        plan = []
        for part_B in np.array_split(index_B, self.config.augment.groups):
            if len(part_B):
                side = round(rng.uniform(self.config.augment.crop_min, 1.0) * self.config.view_side)
                plan.append(Crops(part_B, side, rng.random((len(part_B), 2))))
        return plan

    def _told(self, plan: Sequence[Crops]) -> tuple[torch.Tensor, torch.Tensor]:
        index_B = np.concatenate([crops.index_B for crops in plan])
        return torch.tensor([_target(self.samples[index]) for index in index_B]), torch.from_numpy(index_B)

    def _cut(self, plan: Sequence[Crops]) -> tuple[list[torch.Tensor], torch.Tensor]:
        groups = []
        for crops in plan:
            views = [self.pixels_of(self.samples[index]) for index in crops.index_B]
            heights, widths = (np.array([view_HWC.shape[axis] for view_HWC in views]) for axis in (0, 1))
            cut = [
                view_HWC[top : top + crops.side, left : left + crops.side]
                for view_HWC, top, left in zip(views, *crops.corners(heights, widths), strict=True)
            ]
            groups.append((torch.from_numpy(np.stack(cut)), crops.window(heights, widths)))
        return self._joined(groups)

    @staticmethod
    def _joined(groups: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], torch.Tensor]:
        return [crops_BHWC for crops_BHWC, _ in groups], torch.cat([window_B3 for _, window_B3 in groups])


class ResidentViews:
    """All views of a cache in a GPU's memory, 0.27 MB each: no thread then loads what the GPU waits for.

    With 14 threads that cut crops on the host a step of 128 images took 140 ms, most of it waiting for Python's lock.
    """

    def __init__(self, cache: CachedPixels, samples: Sequence[Sample], device: torch.device) -> None:
        sides_N2 = np.array([cache(sample).shape[:2] for sample in samples], dtype=np.int64)
        self.height_N, self.width_N = sides_N2.T
        size_N = 3 * self.height_N * self.width_N
        self.start_N = np.cumsum(size_N) - size_N
        self.pixels = torch.empty(int(size_N.sum()), dtype=torch.uint8, device=device)
        for sample, start, size in zip(samples, self.start_N, size_N, strict=True):
            self.pixels[start : start + size] = torch.from_numpy(cache(sample).flatten())

    def cut(self, crops: Crops) -> tuple[torch.Tensor, torch.Tensor]:
        """`crops_BHWC`, uint8, on the GPU, and their `window_B3`."""
        device, height_B, width_B = self.pixels.device, self.height_N[crops.index_B], self.width_N[crops.index_B]
        top_B, left_B = crops.corners(height_B, width_B)
        first_B = self.start_N[crops.index_B] + (top_B * width_B + left_B) * 3
        first, width = (torch.from_numpy(values).to(device)[:, None, None] for values in (first_B, width_B))
        at = torch.arange(crops.side, device=device)
        across = torch.arange(crops.side * 3, device=device)
        index = first + at[None, :, None] * (width * 3) + across
        cut_BHWC = self.pixels[index].reshape(-1, crops.side, crops.side, 3)
        return cut_BHWC, crops.window(height_B, width_B)


def _target(sample: Sample) -> float:
    return float(sample.target) if sample.label else math.nan


def val_batches(
    samples: Sequence[Sample], config: TrainConfig, pixels_of: PixelsOf, workers: int
) -> Iterator[torch.Tensor]:
    """`squares_BSSC`, uint8, as the runtime makes them of the same pixels."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(samples), config.batch_size):
            part = samples[start : start + config.batch_size]
            squares = pool.map(lambda sample: square_from_pixels(pixels_of(sample), config.spec), part)
            yield torch.from_numpy(np.stack(list(squares)))
