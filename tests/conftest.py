"""What tests share: a tiny trained checkpoint and its bundle, made by the real commands, and small images."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_cuda import compiled_shim
from PIL import Image

import aivsreal.runtime  # noqa: F401  # before any test imports what would report to its maker

ORIGINALS = Path(__file__).resolve().parents[2] / "shared" / "data" / "originals"


def write_image(path: Path, seed: int, size: tuple[int, int] = (96, 72), smooth: bool = False) -> Path:
    """A colour slope with noise, and blurred where `smooth`, so that two classes differ in what a network can learn."""
    rng = np.random.default_rng(seed)
    width, height = size
    slope_HWC = np.linspace(0, 1, width)[None, :, None] * rng.uniform(0, 200, 3) + rng.uniform(0, 55, 3)
    noise_HWC = rng.normal(0, 4 if smooth else 40, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(slope_HWC + noise_HWC, 0, 255).astype(np.uint8)).save(path)
    return path


def squares_of(bundle: Any, images: Sequence[Any]) -> list[Any]:
    """What a backend that takes squares is given of images of any sizes."""
    from aivsreal.runtime.preprocess import square_from_pixels

    return [square_from_pixels(pixels_HWC, bundle.manifest.spec) for pixels_HWC in images]


# Started in the background of a script, pytest inherits a SIGINT that is ignored, and so would the commands that the
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep what is built for this machine in a folder of their own, and so do the commands that they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of small PNGs: `train`, `val_unseen`; noisy images are real and smooth ones ai."""
    root = tmp_path_factory.mktemp("data")
    seed = 0
    for split, count in (("train", 16), ("val_unseen", 6)):
        for label in ("real", "ai"):
            for index in range(count):
                seed += 1
                write_image(root / split / label / f"{index}.png", seed, smooth=label == "ai")
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `aivsreal-train`: levit_128s at 64 px, two epochs."""
    from aivsreal.train.cli import main

    run = tmp_path_factory.mktemp("train") / "run"
    options = "--arch levit_128s --size 64 --epochs 2 --batch-size 8 --lr 1e-3 --workers 0 --no-amp --device cpu"
    result = CliRunner().invoke(main, [str(tiny_data), "-o", str(run), *options.split()])
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that `aivsreal-export` made of `tiny_run`."""
    from aivsreal.export.cli import main

    bundle = tmp_path_factory.mktemp("export") / "bundle"
    result = CliRunner().invoke(main, [str(tiny_run), "-o", str(bundle), "--reference", str(tiny_data)])
    assert result.exit_code == 0, result.output
    return bundle


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The shipped bundle as it is, whatever `aivsreal-export` has added to it on this machine."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def small_model() -> Any:
    """`model.onnx` as it is stored, of a levit_128s at 64 px whose weights are noise: cheaper than a trained one."""
    import torch

    from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
    from aivsreal.runtime.networks.arch import fused_network, network_from_arch
    from aivsreal.runtime.spec import PreprocessSpec

    torch.manual_seed(0)
    network = network_from_arch("levit_128s", 64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    fused = fused_network(network.eval(), "levit_128s", 64)
    return with_half_weights(onnx_from_network(fused, PreprocessSpec(64)))


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as they come from cameras and generators where they are at hand, else images made here."""
    if ORIGINALS.is_dir():
        return ORIGINALS
    folder = tmp_path_factory.mktemp("originals")
    for index, suffix in enumerate(("png", "jpg", "webp", "gif", "bmp", "tiff")):
        write_image(folder / f"{index}.{suffix}", index, size=(300 + 40 * index, 400))
    return folder


@pytest.fixture(scope="session")
def map_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained levit_128s for 224 px, whose maps have 14x14, 7x7 and 4x4 cells that differ; it tells nothing."""
    import torch

    from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
    from aivsreal.runtime.bundle.folder import write_bundle
    from aivsreal.runtime.bundle.manifest import Manifest
    from aivsreal.runtime.networks.arch import fused_network, network_from_arch
    from aivsreal.runtime.spec import PreprocessSpec
    from aivsreal.runtime.verdict import LABELS, OperatingPoint

    torch.manual_seed(0)
    spec, arch = PreprocessSpec(), "levit_128s"
    network = network_from_arch(arch, spec.size)
    for name, value in network.state_dict().items():
        if name.endswith("attention_biases"):
            value.normal_(0, 4)  # as fresh, attention is even, and all tokens become the same
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.fill_(0.25)
        elif "head" in name and value.ndim == 2:
            value.normal_(0, 0.1)
    fused = fused_network(network.eval(), arch, spec.size)
    with torch.no_grad():
        fused.head.bias.sub_(fused(torch.zeros(1, 3, spec.size, spec.size))[0])
    model = with_half_weights(onnx_from_network(fused, spec))
    points = (OperatingPoint("balanced", 0.6, 0.3, 0.1),)
    manifest = Manifest(arch, LABELS, spec, 1.0, points, "balanced")
    folder = tmp_path_factory.mktemp("maps") / "bundle"
    write_bundle(folder, {"model.onnx": model.SerializeToString(deterministic=True)}, manifest)
    return folder


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preprocessing kernel compiled for this CPU, for a fake GPU to run."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return compiled_shim(tmp_path_factory.mktemp("shim") / "one.so", "-O2", "-DWARPS=1", "-fPIC", "-shared")
