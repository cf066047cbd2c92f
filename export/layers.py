"""In which precision the layers of an engine compute, as the engine itself says."""

from __future__ import annotations

import json
from typing import Any

from aivsreal.runtime.errors import ExportError

_HALF, _FULL = ("half", "fp16"), ("float", "fp32")


def layers_from_inspection(text: str) -> tuple[int, int]:
    """Count layers that compute in floating point, and those of them that read or write half.

    A layer that fuses the whole transformer into one shows only its inputs and its FP32 outputs, so both count.

    Raises:
        ExportError: the inspector gave no details.
    """
    try:
        listed = json.loads(text)["Layers"]
        formats = [
            [str(tensor["Format/Datatype"]).lower() for tensor in (*layer["Inputs"], *layer["Outputs"])]
            for layer in listed
        ]
    except (ValueError, KeyError, TypeError):
        raise ExportError(
            "TensorRT's inspector does not say what precision the layers have: the engine is not trusted, and nothing "
            "was written"
        ) from None
    half = [any(word in kind for kind in kinds for word in _HALF) for kinds in formats]
    floating = [
        found or any(word in kind for kind in kinds for word in _FULL)
        for found, kinds in zip(half, formats, strict=True)
    ]
    return sum(floating), sum(half)


def layers_from_network(network: Any) -> tuple[int, int]:
    """The same counts of a strongly typed network's layers, whose outputs have the types that they will have."""
    kinds = [network.get_layer(index).get_output(0).dtype.name for index in range(network.num_layers)]
    return sum(kind in ("HALF", "FLOAT") for kind in kinds), kinds.count("HALF")
