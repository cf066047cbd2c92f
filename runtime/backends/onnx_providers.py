"""Where ONNX Runtime computes: its execution providers with their options, and whether one that was asked for runs."""

from __future__ import annotations

from typing import Any

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT
from aivsreal.runtime.cache import cache_folder
from aivsreal.runtime.errors import BackendError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
MAX_TENSORRT_BATCH = 64  # its engines are built for 1 to this many images; more are run in parts

Provider = tuple[str, dict[str, Any]]


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
