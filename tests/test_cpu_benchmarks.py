"""The CPU's benchmarks: what they compute, and that their commands run; how fast this machine is is not tested."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import write_image
from test_cpu_choice import FakeBackend

from aivsreal.benchmarks import report
from aivsreal.benchmarks.cli import main
from aivsreal.benchmarks.cpu import compare, contender, many_files, network
from aivsreal.benchmarks.cpu.photos import SHAPES, enlarged, spread, write_photos
from aivsreal.benchmarks.timing import ratio
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.errors import AivsrealError, BackendError, DataError
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC, Scores, batch_from_pixels
from aivsreal.runtime.spec import Geometry, PreprocessSpec, ResizeFilter
from aivsreal.runtime.verdict import LABELS, OperatingPoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        write_image(folder / f"{index}.png", index)
    return folder


def _lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_ratio_is_the_median_of_the_pairs_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    speed = rng.uniform(1, 3, 40)  # the machine's, which both of a pair share
    value, low, high = ratio(list(2.0 * speed * rng.normal(1, 0.02, 40)), list(speed))
    assert low < value < high
    assert low == pytest.approx(2.0, abs=0.03)
    assert high == pytest.approx(2.0, abs=0.03)
    with pytest.raises(ValueError, match="pairs"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("ms", "holds"), [(1.0, True), (2.5, False)])
def test_the_fastest_backend_is_held_to_its_ratio(monkeypatch: pytest.MonkeyPatch, ms: float, holds: bool) -> None:
    fakes = {"onnx": FakeBackend("onnx", 3.0), "openvino": FakeBackend("openvino", ms)}
    fakes["openvino"].precision = "bf16"
    monkeypatch.setattr(network, "opened_on_cpu", lambda _, name: fakes[name])
    monkeypatch.setattr(network, "ROUND_S", 0.05)
    first, second = network.paired_rows(Bundle.open(), ["onnx", "openvino"], 3)
    assert "holds" not in first
    assert (second["bound"], second["holds"]) == (1.8, holds)
    fakes["openvino"].precision = "fp32"  # a processor without either: nothing to hold it to
    assert not any("holds" in row for row in network.paired_rows(Bundle.open(), ["onnx", "openvino"], 1))


def test_processor_time_is_of_the_runs_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(FakeBackend):
        """A run takes longer than the warm-up, which is one whole run all the same, and the dearest here."""

        def run(self, squares: Sequence[PixelsHWC], maps: bool = False) -> Scores:
            clock[0] += 0.5 if clock[0] else 5.0
            return super().run(squares, maps)

    monkeypatch.setattr(network, "opened_on_cpu", lambda _, name: Slow(name, 30.0))
    monkeypatch.setattr(network, "process_time", lambda: clock[0])
    (row,) = network.network_rows(Bundle.open(), ["onnx"], [2], 0.05)
    assert row["cpu_ms_per_image"] == 250.0


def test_photos_have_their_size_and_grain(data: Path, tmp_path: Path) -> None:
    (path,) = write_photos(spread(data, 1), tmp_path, "256px")
    assert pixels_from_file(path).shape == (*SHAPES["256px"][::-1], 3)
    flat_HWC = np.full((30, 40, 3), 128, np.uint8)
    assert enlarged(flat_HWC, 400, 300, 0).std() == pytest.approx(6.0, abs=0.2)
    assert (enlarged(flat_HWC, 400, 300, 0, grain=0.0) == 128).all()
    with pytest.raises(DataError, match="holds 6 images, and 7 are wanted"):
        spread(data, 7)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes of the contenders: they answer as `contender.py` does and only sleep."""
    worker = tmp_path / "fake.py"
    worker.write_text(
        "import json, sys, time\n"
        "ms = {'aivsreal:auto': 2, 'plain-onnx': 8}.get(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    files = json.loads(line)\n"
        "    if ms is None: sys.exit(3)\n"
        "    begin = time.perf_counter(); time.sleep(ms * len(files) / 1000)\n"
        "    print(json.dumps([time.perf_counter() - begin, 0]), flush=True)\n"
    )
    monkeypatch.setattr(compare, "_WORKER", worker)


