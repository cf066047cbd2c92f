"""The weights of a ViT for inference, made of an encoder's and of what training added: plain numpy, the same to the bit
on every machine.

Legend: O, I outputs and inputs of a linear layer; P rank of a low-rank change; T token; C its feature; N, S patches
along an axis, as they are wanted and as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import CheckpointError

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]

PREFIX = "encoder."  # of the names of the encoder's weights, before those that timm gives
DOWN, UP = LOW_RANK = (".down", ".up")  # of the weights of a low-rank change, in the trained part alone
_PREFIX_TOKENS = ("cls_token", "reg_token")


def changed_weight(weight_OI: Array, down_PI: Array, up_OP: Array) -> Array:
    """`weight + up @ down`, rank after rank: a product of matrices would differ in its last bits by machine."""
    changed_OI = weight_OI.astype(np.float32)
    for rank in range(len(down_PI)):
        changed_OI += up_OP[:, rank : rank + 1] * down_PI[rank]
    return changed_OI


def merged(weights: Mapping[str, Array]) -> Weights:
    """With each low-rank change in the weight that it changes."""
    plain = {name: values for name, values in weights.items() if not name.endswith(LOW_RANK)}
    for name, down_PI in weights.items():
        if name.endswith(DOWN):
            stem = name.removesuffix(DOWN)
            plain[f"{stem}.weight"] = changed_weight(plain[f"{stem}.weight"], down_PI, weights[stem + UP])
    return plain


def inference_weights(weights: Mapping[str, Array], query_scale: float, patches: int) -> Weights:
    """Low-rank changes merged, queries scaled, and class token and registers in the positions that are added to them.

    Args:
        weights: of a `ProbedVit`, by its names.
        query_scale: of the attention; queries that are normalised first keep it in the graph.
        patches: how many the encoder cuts an image into.
    """
    plain = merged(weights)
    positions_1TC = plain[f"{PREFIX}pos_embed"]
    tokens_1TC = [plain.pop(PREFIX + name) for name in _PREFIX_TOKENS if PREFIX + name in plain]
    if tokens_1TC:
        first_1TC = np.concatenate(tokens_1TC, axis=1)
        count = positions_1TC.shape[1] - patches  # 0 where positions are of patches alone
        if count:
            first_1TC = first_1TC + positions_1TC[:, :count]
        plain[f"{PREFIX}pos_embed"] = np.concatenate([first_1TC, positions_1TC[:, count:]], axis=1)
    for name in [name for name in plain if ".attn.qkv." in name]:
        if f"{name.partition('.qkv.')[0]}.q_norm.weight" not in plain:
            values = plain[name].copy()
            values[: len(values) // 3] *= np.float32(query_scale)
            plain[name] = values
    return plain


def at_size(encoder: Mapping[str, Array], patches: int) -> Weights:
    """An encoder's weights for images of another size: its positions, resampled to so many patches by cubic convolution
    (Keys 1981, a = -0.5), antialiased. Sums run term by term: a product of matrices would differ by machine.
    """
    weights = dict(encoder)
    if "pos_embed" not in weights:
        return weights
    positions_TC = weights["pos_embed"].reshape(-1, weights["pos_embed"].shape[-1])
    old, new = math.isqrt(len(positions_TC)), math.isqrt(patches)
    first = len(positions_TC) - old**2  # class token and registers
    if old != new:
        taps_NS = _cubic_taps(old, new)
        grid_SSC = positions_TC[first:].reshape(old, old, -1)
        for _ in range(2):  # each time along the first axis, which then becomes the second
            sums_NSC = np.zeros((new, *grid_SSC.shape[1:]), dtype=np.float32)
            for place in range(old):
                sums_NSC += taps_NS[:, place, None, None] * grid_SSC[place]
            grid_SSC = sums_NSC.transpose(1, 0, 2)
        weights["pos_embed"] = np.concatenate([positions_TC[:first], grid_SSC.reshape(new**2, -1)])[None]
    return weights


def _cubic_taps(old: int, new: int) -> Array:
    stretch = max(old / new, 1.0)
    centre_N1 = (np.arange(new)[:, None] + 0.5) * (old / new)
    x_NS = np.abs(np.arange(old) + 0.5 - centre_N1) / stretch
    inner_NS, outer_NS = (1.5 * x_NS - 2.5) * x_NS * x_NS + 1, ((x_NS - 5) * x_NS + 8) * x_NS * -0.5 + 2
    taps_NS = np.where(x_NS < 1, inner_NS, np.where(x_NS < 2, outer_NS, 0.0))
    weights_NS: Array = (taps_NS / np.cumsum(taps_NS, axis=1)[:, -1:]).astype(np.float32)
    return weights_NS


def joined(encoder: Mapping[str, Array], trained: Mapping[str, Array], named: str) -> Weights:
    """All weights of a `ProbedVit`: the encoder's under its prefix, and what training added.

    Raises:
        CheckpointError: a change is of a weight that the encoder has not.
    """
    weights = {PREFIX + name: values for name, values in encoder.items()}
    for name in trained:
        if name.endswith(DOWN) and f"{name.removesuffix(DOWN)}.weight" not in weights:
            raise CheckpointError(f"{named}: has no {name.removesuffix(DOWN)}, which was trained; give its own encoder")
    return {**weights, **{name: np.asarray(values, dtype=np.float32) for name, values in trained.items()}}
