"""The doctor says what is here, what is not, and what to type; it never calls a thing well that does not run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fake_cuda import compiled_shim
from fake_gpu import bundle_with_engine, installed_gpu, small_bundle

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.commands import doctor
from aivsreal.runtime.commands.doctor import BROKEN, MISSING, OK, Finding, findings, jetpack, main
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.gpu import driver as cuda


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "bundle")


def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(device: int = 0) -> None:
        raise BackendError("NVIDIA's driver is not installed: there is no libcuda.so.1")

    monkeypatch.setattr(cuda, "open_driver", no_driver)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("state", "error"), [(MISSING, None), (BROKEN, BackendError("openvino is installed but does not load"))]
)
def test_openvino_has_a_line_whether_it_is_here_or_not(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, state: str, error: BackendError | None
) -> None:
    def opened(*_: object) -> None:
        raise error or AssertionError

    monkeypatch.setattr(doctor, "_version", lambda name: "2026.0" if error else "")
    monkeypatch.setitem(sys.modules, "aivsreal.runtime.backends.openvino", SimpleNamespace(OpenvinoBackend=opened))
    line = doctor._openvino(bundle)
    assert line.state == state
    assert line.mend == ("" if error else "pip install 'aivsreal[openvino]'")


def _by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in found}


def test_without_a_gpu_it_says_so_and_a_scan_runs_on_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_gpu(monkeypatch)
    lines = _by_name(findings(str(bundle.path)))
    assert lines["GPU"].state == lines["TensorRT"].state == MISSING
    assert lines["TensorRT"].mend == "pip install 'aivsreal[tensorrt]'"
    assert lines["kernel"].state == OK
    assert lines["a scan"].detail.startswith("runs onnx-cpu, fp32 (auto; tensorrt passed over")
    assert all(finding.mend for finding in lines.values() if finding.state == MISSING)


def test_with_a_gpu_and_an_engine_a_scan_runs_it(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    kernel = compiled_shim(tmp_path / "one.so", "-O2", "-DWARPS=1", "-fPIC", "-shared")
    with_engine = bundle_with_engine(tmp_path / "with_engine", bundle, "10.3.0")
    driver = installed_gpu(monkeypatch, kernel)
    lines = _by_name(findings(str(with_engine.path)))
    assert lines["GPU"].detail == "A10, compute capability 8.6, 24 GiB, driver for CUDA 13.0, by fake"
    assert (lines["TensorRT"].state, lines["TensorRT"].detail) == (OK, "TensorRT 10.3.0")
    assert lines["engine"].state == OK, lines["engine"]
    assert lines["kernel"].detail.endswith(".fatbin")
    driver.check_empty()
    none = _by_name(findings(str(bundle.path)))
    assert (none["engine"].state, none["engine"].mend) == (MISSING, "aivsreal-export --fp16")


def test_the_exit_code_says_whether_a_scan_would_run(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_gpu(monkeypatch)
    result = CliRunner().invoke(main, ["--bundle", str(bundle.path)])
    assert result.exit_code == 0, result.output
    assert "a scan\tok\truns onnx-cpu" in result.stdout
    result = CliRunner().invoke(main, ["--bundle", str(tmp_path / "nowhere"), "--jsonl"])
    assert result.exit_code == 2
    lines = {line["what"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert lines["bundle"]["state"] == BROKEN
    assert set(lines["bundle"]) == {"what", "state", "detail", "mend"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# R36 (release), REVISION: 4.0, GCID: 37537400\n", "JetPack 6 (L4T R36)"),
        ("# R38 (release), REVISION: 2.0\n", "JetPack 7 (L4T R38)"),
        ("# R99 (release)\n", "an unknown JetPack (L4T R99)"),
        ("", "an unknown JetPack (L4T unknown)"),
    ],
)
def test_a_jetson_is_told_by_its_release_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "release").write_text(text)
    assert jetpack(tmp_path / "release") == said
    assert jetpack(tmp_path / "none") == ""
