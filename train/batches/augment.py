"""Random changes to a batch of training images: a crop, then the damage that delivery does, alike for both classes.

Everything is arithmetic on a batch, so that a GPU does it beside the network; JPEG is computed as its encoder and
decoder do, up to the rounding of their integer transforms.

Legend: B image in a batch; C channel (3, RGB); H, W height and width; S input size; N 8x8 block; U, V frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.config import AugmentConfig

PLAIN = AugmentConfig(hflip_p=0.0)
"""Nothing but the resampling."""

Change = Callable[[torch.Tensor], torch.Tensor]
FloatsB = npt.NDArray[np.float64]

# Annex K of the JPEG standard (ITU-T T.81), which libjpeg scales by its quality.
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 " + "99 " * 32
)


def augmented(
    crops: Sequence[torch.Tensor], size: int, config: AugmentConfig, seed: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Degraded squares `batch_BCHW`, float32 of whole grey levels 0..255, from groups of equally large crops.

    Args:
        crops: `crops_BHWC`, uint8; each group has one side, and what is drawn once for a group differs between groups.
        size: S.
        config: what may happen.
        seed: determines every draw, on each device alike but for the noise's values and a resampling's rounding.
        device: where it is computed.
    """
    rng = np.random.default_rng(seed)
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    flip_B = mirrored(sum(map(len, crops)), config, seed).to(device)
    groups = []
    for crops_BHWC, mirror_B in zip(crops, torch.split(flip_B, [len(part) for part in crops]), strict=True):
        x = crops_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous().float()
        x = torch.where(mirror_B[:, None, None, None], x.flip(3), x)
        x = _some(x, config.jpeg_first_p, rng, lambda part: _jpeg(part, rng))
        x = _some(x, config.rescale_p, rng, lambda part: _rescaled(part, rng))
        x = resized(x, size, _filter(rng))
        x = _some(x, config.blur_p, rng, lambda part: _blurred(part, rng.uniform(0.3, 1.3)))
        x = _some(x, config.sharpen_p, rng, lambda part: _sharpened(part, rng))
        x = _some(x, config.noise_p, rng, lambda part: _noisy(part, noise, rng))
        x = _some(x, config.frequency_noise_p, rng, lambda part: _frequency_noise(part, noise, rng))
        x = _some(x, config.colour_p, rng, lambda part: _recoloured(part, config.colour, rng))
        x = _some(x, config.grey_p, rng, _grey)
        x = _some(x, config.jpeg_p, rng, lambda part: _jpeg(part, rng))
        groups.append(x.clamp(0, 255).round())
    return torch.cat(groups)


def mirrored(count: int, config: AugmentConfig, seed: tuple[int, ...]) -> torch.Tensor:
    """`flip_B`: which images of a batch are mirrored. Drawn apart, for one who knows what lies where in them."""
    return torch.from_numpy(np.random.default_rng((*seed, 1)).random(count) < config.hflip_p)


