"""The choice of a backend; of those on the CPU the fastest here of those that agree, measured once and kept.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from time import process_time

import numpy as np

from aivsreal.runtime.backends import BACKENDS
from aivsreal.runtime.backends.protocol import Backend, cpu_model
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INT8_MODEL
from aivsreal.runtime.cache import remember, remembered, usable_cache_folder
from aivsreal.runtime.errors import BackendError, BundleError, MissingExtra
from aivsreal.runtime.machine import cpu_digest
from aivsreal.runtime.preprocess import LogitsB, PixelsHWC
from aivsreal.runtime.verdict import p_ai_from_logit

# OpenVINO takes 0.24 s longer to start than ONNX Runtime here and is 5 ms an image faster on two cores.
WORTH_A_SLOW_START = 48
_SLOW = "openvino passed over: it starts too slowly for so few images"
# As far as decoding at a smaller scale may move p_ai; bfloat16 has 8 bits, and measured 0.0004 and 0.002.
MEAN_DIFFERENCE = 3e-3
MAX_DIFFERENCE = 2e-2
_BATCH, _ROUNDS = 8, 5
_ENOUGH_S = 3.0  # of processor time: a large network, whose times differ less, is not measured for half a minute
_REFERENCE = "onnx"
INT8 = "-int8"  # it is in a bundle only if its accuracy passed a gate on labelled images, which says more than this

Opener = Callable[[], Backend]


def open_backend(
    bundle: Bundle, kind: str = "auto", threads: int | None = None, images: int | None = None
) -> tuple[Backend, str]:
    """Load the bundle's network with the backend asked for, or with the best one that is installed.

    Args:
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
            why = "; ".join(["auto", *passed_over])
            if candidate == "onnx" and find_spec("openvino") is not None:
                if images is not None and images < WORTH_A_SLOW_START:
                    with suppress(BackendError):  # OpenVINO may be all that runs here
                        return _opened(bundle, candidate, threads, f"{why}; {_SLOW}")
                return _on_cpu(bundle, threads, why)
            return _opened(bundle, candidate, threads, why)
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
    from aivsreal.runtime.backends.onnx import has_gpu_provider

    if has_gpu_provider():
        backend, why = _opened(bundle, "onnx", threads, why)
        if backend.name != "onnx-cpu":
            return backend, why
        backend.close()
    backend, reason = fastest(cpu_openers(bundle, threads), bundle, threads)
    return backend, f"{why}; {reason}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen of one backend."""

    ms: float
    """Least processor time of an image, of a batch of eight: what bounds a scan, whatever else the machine does."""
    mean_difference: float
    """Of p_ai, from the reference's."""
    max_difference: float

    @property
    def agrees(self) -> bool:
        """Whether its verdicts are the reference's, but for rounding."""
        return self.mean_difference <= MEAN_DIFFERENCE and self.max_difference <= MAX_DIFFERENCE


def probe_squares(size: int, count: int = 2 * _BATCH) -> list[PixelsHWC]:
    """`square_SSC` from waves, edges and noise of several strengths: smooth and sharp, dark and light."""
    rng = np.random.default_rng(0)
    y_HW, x_HW = np.mgrid[0:size, 0:size] / size
    squares = []
    for index in range(count):
        phase_HWC = x_HW[..., None] * rng.uniform(0, 12, 3) + y_HW[..., None] * rng.uniform(0, 12, 3)
        edge_HW = 60.0 * (x_HW * rng.uniform(-1, 1) + y_HW * rng.uniform(-1, 1) > rng.uniform(-0.5, 0.5))
        noise_HWC = rng.normal(0, 4.0 * index, (size, size, 3))
        values_HWC = rng.uniform(40, 180, 3) + 40 * np.sin(2 * np.pi * phase_HWC) + edge_HW[..., None] + noise_HWC
        squares.append(np.clip(values_HWC, 0, 255).astype(np.uint8))
    return squares


def cpu_openers(bundle: Bundle, threads: int | None) -> dict[str, Opener]:
    """What may run this bundle on this CPU: ONNX Runtime and OpenVINO, each also in INT8 where the bundle has it."""

    def onnx(int8: bool) -> Backend:
        from aivsreal.runtime.backends.onnx import OnnxBackend

        return OnnxBackend(bundle, threads, "cpu", int8)

    def openvino(int8: bool) -> Backend:
        from aivsreal.runtime.backends.openvino import OpenvinoBackend

        return OpenvinoBackend(bundle, threads, int8)

    has_int8 = cpu_model(bundle) == INT8_MODEL
    openers: dict[str, Opener] = {}
    for name, opener in ((_REFERENCE, onnx), ("openvino", openvino)):
        openers[name] = partial(opener, False)
        if has_int8:
            openers[f"{name}{INT8}"] = partial(opener, True)
    return openers


