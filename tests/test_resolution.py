"""Attention biases carried over to another input size."""

from __future__ import annotations

import torch

from aivsreal.runtime.networks.arch import network_from_arch
from aivsreal.train.start.resolution import weights_at_size


def test_weights_of_a_small_input_load_at_a_large_one() -> None:
    small, large = (network_from_arch("levit_128s", size) for size in (64, 128))
    values = weights_at_size(small.state_dict(), large.state_dict())
    large.load_state_dict(values)
    for name, value in small.state_dict().items():
        if not name.endswith("attention_biases"):
            assert torch.equal(values[name], value), name


def test_the_same_size_changes_nothing() -> None:
    network = network_from_arch("levit_128s", 64)
    values = weights_at_size(network.state_dict(), network.state_dict())
    assert all(values[name] is value for name, value in network.state_dict().items()) or all(
        torch.equal(values[name], value) for name, value in network.state_dict().items()
    )


def test_a_bias_is_read_off_at_the_same_distance_in_the_image() -> None:
    # Biases that grow with the vertical and ten times with the horizontal distance, as shares of the image's side.
    def table(tokens: int) -> torch.Tensor:
        share_R = torch.arange(tokens) / tokens
        return (share_R[:, None] + 10 * share_R[None, :]).reshape(1, -1)

    name = "stages.0.blocks.0.attn.attention_biases"
    (resized,) = weights_at_size({name: table(4)}, {name: table(7)}).values()
    inner = torch.arange(7) / 7 <= 3 / 4  # beyond the largest distance of the small input there is nothing to read off
    assert torch.allclose(resized.reshape(7, 7)[inner][:, inner], table(7).reshape(7, 7)[inner][:, inner], atol=1e-6)
    assert torch.equal(
        weights_at_size({name: table(4)}, {name: table(8)})[name].reshape(8, 8)[::2, ::2].flatten(), table(4)[0]
    )
