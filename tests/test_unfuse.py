"""Training on from a bundle: the network that gets BatchNorm back computes what the bundle does."""

from __future__ import annotations

import pytest
import torch
from test_backend_torch import _trained

from aivsreal.runtime.networks.arch import fused_network
from aivsreal.runtime.networks.mapped import logits_from_output
from aivsreal.train.start.unfuse import unfused


@pytest.mark.parametrize("arch", ["levit_128s", "levit_conv_128s"])
def test_batchnorm_comes_back_without_a_change_of_the_function(arch: str) -> None:
    fused = fused_network(_trained(arch, 64), arch, 64)
    images_BCHW = torch.randn(96, 3, 64, 64) * torch.linspace(0.2, 1.5, 96)[:, None, None, None]
    network = unfused(fused, arch, 64, images_BCHW.split(32))
    with torch.inference_mode():
        wanted_B = logits_from_output(fused(images_BCHW))
        evaluated_B = logits_from_output(network(images_BCHW))
        trained_B = logits_from_output(network.train()(images_BCHW))
    scale = wanted_B.abs().max()
    assert wanted_B.std() > 1e-3
    assert (evaluated_B - wanted_B).abs().max() < 1e-4 * scale
    # The statistics of this batch are those that were taken: a step of training starts from the same function.
    assert (trained_B - wanted_B).abs().max() < 1e-3 * scale
    assert fused_network(network.eval(), arch, 64)(images_BCHW).shape == (96, 1)


def test_every_layer_is_normalised_as_training_wants_it() -> None:
    fused = fused_network(_trained("levit_128s", 64), "levit_128s", 64)
    network = unfused(fused, "levit_128s", 64, [torch.randn(64, 3, 64, 64)])
    variances = [value for name, value in network.state_dict().items() if name.endswith("running_var")]
    assert len(variances) > 30
    weights = [module.linear.weight for module in network.modules() if hasattr(module, "bn")]
    assert all(torch.isfinite(weight).all() for weight in weights)


def test_without_images_there_are_no_statistics() -> None:
    fused = fused_network(_trained("levit_128s", 64), "levit_128s", 64)
    with pytest.raises(ValueError, match="no images"):
        unfused(fused, "levit_128s", 64, [])
