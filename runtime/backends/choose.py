"""The choice of a backend."""

from __future__ import annotations

from importlib.util import find_spec

from aivsreal.runtime.backends.protocol import Backend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, MissingExtra

# onnx takes CUDA where it runs, else the CPU; the longer names run there or fail.
BACKENDS = ("auto", "tensorrt", "onnx", "onnx-cpu", "onnx-cuda", "onnx-tensorrt", "openvino", "torch")

# OpenVINO takes 0.24 s longer to start than ONNX Runtime here and is 5 ms an image faster on two cores.
WORTH_A_SLOW_START = 48


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
        from aivsreal.runtime.gpu.backend import TensorrtBackend

        engine = TensorrtBackend(bundle)
        return engine, f"{why}; {engine.detail}"
    if kind == "torch":
        from aivsreal.runtime.backends.torch import TorchBackend

        return TorchBackend(bundle), why
    if kind == "openvino":
        from aivsreal.runtime.backends.openvino import OpenvinoBackend

        return OpenvinoBackend(bundle, threads), why
    from aivsreal.runtime.backends.onnx import OnnxBackend

    backend = OnnxBackend(bundle, threads, kind.partition("-")[2] or None)
    return backend, f"{why}; {backend.passed_over}" if backend.passed_over else why


def _on_cpu(bundle: Bundle, threads: int | None, why: str) -> tuple[Backend, str]:
    """ONNX Runtime on a GPU where it has one, else the fastest backend on this CPU."""
    from aivsreal.runtime.backends.cpu_choice import cpu_openers, fastest
    from aivsreal.runtime.backends.onnx_providers import has_gpu_provider

    if has_gpu_provider():
        backend, why = _opened(bundle, "onnx", threads, why)
        if backend.name != "onnx-cpu":
            return backend, why
        backend.close()
    backend, reason = fastest(cpu_openers(bundle, threads), bundle, threads)
    return backend, f"{why}; {reason}"
