"""What a teacher that is asked once says of the patches of an image, and which of it lies under a crop.

Legend: B image in a batch; N image; T token; C its feature; K principal component; H, W patch grid; 2 the middle block
and the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class TokenBasis:
    """Principal components of standardised patch tokens: a tenth of the numbers holds most of what they say."""

    basis_2CK: torch.Tensor
    offset_2K: torch.Tensor

    @staticmethod
    @torch.no_grad()
    def of(tokens_2NC: Sequence[torch.Tensor], components: int) -> TokenBasis:
        """From tokens of both blocks; the mean square of what `kept` gives for them is 1."""
        found = []
        for tokens_NC in tokens_2NC:
            mean_C, std_C = tokens_NC.mean(0), tokens_NC.std(0).clamp_min(1e-3)
            basis_CK = principal_components((tokens_NC - mean_C) / std_C, components) / std_C[:, None]
            found.append((basis_CK, mean_C @ basis_CK))
        basis, offset = zip(*found, strict=True)
        return TokenBasis(torch.stack(basis), torch.stack(offset))

    def kept(self, tokens_2BTC: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[B, 2 * K * T]`, of patch tokens."""
        parts = zip(tokens_2BTC, self.basis_2CK, self.offset_2K, strict=True)
        grids = [(x_BTC.float() @ basis_CK - offset_K).transpose(1, 2) for x_BTC, basis_CK, offset_K in parts]
        return torch.stack(grids, dim=1).flatten(1)

    def save(self, file: Path) -> None:
        """As arrays of NumPy."""
        np.savez(file, basis=self.basis_2CK.cpu().numpy(), offset=self.offset_2K.cpu().numpy())

    @staticmethod
    def load(file: Path, device: torch.device) -> TokenBasis:
        """What `save` wrote."""
        with np.load(file) as values:
            return TokenBasis(*(torch.from_numpy(values[name]).to(device) for name in ("basis", "offset")))


def principal_components(x_NC: torch.Tensor, count: int) -> torch.Tensor:
    """`basis_CK` of centred rows, by which their mean square is 1; where there are fewer rows, the rest is zero."""
    # There is no factorisation in bfloat16; and a run that is resumed must find the same components.
    with torch.autocast(x_NC.device.type, enabled=False), torch.random.fork_rng():
        torch.manual_seed(0)
        basis_CK = torch.svd_lowrank(x_NC, q=min(count, *x_NC.shape), niter=4)[2]
        scale = (x_NC @ basis_CK).square().mean().sqrt()  # one for all: large components stay large
    return functional.pad(basis_CK / scale, (0, count - basis_CK.shape[1]))


def taught_tokens(tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch tokens `[B, T, C]` of the middle probed block and of the last, of those of all probed blocks."""
    return tokens[len(tokens) // 2][:, 1:], tokens[-1][:, 1:]


def under(grid_BKHW: torch.Tensor, window_B3: torch.Tensor, flip_B: torch.Tensor, share: float) -> torch.Tensor:
    """`[B, K, H, W]`: what a grid says of crops, NaN where a crop reaches beyond what the grid has seen.

    Args:
        grid_BKHW: of a square in the middle of each view.
        window_B3: of the crops, as of a `Batch`.
        flip_B: whether a crop was mirrored then.
        share: side of the grid's square over the view's short side.
    """
    side = grid_BKHW.shape[-1]
    centre_S = (torch.arange(side, device=grid_BKHW.device) + 0.5) / side
    left_B1, top_B1, size_B1 = torch.split(window_B3, 1, dim=1)
    x_BW = left_B1 + size_B1 * torch.where(flip_B[:, None], 1 - centre_S, centre_S)
    y_BH = top_B1 + size_B1 * centre_S
    place_BHW2 = torch.stack([x_BW[:, None, :].expand(-1, side, side), y_BH[:, :, None].expand(-1, side, side)], dim=-1)
    place_BHW2 = (place_BHW2 - (1 - share) / 2) / share
    values_BKHW = functional.grid_sample(grid_BKHW, 2 * place_BHW2 - 1, padding_mode="border", align_corners=False)
    beyond_BHW = ((place_BHW2 < 0) | (place_BHW2 > 1)).any(-1)
    return values_BKHW.masked_fill(beyond_BHW[:, None], torch.nan)


def grids_of(rows_BN: npt.NDArray[np.float16], resolution: tuple[int, ...]) -> torch.Tensor:
    """`[B, 2, K, H, W]` from what `TokenBasis.kept` gave."""
    return torch.from_numpy(rows_BN.astype(np.float32)).reshape(len(rows_BN), 2, -1, *resolution)
