"""A teacher and what a student learns of it: its verdict, its features and its tokens, of the same augmented batch.

"A good teacher is patient and consistent": both see the same pixels, mixed and cropped ones too (Beyer et al. 2022,
arXiv:2106.05237).

Legend: B image in a batch; C channel or component; H, W height and width; F feature; T token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from aivsreal.runtime.networks.mapped import logits_from_output
from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.batches.augment import PLAIN, augmented, batch_from_levels, resized
from aivsreal.train.batches.cache import FEATURES
from aivsreal.train.batches.data import TrainBatches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import DistilConfig
from aivsreal.train.fit.features import Features, features_digest, plain_features
from aivsreal.train.fit.probe import CrossFitted, cross_fitted, judged_by_others, shares_of_others
from aivsreal.train.fit.tokens import TokenBasis, grids_of, principal_components, taught_tokens, under

FITTED_ON = 4096  # images that the components and the tokens' moments are taken of
HEADS_FITTED_ON = 32_768  # crops, of which the features of a ViT-B are 1.6 GB in single precision
TOKENS_OF = 512  # images that the components of tokens are taken of, a quarter of the 196 patches of each


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a teacher says of a batch."""

    soft_B: torch.Tensor
    """`p_ai` at the temperature of the distillation."""
    components_BC: torch.Tensor
    tokens: tuple[torch.Tensor, ...] = ()
    """`[B, C, H, W]`, standardised: of the middle block, and of the last one; NaN where it has not seen the image."""


class Teacher(nn.Module):
    """A trained ViT that is only asked.

    Args:
        network: its low-rank changes are merged.
        spec: how it wants its pixels.
        config: how many components, and at which temperature.
    """

    basis_FC: torch.Tensor
    offset_C: torch.Tensor
    moments: torch.Tensor

    def __init__(self, network: ProbedVit, spec: PreprocessSpec, config: DistilConfig) -> None:
        super().__init__()
        self.heat, components = config.temperature, config.components
        self.network = network.eval().requires_grad_(False)
        self.spec = spec
        width = int(network.encoder.embed_dim)
        self.token_width = min(config.token_components, width) if config.once else width
        self.register_buffer("basis_FC", torch.zeros(network.shift.numel(), components))
        self.register_buffer("offset_C", torch.zeros(components))
        self.register_buffer("moments", torch.ones(2, 2, width))
        self.others: CrossFitted | None = None
        """Judge in its place, where it knows the labels by heart."""
        self.share_NK: torch.Tensor | None = None
        """Which of them judges which training image."""

    def forward(self, batch_BCHW: torch.Tensor, share_BK: torch.Tensor | None = None) -> Lesson:
        """Of a batch that is normalised as its own spec says; what `share_BK` others judge."""
        network = self.network
        features_BF, tokens = network.features(batch_BCHW)
        middle_BTC, last_BTC = taught_tokens(tokens)
        grids = (self._grid(middle_BTC, 0), self._grid(last_BTC, 1))
        if self.others is None or share_BK is None:
            return self.lesson(features_BF, grids)
        return self._told(self.others(features_BF, share_BK), features_BF, grids)

    def batch(self, levels_BCHW: torch.Tensor) -> torch.Tensor:
        """The student's images as it wants them, which may be of another size."""
        return batch_from_levels(resized(levels_BCHW, self.spec.size, "bicubic"), self.spec)

    def lesson(self, features_BF: torch.Tensor, tokens: tuple[torch.Tensor, ...] = ()) -> Lesson:
        """Of standardised features."""
        return self._told(logits_from_output(self.network.judged(features_BF)), features_BF, tokens)

    def _told(self, logits_B: torch.Tensor, features_BF: torch.Tensor, tokens: tuple[torch.Tensor, ...]) -> Lesson:
        return Lesson((logits_B / self.heat).sigmoid(), features_BF @ self.basis_FC - self.offset_C, tokens)

    def _grid(self, tokens_BTC: torch.Tensor, which: int) -> torch.Tensor:
        x_BTC = (tokens_BTC.float() - self.moments[which, 0]) / self.moments[which, 1]
        return x_BTC.transpose(1, 2).reshape(len(x_BTC), -1, *self.network.resolution)

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Take the principal components and the tokens' moments of some thousands of images."""
        rows, sums = [], torch.zeros(2, 2, self.network.encoder.embed_dim, dtype=torch.float64)
        seen = 0
        for batch_BCHW in batches:
            features_BF, tokens = self.network.features(batch_BCHW)
            rows.append(features_BF.float())
            for which, tokens_BTC in enumerate(taught_tokens(tokens)):
                flat = tokens_BTC.flatten(0, 1).float()
                sums[which, 0] += flat.mean(0).double().cpu() * len(rows[-1])
                sums[which, 1] += flat.square().mean(0).double().cpu() * len(rows[-1])
            seen += len(rows[-1])
        mean = sums[:, 0] / seen
        std = (sums[:, 1] / seen - mean.square()).clamp_min(1e-6).sqrt()
        self.fit_components(torch.cat(rows))
        self.moments.copy_(torch.stack([mean, std], dim=1))

    @torch.no_grad()
    def fit_components(self, x_NF: torch.Tensor) -> None:
        """Take the principal components of standardised features."""
        mean_F = x_NF.mean(0)
        self.basis_FC.copy_(principal_components(x_NF - mean_F, self.basis_FC.shape[1]))
        self.offset_C.copy_(mean_F @ self.basis_FC)


