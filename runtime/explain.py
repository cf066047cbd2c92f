"""Grad-CAM and its kin over the PyTorch network of a bundle: what in an image moved the score.

A LeViT keeps its tokens as maps of 14x14, 7x7 and 4x4 (at 224 pixels), a ViT is asked for its patches as one of 14x14.
Legend: B image in a batch; C channel (3, RGB); h, w height and width of a stage's map;
S input size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, BundleError, MissingExtra, importing
from aivsreal.runtime.files.given import AnyImage, pixels_from_any
from aivsreal.runtime.preprocess import BatchBCHW, MapHW, PixelsHWC, batch_from_squares, square_from_pixels
from aivsreal.runtime.spec import Box
from aivsreal.runtime.verdict import Label, Verdict, verdict_from_logit

if TYPE_CHECKING:
    import torch

    from aivsreal.runtime.networks.mapped import MappedNetwork

MAX_PARITY = 1e-3  # logit; also what `aivsreal-export` allows between ONNX and PyTorch


class Method(str, Enum):
    """How the map is made of a stage's activations and gradients; every one comes from pytorch-grad-cam."""

    GRADCAM = "gradcam"
    GRADCAM_PLUS_PLUS = "gradcam++"
    XGRADCAM = "xgradcam"
    HIRESCAM = "hirescam"
    LAYERCAM = "layercam"
    ELEMENTWISE = "elementwise"
    EIGENGRADCAM = "eigengradcam"


class Layer(str, Enum):
    """Whose activations, see `networks.mapped.STAGES`: of a LeViT 14x14, 7x7 and 4x4 tokens at 224 pixels."""

    STAGE1 = "stage1"
    STAGE2 = "stage2"
    STAGE3 = "stage3"