def _turns(rounds: int, seconds: float) -> dict[str, Any]:
    return {"pythons": {}, "rounds": rounds, "seconds": seconds, "tell": lambda _: None}


@pytest.mark.usefixtures("fakes")
def test_contenders_are_compared_in_turns_and_one_that_ends_is_told(data: Path) -> None:
    files = {"12-megapixel": spread(data, 4)}
    rows = list(
        compare.compare_rows(Bundle.open(), files, ["plain-onnx", "prnu"], **_turns(5, 0.02)),
    )
    missing, ours, plain = rows
    assert missing["contender"] == "prnu"
    assert "ended" in missing["not_measured"]
    assert ours["times_ours"] == [1.0, 1.0, 1.0]
    assert 1.5 < plain["times_ours"][0] < 4.5
    assert plain["times_ours"][1] <= plain["times_ours"][0] <= plain["times_ours"][2]
    assert (plain["bound"], plain["holds"]) == (3.0, plain["times_ours"][0] >= 3.0)
    assert plain["whole_runs"] == compare.WHOLE_RUNS
    assert 4 * 0.008 < plain["first_image_s"] + 4 * 0.008 < plain["whole_run_s"] + 0.02 < 60


@pytest.mark.usefixtures("fakes")
def test_a_detector_is_held_to_its_whole_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "WHOLE_BOUNDS", {"plain-onnx": 1000.0})
    files = {"1024px": spread(data, 2)}
    *_, row = compare.compare_rows(Bundle.open(), files, ["plain-onnx"], **_turns(2, 0.01))
    assert (row["bound"], row["whole_run_bound"], row["holds"]) == (2.0, 1000.0, False)
    assert row["times_ours"][0] >= 2.0  # one of its two bounds is met, and that is not enough


@pytest.mark.usefixtures("fakes")
def test_without_ours_there_is_nothing_to_compare(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "OURS", "sahu65")
    with pytest.raises(AivsrealError, match="sahu65 ended"):
        list(compare.compare_rows(Bundle.open(), {"1024px": spread(data, 2)}, [], **_turns(2, 0.01)))


def test_the_real_contender_answers_for_a_scan(data: Path) -> None:
    one = compare._warm(compare._begun("aivsreal:onnx-cpu", {}, Bundle.open()), spread(data, 3), 0.01)
    try:
        compare._run_whole(one, {}, Bundle.open(), spread(data, 3))
        assert 0 < one.judge([*spread(data, 2), data / "absent.png"]) < 60
        assert one.failed == 1
        # Two processes: which of them is quicker by some milliseconds for two images more is chance.
        assert min(one.first_s + one.whole_s) > 0.05
        assert len(one.first_s) == len(one.whole_s) == 1
    finally:
        compare._end(one)


def _bundle(folder: Path, small_model: Any, spec: PreprocessSpec) -> Bundle:
    point = OperatingPoint("balanced", 0.6, 0.4)
    manifest = Manifest("levit_128s", LABELS, spec, 1.2, (point,), "balanced")
    return write_bundle(folder / "bundle", {"model.onnx": small_model.SerializeToString()}, manifest)


def test_the_bundle_that_is_asked_for_is_ours(data: Path, tmp_path: Path, small_model: Any) -> None:
    bundle = _bundle(tmp_path, small_model, PreprocessSpec(64))
    (bundle.path / "model.onnx").unlink()  # who runs another one does not notice
    with pytest.raises(AivsrealError, match="ended"):
        compare._warm(compare._begun("aivsreal:onnx-cpu", {}, bundle), spread(data, 2), 0.01)
    idle = compare._begun("aivsreal:onnx-cpu", {}, Bundle.open())
    try:
        with pytest.raises(AivsrealError, match=r"model\.onnx"):
            compare._run_whole(idle, {}, bundle, spread(data, 2))
    finally:
        compare._end(idle)


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(64, crop_fraction=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        PreprocessSpec(64, Geometry.SQUASH, filter=ResizeFilter.LANCZOS),
    ],
)
def test_plain_loops_see_what_the_bundle_sees(
    tmp_path: Path, small_model: Any, monkeypatch: pytest.MonkeyPatch, spec: PreprocessSpec
) -> None:
    bundle = _bundle(tmp_path, small_model, spec)
    monkeypatch.setenv("AIVSREAL_BENCH_BUNDLE", str(bundle.path))
    image = write_image(tmp_path / "image.png", 1, (150, 90), smooth=True)
    seen_CHW = contender._timm_transform()(str(image)).numpy()
    ours_BCHW = batch_from_pixels([pixels_from_file(image)], spec)
    # Whether a crop is before or after the resize moves what is seen by a part of a pixel.
    assert np.abs(seen_CHW - ours_BCHW[0]).mean() < 0.02
    for plain in (contender.plain_torch, contender.plain_onnx):
        assert plain("")([str(image)]) == 0


