"""What loads the images of a training run, in which order.

Legend: B image in a batch; H, W image height and width; C channel; S input size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from aivsreal.runtime.preprocess import PixelsHWC, batch_from_squares, square_from_pixels
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.config import TrainConfig
from aivsreal.train.fit.augment import augmented_square
from aivsreal.train.fit.distributed import Ranks
from aivsreal.train.samples import Sample

Draw = tuple[int, int, int]  # epoch, position in the epoch, index of the sample
PixelsOf = Callable[[Sample], PixelsHWC]


class TrainDraws(Sampler[Draw]):
    """The order of an epoch, which the seed and the epoch alone determine, whatever the number of workers.

    Each rank takes its part of every batch, so that a run on several GPUs sees the same batches as a run on one.
    """

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.count = len(samples)
        self.config = config
        self.ranks = ranks or Ranks()
        self.epoch = 0
        self.weights = _weights(samples, config.source_power) if config.balance else None

    def __len__(self) -> int:
        return self.count // self.ranks.world

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.config.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            # Systematic sampling: an image with weight w is drawn floor(w) or ceil(w) times, never by luck more often.
            edges = np.cumsum(self.weights * self.count)
            order = np.searchsorted(edges, np.arange(self.count) + rng.random(), side="right")
            order = rng.permutation(np.minimum(order, self.count - 1))
        draws = [(self.epoch, position, int(index)) for position, index in enumerate(order)]
        return iter(self.ranks.share(draws)[: len(self)])


def _weights(samples: Sequence[Sample], power: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sizes = Counter((sample.label, sample.source) for sample in samples)
    totals = {label: sum(n**power for (other, _), n in sizes.items() if other == label) for label in LABELS}
    weights = [sizes[s.label, s.source] ** (power - 1) / totals[s.label] / 2 for s in samples]
    return np.asarray(weights, dtype=np.float64)


class TrainImages(Dataset[tuple[torch.Tensor, int]]):
    """Augmented squares `square_SSC`, uint8, and targets, addressed by `Draw`."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, pixels_of: PixelsOf) -> None:
        self.samples, self.config, self.pixels_of = list(samples), config, pixels_of

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int]:
        epoch, position, index = draw
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((config.seed, epoch, position))
        square_SSC = augmented_square(self.pixels_of(sample), config.spec, config.augment, rng)
        return torch.from_numpy(square_SSC.copy()), sample.target


class ValImages(Dataset[tuple[torch.Tensor, int]]):
    """Squares exactly as the runtime sees them, and targets."""

    def __init__(self, samples: Sequence[Sample], config: TrainConfig, pixels_of: PixelsOf) -> None:
        self.samples, self.spec, self.pixels_of = list(samples), config.spec, pixels_of

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[index]
        square_SSC = square_from_pixels(self.pixels_of(sample), self.spec)
        return torch.from_numpy(square_SSC.copy()), sample.target


def batch_from_tensors(squares_BSSC: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Normalise with the runtime's own code, so that training and runtime cannot differ."""
    return torch.from_numpy(batch_from_squares(list(squares_BSSC.numpy()), config.spec))
