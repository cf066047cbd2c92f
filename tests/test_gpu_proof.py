"""The proof of a GPU runs from its script to its table without one, against the fakes, and a failure stops nothing.

What no fake plays, and these tests cannot hold: PyTorch and ONNX Runtime on a GPU, the roofline, nvidia-smi, a build of
pycuda, the real TensorRT on a GPU, and time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_image

from aivsreal.benchmarks.proof import steps as steps_module
from aivsreal.benchmarks.proof.steps import Proof, Wish
from aivsreal.runtime.bundle.folder import write_bundle
from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, OperatingPoint

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = Manifest("levit_128s", LABELS, PreprocessSpec(64), 1.2, (OperatingPoint("balanced", 0.6, 0.4),), "balanced")
SMALL = "--seconds 0.02 --limit 3000 --sizes 12 --soak 20 --images 2 --size 60 40 --batch 4 --batch 1".split()
NOT_HERE = {"roofline", "PyTorch", "ONNX Runtime on CUDA", "kernel through pycuda"}


@pytest.fixture(scope="module")
def payload(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts as payload.sh makes them, but for TensorRT-RTX, which is an archive with a module that does not load."""
    stage, parts = tmp_path_factory.mktemp("stage"), tmp_path_factory.mktemp("parts")
    script, here = str(ROOT / "benchmarks/proof/payload.sh"), tmp_path_factory.mktemp("made")
    only_ours = {**os.environ, "PYTHON": sys.executable, "RTX": "", "EXTRA": "", "CACHE": str(here / "cache")}
    subprocess.run(["bash", script, str(here / "payload")], env=only_ours, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(_joined(here / "payload" / "1"))) as packed:
        packed.extractall(stage, filter="data")
    for number in range(2):
        write_image(stage / "images" / f"{number}.png", number, size=(90 + number, 80))
    write_bundle(stage / "bundle", {"model.onnx": small_model.SerializeToString()}, MANIFEST)
    content = b"raise ImportError('libtensorrt_rtx.so.1 is not for this machine')"
    with tarfile.open(stage / "rtx-0.0.tar.xz", "w:xz") as packed:
        about = tarfile.TarInfo("./tensorrt_rtx/__init__.py")
        about.size = len(content)
        packed.addfile(about, io.BytesIO(content))
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as packed:
        packed.add(stage, ".")
    half = len(whole.getvalue()) // 2
    (parts / "proof.part00").write_bytes(whole.getvalue()[:half])
    (parts / "proof.part01").write_bytes(whole.getvalue()[half:])
    return parts


def _joined(parts: Path) -> bytes:
    return b"".join(part.read_bytes() for part in sorted(parts.iterdir()))