def test_a_peer_that_cannot_be_installed_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compare.PEERS, "prnu", "prnu==0.0.0.dev0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AivsrealError, match=r"prnu==0\.0\.0\.dev0 cannot be installed"):
        compare.peer_python("prnu", tmp_path, lambda _: None)


def test_drift_is_measured_by_its_command(data: Path) -> None:
    result = CliRunner().invoke(main, ["drift", str(data), "--images", "3"])
    (row,) = _lines(result.stdout)
    assert result.exit_code == (0 if row["holds"] else 1), result.output
    assert row["images"] == 3
    assert set(row["mean_by_divisor"]) == {"2", "4", "8"}
    assert 0 < row["mean"] <= row["p99"] <= row["max"] < 0.05


def test_many_files_need_no_more_memory_than_few(data: Path) -> None:
    # The command takes 100,000 files against 1,000; this is the same code on fewer, and growth is left to that.
    row = many_files.many_files_row(spread(data, 6), 600, 200, "onnx-cpu")
    assert row["memory_ratio"] <= many_files.MEMORY_BOUND
    assert row["peak_mib"] > 50


def test_what_is_not_installed_is_not_measured_and_the_rest_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    site = tmp_path / "site"  # for the commands that are started
    site.mkdir()
    (site / "openvino.py").write_text("raise ModuleNotFoundError('No module', name='openvino')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    options = "--backend openvino --batch 1 --seconds 0.01 --files 1 --rounds 2".split()
    result = CliRunner().invoke(main, ["cpu", str(data), *options])
    rows = _lines(result.stdout)
    holds = all(row.get("holds") is not False for row in rows)  # how fast this machine is is chance
    assert result.exit_code == (0 if holds else 1), result.output
    seen = [(row["what"], row["backend"], row.get("shape")) for row in rows if "not_measured" in row]
    assert seen == [
        ("network", "openvino", None), ("scan", "openvino", "12-megapixel"), ("scan", "openvino", "1024px"),
        ("start", "openvino", None), ("memory", "openvino", "one 1024px"), ("memory", "openvino", "12-megapixel"),
        ("memory", "openvino", "1024px"),
    ]  # fmt: skip
    assert all("pip install 'aivsreal[openvino]'" in row["not_measured"] for row in rows if "not_measured" in row)
    assert [row["what"] for row in rows if "not_measured" not in row] == ["paired", "start"]
    file = tmp_path / "cpu.jsonl"
    file.write_text(result.stdout)
    table = CliRunner().invoke(main, ["report", str(file)]).stdout
    assert "| 1024px | openvino | not measured: openvino is needed" in table
    assert "| openvino | 1024px | not measured: " in table


def test_without_the_reference_there_are_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: Bundle, name: str) -> FakeBackend:
        if name == network.REFERENCE:
            raise BackendError("onnxruntime is not installed")
        return FakeBackend(name)

    monkeypatch.setattr(network, "opened_on_cpu", opened)
    (row,) = network.paired_rows(Bundle.open(), ["openvino"], 2)
    assert (row["what"], row["not_measured"]) == ("paired", "onnxruntime is not installed")


