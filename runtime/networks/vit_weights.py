"""The weights of a ViT for inference, made of an encoder's and of what training added: plain numpy, the same to the bit
on every machine.

Legend: O, I outputs and inputs of a linear layer; P rank of a low-rank change.
"""

from __future__ import annotations

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
