"""The ONNX Runtime backend, the only file that imports it: CPU, or CUDA or TensorRT where onnxruntime-gpu finds them.

Legend: B image in a batch; C channel (3, RGB); H, W input height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.backends.optimised import OptimisedModel
from aivsreal.runtime.backends.protocol import cpu_model, opened, scores_from_graph
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS, MAP, MODEL
from aivsreal.runtime.cache import cache_folder
from aivsreal.runtime.errors import BackendError, BundleError, importing
from aivsreal.runtime.machine import usable_cores
from aivsreal.runtime.preprocess import BatchBCHW, PixelsHWC, Scores
from aivsreal.runtime.text import first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
MAX_TENSORRT_BATCH = 64  # its engines are built for 1 to this many images; more are run in parts

Provider = tuple[str, dict[str, Any]]
_INPUT_TYPES: dict[str, tuple[str, type[np.floating[Any]]]] = {
    "tensor(float)": ("fp32", np.float32),
    "tensor(float16)": ("fp16", np.float16),
}
_FATAL_ONLY = 4  # what goes wrong is raised or read back below; ONNX Runtime's own log lines would only double it


class OnnxBackend:
    """`model.onnx` of a bundle in an ONNX Runtime session, or its INT8 graph where this CPU gains by it.

    Args:
        threads: CPU threads for one batch; None takes the cores that this process may use.
        provider: "cpu", "cuda" or "tensorrt"; None takes CUDA where it runs, else the CPU.
        int8: take the INT8 graph on a CPU, where the bundle has one; None takes it where this CPU gains by it.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BackendError: onnxruntime is installed but cannot be loaded, or does not run on the provider asked for.
        BundleError: the network cannot be loaded, or is not one for the manifest's preprocessing.
    """

    takes_squares = True

    def __init__(
        self, bundle: Bundle, threads: int | None = None, provider: str | None = None, int8: bool | None = None
    ) -> None:
        extra, where = ("gpu", "a GPU") if provider in ("cuda", "tensorrt") else ("cpu", "this CPU")
        with importing(extra, "onnxruntime", f"run the network on {where}"):
            import onnxruntime
        onnxruntime.set_default_logger_severity(_FATAL_ONLY)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads or usable_cores()
        # Threads that spin while they wait take the cores from the decoders: 32 against 24 ms of processor time for an
        # image, decoding included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = providers_for(bundle, provider, onnxruntime.get_available_providers())
        on_cpu = [name for name, _ in providers] == [PROVIDERS["cpu"]]
        file = bundle.path / (cpu_model(bundle, int8) if on_cpu else MODEL)
        try:
            self._session = _session(onnxruntime, bundle, file.name, options, providers)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common class below this one
            raise BundleError(
                f"{file} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}; "
                "update onnxruntime, or make the bundle again with aivsreal-export"
            ) from None
        self._bundle = bundle
        spec = bundle.manifest.spec
        self.has_maps = MAP in {output.name for output in self._session.get_outputs()}
        self._input, self.precision, self._dtype = _checked_input(self._session, spec.size, str(file))
        self.precision = self._session.get_modelmeta().custom_metadata_map.get("precision", self.precision)
        running = self._session.get_providers()  # what runs, and not what the package was built with
        check_running(provider, running)
        self.name = f"onnx-{running[0].removesuffix('ExecutionProvider').lower()}"
        self._largest = MAX_TENSORRT_BATCH if running[0] == PROVIDERS["tensorrt"] else 1 << 30
        lost = [name for name, _ in providers if name not in running]
        self.passed_over = "; ".join(f"{name} passed over: it did not load, see aivsreal-doctor" for name in lost)

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        """Scores of `square_SSC`, each already reduced to the input's size.

        Raises:
            BackendError: ONNX Runtime failed, for example because the GPU's memory is full; or there are no maps.
        """
        return scores_from_graph(self._run, self._bundle, self.has_maps, images, maps)

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self.__dict__.pop("_session", None)

    def _run(self, batch_BCHW: BatchBCHW, outputs: list[str]) -> list[npt.NDArray[np.float32]]:
        if len(batch_BCHW) > self._largest:
            begins = range(0, len(batch_BCHW), self._largest)
            parts = [self._run(batch_BCHW[begin : begin + self._largest], outputs) for begin in begins]
            return [np.concatenate(values) for values in zip(*parts, strict=True)]
        session = opened(self.__dict__.get("_session"))  # another thread may close it meanwhile
        try:
            found = session.run(outputs, {self._input: batch_BCHW.astype(self._dtype, copy=False)})
        except Exception as error:  # as above: out of memory, a lost device
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}; try a smaller --batch-size") from None
        return [np.asarray(value, dtype=np.float32) for value in found]


def _session(ort: Any, bundle: Bundle, name: str, options: Any, providers: list[Provider]) -> Any:
    """A session, on the CPU of the network as it was optimised at an earlier start."""
    kept = None
    if [provider for provider, _ in providers] == [PROVIDERS["cpu"]]:
        kept = OptimisedModel.of(bundle.manifest.files.get(name, ""), ort.__version__)
    every = options.graph_optimization_level
    if kept is not None and kept.is_whole:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return ort.InferenceSession(str(kept.file), options, providers=providers)
        except Exception:  # another program's file, or a damaged one: the network itself decides
            kept.drop()
            options.graph_optimization_level = every
    network = bundle.read(name)
    if kept is None:
        return ort.InferenceSession(network, options, providers=providers)
    try:
        kept.ask_for(options)
        session = ort.InferenceSession(network, options, providers=providers)
        kept.keep()
    except Exception:  # a disk that is full, or a damaged network, which fails again
        kept.drop()
        options.optimized_model_filepath = ""
        session = ort.InferenceSession(network, options, providers=providers)
    return session


def _checked_input(session: Any, size: int, file: str) -> tuple[str, str, type[np.floating[Any]]]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or LOGITS not in {output.name for output in outputs}:
        names = ", ".join(output.name for output in outputs)
        raise BundleError(f"{file} needs one input and the output {LOGITS}, not {len(inputs)} and {names}")
    name: str = inputs[0].name
    shape, kind = list(inputs[0].shape), inputs[0].type
    if kind not in _INPUT_TYPES:
        raise BundleError(f"{file} takes {kind}: it must be {' or '.join(_INPUT_TYPES)}")
    if len(shape) != 4 or isinstance(shape[0], int) or shape[1:] != [3, size, size]:
        raise BundleError(
            f"{file} takes {shape}, but its manifest prepares [batch, 3, {size}, {size}]: "
            "make the bundle again with aivsreal-export"
        )
    precision, dtype = _INPUT_TYPES[kind]
    return name, precision, dtype


def providers_for(bundle: Bundle, asked: str | None, available: list[str]) -> list[Provider]:
    """Providers in the order of preference, of those that the installed package has.

    Args:
        bundle: engines that TensorRT builds are kept for it.
        asked: "cpu", "cuda" or "tensorrt"; None takes CUDA where it runs, else the CPU.
        available: what the package was built with, whether or not it runs here.

    Raises:
        BackendError: the package lacks the one asked for.
    """
    if asked is not None and PROVIDERS[asked] not in available:
        raise BackendError(
            f"the installed onnxruntime has no {PROVIDERS[asked]}: run pip uninstall -y onnxruntime && "
            "pip install 'aivsreal[gpu]'; on a Jetson install JetPack's build of onnxruntime-gpu"
        )
    names = {None: ("cuda", "cpu"), "cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}
    return [(PROVIDERS[name], _options(name, bundle)) for name in names[asked] if PROVIDERS[name] in available]


def has_gpu_provider() -> bool:
    """Whether an installed ONNX Runtime was built with CUDA, whether or not that runs here."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return PROVIDERS["cuda"] in onnxruntime.get_available_providers()