def resized(x_BCHW: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Antialiased to SxS, from whole grey levels to whole grey levels."""
    if x_BCHW.shape[2] == size:
        return x_BCHW
    if x_BCHW.is_cuda:  # which resamples no bytes
        return functional.interpolate(x_BCHW, (size, size), mode=mode, antialias=True).clamp(0, 255).round()
    return functional.interpolate(x_BCHW.byte(), (size, size), mode=mode, antialias=True).float()


def batch_from_levels(levels_BCHW: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """`batch_BCHW` for a network from grey levels 0..255, by the runtime's own numbers; on a GPU channels lie last."""
    scale_C, bias_C = (torch.from_numpy(values).to(levels_BCHW.device) for values in spec.affine())
    batch_BCHW = levels_BCHW * scale_C[:, None, None] + bias_C[:, None, None]
    return batch_BCHW.contiguous(memory_format=torch.channels_last if batch_BCHW.is_cuda else torch.contiguous_format)


def _some(x: torch.Tensor, p: float, rng: np.random.Generator, change: Change) -> torch.Tensor:
    """The batch with some of its images changed."""
    at = np.flatnonzero(rng.random(len(x)) < p)
    if not len(at):
        return x
    at_B = torch.from_numpy(at).to(x.device)
    return x.index_copy(0, at_B, change(x.index_select(0, at_B)))


def _filter(rng: np.random.Generator) -> str:
    return ("bicubic", "bicubic", "bilinear")[int(rng.integers(3))]


def _rescaled(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    side = x.shape[2]
    small = max(8, round(side * rng.uniform(0.4, 1.0)))
    return resized(resized(x, small, _filter(rng)), side, _filter(rng))


def _blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = math.ceil(3 * sigma)
    row = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = (row / row.sum()).tolist()
    x = _weighted_sum(functional.pad(x, (reach, reach, 0, 0), mode="reflect"), weights, 3)
    return _weighted_sum(functional.pad(x, (0, 0, reach, reach), mode="reflect"), weights, 2)


def _weighted_sum(padded: torch.Tensor, weights: Sequence[float], axis: int) -> torch.Tensor:
    """Of shifted copies: a blur takes a CPU 0.3 ms an image, and 6 as convolutions with one channel a group."""
    length = padded.shape[axis] + 1 - len(weights)
    first, *rest = (padded.narrow(axis, start, length) for start in range(len(weights)))
    x = first * weights[0]
    for shifted, weight in zip(rest, weights[1:], strict=True):
        x.add_(shifted, alpha=weight)
    return x


def _sharpened(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return (x + rng.uniform(0.2, 1.5) * (x - _blurred(x, rng.uniform(0.5, 1.5)))).clamp(0, 255)


def _noisy(x: torch.Tensor, noise: torch.Generator, rng: np.random.Generator) -> torch.Tensor:
    sigma_B = torch.from_numpy(rng.uniform(1, 8, len(x)).astype(np.float32)).to(x.device)
    values = torch.randn(x.shape, generator=noise, device=x.device)
    return (x + values * sigma_B[:, None, None, None]).clamp(0, 255)


def _grey(x: torch.Tensor) -> torch.Tensor:
    weight_C = torch.tensor([0.299, 0.587, 0.114], device=x.device)
    return (x * weight_C[:, None, None]).sum(1, keepdim=True).expand_as(x)


def _recoloured(x: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation and gamma, each by a factor within the strength of 1."""
    factor_4B = rng.uniform(1 - strength, 1 + strength, (4, len(x), 1, 1, 1)).astype(np.float32)
    bright, contrast, saturation, gamma = torch.from_numpy(factor_4B).to(x.device)
    x = (x * bright).clamp(0, 255)
    mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 255)
    grey = _grey(x)
    x = (grey + (x - grey) * saturation).clamp(0, 255)
    recoloured: torch.Tensor = 255 * (x / 255) ** gamma
    return recoloured


def _frequency_noise(x: torch.Tensor, noise: torch.Generator, rng: np.random.Generator) -> torch.Tensor:
    """Frequency Noise: amplitude and phase of one random ring of frequencies, alike in all channels."""
    size = x.shape[2]
    y_S1 = torch.fft.fftfreq(size, device=x.device)[:, None]
    radius = torch.hypot(y_S1, torch.fft.rfftfreq(size, device=x.device)[None, :]) * 2  # 1 at Nyquist along an axis
    low = rng.uniform(0.05, 1.2)
    ring = (radius >= low) & (radius < low + rng.uniform(0.1, 0.4))
    shape = (len(x), 1, *radius.shape)
    amplitude, phase = (
        torch.randn(shape, generator=noise, device=x.device) * rng.uniform(0.1, 0.8) * ring for _ in range(2)
    )
    spectrum = torch.fft.rfft2(x) * torch.polar(torch.exp(amplitude), phase)
    noisy: torch.Tensor = torch.fft.irfft2(spectrum, s=(size, size)).clamp(0, 255)
    return noisy


def _jpeg(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """JPEG of quality 35 to 98, most often high, three in five with 4:2:0."""
    quality_B = (98 - 63 * rng.beta(1.2, 1.8, len(x))).round()
    return jpeg(x, quality_B, subsampled=bool(rng.random() < 0.6))


def jpeg(x_BCHW: torch.Tensor, quality_B: FloatsB, subsampled: bool) -> torch.Tensor:
    """The images after JPEG: grey levels 0..255, whole numbers, of the same shape.

    Args:
        x_BCHW: RGB, grey levels.
        quality_B: libjpeg's quality, 1 to 100, of each image.
        subsampled: 4:2:0, with the colour upsampled by the triangle filter of libjpeg; else 4:4:4.
    """
    height, width = x_BCHW.shape[2:]
    grain = 16 if subsampled else 8
    padded = functional.pad(x_BCHW, (0, -width % grain, 0, -height % grain), mode="replicate")
    red, green, blue = padded.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    colour = torch.stack([0.564334 * (blue - y), 0.713267 * (red - y)], dim=1)
    if subsampled:
        colour = _halved(colour.round())
    scale_B = np.where(quality_B < 50, np.floor(5000 / quality_B), 200 - 2 * quality_B)
    y = _quantised(y[:, None].round() - 128, _LUMA, scale_B) + 128
    colour = _quantised(colour.round(), _CHROMA, scale_B).clamp(-128, 127).round()
    if subsampled:
        colour = functional.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    luma, (cb, cr) = y.clamp(0, 255).round()[:, 0], colour.round().unbind(1)
    rgb = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], dim=1)
    return rgb[:, :, :height, :width].clamp(0, 255).round()


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Means of 2x2 pixels, rounded up and down in turns as libjpeg does: else differences to it are twice as large."""
    sums = 4 * functional.avg_pool2d(x, 2)
    bias_W = 1.0 + torch.arange(sums.shape[3], device=x.device) % 2
    return ((sums + bias_W) / 4).floor()


def _quantised(x: torch.Tensor, table: str, scale_B: FloatsB) -> torch.Tensor:
    """Each 8x8 block through the DCT, the quantiser and back."""
    count, channels, height, width = x.shape
    base_UV = np.array(table.split(), dtype=np.float64).reshape(8, 8)
    steps = np.clip(np.floor((base_UV * scale_B[:, None, None] + 50) / 100), 1, 255).astype(np.float32)
    step_BUV = torch.from_numpy(steps).to(x.device)[:, None, None, None]
    # One product for all blocks of 64 numbers: a JPEG takes a CPU 1.1 ms an image, and 2.1 by products of 8x8 matrices.
    basis = _dct_basis().to(x.device)
    blocks = x.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    levels = (blocks.reshape(count, -1, 64) @ basis.T).reshape(blocks.shape) / step_BUV
    decoded = (levels.round_() * step_BUV).reshape(count, -1, 64) @ basis
    return decoded.reshape(blocks.shape).transpose(3, 4).reshape(x.shape)


def _dct_basis() -> torch.Tensor:
    """`[64, 64]`: frequencies of an 8x8 block from its pixels, row by row."""
    at = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * at[None] + 1) * at[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return torch.kron(basis, basis).float()


def patched(
    batch_BCHW: torch.Tensor, probability: float, seed: tuple[int, ...], *values: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """CutMix: some images with a rectangle of another one in their place, and what is known of them mixed by area.

    The rectangle's area is uniform in 0..1 of the image's before it is cut off at the border (arXiv:1905.04899, 3.1).

    Args:
        batch_BCHW: images, in any units.
        probability: of a rectangle, for each image.
        seed: determines the rectangles.
        values: of each image, such as targets, `[B, ...]`.

    Returns:
        The mixed images, then the mixed values.
    """
    rng = np.random.default_rng(seed)
    height, width = batch_BCHW.shape[-2:]
    others = rng.permutation(len(batch_BCHW))
    kept_B = np.ones(len(batch_BCHW), dtype=np.float32)
    mixed_BCHW = batch_BCHW.clone()
    for index in np.flatnonzero(rng.random(len(batch_BCHW)) < probability):
        side = math.sqrt(rng.random())
        y, x = rng.integers(height), rng.integers(width)
        top, bottom = max(0, round(y - side * height / 2)), min(height, round(y + side * height / 2))
        left, right = max(0, round(x - side * width / 2)), min(width, round(x + side * width / 2))
        mixed_BCHW[index, :, top:bottom, left:right] = batch_BCHW[others[index], :, top:bottom, left:right]
        kept_B[index] = 1 - (bottom - top) * (right - left) / (height * width)
    device = batch_BCHW.device
    share_B, other_B = torch.from_numpy(kept_B).to(device), torch.from_numpy(others).to(device)
    return mixed_BCHW, *(_mixed(value, value[other_B], share_B) for value in values)


def _mixed(own: torch.Tensor, other: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    share = share_B.reshape(-1, *[1] * (own.ndim - 1))
    return torch.where(share < 1, share * own + (1 - share) * other, own)  # NaN times 0 would be NaN


def perturbed(levels_BCHW: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
    """Grey levels under Gaussian noise of a standard deviation of 1 to 8, another one for each image."""
    random = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    strength_B = torch.empty(len(levels_BCHW)).uniform_(1.0, 8.0, generator=random)
    noise_BCHW = torch.randn(levels_BCHW.shape, generator=random) * strength_B[:, None, None, None]
    return (levels_BCHW + noise_BCHW.to(levels_BCHW.device)).clamp(0, 255)
