"""What the benchmarks report; how fast this machine is is not tested."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

from aivsreal.benchmarks import report, tables
from aivsreal.benchmarks import start as imports
from aivsreal.benchmarks.machine import machine_facts
from aivsreal.benchmarks.studies import ablation, sources
from aivsreal.runtime.errors import DataError
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.samples import Sample, in_split, samples_from_data


def test_the_machine_is_described_without_its_name() -> None:
    facts = machine_facts()
    assert facts["cpu"]
    assert isinstance(facts["cores"], int)
    assert isinstance(facts["packages"], dict)
    assert facts["packages"]["numpy"] == numpy.__version__
    # A host may be called what any text holds, so only a name of some length proves anything.
    if len(platform.node()) > 6:
        assert platform.node() not in json.dumps(facts)


def test_a_command_that_fails_is_not_timed() -> None:
    for code, why in (("raise SystemExit(3)", "exit status 3"), ("raise SystemExit('no such thing')", "no such thing")):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            imports.best_ms({"broken": ("-c", code)}, rounds=1)
        assert imports.why_failed(caught.value) == why


@pytest.mark.parametrize(
    ("runtime", "detector", "scan_help", "holds"),
    [
        (150.0, 150.0, 130.0, True),
        (151.0, 150.0, 130.0, False),
        (50.0, 151.0, 130.0, False),
        (50.0, 120.0, 131.0, False),
    ],
)
def test_the_exit_code_says_whether_the_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, runtime: float, detector: float, scan_help: float, holds: bool
) -> None:
    best = {"dependencies": 100.0, "runtime": runtime, "detector": detector, "click": 30.0, "scan_help": scan_help}
    monkeypatch.setattr(imports, "best_ms", lambda *_: best)
    result = CliRunner().invoke(imports.main, [])
    line = json.loads(result.stdout)
    assert line["holds"] is holds
    assert result.exit_code == (0 if holds else 1)
    assert line["machine"]["python"] == platform.python_version()


@pytest.mark.parametrize(("disturbed", "passes"), [(0, 1), (1, 2), (3, 4)])
def test_a_disturbed_pass_is_taken_again(monkeypatch: pytest.MonkeyPatch, disturbed: int, passes: int) -> None:
    quiet = {"dependencies": 100.0, "runtime": 50.0, "detector": 130.0, "click": 30.0, "scan_help": 40.0}
    slow = quiet | {"detector": 160.0}
    turns = iter([slow] * disturbed + [quiet])
    monkeypatch.setattr(imports, "best_ms", lambda *_: next(turns))
    line = json.loads(CliRunner().invoke(imports.main, ["--rounds", "5"]).stdout)
    assert (line["holds"], line["rounds"], line["best_ms"]["detector"]) == (True, 5 * passes, 130.0)


def _lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def _finished_run(folder: Path, preset: str, aucs: list[float], size: int = 224) -> None:
    run = folder / f"{preset}-0"
    run.mkdir(parents=True)
    rows = []
    for epoch, value in enumerate(aucs, start=1):
        unseen = {"auc": value, "macro_auc": value - 0.2}
        rows.append({"epoch": epoch, "val_seen": {**unseen, "auc": value + 0.1}, "val_unseen": unseen})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"preset": preset, "seed": 0, "epochs": len(aucs), "arch": "levit_192", "per_source": 0}
    config["spec"] = {"size": size}
    (run / "last.json").write_text(json.dumps({"config": config, "data_digest": "-", "versions": {}}))


def test_an_ablation_compares_finished_runs_with_the_reference(tmp_path: Path) -> None:
    _finished_run(tmp_path, "labels", [0.5, 0.7, 0.6])
    _finished_run(tmp_path, "frequency-noise", [0.5, 0.6, 0.65])
    arguments = [str(tmp_path), "--runs", str(tmp_path), "--epochs", "3", "--finished"]
    result = CliRunner().invoke(ablation.main, arguments)
    assert result.exit_code == 0, result.output
    rows = {row["preset"]: row for row in _lines(result.stdout)}
    assert rows.keys() == {"labels", "frequency-noise"}
    assert (rows["labels"]["best"]["epoch"], rows["labels"]["last"]["epoch"]) == (2, 3)
    assert rows["labels"]["auc_change"] == {"val_seen": 0.0, "val_unseen": 0.0}
    noisy = rows["frequency-noise"]
    assert noisy["auc_change"] == noisy["macro_auc_change"] == {"val_seen": 0.05, "val_unseen": 0.05}
    assert noisy["command"] == f"aivsreal-train {tmp_path.name} --preset frequency-noise --seed 0 --epochs 3"


def test_an_ablation_takes_no_run_of_another_recipe(tmp_path: Path) -> None:
    _finished_run(tmp_path, "labels", [0.5, 0.7, 0.6])
    (tmp_path / "labels-0").rename(tmp_path / "noise-consistency-0")
    result = CliRunner().invoke(ablation.main, [str(tmp_path), "--runs", str(tmp_path), "--epochs", "3", "--finished"])
    assert result.exit_code == 2
    assert "is of preset labels" in result.stderr


def test_an_ablation_trains_what_is_missing(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        _finished_run(tmp_path, "noise-consistency", [0.5, 0.6])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    arguments = [str(tiny_data), "--runs", str(tmp_path), "--epochs", "2", "--preset", "noise-consistency"]
    result = CliRunner().invoke(ablation.main, arguments)
    assert result.exit_code == 0, result.output
    assert commands[0][2:] == [
        "aivsreal.train.cli", str(tiny_data), "--preset", "noise-consistency", "--seed", "0", "--epochs", "2",
        "-o", str(tmp_path / "noise-consistency-0"), "--workers", "2",
    ]  # fmt: skip
    assert "auc_change" not in _lines(result.stdout)[0]  # no run of the reference to compare with


def test_sources_are_drawn_with_the_seed_and_give_the_same_number_of_images() -> None:
    sizes = {"a": 3, "b": 40, "c": 40, "d": 9}
    samples = [
        Sample(Path(f"{label}{name}{number}.png"), label, "train", name)
        for label in LABELS
        for name, size in sizes.items()
        for number in range(size)
    ]
    chosen = sources.drawn(samples, 4, 40, 1)
    found = Counter((sample.label, sample.source) for sample in chosen)
    assert Counter(label for label, _ in found) == {"real": 2, "ai": 2}
    assert 40 <= len(chosen) < 44  # no source gives one more than it must
    assert chosen == sources.drawn(samples, 4, 40, 1)
    draws = {frozenset((s.label, s.source) for s in sources.drawn(samples, 4, 12, seed)) for seed in range(9)}
    assert len(draws) > 1
    with pytest.raises(DataError, match="train has 8"):
        sources.drawn(samples, 9, 12, 0)
    with pytest.raises(DataError, match="have 184"):
        sources.drawn(samples, 8, 500, 0)


def test_a_study_of_sources_trains_on_what_it_drew(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    drawn = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        drawn.append(samples_from_data(Path(command[3])))
        _finished_run(runs / "student-alone-2-0", "student-alone", [0.5, 0.6], size=96)
        (runs / "student-alone-2-0" / "student-alone-0").rename(runs / "student-alone-2-0" / "run")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    arguments = [str(tiny_data), "--runs", str(runs), "--epochs", "2", "--sources", "2", "--images", "2"]
    result = CliRunner().invoke(sources.main, arguments)
    assert result.exit_code == 0, result.output
    (row,) = _lines(result.stdout)
    assert (row["sources"], row["last"]["val_unseen"]["auc"]) == (2, 0.6)
    assert {sample.split for sample in drawn[0]} == {"train", "val_unseen"}
    assert len(in_split(drawn[0], "train")) == row["images"] >= 2
    assert all(sample.path.is_file() for sample in drawn[0])
    header, (line,) = tables.sources_over_seeds([row, {**row, "seed": 1}])
    assert (header[0], line[0], line[2], line[3]) == ("sources", "2", "2", "0.600 [0.600, 0.600]")


def test_an_ablation_gives_the_teacher_to_those_that_ask_one(tmp_path: Path) -> None:
    scale = ablation.Scale(2, 96, "levit_128s", tmp_path / "teacher", "clip.onnx")
    small = ["--epochs", "2", "--size", "96", "--arch", "levit_128s"]
    assert scale.options("labels") == small
    assert scale.options("student") == [*small, "--teacher", str(tmp_path / "teacher"), "--init", "clip.onnx"]
    assert ablation.TAUGHT == ["student", "student-features", "student-logits", "student-once", "student-verdict"]
    assert set(ablation.ALONE) == {"labels", "frequency-noise", "noise-consistency", "student-alone"}
    _finished_run(tmp_path, "labels", [0.5, 0.7])
    few = ablation.Scale(2, per_source=30)
    assert few.options("labels") == ["--epochs", "2", "--per-source", "30"]
    with pytest.raises(DataError, match="levit_192 at 224 px, all images of a source"):
        ablation.row_from_run(tmp_path / "labels-0", tmp_path, "labels", 0, few)
    with pytest.raises(DataError, match="levit_192 at 224 px"):
        ablation.row_from_run(tmp_path / "labels-0", tmp_path, "labels", 0, scale)


def test_a_report_shows_what_was_recorded(tmp_path: Path) -> None:
    for preset, aucs in (("labels", [0.5, 0.6]), ("noise-consistency", [0.5, 0.65])):
        _finished_run(tmp_path, preset, aucs)
    arguments = [str(tmp_path), "--runs", str(tmp_path), "--epochs", "2", "--finished"]
    lines = CliRunner().invoke(ablation.main, arguments).stdout
    (tmp_path / "results.jsonl").write_text(lines)
    result = CliRunner().invoke(report.main, [str(tmp_path / "results.jsonl")])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `noise-consistency` | 0 | 0.750 | 0.650 | 0.450 | 0.450 |")
    assert rows[0].endswith("| +0.050 | +0.050 | +0.050 | +0.050 |")
    assert rows[1].startswith("| `labels` | 0 | 0.700 | 0.600 | 0.400 | 0.400 |")


def test_a_report_of_several_seeds_gives_means_and_ranges() -> None:
    def row(preset: str, seed: int, seen: float, unseen: float) -> dict[str, Any]:
        last = {"val_seen": {"auc": 0.7 + seen}, "val_unseen": {"auc": 0.6 + unseen}}
        return {"preset": preset, "seed": seed, "last": last, "auc_change": {"val_seen": seen, "val_unseen": unseen}}

    rows = [row("robust", 0, 0, 0), row("robust", 1, 0, 0), row("once", 0, 0.2, 0.2)]
    rows += [row("grey", 0, -0.01, 0.02), row("grey", 1, -0.03, 0.04)]
    assert tables.ablation_over_seeds(rows)[1] == [
        ["`grey`", "2", "0.680", "0.630", "-0.020 [-0.030, -0.010]", "+0.030 [+0.020, +0.040]"],
        ["`robust`", "2", "0.700", "0.600", "+0.000 [+0.000, +0.000]", "+0.000 [+0.000, +0.000]"],
    ]


def test_every_recorded_benchmark_has_a_table() -> None:
    paths = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*.jsonl"))
    result = CliRunner().invoke(report.main, [str(path) for path in paths])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    titles = [line for line in result.stdout.splitlines() if line.startswith("### ")]
    # One heading for each machine and its versions.
    assert list(dict.fromkeys(titles)) == list(dict.fromkeys(f"### {path.stem.partition('-')[0]}" for path in paths))


def test_a_report_of_two_machines_says_which_measured_what(tmp_path: Path) -> None:
    recorded = Path(__file__).parent.parent / "benchmarks" / "results" / "drift.jsonl"
    one = json.loads(recorded.read_text().splitlines()[0])
    other = {**one, "machine": {**one["machine"], "cpu": "another"}}
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, (one, other))))
    told = CliRunner().invoke(report.main, [str(tmp_path / "both.jsonl")]).stdout
    assert told.index(one["machine"]["cpu"]) < told.index("\n|") < told.index("another") < told.rindex("\n|")
    assert told.count("### drift") == 2


def test_a_report_of_something_else_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("{}\n")
    (tmp_path / "part.jsonl").write_text('{"benchmark": "cpu"}\n')
    wrong = "no benchmark wrote"
    for name, message in (("other.jsonl", wrong), ("part.jsonl", wrong), ("nowhere.jsonl", "No such file")):
        result = CliRunner().invoke(report.main, [str(tmp_path / name)])
        assert result.exit_code == 2
        assert message in result.stderr
