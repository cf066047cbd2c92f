"""Which CPU backend is taken: the fastest that agrees, measured once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from aivsreal.runtime.backends import choose as backends
from aivsreal.runtime.backends.choose import Measured, choice, fastest, measured, probe_squares
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.preprocess import PixelsHWC, Scores


class FakeBackend:
    """A fake: its logit is the mean brightness, moved by `off`, and it burns `ms` of processor time an image."""

    def __init__(self, name: str, ms: float = 0.0, off: float = 0.0) -> None:
        self.precision, self.takes_squares, self.has_maps = "fp32", True, False
        self.name, self._ms, self._off, self.closed = name, ms, off, False

    def run(self, squares: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        end = time.process_time() + len(squares) * self._ms / 1000
        while time.process_time() < end:
            pass
        return Scores(np.array([square.mean() / 64 - 2 + self._off for square in squares], dtype=np.float32))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Bundle.open()


def _openers(*backends: FakeBackend) -> dict[str, Callable[[], FakeBackend]]:
    return {backend.name: lambda backend=backend: backend for backend in backends}  # type: ignore[misc]


def test_the_fastest_that_agrees_is_taken_and_the_others_are_closed(bundle: Bundle) -> None:
    slow, fast, wrong = FakeBackend("onnx", 2.0), FakeBackend("openvino", 0.5), FakeBackend("other", 0.1, off=0.5)
    backend, why = fastest(_openers(slow, fast, wrong), bundle, 2)
    assert backend is fast
    assert (slow.closed, fast.closed, wrong.closed) == (True, False, True)
    assert "onnx passed over: 4" in why or "onnx passed over: 3" in why
    assert "other passed over: it moves p_ai by up to 0." in why


def test_the_choice_is_remembered_for_its_bundle_threads_and_backends(bundle: Bundle) -> None:
    openers = _openers(FakeBackend("onnx", 2.0), FakeBackend("openvino", 0.5))
    fastest(openers, bundle, 2)
    again = {"onnx": lambda: pytest.fail("it was opened to be measured again"), "openvino": openers["openvino"]}
    backend, why = fastest(again, bundle, 2)  # type: ignore[arg-type]
    assert backend.name == "openvino"
    assert why.endswith("as measured before")
    _, why = fastest(openers, bundle, 1)
    assert "before" not in why


def test_one_that_broke_since_is_measured_anew(bundle: Bundle) -> None:
    openers = _openers(FakeBackend("onnx", 2.0), FakeBackend("openvino", 0.5))
    fastest(openers, bundle, 2)

    def broken() -> FakeBackend:
        raise BackendError("openvino is installed but does not load")

    backend, why = fastest({**openers, "openvino": broken}, bundle, 2)
    assert backend.name == "onnx"
    assert "does not load" in why


@pytest.mark.parametrize("error", [BackendError("it failed"), BundleError("it does not compile")])
def test_one_that_fails_where_the_reference_runs_is_passed_over_and_closed(bundle: Bundle, error: Exception) -> None:
    class Failing(FakeBackend):
        def run(self, squares: Sequence[PixelsHWC], maps: bool = False) -> Scores:
            raise error

    failing = Failing("openvino")
    backend, why = fastest(_openers(FakeBackend("onnx"), failing), bundle, 2)
    assert (backend.name, failing.closed) == ("onnx", True)
    assert f"openvino passed over: {error}" in why


def test_a_model_that_the_reference_cannot_take_is_an_error(bundle: Bundle) -> None:
    def refusing() -> FakeBackend:
        raise BundleError("model.onnx needs one input")

    with pytest.raises(BundleError, match="one input"):
        fastest({"onnx": refusing, "openvino": lambda: FakeBackend("openvino")}, bundle, 2)


def test_where_none_runs_each_reason_is_told(bundle: Bundle) -> None:
    def broken() -> FakeBackend:
        raise BackendError("it is broken")

    with pytest.raises(BackendError, match="onnx passed over: it is broken; openvino passed over: it is broken"):
        fastest({"onnx": broken, "openvino": broken}, bundle, None)


def test_without_a_cache_it_is_measured_each_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    openers = _openers(FakeBackend("onnx", 2.0), FakeBackend("openvino", 0.5))
    assert "before" not in fastest(openers, bundle, 2)[1]
    assert "before" not in fastest(openers, bundle, 2)[1]


def test_a_backend_that_disagrees_is_never_taken() -> None:
    seen = {"onnx": Measured(10.0, 0.0, 0.0), "a": Measured(1.0, 0.004, 0.01), "b": Measured(1.0, 0.001, 0.03)}
    assert choice(seen)[0] == "onnx"


def test_differences_are_those_of_p_ai(bundle: Bundle) -> None:
    seen = measured({"onnx": FakeBackend("onnx"), "other": FakeBackend("other", off=0.01)}, bundle)
    assert seen["onnx"].max_difference == 0
    assert 0.0001 < seen["other"].mean_difference < seen["other"].max_difference < 0.0026


def test_the_probe_has_pictures_that_differ() -> None:
    squares = probe_squares(64)
    assert len({square.tobytes() for square in squares}) == len(squares)
    assert np.ptp([square.mean() for square in squares]) > 60
    assert np.ptp([np.abs(np.diff(square.astype(int), axis=1)).mean() for square in squares]) > 30
    assert all((a == b).all() for a, b in zip(squares, probe_squares(64), strict=True))


def test_a_few_images_do_not_wait_for_a_backend_that_starts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: name == "openvino")
    monkeypatch.setattr(backends, "_on_cpu", lambda *_: (FakeBackend("fastest"), "measured"))
    bundle = Bundle.open()
    for images in (1, backends.WORTH_A_SLOW_START - 1):
        backend, why = backends.open_backend(bundle, images=images)
        assert backend.name == "onnx-cpu"
        assert "openvino passed over" in why
        backend.close()
    for many in (backends.WORTH_A_SLOW_START, None):
        assert backends.open_backend(bundle, images=many)[0].name == "fastest"


def test_a_few_images_take_openvino_where_onnx_runtime_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    for name in ("onnxruntime", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    backend, why = backends.open_backend(Bundle.open(), images=1)
    backend.close()
    assert backend.name == "openvino-cpu"
    assert "openvino passed over" not in why