def _faked(kernel: Path, version: str = "rtx1.7", refusal: str = "") -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT / "tests" / "support" / "gpu_site"), "FAKE_KERNEL": str(kernel),
        "FAKE_TENSORRT": version, "FAKE_REFUSAL": refusal, "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _proved(payload: Path, folder: Path, kernel: Path) -> dict[str, Any]:
    environment = {**os.environ, **_faked(kernel), "PYTHON": sys.executable, "WORK": str(folder / "work")}
    command = ["bash", str(ROOT / "benchmarks/proof/run.sh"), str(payload), str(folder / "out"), *SMALL]
    command += ["--bundle", str(folder / "work" / "payload" / "bundle")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    broken = [row for row in _rows(folder) if row["what"].startswith("claim") and row["holds"] is False]
    assert result.returncode == bool(broken), result.stdout + result.stderr  # the fakes' times are chance
    assert (folder / "out" / "summary.txt").read_text() in result.stdout
    steps = map(json.loads, (folder / "out" / "steps.jsonl").read_text().splitlines())
    return {step["step"]: step for step in steps}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_each_step_runs_against_the_fakes(payload: Path, kernel: Path, tmp_path: Path) -> None:
    steps = _proved(payload, tmp_path, kernel)
    missing = {name: step["why"] for name, step in steps.items() if step["ok"] is not True}
    assert set(missing) == NOT_HERE, missing
    assert all(steps[name]["ok"] is None for name in missing)
    assert missing["PyTorch"].startswith("torch is not installed")
    assert "has no CUDAExecutionProvider" in missing["ONNX Runtime on CUDA"]
    rows = {(row["what"], row["batch"]): row for row in _rows(tmp_path)}
    assert rows["kernel against Pillow", 0]["differing_values"] == 0
    assert rows["kernel against Pillow", 0]["sizes"] == 12
    assert rows["labels of a scan", 0]["judged"] == 2
    assert rows["two threads", 0]["max_logit_difference"] == 0
    assert rows["memory after many batches", 0]["batches"] == 20
    for what in ("kernel", "engine", "graph", "end to end"):
        for batch in (1, 4):
            assert rows[what, batch]["p50_ms"] > 0
    assert rows["claim: graph over engine, batch 1", 0]["holds"] is not None
    assert all(row["benchmark"] == "gpu" for row in _rows(tmp_path))
    table = (tmp_path / "out" / "summary.txt").read_text()
    assert "kernel against Pillow | ok" in table
    assert "PyTorch | not here: torch is not installed" in table
    assert "GPU: FAKE H100" in table


def test_without_an_engine_the_rest_goes_on_and_says_why(
    payload: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(fileobj=io.BytesIO(_joined(payload))) as packed:
        packed.extractall(tmp_path / "payload", filter="data")
    for name, value in _faked(kernel, refusal="all").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(steps_module, "_installed", lambda name: False)
    proof = _proof(
        tmp_path,
        payload=tmp_path / "payload",
        soak=20,
        seconds=0.02,
        size=(60, 40),
        bundle=str(tmp_path / "payload/bundle"),
        batches=("2",),
    )
    steps_module._engine(proof, tmp_path / "payload" / "images")
    steps_module._timed(proof)
    steps = {step["step"]: step for step in proof.steps}
    assert "tensorrt is needed to build an engine" in steps["engine by rtx-0.0"]["why"]
    assert "ModuleNotFoundError" in steps["rtx-0.0 step by step, SM80"]["said"]
    assert steps["half graph"]["ok"]
    rows = {(row["what"], row["batch"]): row for row in proof.rows}
    assert rows["kernel", 2]["p50_ms"] > 0
    assert "tensorrt is needed" in rows["engine", 2]["not_measured"]
    assert rows["memory after many batches of the kernel alone", 0]["holds"]
    assert steps["two threads"]["why"] == "there is no engine"


def _proof(folder: Path, **wish: Any) -> Proof:
    for name in ("out", "work"):
        (folder / name).mkdir()
    usual = {
        "bundle": None, "payload": None, "seconds": 0.5, "limit_s": steps_module.LIMIT_S, "sizes": 500, "soak": 10_000,
        "images": 200, "size": (1920, 1080), "batches": steps_module.BATCHES,
    }  # fmt: skip
    whole = Wish(out=folder / "out", work=folder / "work", **{**usual, **wish})
    return Proof(whole, environment=dict(steps_module.QUIET))


def test_a_step_that_hangs_crashes_or_fails_is_a_line_and_its_rows_are_kept(tmp_path: Path) -> None:
    proof = _proof(tmp_path)
    row = json.dumps({"benchmark": "gpu", "what": "kernel", "batch": 1, "p50_ms": 1.0})
    code = f"import sys, time; print({row!r}, flush=True); "
    assert not proof.run("hangs", 2, sys.executable, "-c", f"{code} time.sleep(60)")
    assert not proof.run("crashes", 20, sys.executable, "-c", f"{code} import os; os.abort()")
    assert not proof.run("fails", 20, sys.executable, "-c", f"{code} sys.exit('no such GPU')")
    assert not proof.run("is not there", 20, str(tmp_path / "none"))
    assert proof.run("is well", 20, sys.executable, "-c", code)
    whys = [step["why"] for step in proof.steps]
    assert whys[:3] == ["not done after 2 s", "ended by SIGABRT", "no such GPU"]
    assert "No such file" in whys[3]
    assert len(_rows(tmp_path)) == len(proof.rows) == 4
    written = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["ok"] for line in written] == [False] * 4 + [True]


def _found(proof: Proof, monkeypatch: pytest.MonkeyPatch, steps: Callable[[Proof], object]) -> tuple[bool, Proof]:
    """The outcome of a proof that has these steps."""
    seen: list[Proof] = []
    monkeypatch.setattr(steps_module, "_steps", lambda proof: (seen.append(proof), steps(proof)))
    return steps_module.prove(proof.wish), seen[0]


def _printing(*rows: dict[str, Any], code: int = 0) -> tuple[str, ...]:
    """A command that prints these rows and ends with that code."""
    lines = "\n".join(json.dumps({"benchmark": "gpu", "batch": 1, **row}) for row in rows)
    return sys.executable, "-c", f"import sys; print({lines!r}); sys.exit({code})"


ENGINE = {"what": "engine", "p50_ms": 1.0, "images_per_s": 9.0}


@pytest.mark.parametrize(("graph_ms", "holds"), [(1.1, True), (1.3, False)])
def test_a_claim_that_does_not_hold_is_a_failure_though_all_steps_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_ms: float, holds: bool
) -> None:
    claim = {"what": "claim: graph over engine, batch 1", "batch": 0, "holds": holds}
    timed = _printing(ENGINE, {**ENGINE, "what": "graph", "p50_ms": graph_ms}, claim, code=not holds)
    good, proof = _found(_proof(tmp_path), monkeypatch, lambda proof: proof.run("times", 20, *timed))
    assert proof.steps[0]["ok"] is True  # it ran
    assert good is holds
    assert f"graph over engine, batch 1 | {graph_ms} | 1.2 | {'yes' if holds else 'NO'}" in (
        (tmp_path / "out" / "summary.txt").read_text()
    )