def test_wrong_use_is_told(data: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["cpu", str(data), "--backend", "abacus"], "'abacus' is not one of auto, onnx"),
        (["compare", str(data), "--with", "sieve"], "'sieve' is not one of plain-torch"),
        (["compare", str(data), "--shape", "8k"], "'8k' is not one of 12-megapixel"),
        (["drift", str(data), "--images", "500"], "holds 6 images, and 500 are wanted"),
        (["cpu", str(data), "--bundle", str(tmp_path)], "is not a bundle"),
        (["memory", str(tmp_path / "none")], "does not exist"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert words in result.output


MACHINE = {"cpu": "a CPU", "cores": 2, "packages": {"numpy": "2"}}
ROWS: list[dict[str, Any]] = [
    {"benchmark": "cpu", "what": "network", "backend": "onnx-cpu", "precision": "fp32", "batch": 8, "p50_ms": 100.0,
     "p90_ms": 110.0, "p99_ms": 120.0, "images_per_s": 80.0, "cpu_ms_per_image": 14.5},
    {"benchmark": "cpu", "what": "network", "backend": "openvino", "not_measured": "not installed"},
    {"benchmark": "cpu", "what": "paired", "backend": "openvino-cpu", "precision": "bf16", "ms_per_image": 4.0,
     "times_as_fast_as_onnx_fp32": [1.9, 1.85, 1.95], "bound": 1.8, "p_ai_difference": {"mean": 0.0002, "max": 0.0007}},
    {"benchmark": "cpu", "what": "scan", "shape": "1024px", "backend": "onnx-cpu", "precision": "fp32",
     "cpu_ms": {"read": 0.1, "decode": 2.0, "preprocess": 3.0, "inference": 14.0}, "images_per_s": 100.0,
     "share_of_bound": [0.9, 0.89, 0.91], "bound_share": 0.85},
    {"benchmark": "cpu", "what": "start", "backend": "auto", "best_ms": {"scan": 300.0, "imports": 170.0},
     "ratio": 1.76, "ratio_bound": 2.0},
    {"benchmark": "cpu", "what": "memory", "backend": "auto", "shape": "1024px", "files": 24, "peak_mib": 300.0},
    {"benchmark": "compare", "shape": "1024px", "contender": "plain-onnx", "ms_per_image": 16.0,
     "times_ours": [2.1, 2.0, 2.2], "bound": 2.0, "first_image_s": 2.5, "files": 24, "whole_run_s": 3.5,
     "whole_run_times_ours": [4.0, 3.9, 4.1]},
    {"benchmark": "compare", "contender": "prnu", "not_measured": "no index"},
    {"benchmark": "drift", "images": 500, "backend": "onnx-cpu", "mean": 0.001, "mean_bound": 0.003, "p99": 0.003,
     "max": 0.004, "flips_outside_unsure": 0},
    {"benchmark": "memory", "files": 100000, "against": 1000, "peak_mib": 300.0, "memory_ratio": 1.01,
     "memory_bound": 1.2, "ms_per_file": 4.2, "growth": 1.0, "growth_bound": 1.1},
]  # fmt: skip


def test_a_report_has_the_tables_and_the_plots(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps({**row, "machine": MACHINE}) + "\n" for row in ROWS))
    result = CliRunner().invoke(main, ["report", str(file), "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    for line in (
        "| onnx-cpu | fp32 | 8 | 100.0 | 110.0 | 120.0 | 80 | 14.5 |",
        "| openvino-cpu | bf16 | 4.00 | 1.90 [1.85, 1.95] | 1.8 | 0.0002, 0.0007 |",
        "| 1024px | onnx-cpu fp32 | 0.10 ms | 2.00 ms | 3.00 ms | 14.00 ms | 100 | 0.90 [0.89, 0.91] (at least 0.85) |",
        "| auto | 300 ms | 170 ms | 1.76 | 2 |",
        "| auto | 1024px | 24 | 300 MiB |",
        "| 1024px | plain-onnx | 16.0 | 2.10 [2.00, 2.20] | 2 | 2.50 s | 24 in 3.50 s | 4.00 [3.90, 4.10] |  |",
        "| 500 | onnx-cpu | 0.00100 | 0.003 | 0.00300 | 0.00400 | 0 |",
        "| 100,000 | 1,000 | 300 MiB | 1.01 | 1.2 | 4.20 | 1.00 | 1.1 |",
    ):
        assert line in result.stdout
    assert result.stdout.count("not measured: ") == 2
    for name in ("cpu", "compare"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert report.plots({}, tmp_path / "none") == []
