"""What a training run is: its configuration and the named recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aivsreal.runtime.spec import Geometry, PreprocessSpec, spec_from_json


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Random changes to a training image; a probability of 0 leaves its step out."""

    crop_min: float = 0.875
    """Smallest side of the random square crop, as a share of the short side (of each side where the spec squashes)."""
    native_crop_p: float = 0.0
    """Probability of a crop at exactly the input's size, without any resampling, where the image is large enough."""
    hflip_p: float = 0.5
    rotate_degrees: float = 0.0
    """Rotation drawn from plus and minus this many degrees; corners repeat the border by reflection."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Colour jitter: factors from 1 plus and minus the value; hue as a share of the circle."""
    jitter_p: float = 1.0
    small_p: float = 0.0
    """The whole image, before the crop, down to 0.3..0.9 of its size, half of the time as a JPEG of quality 40 to 95:
    every source as if it had been a small web image once."""
    restyle_p: float = 0.0
    """Another look, drawn or printed, from `aivsreal.train.fit.looks`."""
    layout_p: float = 0.0
    """As a page, with frame, bars, type or panels, from `aivsreal.train.fit.looks`."""
    rescale_p: float = 0.0
    """Down to 0.5..1 of the size with a random filter and up again."""
    blur_p: float = 0.0
    sharpen_p: float = 0.0
    noise_p: float = 0.0
    """Gaussian noise with a standard deviation of 1 to 6 grey levels."""
    jpeg_p: float = 0.0
    """JPEG of quality 55 to 98 with random chroma subsampling."""
    jpeg_twice_p: float = 0.0
    webp_p: float = 0.0
    grey_p: float = 0.0
    """Colour taken away: sources differ in palette."""
    shuffle_p: float = 0.0
    """4x4 tiles in a random order: the traces stay inside them, the content is taken apart."""
    frequency_noise_p: float = 0.0
    """Frequency Noise: amplitude and phase of one random band of the spectrum are perturbed."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All that determines a training run, apart from the images."""

    preset: str = "seed"
    arch: str = "levit_192"
    spec: PreprocessSpec = field(default_factory=PreprocessSpec)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adam"
    """`adam` or `adamw`."""
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    schedule: str = "constant"
    """`constant` or `cosine` (to zero at the last step)."""
    clip_norm: float = 0.0
    """Gradients are clipped to this norm; 0 is off."""
    ema_decay: float = 0.0
    """Weights that are validated and kept are an exponential moving average with this decay; 0 is off."""
    label_smoothing: float = 0.0
    consistency: float = 0.0
    """Noise Perturbation Regularisation: weight of the squared distance between the `p_ai` of an image and of the same
    image under noise, which is also trained on; 0 is off."""
    cutmix_p: float = 0.0
    """CutMix (Yun et al. 2019, arXiv:1905.04899): probability that a rectangle of an image is another image's, and its
    target the mean of both by area: what is learned must be found in every part of an image."""
    balance: bool = False
    """Draw both classes equally often, and each source in proportion to a power of its size."""
    source_power: float = 0.5
    """That power: 0.5 is the square root, 0 draws all sources of a class equally often."""
    short_side: int = 0
    """Training images with a longer short side are scaled down to this one when they are read; 0 leaves them."""
    init: str = ""
    """SHA-256 of the weights that training starts from; empty is from scratch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw"):
            raise ValueError(f"optimizer must be adam or adamw, not {self.optimizer}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant or cosine, not {self.schedule}")
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                "at least one epoch and a batch of two are needed (BatchNorm has no variance of one image)"
            )

    def to_json(self) -> dict[str, object]:
        """The configuration as JSON values; `config_from_json` is its inverse."""
        return {**asdict(self), "spec": self.spec.to_json()}


def config_from_json(values: Mapping[str, Any]) -> TrainConfig:
    """Read what `TrainConfig.to_json` wrote.

    Raises:
        TypeError, ValueError, KeyError: a field is missing, unknown or out of range.
    """
    return TrainConfig(
        **{**values, "spec": spec_from_json(values["spec"]), "augment": AugmentConfig(**values["augment"])}
    )


_SEED = TrainConfig(
    spec=PreprocessSpec(geometry=Geometry.SQUASH),
    augment=AugmentConfig(rotate_degrees=15, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
)

PRESETS: dict[str, TrainConfig] = {
    # The recipe that the project started from, as it was.
    "seed": _SEED,
    # Degradations that make sources alike, crops that keep the traces, LeViT's own optimisation.
    "robust": replace(
        _SEED,
        preset="robust",
        spec=PreprocessSpec(),
        augment=AugmentConfig(
            crop_min=0.6,
            native_crop_p=0.5,
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            hue=0.02,
            jitter_p=0.5,
            rescale_p=0.3,
            blur_p=0.2,
            sharpen_p=0.1,
            noise_p=0.15,
            jpeg_p=0.6,
            jpeg_twice_p=0.25,
            webp_p=0.15,
        ),
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        warmup_epochs=2,
        schedule="cosine",
        clip_norm=1.0,
        ema_decay=0.998,
        label_smoothing=0.05,
        balance=True,
    ),
}
_ROBUST = PRESETS["robust"]
# What the ablation kept: `robust` without colour jitter and without crops at the input's own size, which are small
# parts of an image where the input is small. Both helped on seen and on unseen sources.
PRESETS["shipped"] = replace(
    _ROBUST, preset="shipped", augment=replace(_ROBUST.augment, jitter_p=0.0, native_crop_p=0.0)
)
_SHIPPED = PRESETS["shipped"]
PRESETS |= {
    # One change to `shipped` each.
    "shipped-grey": replace(_SHIPPED, preset="shipped-grey", augment=replace(_SHIPPED.augment, grey_p=0.2)),
    "shipped-cutmix": replace(_SHIPPED, preset="shipped-cutmix", cutmix_p=0.3),
    # Both of them, against over-fitting in a long training: what the shipped weights were trained with last.
    "shipped-mixed": replace(
        _SHIPPED, preset="shipped-mixed", cutmix_p=0.3, augment=replace(_SHIPPED.augment, grey_p=0.2)
    ),
    # One change to `robust` each, for the ablation table.
    "residual": replace(_ROBUST, preset="residual", arch="levit_192_residual"),
    "frequency-noise": replace(
        _ROBUST, preset="frequency-noise", augment=replace(_ROBUST.augment, frequency_noise_p=0.5)
    ),
    "grey": replace(_ROBUST, preset="grey", augment=replace(_ROBUST.augment, grey_p=0.3)),
    "shuffle": replace(_ROBUST, preset="shuffle", augment=replace(_ROBUST.augment, shuffle_p=0.5)),
    "small": replace(_ROBUST, preset="small", augment=replace(_ROBUST.augment, small_p=0.6)),
    "restyle": replace(_ROBUST, preset="restyle", augment=replace(_ROBUST.augment, restyle_p=0.4)),
    "layout": replace(_ROBUST, preset="layout", augment=replace(_ROBUST.augment, layout_p=0.4)),
    "colour": replace(
        _ROBUST,
        preset="colour",
        augment=replace(_ROBUST.augment, brightness=0.4, contrast=0.4, saturation=0.6, hue=0.1, jitter_p=0.9),
    ),
    "true-colour": replace(_ROBUST, preset="true-colour", augment=replace(_ROBUST.augment, jitter_p=0.0)),
    "whole-views": replace(_ROBUST, preset="whole-views", augment=replace(_ROBUST.augment, native_crop_p=0.0)),
    "equal-sources": replace(_ROBUST, preset="equal-sources", source_power=0.0),
    "narrow-crops": replace(_ROBUST, preset="narrow-crops", augment=replace(_ROBUST.augment, crop_min=0.3)),
    "squash": replace(_ROBUST, preset="squash", spec=_SEED.spec),
    # Without decay AdamW is Adam: this row is the comparison of the two.
    "no-decay": replace(_ROBUST, preset="no-decay", weight_decay=0.0),
    "no-average": replace(_ROBUST, preset="no-average", ema_decay=0.0),
    "hard-labels": replace(_ROBUST, preset="hard-labels", label_smoothing=0.0),
    "no-delivery": replace(
        _ROBUST,
        preset="no-delivery",
        augment=replace(_ROBUST.augment, rescale_p=0.0, blur_p=0.0, sharpen_p=0.0, noise_p=0.0, jpeg_p=0.0, webp_p=0.0),
    ),
    "noise-consistency": replace(_ROBUST, preset="noise-consistency", consistency=1.0),
    "cutmix": replace(_ROBUST, preset="cutmix", cutmix_p=0.5),
}