def check_running(asked: str | None, running: list[str]) -> None:
    """See that the provider asked for is the one that the session says it runs on.

    Raises:
        BackendError: it is not.
    """
    if asked is not None and running[0] != PROVIDERS[asked]:
        libraries = {"cuda": "CUDA and cuDNN", "tensorrt": "CUDA, cuDNN and TensorRT"}.get(asked, "")
        raise BackendError(
            f"ONNX Runtime runs on {running[0]} and not on {PROVIDERS[asked]}: it did not find {libraries} of the "
            "versions that it was built for; run aivsreal-doctor"
        )


def _options(name: str, bundle: Bundle) -> dict[str, Any]:
    if name == "cuda":
        return {"use_tf32": 0}  # the 10-bit mantissa of TF32 would make fp32 a name only
    if name == "cpu":
        return {}
    cache = cache_folder()
    if cache is None:
        raise BackendError("there is no home folder to keep engines in: set XDG_CACHE_HOME")
    folder = cache / "onnx-tensorrt" / bundle.digest
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackendError(
            f"{folder} cannot be made to keep engines in: {error.strerror}; set XDG_CACHE_HOME"
        ) from None
    side = bundle.manifest.spec.size
    batches = {"min": 1, "opt": 16, "max": MAX_TENSORRT_BATCH}
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
        # Told beforehand: else a new engine is built, for minutes, whenever a batch is larger or smaller than before.
        **{f"trt_profile_{kind}_shapes": f"{INPUT}:{batch}x3x{side}x{side}" for kind, batch in batches.items()},
    }
