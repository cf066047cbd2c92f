"""The network in PyTorch: one definition, fused without a change, read back from a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from aivsreal.runtime.backends.choose import probe_squares
from aivsreal.runtime.backends.torch import TorchBackend, network_from_bundle
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.networks.arch import fused_network, network_from_arch
from aivsreal.runtime.networks.levit import ARCHS
from aivsreal.runtime.networks.mapped import logits_from_output, round_to_half


def _trained(arch: str, size: int) -> torch.nn.Module:
    """Weights and BatchNorm statistics as different from fresh ones as training makes them."""
    torch.manual_seed(0)
    network = network_from_arch(arch, size)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias", "attention_biases")):
            value.normal_(0, 0.2)
        elif name.endswith("bn.weight"):
            value.uniform_(0.5, 1.5)
        elif "head" in name and value.ndim == 2:
            value.normal_()  # as fresh, two images would differ by less than what is tested for
    return network.eval()


@pytest.mark.parametrize("arch", ["levit_128s", "levit_conv_128s", "levit_192"])
def test_fusing_changes_no_logit(arch: str) -> None:
    size = 64 if "128s" in arch else 224
    network = _trained(arch, size)
    batch_BCHW = torch.randn(3, 3, size, size) * torch.tensor([0.1, 1.0, 4.0])[:, None, None, None]
    with torch.inference_mode():
        before_B = logits_from_output(network(batch_BCHW))
        after_B = logits_from_output(fused_network(network, arch, size)(batch_BCHW))
    assert before_B.std() > 1e-3
    assert (before_B - after_B).abs().max() < 1e-5 * before_B.abs().max().clamp(min=1)


def test_a_fused_network_has_no_batchnorm_and_gradients_reach_the_input() -> None:
    fused = fused_network(_trained("levit_128s", 64), "levit_128s", 64)
    assert not [module for module in fused.modules() if "Norm" in type(module).__name__]
    for _ in range(2):  # timm's own network dies at the second backward in eval()
        batch_BCHW = torch.randn(1, 3, 64, 64, requires_grad=True)
        fused(batch_BCHW).sum().backward()
        assert batch_BCHW.grad is not None
        assert batch_BCHW.grad.abs().sum() > 0


def test_fusing_takes_the_weights_of_now_and_leaves_the_network_alone() -> None:
    network = _trained("levit_128s", 64)
    batch_BCHW = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        network(batch_BCHW)  # timm keeps attention biases of this forward
        for name, value in network.state_dict().items():
            if name.endswith("attention_biases"):
                value.add_(1.0 * torch.randn(value.shape))
        after_B = fused_network(network, "levit_128s", 64)(batch_BCHW)
        network.train()
        network.eval()
        # Rounding moves a logit by 2e-5; the biases of before would move it by 2e-3.
        assert (network(batch_BCHW) - after_B).abs().max() < 1e-4


def test_an_unknown_arch_is_refused() -> None:
    assert "levit_192" in ARCHS
    with pytest.raises(ValueError, match="levit_conv_192"):
        network_from_arch("resnet50", 224)


def test_the_network_of_a_bundle_has_the_weights_of_its_onnx_file(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    stored = {
        tensor.name.removesuffix(".half"): numpy_helper.to_array(tensor)
        for tensor in onnx.load(tiny_bundle / "model.onnx").graph.initializer
    }
    for name, value in network_from_bundle(bundle).state_dict().items():
        assert (value.numpy() == stored[name].astype("f4")).all()


def test_a_graph_from_before_the_map_has_its_scale_folded_when_it_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = onnx.load(tiny_bundle / "model.onnx")
    now = network_from_bundle(bundle).state_dict()
    del model.graph.output[1]
    files = {"model.onnx": model.SerializeToString()}
    before = network_from_bundle(write_bundle(tmp_path / "before", files, bundle.manifest)).state_dict()
    changed = {name for name, value in now.items() if (before[name] != value).any()}
    assert changed
    assert all(".qkv." in name or ".q.ln." in name for name in changed)
    name = next(name for name in changed if ".q.ln." in name)
    assert torch.equal(before[name], now[name] * 16**-0.5)  # levit_128s has keys of 16 channels


def test_a_bundle_with_other_weights_than_its_arch_needs_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    files = {"model.onnx": bundle.read("model.onnx")}
    other = write_bundle(tmp_path / "other", files, replace(bundle.manifest, arch="levit_128"))
    with pytest.raises(BundleError, match="levit_128"):
        network_from_bundle(other)


@pytest.mark.parametrize("off", [1, 10**7])
def test_a_bundle_whose_manifest_prepares_another_size_is_refused(tiny_bundle: Path, tmp_path: Path, off: int) -> None:
    source = Bundle.open(tiny_bundle)
    spec = replace(source.manifest.spec, size=source.manifest.spec.size + off)
    files = {"model.onnx": source.read("model.onnx")}
    with pytest.raises(BundleError, match="but its manifest prepares"):
        TorchBackend(write_bundle(tmp_path / "bundle", files, replace(source.manifest, spec=spec)))


def test_rounding_leaves_the_network_itself_alone() -> None:
    fused = fused_network(_trained("levit_128s", 64), "levit_128s", 64)
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    rounded = round_to_half(fused).state_dict()
    assert all((value == before[name]).all() for name, value in fused.state_dict().items())
    assert any((rounded[name] != value).any() for name, value in before.items())
    large = [value for value in rounded.values() if value.numel() >= 1024]
    assert all((value == value.half().float()).all() for value in large)


@pytest.mark.parametrize("images", [0, 1])
def test_a_backend_that_another_thread_closed_says_so(tiny_bundle: Path, images: int) -> None:
    backend = TorchBackend(Bundle.open(tiny_bundle))
    squares = probe_squares(backend.spec.size, images)
    assert len(backend.run(squares).logits_B) == images
    backend.close()
    with pytest.raises(BackendError, match="the detector is closed"):
        backend.run(squares)
