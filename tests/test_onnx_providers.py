"""ONNX Runtime on a GPU, with its session played: what is asked for runs or fails, and what runs is what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import squares_of
from fake_gpu import SIDE, small_bundle

from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.backends.onnx import MAX_TENSORRT_BATCH, PROVIDERS, OnnxBackend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, MissingExtra, importing

REAL = onnxruntime.InferenceSession
GPU_BUILD = [PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["cpu"]]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return small_bundle(tmp_path / "bundle")


class _Session:
    """Computes on the CPU, and says that it runs on those providers that were asked for and load here."""

    def __init__(self, loads: tuple[str, ...], network: bytes, options: Any, providers: list[Any]) -> None:
        self.asked = dict(providers)
        self.running = [name for name, _ in providers if name in {PROVIDERS[kind] for kind in loads}]
        self.batches: list[int] = []
        self.real = REAL(network, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self.running

    def run(self, outputs: list[str], given: dict[str, Any]) -> Any:
        self.batches += [len(values) for values in given.values()]
        return self.real.run(outputs, given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def _installed(monkeypatch: pytest.MonkeyPatch, *loads: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_BUILD)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *given, **named: _Session(loads, *given, **named))


def test_cuda_is_taken_where_it_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, "cuda", "cpu")
    for kind in ("auto", "onnx", "onnx-cuda"):
        backend, why = open_backend(bundle, kind)
        assert (backend.name, backend.precision) == ("onnx-cuda", "fp32")
        assert "CUDAExecutionProvider passed over" not in why
        assert backend._session.asked[PROVIDERS["cuda"]] == {"use_tf32": 0}  # type: ignore[attr-defined]


def test_cuda_that_does_not_load_is_passed_over_or_an_error_where_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, "cpu")
    monkeypatch.setattr("aivsreal.runtime.backends.choose.find_spec", lambda name: None)  # OpenVINO may be installed
    backend, why = open_backend(bundle)
    assert backend.name == "onnx-cpu"
    assert "CUDAExecutionProvider passed over: it did not load" in why
    with pytest.raises(BackendError, match="runs on CPUExecutionProvider and not on CUDAExecutionProvider"):
        open_backend(bundle, "onnx-cuda")
    assert open_backend(bundle, "onnx-cpu")[0].name == "onnx-cpu"


def test_a_package_without_the_provider_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    with pytest.raises(BackendError, match=r"has no TensorrtExecutionProvider: .*aivsreal\[gpu\]"):
        open_backend(bundle, "onnx-tensorrt")


def test_tensorrt_keeps_its_engines_and_is_told_the_batches(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, "tensorrt", "cuda", "cpu")
    backend = OnnxBackend(bundle, provider="tensorrt")
    assert backend.name == "onnx-tensorrt"
    options = backend._session.asked[PROVIDERS["tensorrt"]]
    folder = Path(options["trt_engine_cache_path"])
    assert folder == tmp_path / "cache" / "aivsreal" / "onnx-tensorrt" / bundle.digest
    assert folder.is_dir()
    assert options["trt_profile_max_shapes"] == f"pixels_BCHW:{MAX_TENSORRT_BATCH}x3x{SIDE}x{SIDE}"
    images = [np.full((30, 30, 3), value, np.uint8) for value in range(MAX_TENSORRT_BATCH + 5)]
    squares = squares_of(bundle, images)
    wanted = OnnxBackend(bundle, provider="cpu").run(squares).logits_B
    assert (backend.run(squares).logits_B == wanted).all()
    assert backend._session.batches == [MAX_TENSORRT_BATCH, 5]


def test_a_cache_that_cannot_be_made_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _installed(monkeypatch, "tensorrt", "cuda", "cpu")
    with pytest.raises(BackendError, match="set XDG_CACHE_HOME"):
        open_backend(bundle, "onnx-tensorrt")


def test_a_package_that_is_broken_is_told_from_one_that_is_missing() -> None:
    with (
        pytest.raises(MissingExtra, match=r"another is needed to run.*'aivsreal\[cpu\]'"),
        importing("cpu", "ort", "run"),
    ):
        raise ModuleNotFoundError("no module", name="another")
    reinstall = r"ort is installed but does not load .*--force-reinstall onnxruntime-gpu"
    with pytest.raises(BackendError, match=reinstall) as told, importing("gpu", "ort", "run"):
        raise ImportError("libcudart.so.13: cannot open shared object file")
    assert not isinstance(told.value, MissingExtra)