_CLASSES = {
    Method.GRADCAM: "GradCAM",
    Method.GRADCAM_PLUS_PLUS: "GradCAMPlusPlus",
    Method.XGRADCAM: "XGradCAM",
    Method.HIRESCAM: "HiResCAM",
    Method.LAYERCAM: "LayerCAM",
    Method.ELEMENTWISE: "GradCAMElementWise",
    Method.EIGENGRADCAM: "EigenGradCAM",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict and the map of what moved it."""

    verdict: Verdict
    of: Label
    """The class that was asked for, `ai` or `real`: positive values speak for it."""
    method: Method
    layer: Layer
    map_hw: MapHW
    """As the method gives it, before its ReLU and in no unit, at the stage's resolution."""
    box: Box
    """The part of the image that the network saw, as (left, top, right, bottom): the map lies over it."""

    @property
    def positive_hw(self) -> MapHW:
        """What speaks for the class asked for: the map after the ReLU of Grad-CAM."""
        return np.maximum(self.map_hw, 0)

    @property
    def signed_hw(self) -> MapHW:
        """`positive_hw` as the colours take it: above 0 towards `ai`, below 0 towards `real`."""
        return self.positive_hw if self.of is Label.AI else -self.positive_hw


class Explainer:
    """A bundle's PyTorch network for maps of many images.

    Args:
        bundle: a folder, an open bundle, or None for the shipped one.
        operating_point: name of the one that gives the label; None is the bundle's default.

    Raises:
        MissingExtra: torch, timm, onnx or grad-cam is not installed.
        BundleError: the bundle is missing or damaged, or has no such operating point.
        BackendError: the PyTorch network does not give the logits of the bundle's ONNX file.
    """

    def __init__(self, bundle: Bundle | Path | str | None = None, operating_point: str | None = None) -> None:
        if importlib.util.find_spec("pytorch_grad_cam") is None:
            raise MissingExtra("explain", "grad-cam", "draw Grad-CAM heat maps")
        from aivsreal.runtime.backends.torch import network_from_bundle

        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._point = self.bundle.manifest.point(operating_point)
        if self.bundle.manifest.windows(self._point).parts:
            raise BundleError(f"a map is of one view, and the point {self._point.name} of several: name another")
        self.network: MappedNetwork = network_from_bundle(self.bundle)
        self.parity = _parity(self.bundle, self.network)
        """Largest difference of logits from the bundle's ONNX file; None where onnxruntime is not installed."""

    def explain(
        self,
        image: AnyImage,
        method: Method = Method.GRADCAM,
        layer: Layer = Layer.STAGE3,
        of: Label | None = None,
    ) -> Explanation:
        """Judge an image and map what moved its score.

        Args:
            image: a path, a Pillow image or uint8 RGB `pixels_HWC`.
            of: `ai` or `real`: what the map shall speak for; None takes the one that the logit's sign says.

        Raises:
            ImageError: it cannot be read.
            ValueError: `of` is `unsure`.
        """
        if of is Label.UNSURE:
            raise ValueError("a map speaks for ai or for real, not for unsure")
        manifest = self.bundle.manifest
        pixels_HWC = pixels_from_any(image)
        batch_BCHW = batch_from_squares([square_from_pixels(pixels_HWC, manifest.spec)], manifest.spec)
        logit, asked, map_hw = map_from_network(self.network, batch_BCHW, method, layer, of)
        verdict = verdict_from_logit(logit, manifest.temperature, self._point)
        box = manifest.spec.box(pixels_HWC.shape[1], pixels_HWC.shape[0])
        return Explanation(verdict, asked, method, layer, map_hw, box)


def map_from_network(
    network: MappedNetwork, batch_1CHW: BatchBCHW, method: Method, layer: Layer, of: Label | None = None
) -> tuple[float, Label, MapHW]:
    """The logit of one prepared image, the class that is asked for, and its map before the ReLU.

    Raises:
        MissingExtra: grad-cam is not installed.
    """
    with importing("explain", "grad-cam", "draw Grad-CAM heat maps"):
        import pytorch_grad_cam
    import torch

    stage, maps_from_output = network.layer(layer.value)
    with getattr(pytorch_grad_cam, _CLASSES[method])(network, [stage], reshape_transform=maps_from_output) as cam:
        # The weights want no gradients, so the input must: else nothing would reach the hooks.
        batch = torch.from_numpy(batch_1CHW).requires_grad_(True)
        seen = cam.activations_and_grads
        output: torch.Tensor = seen(batch)
        logit = float(output.detach())
        asked = of or (Label.AI if logit >= 0 else Label.REAL)
        target = _Target(1.0 if asked is Label.AI else -1.0)
        torch.autograd.backward(target(output[0]))
        activations, gradients = (values[0].numpy() for values in (seen.activations, seen.gradients))
        map_1hw = cam.get_cam_image(batch, stage, [target], activations, gradients, False)
    return logit, asked, np.asarray(map_1hw[0], dtype=np.float32)


def explain(
    image: AnyImage,
    bundle: Bundle | Path | str | None = None,
    method: Method = Method.GRADCAM,
    layer: Layer = Layer.STAGE3,
    of: Label | None = None,
) -> Explanation:
    """Map what moved the score of one image; `Explainer` loads the network once for many.

    Raises:
        AivsrealError: as `Explainer` and `Explainer.explain` say.
    """
    return Explainer(bundle).explain(image, method, layer, of)


@dataclass(frozen=True, slots=True)
class _Target:
    """What pytorch-grad-cam differentiates: the logit of `ai`, or its negative for `real`."""

    sign: float

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return self.sign * output.sum()


def _parity(bundle: Bundle, network: Callable[[torch.Tensor], torch.Tensor]) -> float | None:
    """How far the logits are from ONNX Runtime's on two images of noise, grey-blurred and sharp."""
    import torch

    try:
        from aivsreal.runtime.backends.onnx import OnnxBackend

        backend = OnnxBackend(bundle, 1, "cpu", False)  # FP32, which the maps are of, also where INT8 is faster
    except MissingExtra:
        return None
    size = bundle.manifest.spec.size
    sharp_SSC = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    squares: list[PixelsHWC] = [sharp_SSC, (sharp_SSC // 8 + 100).astype(np.uint8)]
    expected_B = backend.run(squares).logits_B
    backend.close()
    with torch.inference_mode():
        found_B = network(torch.from_numpy(batch_from_squares(squares, bundle.manifest.spec))).flatten().numpy()
    worst = float(np.abs(expected_B - found_B).max())
    if not worst <= MAX_PARITY:
        raise BackendError(
            f"{bundle.path}: PyTorch differs from model.onnx by {worst:.2g} in logit (at most {MAX_PARITY:g}), so its "
            "maps would be those of another network; make the bundle again with aivsreal-export"
        )
    return worst
