"""The PyTorch backend: the path that has gradients for Grad-CAM.

Legend: B image in a batch; h, w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aivsreal.runtime.backends.protocol import opened
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import HALF_SUFFIX, MAP, MODEL
from aivsreal.runtime.errors import BundleError, importing
from aivsreal.runtime.networks.arch import fused_network, network_from_arch
from aivsreal.runtime.networks.levit import fold_attention_scale
from aivsreal.runtime.networks.mapped import MappedNetwork, logits_from_output
from aivsreal.runtime.preprocess import LogitsB, PixelsHWC, Scores, batch_from_squares

with importing("torch", "torch", "run the network in PyTorch"):
    import torch


def network_from_bundle(bundle: Bundle) -> MappedNetwork:
    """The fused network with the weights of the bundle's `model.onnx`: they are stored once, there.

    Raises:
        BundleError: the file holds other weights than the arch needs.
        MissingExtra: onnx is not installed.
    """
    with importing("torch", "onnx", "read the weights of a bundle"):
        import onnx
        from onnx import numpy_helper
    manifest, size = bundle.manifest, bundle.manifest.spec.size
    path = bundle.path / MODEL
    content = bundle.read(MODEL)
    try:
        graph = onnx.load_from_string(content).graph
    except Exception as error:  # protobuf's DecodeError, whose class differs between its versions
        raise BundleError(
            f"{path}: no ONNX model ({type(error).__name__}); make it again with aivsreal-export"
        ) from None
    sides = [dim.dim_value for given in graph.input[:1] for dim in given.type.tensor_type.shape.dim[1:]]
    if sides != [3, size, size]:  # most weights are the same for any size
        raise BundleError(
            f"{path} takes {sides} an image, but its manifest prepares {[3, size, size]}; "
            "make it again with aivsreal-export"
        )
    try:
        fresh = network_from_arch(manifest.arch, size)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {error}; update aivsreal, or timm") from None
    network = fused_network(fresh, manifest.arch, size)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = {}
    for name, value in network.state_dict().items():
        tensor = tensors.get(name, tensors.get(name + HALF_SUFFIX))
        if tensor is None or tuple(tensor.dims) != tuple(value.shape):
            have = "lacks the weight" if tensor is None else f"has the shape {list(tensor.dims)} for"
            raise BundleError(f"{path}: {have} {name} of {manifest.arch}; make it again with aivsreal-export")
        weights[name] = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
    network.load_state_dict(weights)
    if MAP not in {output.name for output in graph.output}:
        fold_attention_scale(network)  # graphs from before the map scale the product of queries and keys
    return network


class TorchBackend:
    """Runs a bundle in PyTorch, on CUDA where there is one.

    Raises:
        BundleError: the bundle's network is not one for its manifest.
        MissingExtra: onnx is not installed.
    """

    name = "torch"
    takes_squares = True
    has_maps = True  # PyTorch computes them whatever the bundle's graph gives

    def __init__(self, bundle: Bundle) -> None:
        self.spec = bundle.manifest.spec
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network_from_bundle(bundle).to(self.device)
        self.precision = str(self.network.head.weight.dtype).removeprefix("torch.").replace("float", "fp")

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        """Scores of `square_SSC`, each already reduced to the input's size.

        Raises:
            BackendError: it is closed.
        """
        network: MappedNetwork = opened(self.__dict__.get("network"))  # another thread may close it meanwhile
        if not images:
            none_Bhw = np.empty((0, *network.resolution), np.float32)
            return Scores(np.empty(0, np.float32), none_Bhw if maps else None)
        batch_BCHW = batch_from_squares(images, self.spec)
        # TF32 would make fp32 a name only: LeViT's linear layers are convolutions here.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output, found_Bhw = network.logits_and_map(torch.from_numpy(batch_BCHW).to(self.device))
        logits_B: LogitsB = logits_from_output(output).cpu().numpy()
        return Scores(logits_B, found_Bhw.float().cpu().numpy() if maps else None)

    def close(self) -> None:
        """Let go of the network; a second call does nothing."""
        self.__dict__.pop("network", None)
