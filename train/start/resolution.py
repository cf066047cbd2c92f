"""Weights of a LeViT for another input size: small images first, the full size at the end, is most of the way cheaper.

Only the attention biases depend on the size. LeViT has one for each head and each pair of vertical and horizontal
distance between two tokens; they are read off at the same distance in the image.
Legend: A attention head; R distances along an axis (tokens a side); N pairs of distances, R * R.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

_BIASES = "attention_biases"


def weights_at_size(values: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`values` with the attention biases in the shapes of `wanted`, the state of a network for another input size."""
    return {
        name: _resized(value, wanted[name].shape[1])
        if name.endswith(_BIASES) and name in wanted and wanted[name].shape != value.shape
        else value
        for name, value in values.items()
    }


def _resized(biases_AN: torch.Tensor, pairs: int) -> torch.Tensor:
    heads, old = biases_AN.shape[0], round(biases_AN.shape[1] ** 0.5)
    new = round(pairs**0.5)
    # Distance d of `new` tokens a side is distance d * old / new of `old` ones: both are the same part of the image.
    at_R = (torch.arange(new) * old / new).clamp(max=old - 1)
    below_R = at_R.floor().long()
    above_R, share_R = (below_R + 1).clamp(max=old - 1), at_R - below_R
    table_ARR = biases_AN.reshape(heads, old, old)
    table_ARR = torch.lerp(table_ARR[:, below_R], table_ARR[:, above_R], share_R[None, :, None])
    table_ARR = torch.lerp(table_ARR[:, :, below_R], table_ARR[:, :, above_R], share_R[None, None, :])
    return table_ARR.reshape(heads, pairs)
