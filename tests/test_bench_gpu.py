"""`aivsreal-bench gpu` measures what is there, says "not measured" of the rest, and judges only what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_cuda import compiled_shim
from fake_gpu import bundle_with_engine, installed_gpu, small_bundle

from aivsreal.benchmarks import report
from aivsreal.benchmarks.cli import main
from aivsreal.benchmarks.proof.gpu import CLAIMS, OURS, claims
from aivsreal.benchmarks.proof.gpu_peers import ONNX, ROOFLINE, TORCH, operations_and_weights
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.gpu import driver as cuda

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "gpu.jsonl"


def _rows(output: str) -> dict[tuple[str, int], dict[str, Any]]:
    rows = [json.loads(line) for line in output.splitlines()]
    return {(row["what"], row["batch"]): row for row in rows}


def test_without_a_gpu_every_line_says_not_measured_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    bundle = small_bundle(tmp_path / "bundle")
    arguments = ["gpu", "--bundle", str(bundle.path), "--batch", "1", "--batch", "64", "--seconds", "0.01"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = _rows(result.stdout)
    for what in (*OURS, *TORCH, *ONNX, *ROOFLINE):
        for batch in (1, 64):
            assert rows[what, batch]["not_measured"]
            assert rows[what, batch].get("not_here", False) is (what not in OURS)  # a peer's absence is no failure
    assert all(rows[f"claim: {name}", 0]["holds"] is None for name in CLAIMS)
    (tmp_path / "gpu.jsonl").write_text(result.stdout)
    table = CliRunner().invoke(report.main, [str(tmp_path / "gpu.jsonl")]).stdout
    assert "| kernel | 64 | - | - | not measured | not measured | not measured | not measured | - | - |" in table


def test_on_a_gpu_each_part_is_timed_and_the_kernel_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    kernel = compiled_shim(tmp_path / "one.so", "-O2", "-DWARPS=1", "-fPIC", "-shared")
    bundle = bundle_with_engine(tmp_path / "bundle", small_bundle(tmp_path / "plain"), half=True)
    driver = installed_gpu(monkeypatch, kernel)
    monkeypatch.setattr("aivsreal.benchmarks.proof.gpu.open_driver", cuda.open_driver)
    options = "--batch 1 --batch 4 --batch 64 --seconds 0.02 --size 60 40".split()
    result = CliRunner().invoke(main, ["gpu", "--bundle", str(bundle.path), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    rows = _rows(result.stdout)
    for batch in (1, 4):
        for what in OURS:
            row = rows[what, batch]
            assert "not_measured" not in row, row["not_measured"]
            assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
            assert min(row["count"], row["images_per_s"]) > 0
            assert (row["gpu"], row["precision"]) == ("A10", "fp16")
        assert rows["kernel", batch]["differing_values"] == 0
    assert "not_measured" in rows["kernel", 64]  # the engine takes at most 32
    assert rows["end to end", 64]["images_per_s"] > 0  # in parts
    assert rows["claim: differing values of the kernel", 0]["holds"] is True
    assert rows["claim: graph over engine, batch 1", 0]["figure"] > 0
    driver.check_empty()


def _row(what: str, batch: int, p50_ms: float, images_per_s: float, **more: object) -> dict[str, Any]:
    return {"what": what, "batch": batch, "p50_ms": p50_ms, "images_per_s": images_per_s, **more}


def test_what_must_hold_is_judged_by_its_bound() -> None:
    rows = [
        _row("engine", 1, 1.0, 1), _row("graph", 1, 1.3, 1), _row("engine", 64, 10.0, 1), _row("graph", 64, 11.0, 50),
        _row("torch.compile", 64, 1, 30), _row("kernel", 1, 1, 1, differing_values=1),
    ]  # fmt: skip
    judged = {row["what"].removeprefix("claim: "): (row["figure"], row["holds"]) for row in claims(rows)}
    assert judged == {
        "graph over engine, batch 64": (1.1, True),
        "graph over engine, batch 1": (1.3, False),
        "graph over torch.compile, throughput": (1.667, False),
        "differing values of the kernel": (1.0, False),
    }


def test_the_recorded_results_are_of_this_benchmark_and_claim_nothing_unmeasured() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    assert {row["benchmark"] for row in rows} == {"gpu"}
    assert {row["what"] for row in rows} >= {*OURS, *TORCH, *ONNX, *ROOFLINE}
    assert all("not_measured" in row or "gpu" in row for row in rows if not row["what"].startswith("claim"))


def test_operations_are_counted_as_the_network_runs() -> None:
    operations, weights = operations_and_weights(Bundle.open())
    assert operations / 2 == pytest.approx(656e6, rel=0.02)  # LeViT-192's multiply-adds, as its authors count them
    assert weights == pytest.approx(10.2e6, rel=0.02)


def test_a_bundle_that_is_none_is_wrong_use(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["gpu", "--bundle", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a bundle" in result.stderr