def fastest(openers: Mapping[str, Opener], bundle: Bundle, threads: int | None) -> tuple[Backend, str]:
    """The fastest of these backends that agrees with ONNX Runtime, and why.

    The measurement takes about a second; its outcome is kept in the cache folder for this bundle, processor, number
    of threads and these versions.

    Args:
        openers: by name, the reference `onnx` among them; each opens a backend on this CPU.

    Raises:
        BackendError: none runs.
        BundleError: ONNX Runtime cannot take the model.
    """
    folder = usable_cache_folder("cpu-choice")
    key = f"{bundle.digest} {cpu_digest()} {threads} {_versions(openers)}"
    entry = remembered(folder / "choices.json").get(key) if folder else None
    if entry is not None and entry.get("chosen") in openers:
        try:
            return openers[entry["chosen"]](), f"{entry['why']}, as measured before"
        except (BackendError, BundleError):
            pass  # something was uninstalled or broke: look again
    opened: dict[str, Backend] = {}
    failed = []
    for name, opener in openers.items():
        try:
            opened[name] = _running(opener, bundle)
        except (BackendError, BundleError) as error:
            if name == _REFERENCE and isinstance(error, BundleError):
                raise  # it is the bundle
            failed.append(f"{name} passed over: {error}")
    if _REFERENCE not in opened or len(opened) == 1:
        if not opened:
            raise BackendError("; ".join(failed))
        name = next(iter(opened))
        return opened[name], "; ".join(failed) or f"{name} alone runs"
    seen = measured(opened, bundle)
    chosen, why = choice(seen)
    for name, backend in opened.items():
        if name != chosen:
            backend.close()
    if folder is not None and not failed:
        facts = {name: asdict(one) for name, one in seen.items()}
        remember(folder / "choices.json", key, {"chosen": chosen, "why": why, "measured": facts})
    return opened[chosen], "; ".join([why, *failed])


def _running(opener: Opener, bundle: Bundle) -> Backend:
    """What the opener opens, once it has judged an image."""
    backend = opener()
    try:
        backend.run(probe_squares(bundle.manifest.spec.size, 1))
    except BaseException:
        backend.close()
        raise
    return backend


def measured(backends: Mapping[str, Backend], bundle: Bundle) -> dict[str, Measured]:
    """Speed of each and its difference from the reference, on the same squares, in turns."""
    squares = probe_squares(bundle.manifest.spec.size)
    temperature = bundle.manifest.temperature
    p_ai = {name: _p_ai(backend.run(squares).logits_B, temperature) for name, backend in backends.items()}
    best = dict.fromkeys(backends, float("inf"))
    start = process_time()
    for turn in range(_ROUNDS + 1):  # in turns, so that a machine that is busy for a while is so for all
        for name, backend in backends.items():
            begin = process_time()
            backend.run(squares[:_BATCH])
            if turn:
                best[name] = min(best[name], (process_time() - begin) * 1000 / _BATCH)
        if turn and process_time() - start > _ENOUGH_S:
            break
    differences = {name: np.abs(values - p_ai[_REFERENCE]) for name, values in p_ai.items()}
    return {
        name: Measured(best[name], float(values.mean()), float(values.max())) for name, values in differences.items()
    }


def choice(seen: Mapping[str, Measured]) -> tuple[str, str]:
    """The fastest that agrees, and the reason in words."""
    agreeing = {name: one for name, one in seen.items() if one.agrees or name.endswith(INT8)}
    chosen = min(agreeing, key=lambda name: agreeing[name].ms)
    parts = []
    for name, one in seen.items():
        if name == chosen:
            continue
        if name in agreeing:
            parts.append(f"{name} passed over: {one.ms / seen[chosen].ms:.1f} times slower here")
        else:
            parts.append(f"{name} passed over: it moves p_ai by up to {one.max_difference:.3f}")
    return chosen, "; ".join(parts)


def _p_ai(logits_B: LogitsB, temperature: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([p_ai_from_logit(float(logit), temperature) for logit in logits_B])


def _versions(names: Mapping[str, Opener]) -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        try:
            found.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            continue
    return " ".join([*names, *found])