def test_a_proof_that_is_ended_from_outside_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = _proof(tmp_path)
    row = json.dumps(
        {"benchmark": "gpu", "what": "kernel", "batch": 1, "p50_ms": 1.0, "images_per_s": 1.0, "differing_values": 0}
    )
    code = (
        f"import os, signal, time; print({row!r}, flush=True); os.kill({os.getpid()}, signal.SIGTERM); time.sleep(60)"
    )
    monkeypatch.setattr(steps_module, "_steps", lambda proof: proof.run("times", 30, sys.executable, "-c", code))
    with pytest.raises(SystemExit) as ended:
        steps_module.prove(proof.wish)
    assert ended.value.code == 143
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[0])["what"] == "kernel"
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "times | NOT OK: stopped" in summary
    assert "kernel | 1 | 1.0" in summary


def test_a_measurement_that_crashes_with_1_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nexit 1\n")
    crash.chmod(0o755)
    monkeypatch.setattr(steps_module, "_command", lambda _: str(crash))
    monkeypatch.setattr(steps_module, "_check", lambda _: (str(crash),))
    proof = _proof(tmp_path)
    steps_module._timed(proof)
    assert {step["step"] for step in proof.steps} > {"kernel, engine, graph, end to end", "PyTorch", "memory"}
    assert not any(step["ok"] for step in proof.steps)


@pytest.mark.parametrize(("not_here", "good"), [(True, True), (False, False)])
def test_what_is_not_here_is_no_failure_but_what_fails_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_here: bool, good: bool
) -> None:
    row = {"what": "torch eager", "not_measured": "why", **({"not_here": True} if not_here else {})}

    def steps(proof: Proof) -> None:
        assert not proof.run("PyTorch", 20, *_printing(row))
        steps_module._pycuda_ended(proof, None)

    found, proof = _found(_proof(tmp_path), monkeypatch, steps)
    assert [step["ok"] for step in proof.steps] == [None if not_here else False, None]
    assert found is good


def test_of_several_tensorrts_one_that_builds_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_tensorrts", lambda _: [("first", None), ("second", None)])
    monkeypatch.setattr(steps_module, "_installed", lambda _: True)
    codes = iter((1, 0, 1, 1))
    run = Proof.run
    monkeypatch.setattr(
        Proof, "run", lambda proof, name, limit_s, *_: run(proof, name, limit_s, *_printing(code=next(codes)))
    )
    for folder, good in ((tmp_path / "one", True), (tmp_path / "none", False)):
        folder.mkdir()
        found, proof = _found(_proof(folder), monkeypatch, lambda proof: steps_module._engine(proof, None))
        assert [step["ok"] for step in proof.steps] == [False, good]
        assert found is good


def test_when_the_time_for_all_of_it_is_up_the_rest_is_named(tmp_path: Path) -> None:
    proof = _proof(tmp_path, limit_s=0.5)
    assert not proof.run("late", 20, sys.executable, "-c", "")
    assert "time" in proof.steps[0]["why"]