class Lessons:
    """What a teacher says of each image's plain view, from what was kept of all of them: features, then tokens.

    Args:
        teacher: gets its components of them.
        kept: as of `plain_features`.
    """

    def __init__(self, teacher: Teacher, kept: Features) -> None:
        self.teacher, self.kept = teacher, kept
        self.width = teacher.network.shift.numel()
        teacher.fit_components(self._standardised(slice(None, None, -(-len(kept) // FITTED_ON))))
        with torch.no_grad():
            starts = range(0, len(kept), 512)
            said = [teacher.lesson(self._standardised(slice(start, start + 512))) for start in starts]
        self.soft_N = torch.cat([lesson.soft_B for lesson in said])
        self.components_NC = torch.cat([lesson.components_BC for lesson in said])

    def ask_others(self, batches: TrainBatches) -> None:
        """Let heads judge that have seen nothing of an image's source, in the teacher's place."""
        config = batches.config
        x_NF = self._standardised(slice(None))
        known = batches.known(self.soft_N.device)
        logit_N = judged_by_others(x_NF, *known, batches.sources, config.distil.folds, config.seed)
        self.soft_N = (logit_N / self.teacher.heat).sigmoid()

    def of(self, index_B: torch.Tensor, window_B3: torch.Tensor, flip_B: torch.Tensor) -> Lesson:
        """Of images of which a window is seen, mirrored or not."""
        tokens: tuple[torch.Tensor, ...] = ()
        device, share = self.soft_N.device, self.teacher.spec.crop_fraction
        if self.kept.rows_MF.shape[1] > self.width:
            rows_BN = self.kept.of(index_B.numpy(), slice(self.width, None))
            grids = grids_of(rows_BN, self.teacher.network.resolution).to(device).unbind(1)
            window_B3, flip_B = window_B3.to(device), flip_B.to(device)
            tokens = tuple(under(x_BKHW, window_B3, flip_B, share) for x_BKHW in grids)
        index_B = index_B.to(device)
        return Lesson(self.soft_N[index_B], self.components_NC[index_B], tokens)

    def _standardised(self, which: slice) -> torch.Tensor:
        network = self.teacher.network
        raw_BF = torch.from_numpy(self.kept.of(which, slice(self.width)).astype(np.float32)).to(network.shift.device)
        return (raw_BF - network.shift) / network.scale


def prepared(
    teacher: Teacher, batches: TrainBatches, machine: Machine, folder: Path, tell: Callable[[str], None]
) -> Lessons | None:
    """Fit the teacher's components on images as the student will see them; where it is asked once, ask it."""
    config = batches.config

    def shown(images: int) -> Iterator[torch.Tensor]:
        for step, (crops, *_) in enumerate(islice(batches.epoch(0), -(-images // batches.size))):
            yield teacher.batch(augmented(crops, config.spec.size, PLAIN, (config.seed, step), machine.device))

    if config.distil.once:
        network, spec = teacher.network, teacher.spec
        digest = features_digest(network, spec, config.view_side)
        basis = None
        if config.distil.tokens:
            file = folder / f"{FEATURES}{digest}-basis{teacher.token_width}.npz"
            basis = _kept_basis(teacher, machine, file, shown(TOKENS_OF))
        kept = plain_features(network, spec, batches, machine, folder, digest=digest, tell=tell, basis=basis)
        lessons = Lessons(teacher, kept)
        if config.distil.folds:
            lessons.ask_others(batches)
        return lessons

    with machine.autocast():
        teacher.fit(shown(FITTED_ON))
        if config.distil.folds:
            fit_others(teacher, batches, machine)
    # Each rank has seen its own images: all must learn the components of the first.
    own = {name: value for name, value in teacher.state_dict().items() if not name.startswith("network.")}
    for name, value in machine.ranks.gathered(own)[0].items():
        own[name].copy_(value)
    return None


@torch.no_grad()
def fit_others(teacher: Teacher, batches: TrainBatches, machine: Machine) -> None:
    """Let heads judge that have seen nothing of an image's source, fitted to damaged crops as the student sees them.

    Plain views would not do: the teacher is asked of what was cut, damaged and made small for the student.
    """
    config, device = batches.config, machine.device
    rows, index = [], []
    for step, (crops, _, _, index_B) in enumerate(islice(batches.epoch(0), -(-HEADS_FITTED_ON // batches.size))):
        with torch.autocast(device.type, enabled=False):  # damage is arithmetic on whole grey levels
            levels_BCHW = augmented(crops, config.spec.size, config.augment, (config.seed, step), device)
        rows.append(teacher.network.features(teacher.batch(levels_BCHW))[0].half())
        index.append(index_B.to(device))
    index_M, (target_N, _) = torch.cat(index), batches.known(device)
    rng = np.random.default_rng(config.seed)
    teacher.share_NK = shares_of_others(batches.sources, target_N, config.distil.folds, rng)
    alike_M = torch.ones(len(index_M), device=device)  # they were drawn as often as they weigh
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x_MF = torch.cat(rows).float()
        teacher.others = cross_fitted(x_MF, target_N[index_M], alike_M, teacher.share_NK[index_M], config.seed, rng=rng)


def _kept_basis(teacher: Teacher, machine: Machine, file: Path, shown: Iterator[torch.Tensor]) -> TokenBasis:
    """Of the patch tokens of some images, in a file: found anew, a component may have the other sign."""
    with machine.ranks.first_before_others():
        if not file.is_file():
            with torch.inference_mode(), machine.autocast():
                found = [taught_tokens(teacher.network.tokens(batch_BCHW)) for batch_BCHW in shown]
            tokens_2NC = [torch.cat(parts)[:, ::4].flatten(0, 1).float() for parts in zip(*found, strict=True)]
            TokenBasis.of(tokens_2NC, teacher.token_width).save(file)
    return TokenBasis.load(file, machine.device)


class Learner(nn.Module):
    """A student LeViT and what maps its stages to a teacher's; only the student is kept in the end."""

    def __init__(self, network: nn.Module, config: DistilConfig, token_width: int) -> None:
        super().__init__()
        self.network = network
        self.config = config
        levit: Any = network
        widths = [int(stage.blocks[-1].mlp.ln2.bn.num_features) for stage in levit.stages]
        self.to_components = nn.Sequential(
            nn.Linear(widths[-1], 2 * widths[-1]), nn.GELU(), nn.Linear(2 * widths[-1], config.components)
        )
        self.to_tokens = nn.ModuleList(nn.Linear(width, token_width) for width in (widths[0], widths[-1]))

    def forward(self, batch_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """`[B, 1]` logits, `components_BC`, and tokens `[B, T, C]` of the first and the last stage."""
        levit: Any = self.network
        stages = list(_stages(levit, batch_BCHW))
        logits = levit.forward_head(stages[-1])
        first_BTC, last_BTC = (x if x.ndim == 3 else x.flatten(2).transpose(1, 2) for x in (stages[0], stages[-1]))
        components_BC = self.to_components(last_BTC.mean(1))
        return logits, components_BC, [to(x) for to, x in zip(self.to_tokens, (first_BTC, last_BTC), strict=True)]


def _stages(levit: Any, batch_BCHW: torch.Tensor) -> Iterator[torch.Tensor]:
    x = levit.stem(batch_BCHW)
    if not levit.use_conv:
        x = x.flatten(2).transpose(1, 2)
    for stage in levit.stages:
        x = stage(x)
        yield x


def distillation_loss(
    logits_B: torch.Tensor,
    components_BC: torch.Tensor,
    tokens: list[torch.Tensor],
    lesson: Lesson,
    config: DistilConfig,
) -> torch.Tensor:
    """What a student still has to learn; each regression is about 1 for a student that knows nothing."""
    loss = logits_B.new_zeros(())
    if config.logits:
        heat = config.temperature
        # T^2: the gradient stays as large as that of the labels (Hinton et al. 2015, arXiv:1503.02531).
        soft = functional.binary_cross_entropy_with_logits(logits_B / heat, lesson.soft_B) * heat**2
        loss = loss + config.logits * soft
    if config.features:
        loss = loss + config.features * functional.mse_loss(components_BC.float(), lesson.components_BC)
    if config.tokens:
        for own_BTC, grid_BCHW in zip(tokens, lesson.tokens, strict=True):
            side = round(own_BTC.shape[1] ** 0.5)
            pooled = functional.adaptive_avg_pool2d(grid_BCHW, side).flatten(2).transpose(1, 2)
            known = ~pooled.isnan()
            apart = torch.where(known, own_BTC.float() - pooled, 0.0)
            loss = loss + config.tokens / 2 * apart.square().sum() / known.sum().clamp_min(1)
    return loss
