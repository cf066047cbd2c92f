"""The OpenVINO backend, the only file that names it: in INT8 or bfloat16 where the processor multiplies that.

Legend: B image in a batch; h, w cells of a map.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.backends.protocol import cpu_model, opened, scores_from_graph
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS, MAP
from aivsreal.runtime.cache import remove_oldest, usable_cache_folder
from aivsreal.runtime.errors import BackendError, BundleError, importing
from aivsreal.runtime.locks import locked
from aivsreal.runtime.machine import usable_cores
from aivsreal.runtime.preprocess import BatchBCHW, PixelsHWC, Scores
from aivsreal.runtime.text import last_line

_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")  # layers whose precision is the network's
_SHORT = {"f32": "fp32", "f16": "fp16"}
_KEPT = 4  # compiled networks; that of the accurate model has 363 MB, and OpenVINO itself removes none


class OpenvinoBackend:
    """`model.onnx` of a bundle, or its INT8 graph where this CPU gains by it, compiled by OpenVINO.

    The compiled form is kept in the cache folder: compiling took 190 ms of processor time, loading it 60 ms.

    Args:
        threads: CPU threads for one batch; None takes the cores that this process may use.
        int8: take the INT8 graph, where the bundle has one; None takes it where this CPU gains by it.

    Raises:
        MissingExtra: openvino is not installed.
        BackendError: openvino is installed but cannot be loaded.
        BundleError: the network cannot be compiled, or is not one for the manifest's preprocessing.
    """

    takes_squares = True

    def __init__(self, bundle: Bundle, threads: int | None = None, int8: bool | None = None) -> None:
        with importing("openvino", "openvino", "run the network with OpenVINO"):
            import openvino
        self._bundle, self._spec, self._lock = bundle, bundle.manifest.spec, threading.Lock()
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if "BF16" in capabilities else "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "NUM_STREAMS": 1,
        }
        folder = usable_cache_folder("openvino")
        if folder is not None:
            core.set_property({"CACHE_DIR": str(folder)})
        file = bundle.path / cpu_model(bundle, int8)
        network = bundle.read(file.name)
        try:
            model = core.read_model(network)
            shape = [list(one.get_partial_shape().to_string().strip("[]").split(",")) for one in model.inputs]
            self.has_maps = MAP in {name for one in model.outputs for name in one.get_names()}
            with _alone(folder):
                self._compiled = core.compile_model(model, "CPU", options)
            self._request = self._compiled.create_infer_request()
            outputs = {name for one in self._compiled.outputs for name in one.get_names()}
        except Exception as error:  # OpenVINO raises RuntimeError for whatever goes wrong
            raise BundleError(
                f"{file} cannot be compiled by OpenVINO {openvino.__version__}: {_cause(error)}; "
                "update openvino, or make the bundle again with aivsreal-export"
            ) from None
        side = str(self._spec.size)
        if len(shape) != 1 or shape[0][1:] != ["3", side, side] or LOGITS not in outputs:
            raise BundleError(
                f"{file} takes {shape} and gives {sorted(outputs)}, but its manifest prepares [batch, 3, {side}, "
                f"{side}] and wants {LOGITS}: make the bundle again with aivsreal-export"
            )
        if folder is not None:
            remove_oldest(folder.glob("*.blob"), _KEPT)
        self.name = "openvino-cpu"
        self.precision = _precision(self._compiled.get_runtime_model())

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        """Scores of `square_SSC`, each already reduced to the input's size.

        Raises:
            BackendError: OpenVINO failed; or the network gives no maps.
        """
        return scores_from_graph(self._run, self._bundle, self.has_maps, images, maps)

    def close(self) -> None:
        """Free the compiled network; a second call does nothing."""
        for name in ("_request", "_compiled"):
            self.__dict__.pop(name, None)

    def _run(self, batch_BCHW: BatchBCHW, outputs: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        request = opened(self.__dict__.get("_request"))  # another thread may close it meanwhile
        with self._lock:  # one request is one set of buffers
            try:
                found = request.infer({INPUT: batch_BCHW}, share_inputs=True)
                return [np.array(found[name], dtype=np.float32) for name in outputs]
            except Exception as error:  # as above
                raise BackendError(f"OpenVINO failed: {_cause(error)}; try a smaller --batch-size") from None


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """One start at a time in a cache: OpenVINO writes in place what another start would map into its memory.

    Of five starts at once in an empty cache one ended in a bus error.
    """
    with ExitStack() as held:
        if folder is not None:
            with suppress(OSError):  # a disk that is full, and then nothing is kept either
                locked(held.enter_context((folder / ".lock").open("w")), fcntl.LOCK_EX)
        yield


def _precision(runtime_model: Any) -> str:
    """Of the layers that multiply, as they were compiled; of several the lowest, which bounds what comes out."""
    found = set()
    for layer in runtime_model.get_ops():
        facts = layer.get_rt_info()
        if "layerType" in facts and facts["layerType"].astype(str) in _PRODUCTS:
            found.add(facts["runtimePrecision"].astype(str))
    lowest = next((name for name in ("i8", "u8", "bf16", "f16", "f32") if name in found), "unknown")
    return "int8" if lowest in ("i8", "u8") else _SHORT.get(lowest, lowest)


def _cause(error: Exception) -> str:
    # OpenVINO puts the places in its own sources first.
    return last_line(str(error)) or type(error).__name__
