"""OpenVINO on the shipped network, where it is installed; how its absence is told everywhere."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aivsreal.runtime.backends.choose import MAX_DIFFERENCE, MEAN_DIFFERENCE, measured, open_backend, probe_squares
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.spec import PreprocessSpec

installed = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed: extra openvino")


def test_without_openvino_its_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'aivsreal\[openvino\]'"):
        open_backend(Bundle.open(), "openvino")


@installed
def test_openvino_agrees_with_onnx_runtime() -> None:
    bundle = Bundle.open()
    onnx, _ = open_backend(bundle, "onnx-cpu", 1)
    openvino, why = open_backend(bundle, "openvino", 1)
    assert why == "asked for"
    assert openvino.name == "openvino-cpu"
    assert openvino.precision in ("bf16", "fp16", "fp32")
    seen = measured({"onnx": onnx, "openvino": openvino}, bundle)["openvino"]
    assert seen.mean_difference <= MEAN_DIFFERENCE
    assert seen.max_difference <= MAX_DIFFERENCE
    squares = probe_squares(bundle.manifest.spec.size, 5)
    alone = np.concatenate([openvino.run([square]).logits_B for square in squares])
    assert openvino.run(squares).logits_B == pytest.approx(alone, abs=0.02)
    assert openvino.run([]).logits_B.shape == (0,)
    if openvino.has_maps:
        scores = openvino.run(squares, maps=True)
        assert scores.maps_Bhw is not None
        assert scores.maps_Bhw.mean(axis=(1, 2)) == pytest.approx(scores.logits_B, abs=0.05)
    else:
        with pytest.raises(BackendError, match="no map"):
            openvino.run(squares, maps=True)


@installed
def test_a_network_that_openvino_cannot_use_is_a_clear_error(tmp_path: Path) -> None:
    shipped = Bundle.open()
    write_bundle(tmp_path / "junk", {"model.onnx": b"junk"}, replace(shipped.manifest, files={}))
    with pytest.raises(BundleError, match=r"model\.onnx cannot be compiled"):
        open_backend(Bundle.open(tmp_path / "junk"), "openvino")
    other = replace(shipped.manifest, spec=PreprocessSpec(96))
    write_bundle(tmp_path / "odd", {"model.onnx": shipped.read("model.onnx")}, other)
    with pytest.raises(BundleError, match="96"):
        open_backend(Bundle.open(tmp_path / "odd"), "openvino")


@installed
def test_compiled_networks_that_were_used_long_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "aivsreal" / "openvino"
    folder.mkdir(parents=True, mode=0o700)
    for index in range(5):
        (folder / f"{index}.blob").write_bytes(b"of another network")
        os.utime(folder / f"{index}.blob", (index, index))
    open_backend(Bundle.open(), "openvino")[0].close()
    kept = {path.name for path in folder.glob("*.blob")}
    assert len(kept) == 4
    assert {"2.blob", "3.blob", "4.blob"} < kept, "beside these lies the one that was compiled now"
