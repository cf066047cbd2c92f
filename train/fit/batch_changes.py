"""What is done to a whole batch in training: noise for the consistency term, and rectangles of other images."""

from __future__ import annotations

import math

import numpy as np
import torch


def patched(
    batch_BCHW: torch.Tensor, target_B: torch.Tensor, probability: float, seed: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix: some images with a rectangle of another one in their place, and targets mixed by area.

    The rectangle's area is uniform in 0..1 of the image's before it is cut off at the border (arXiv:1905.04899, 3.1).
    """
    rng = np.random.default_rng(seed)
    height, width = batch_BCHW.shape[-2:]
    others = rng.permutation(len(batch_BCHW))
    mixed_BCHW, mixed_B = batch_BCHW.clone(), target_B.clone()
    for index in np.flatnonzero(rng.random(len(batch_BCHW)) < probability):
        side = math.sqrt(rng.random())
        y, x = rng.integers(height), rng.integers(width)
        top, bottom = max(0, round(y - side * height / 2)), min(height, round(y + side * height / 2))
        left, right = max(0, round(x - side * width / 2)), min(width, round(x + side * width / 2))
        other = int(others[index])
        mixed_BCHW[index, :, top:bottom, left:right] = batch_BCHW[other, :, top:bottom, left:right]
        share = (bottom - top) * (right - left) / (height * width)
        mixed_B[index] = (1 - share) * target_B[index] + share * target_B[other]
    return mixed_BCHW, mixed_B


def perturbed(batch_BCHW: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
    """The batch under Gaussian noise of 1 to 8 grey levels, another strength for each image."""
    grey_level = 2.0 / 255.0  # with a std of 0.5, 255 levels span 2
    random = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    strength_B = torch.empty(len(batch_BCHW)).uniform_(1.0, 8.0, generator=random) * grey_level
    noise_BCHW = torch.randn(batch_BCHW.shape, generator=random) * strength_B[:, None, None, None]
    return batch_BCHW + noise_BCHW.to(batch_BCHW.device)
