"""What runs the network: the protocol of a backend, and the choice of one.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size; h, w cells
of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.bundle import Bundle
from aivsreal.runtime.errors import BackendError, MissingExtra
from aivsreal.runtime.preprocess import PixelsHWC

LogitsB = npt.NDArray[np.float32]
MapsBhw = npt.NDArray[np.float32]

INPUT = "pixels_BCHW"  # names in a bundle's graphs and engines
LOGITS = "logits"  # [B, 1]: what a verdict comes from
MAP = "map"  # [B, H, W]: what each token of the last stage says, its mean is the logit; bundles before it lack it
HALF_FROM_ELEMENTS = 1024  # smaller tensors (biases) stay FP32 in model.onnx: they are 1 % of the bytes
HALF_SUFFIX = ".half"  # of the name of a weight that model.onnx stores as FP16; its Cast has the plain name

# onnx takes CUDA where it runs, else the CPU; the longer names run there or fail.
BACKENDS = ("auto", "tensorrt", "onnx", "onnx-cpu", "onnx-cuda", "onnx-tensorrt", "openvino", "torch")

# OpenVINO takes 0.24 s longer to start than ONNX Runtime here and is 5 ms an image faster on two cores.
WORTH_A_SLOW_START = 48


class Backend(Protocol):
    """A loaded network that takes decoded pixels; the preprocessing is inside, from the bundle's spec."""

    name: str
    precision: str
    """As read from the loaded artefact, never from what was asked for."""

    def logits(self, pixels: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of `pixels_HWC` of any sizes."""

    def close(self) -> None:
        """Give back what it holds; it is not used after that."""


@runtime_checkable
class SquareBackend(Protocol):
    """A backend that also takes images already reduced to the input's size.

    A scan then crops and resizes in its decoding threads and keeps 150 kB an image instead of tens of megabytes.
    A backend that resizes in its own kernel leaves this out and is given the full pixels.
    """

    def logits_from_squares(self, squares: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of `square_SSC` made by `preprocess.square_from_pixels`."""


@runtime_checkable
class MapBackend(Protocol):
    """A backend whose network also says what each part of an image did to its logit, in the same run."""

    has_maps: bool
    """Whether the loaded network gives maps; bundles from before the output `map` do not."""

    def logits_and_maps(self, pixels: Sequence[PixelsHWC]) -> tuple[LogitsB, MapsBhw]:
        """`logits_B` of `pixels_HWC` of any sizes, and `maps_Bhw`, float32: a logit is the mean of its map.

        Raises:
            BackendError: the network gives no maps; or it failed.
        """


@runtime_checkable
class SquareMapBackend(MapBackend, Protocol):
    """A `MapBackend` that also takes images already reduced to the input's size, as `SquareBackend`."""

    def logits_and_maps_from_squares(self, squares: Sequence[PixelsHWC]) -> tuple[LogitsB, MapsBhw]:
        """As `logits_and_maps`, of `square_SSC` made by `preprocess.square_from_pixels`."""


def no_maps(bundle: Bundle) -> BackendError:
    """What is raised when maps are asked of a bundle that has none."""
    return BackendError(
        f"{bundle.path}: its network gives no map, because it was exported before maps were: "
        "make the bundle again with aivsreal-export, or draw Grad-CAM with aivsreal-explain"
    )


def open_backend(
    bundle: Bundle, kind: str = "auto", threads: int | None = None, images: int | None = None
) -> tuple[Backend, str]:
    """Load the bundle's network with the backend asked for, or with the best one that is installed.

    Args:
        bundle: the verified bundle.
        kind: one of `BACKENDS`.
        threads: CPU threads for the network; None leaves it to the backend.
        images: how many will be judged, where that is known: for fewer than `WORTH_A_SLOW_START`, `auto` does not
            wait for a CPU backend that is faster and starts more slowly.

    Returns:
        The backend, and why it was chosen and the others were passed over.

    Raises:
        BackendError: the backend asked for, or every one, cannot run here.
        BundleError: the network in the bundle cannot be used.
    """
    if kind not in BACKENDS:
        raise BackendError(f"unknown backend {kind!r}: use one of {', '.join(BACKENDS)}")
    if kind == "tensorrt":
        try:
            return _opened(bundle, kind, threads, "asked for")
        except MissingExtra:
            raise  # it says what to install
        except BackendError as error:
            raise BackendError(
                f"TensorRT cannot run this bundle here: {error}; aivsreal-doctor says what is missing, and "
                "--backend onnx runs without it"
            ) from None
    if kind != "auto":
        return _opened(bundle, kind, threads, "asked for")
    passed_over = []
    for candidate in ("tensorrt", "onnx", "torch"):
        if candidate == "tensorrt" and not bundle.has_engines:
            passed_over.append("tensorrt passed over: no engine in the bundle")
            continue
        try:
            if candidate == "onnx" and find_spec("openvino") is not None:
                if images is None or images >= WORTH_A_SLOW_START:
                    return _on_cpu(bundle, threads, "; ".join(["auto", *passed_over]))
                passed_over.append("openvino passed over: it starts too slowly for so few images")
            return _opened(bundle, candidate, threads, "; ".join(["auto", *passed_over]))
        except BackendError as error:
            passed_over.append(f"{candidate} passed over: {error}")
    raise BackendError(
        "no backend can run here: run pip install 'aivsreal[cpu]' (or 'aivsreal[gpu]' with an NVIDIA GPU, "
        f"or 'aivsreal[torch]'). {'; '.join(passed_over)}"
    )


def _opened(bundle: Bundle, kind: str, threads: int | None, why: str) -> tuple[Backend, str]:
    if kind == "tensorrt":
        from aivsreal.runtime.backend_tensorrt import TensorrtBackend

        engine = TensorrtBackend(bundle)
        return engine, f"{why}; {engine.detail}"
    if kind == "torch":
        from aivsreal.runtime.backend_torch import TorchBackend

        return TorchBackend(bundle), why
    if kind == "openvino":
        from aivsreal.runtime.backend_openvino import OpenvinoBackend

        return OpenvinoBackend(bundle, threads), why
    from aivsreal.runtime.backend_onnx import OnnxBackend

    backend = OnnxBackend(bundle, threads, kind.partition("-")[2] or None)
    return backend, f"{why}; {backend.passed_over}" if backend.passed_over else why


def _on_cpu(bundle: Bundle, threads: int | None, why: str) -> tuple[Backend, str]:
    """ONNX Runtime on a GPU where it has one, else the fastest backend on this CPU."""
    from aivsreal.runtime.cpu_choice import cpu_openers, fastest
    from aivsreal.runtime.onnx_providers import has_gpu_provider

    if has_gpu_provider():
        backend, why = _opened(bundle, "onnx", threads, why)
        if backend.name != "onnx-cpu":
            return backend, why
        backend.close()
    backend, reason = fastest(cpu_openers(bundle, threads), bundle, threads)
    return backend, f"{why}; {reason}"
