"""Random changes to training images: geometry as the spec allows, then the damage that delivery does.

Mixup, CutMix and strong resized crops are left out on purpose: they destroy the traces that the network looks for.
Legend: H, W image height and width; S input size; F half-spectrum column; C channel (3, RGB).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from aivsreal.runtime.preprocess import PixelsHWC, square_from_pixels
from aivsreal.runtime.spec import Box, Geometry, PreprocessSpec
from aivsreal.train.config import AugmentConfig
from aivsreal.train.fit.looks import laid_out, restyled

_FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


def augmented_square(
    pixels_HWC: PixelsHWC, spec: PreprocessSpec, config: AugmentConfig, rng: np.random.Generator
) -> PixelsHWC:
    """One random training view `square_SSC`, uint8, which only `rng` and the arguments determine."""
    if rng.random() < config.small_p:
        pixels_HWC = np.asarray(_made_small(Image.fromarray(pixels_HWC), rng))
    height, width = pixels_HWC.shape[:2]
    box = _random_box(width, height, spec, config, rng)
    image = Image.fromarray(square_from_pixels(pixels_HWC, spec, box))
    if rng.random() < config.hflip_p:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.rotate_degrees:
        image = _rotated(image, rng.uniform(-config.rotate_degrees, config.rotate_degrees))
    if rng.random() < config.jitter_p:
        image = _jittered(image, config, rng)
    if rng.random() < config.restyle_p:
        image = restyled(image, rng)
    if rng.random() < config.layout_p:
        image = laid_out(image, rng)
    if rng.random() < config.grey_p:
        image = image.convert("L").convert("RGB")
    if rng.random() < config.shuffle_p:
        image = _shuffled(image, rng)
    if rng.random() < config.rescale_p:
        image = _rescaled(image, rng)
    if rng.random() < config.blur_p:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    if rng.random() < config.sharpen_p:
        image = ImageEnhance.Sharpness(image).enhance(rng.uniform(1.2, 2.5))
    if rng.random() < config.noise_p:
        image = _noisy(image, rng)
    if rng.random() < config.frequency_noise_p:
        image = _with_frequency_noise(image, rng)
    if rng.random() < config.jpeg_p:
        image = _jpeg(image, rng)
        if rng.random() < config.jpeg_twice_p:
            image = _jpeg(image, rng)
    elif rng.random() < config.webp_p:
        image = _encoded(image, "WEBP", quality=int(rng.integers(50, 96)), method=0)
    return np.asarray(image)


def _made_small(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.3, 0.9)
    size = (max(16, round(image.width * share)), max(16, round(image.height * share)))
    small = image.resize(size, _FILTERS[int(rng.integers(len(_FILTERS)))])
    if rng.random() < 0.5:
        small = _encoded(small, "JPEG", quality=int(rng.integers(40, 96)), subsampling=int(rng.choice((0, 2))))
    return small


def _random_box(width: int, height: int, spec: PreprocessSpec, config: AugmentConfig, rng: np.random.Generator) -> Box:
    if spec.geometry is Geometry.SQUASH:
        box_width, box_height = (max(1, round(s * rng.uniform(config.crop_min, 1.0))) for s in (width, height))
    else:
        short = min(width, height)
        native = rng.random() < config.native_crop_p and short >= spec.size
        side = spec.size if native else max(1, round(short * rng.uniform(config.crop_min, 1.0)))
        box_width = box_height = side
    left = int(rng.integers(0, width - box_width + 1))
    top = int(rng.integers(0, height - box_height + 1))
    return (left, top, left + box_width, top + box_height)


def _rotated(image: Image.Image, degrees: float) -> Image.Image:
    # Black corners would tell the network that an image was rotated; a reflected border does not.
    margin = image.width // 4
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((margin, margin, margin + image.width, margin + image.height))


def _jittered(image: Image.Image, config: AugmentConfig, rng: np.random.Generator) -> Image.Image:
    steps = (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
    )
    for step in rng.permutation(len(steps)):
        enhance, strength = steps[step]
        if strength:
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    if config.hue:
        shift = round(255 * rng.uniform(-config.hue, config.hue))
        hsv_HWC = np.array(image.convert("HSV"))
        hsv_HWC[..., 0] += np.uint8(shift % 256)  # the hue is a circle: uint8 wraps as it should
        image = Image.fromarray(hsv_HWC, "HSV").convert("RGB")
    return image


def _shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = image.width // 4
    result = image.copy()  # keeps what is beyond the last whole tile
    for place, source in enumerate(rng.permutation(16)):
        left, top = int(source) % 4 * side, int(source) // 4 * side
        result.paste(image.crop((left, top, left + side, top + side)), (place % 4 * side, place // 4 * side))
    return result


def _rescaled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    small = max(8, round(image.width * rng.uniform(0.5, 1.0)))
    down, up = (_FILTERS[int(choice)] for choice in rng.integers(0, len(_FILTERS), 2))
    return image.resize((small, small), down).resize(image.size, up)


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise_SSC = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * rng.uniform(1, 6)
    return Image.fromarray(np.clip(np.asarray(image) + noise_SSC, 0, 255).astype(np.uint8))


def _with_frequency_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale the amplitude and turn the phase of each coefficient in one ring of frequencies, alike in all channels."""
    size = image.width
    y_S1 = np.fft.fftfreq(size)[:, None]
    radius_SF = np.hypot(y_S1, np.fft.rfftfreq(size)[None, :]) * 2  # 0 at the mean, 1 at Nyquist along an axis
    low = rng.uniform(0.05, 1.2)
    band_SF = (radius_SF >= low) & (radius_SF < low + rng.uniform(0.1, 0.4))
    count = int(band_SF.sum())
    factor = np.exp(rng.normal(0, rng.uniform(0.1, 0.8), count) + 1j * rng.normal(0, rng.uniform(0.1, 0.8), count))
    spectrum_SFC = np.fft.rfft2(np.asarray(image, dtype=np.float32), axes=(0, 1))
    spectrum_SFC[band_SF] *= factor[:, None]
    values_SSC = np.fft.irfft2(spectrum_SFC, s=(size, size), axes=(0, 1))
    return Image.fromarray(np.clip(np.rint(values_SSC), 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _encoded(image, "JPEG", quality=int(rng.integers(55, 99)), subsampling=int(rng.choice((0, 2))))


def _encoded(image: Image.Image, kind: str, **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")
