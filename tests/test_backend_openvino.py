"""OpenVINO on the shipped network, where it is installed; how its absence is told everywhere."""

from __future__ import annotations

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from pocket_vit import NAME, SIZE, pocket_vit

from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
from aivsreal.export.graphs.half import full_from_onnx
from aivsreal.export.graphs.int8 import int8_from_onnx
from aivsreal.runtime.backends.choose import MAX_DIFFERENCE, MEAN_DIFFERENCE, measured, open_backend, probe_squares
from aivsreal.runtime.backends.onnx import OnnxBackend
from aivsreal.runtime.backends.openvino import OpenvinoBackend
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.locks import locked
from aivsreal.runtime.networks.arch import fused_network
from aivsreal.runtime.preprocess import batch_from_squares
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
def test_int8_runs_in_openvino_as_in_onnx_runtime(tmp_path: Path) -> None:
    spec = PreprocessSpec(SIZE)
    fused = fused_network(pocket_vit(), NAME, SIZE)
    model = with_half_weights(onnx_from_network(fused, spec)).SerializeToString()
    squares = probe_squares(SIZE, 64)
    full = full_from_onnx(onnx.load_from_string(model)).SerializeToString()
    files = {"model.onnx": model, "model.int8.onnx": int8_from_onnx(full, [batch_from_squares(squares, spec)])}
    shipped = replace(Bundle.open().manifest, arch=NAME, spec=spec, files={})
    bundle = write_bundle(tmp_path / "vit", files, shipped)
    whole, int8 = (OpenvinoBackend(bundle, 1, int8=wanted) for wanted in (False, True))
    assert (whole.precision == "int8", int8.precision) == (False, "int8")
    expected_B = OnnxBackend(bundle, 1, "cpu", int8=True).run(squares).logits_B
    found_B = int8.run(squares).logits_B
    assert np.abs(found_B - expected_B).max() < 0.2 * np.std(expected_B)
    assert np.abs(found_B - whole.run(squares).logits_B).max() > 0


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


@installed
def test_a_start_waits_for_the_one_that_writes_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "aivsreal" / "openvino"
    folder.mkdir(parents=True, mode=0o700)
    with ThreadPoolExecutor(1) as pool:
        with (folder / ".lock").open("w") as file:
            assert locked(file, fcntl.LOCK_EX)
            start = pool.submit(OpenvinoBackend, Bundle.open(), 1)
            assert not wait([start], 2).done
            assert not list(folder.glob("*.blob"))
        start.result(60).close()
    assert len(list(folder.glob("*.blob"))) == 1
