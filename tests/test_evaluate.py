"""The evaluation's numbers, output and errors, with a stand-in detector that looks at brightness alone."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from aivsreal.runtime.errors import BundleError, DataError
from aivsreal.runtime.verdict import OperatingPoint, Verdict, verdict_from_logit
from aivsreal.train.evaluate.bootstrap import measures
from aivsreal.train.evaluate.commands import main
from aivsreal.train.evaluate.metrics import auc
from aivsreal.train.samples import Sample, limited, samples_under

POINT = OperatingPoint("half", 0.7, 0.3)
REAL, SOURCES = (60, 100, 140), ("one", "two")  # grey of the real images; the AI images are their mirror at 128


@dataclass
class StandInDetector:
    """Stands in for runtime.detector.Detector: bright is ai."""

    why: str = "a stand-in for a test"
    point: OperatingPoint = POINT

    @property
    def bundle(self) -> SimpleNamespace:
        return SimpleNamespace(manifest=SimpleNamespace(arch="stand_in"), digest="0123456789ab")

    @property
    def backend(self) -> SimpleNamespace:
        return SimpleNamespace(name="stand-in", precision="fp32")

    def __enter__(self) -> StandInDetector:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge_many(self, images: Iterable[Any], batch_size: int = 16) -> Iterator[Verdict]:
        batch: list[Any] = []
        for image in images:  # takes a batch before it answers, as the real one does
            batch.append(image)
            if len(batch) == batch_size:
                yield from map(self._verdict, batch)
                batch = []
        yield from map(self._verdict, batch)

    def _verdict(self, image: Any) -> Verdict:
        return verdict_from_logit((float(image.mean()) - 128) / 20, 1.0, self.point)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aivsreal.runtime.detector.Detector.open", lambda *_, **__: StandInDetector())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        for label in ("real", "ai"):
            for source in SOURCES:
                folder = tmp_path / "data" / split / label / source
                folder.mkdir(parents=True)
                for grey in REAL:
                    level = grey if label == "real" else 256 - grey
                    image = Image.new("L", (24, 20), level)
                    for x, other in enumerate((level - 9, level + 9)):  # a flat one would not be judged
                        image.putpixel((x, 0), other)
                    image.save(folder / f"{grey}.png")
    return tmp_path / "data"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_numbers_are_those_counted_by_hand(data: Path) -> None:
    result = _run(data, "--split", "test", "--json")
    assert result.exit_code == 0, result.output
    (line,) = map(json.loads, result.stdout.splitlines())
    assert (line["real"], line["ai"]) == (6, 6)
    assert line["measures"]["accuracy"]["value"] == pytest.approx(4 / 6)
    # Of the nine pairs of greys 60, 100, 140 against 196, 156, 116 only 140 beats 116.
    assert line["measures"]["auc"]["value"] == pytest.approx(8 / 9)
    assert line["real_right"] == pytest.approx(2 / 3)
    # p_ai of 140 is 0.65 and of 116 is 0.35: in the band.
    assert (line["real_called_ai"], line["unsure"]) == (0.0, pytest.approx(1 / 3))
    assert line["ai_called_ai"] == pytest.approx(2 / 3)
    assert [(row["label"], row["source"]) for row in line["sources"]] == [
        ("real", "one"), ("real", "two"), ("ai", "one"), ("ai", "two"),
    ]  # fmt: skip
    assert line["macro"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert line["sources"][0]["right"]["value"] == pytest.approx(2 / 3)
    assert line["sources"][0]["auc"]["value"] == pytest.approx(8 / 9)
    assert [(mistake["name"], mistake["source"], mistake["label"]) for mistake in line["mistakes"]] == [
        ("140.png", "one", "real"), ("140.png", "two", "real"), ("140.png", "one", "ai"), ("140.png", "two", "ai"),
    ]  # fmt: skip
    assert line["mistakes"][0]["p_ai"] == pytest.approx(0.646, abs=1e-3)
    assert line["baseline_auc"]["value"] > 0.8
    assert line["baseline_fitted_on"] == 12


def test_kinds_of_images_get_their_rows(data: Path) -> None:
    rows = ["path,label,split,source,kind"]
    for label in ("real", "ai"):
        for source in SOURCES:
            for path in sorted((data / "test" / label / source).iterdir()):
                kind = "document" if label == "real" and path.stem == "140" else ""
                rows.append(f"{path.relative_to(data)},{label},test,{source},{kind}")
    (data / "images.csv").write_text("\n".join(rows) + "\n")
    (data / "kinds.csv").write_text("source,kind\none,portrait\ntwo,art\n")
    line = json.loads(_run(data, "--no-baseline", "--json").stdout)
    found = {(row["label"], row["kind"]): row for row in line["kinds"]}
    assert {key: (row["images"], row["sources"]) for key, row in found.items()} == {
        ("real", "art"): (2, 1), ("real", "document"): (2, 2), ("real", "portrait"): (2, 1),
        ("ai", "art"): (3, 1), ("ai", "portrait"): (3, 1),
    }  # fmt: skip
    assert (found["real", "document"]["unsure"], found["real", "document"]["called_ai"]["value"]) == (1.0, 0.0)
    assert found["ai", "art"]["called_ai_macro"] == pytest.approx(2 / 3)
    assert line["macro_called"] == {
        "real_called_ai": 0.0, "ai_called_ai": pytest.approx(2 / 3), "unsure_real": pytest.approx(1 / 3),
        "unsure_ai": pytest.approx(1 / 3),
    }  # fmt: skip
    words = _run(data, "--no-baseline").stdout
    assert "split test, by kind of image" in words
    assert "document" in words
    (data / "kinds.csv").write_text("name\none\n")
    assert "kinds.csv: needs the columns source and kind" in _run(data).stderr


def test_without_kinds_there_is_no_such_table(data: Path) -> None:
    assert json.loads(_run(data, "--split", "test", "--json").stdout)["kinds"] == []
    assert "by kind" not in _run(data, "--split", "test").stdout


def test_the_macro_auc_is_the_mean_over_pairs_of_sources() -> None:
    target_B = np.array([0] * 9 + [0] * 3 + [1] * 5 + [1] * 2)
    source_B = ["a"] * 9 + ["b"] * 3 + ["c"] * 5 + ["d"] * 2
    score_B = np.random.default_rng(0).normal(target_B, 1.0)
    at = {name: np.array([one == name for one in source_B]) for name in "abcd"}
    pairs = [auc(target_B[at[r] | at[m]], score_B[at[r] | at[m]]) for r in "ab" for m in "cd"]
    found = measures(target_B, score_B, ("auc",), draws=1, source_B=source_B)["auc"].value
    assert found == pytest.approx(np.mean(pairs))
    assert found != pytest.approx(auc(target_B, score_B), abs=1e-3)


def test_json_lines_keep_their_fields(data: Path) -> None:
    lines = [json.loads(line) for line in _run(data, "--tier", "clean", "--tier", "hard", "--json").stdout.splitlines()]
    assert [(line["split"], line["tier"]) for line in lines] == [
        ("test", "clean"), ("test", "hard"), ("val", "clean"), ("val", "hard"),
    ]  # fmt: skip
    assert set(lines[0]) == {
        "format", "arch", "bundle", "backend", "precision", "operating_point", "baseline_fitted_on", "skipped",
        "stability", "split", "tier", "real", "ai", "measures", "baseline_auc", "real_right", "macro",
        "real_called_ai", "ai_called_ai", "unsure", "macro_called", "sources", "kinds", "mistakes",
    }  # fmt: skip
    assert lines[0]["stability"] == 1.0


def test_tables_go_to_stdout_and_the_backend_is_named_on_stderr(data: Path) -> None:
    result = _run(data, "--split", "val", "--no-baseline")
    assert "balanced accuracy" in result.stdout
    assert "one" in result.stdout
    assert result.stderr.startswith("stand-in fp32, bundle stand_in 0123456789ab: a stand-in")


def test_a_report_has_numbers_words_and_plots(data: Path, tmp_path: Path) -> None:
    assert _run(data, "--tier", "clean", "--tier", "web", "-o", tmp_path / "report").exit_code == 0
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    plots = ["reliability-test.png", "reliability-val.png"]
    assert written == [*plots, "report.json", "report.md", "roc-test.png", "roc-val.png"]
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [len(split["tiers"][0]["reliability"]) for split in values["splits"]] == [15, 15]
    words = (tmp_path / "report" / "report.md").read_text()
    assert "![ROC](roc-test.png)" in words
    assert "keep their label in every delivery" in words


def test_without_matplotlib_the_report_has_no_plots_and_says_which_extra(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_matplotlib(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name=name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    result = _run(data, "--split", "val", "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "pip install 'aivsreal[train]'" in result.stderr
    assert "png" not in (tmp_path / "report" / "report.md").read_text()


def test_an_image_that_cannot_be_read_is_named_and_left_out(data: Path) -> None:
    (data / "val" / "real" / "one" / "60.png").write_bytes(b"no image")
    result = _run(data, "--split", "val", "--json")
    assert result.exit_code == 1
    assert "skipped: " in result.stderr
    assert "60.png" in result.stderr
    assert json.loads(result.stdout)["real"] == 5
    assert json.loads(result.stdout)["skipped"] == 1


def test_what_is_left_out_is_said(data: Path) -> None:
    told = "judging split test, val; the 12 images of split train are left out"
    assert told in _run(data, "--no-baseline").stderr
    assert told not in _run(data, "--no-baseline", "--split", "val").stderr
    assert "left out" not in _run("--real", data / "val" / "real", "--ai", data / "val" / "ai").stderr


def test_two_folders_do_for_a_data_set(data: Path) -> None:
    result = _run("--real", data / "val" / "real", "--ai", data / "val" / "ai", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["split"] == "all"
    assert json.loads(result.stdout)["baseline_auc"] is None
    assert "no baseline" in result.stderr


def test_few_images_are_said_to_be_too_few(data: Path) -> None:
    result = CliRunner().invoke(main, [str(data), "--split", "test", "--limit", "1", "--no-baseline"])
    assert "split test: 1 real images are too few: a false-alarm rate of 1 % needs 100 or more" in result.stderr
    assert "split test: 1 AI images are too few" in result.stderr


def test_a_limit_counts_each_class(data: Path) -> None:
    line = json.loads(_run(data, "--split", "val", "--limit", 2, "--json").stdout)
    assert (line["real"], line["ai"]) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the images once"),
        (["DATA", "--real", "DATA"], "name the images once"),
        (["nowhere"], "no such file or folder"),
        (["DATA", "--split", "nowhere"], "no image labelled real"),
        (["--real", "nowhere", "--ai", "DATA"], "no such folder"),
        (["DATA", "--tier", "soft"], "'soft' is not one of"),
        (["DATA", "--limit", "0"], "x>=1"),
    ],
)
def test_wrong_use_is_one_error_and_exit_code_two(data: Path, arguments: list[str], message: str) -> None:
    result = _run(*(data if argument == "DATA" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("Error:") + result.stderr.count("aivsreal-evaluate: ") == 1


def test_a_bundle_that_is_not_there_is_wrong_use(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise BundleError("nowhere is no folder; make it again with aivsreal-export")

    monkeypatch.setattr("aivsreal.runtime.detector.Detector.open", missing)
    result = _run(data, "--bundle", "nowhere")
    assert result.exit_code == 2
    assert "nowhere is no folder" in result.stderr


def test_limited_samples_are_spread_over_the_list() -> None:
    samples = [Sample(Path(f"{index}"), "ai", "val", str(index // 10)) for index in range(100)]
    assert [sample.source for sample in limited(samples, 5)] == ["0", "2", "4", "6", "8"]
    assert limited(samples, None) == limited(samples, 1000) == samples


def test_a_folder_of_images_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        samples_under(tmp_path / "nowhere", "ai", "all")


def test_an_evaluation_needs_no_torch_and_loads_no_matplotlib() -> None:
    code = (
        "import sys, aivsreal.train.evaluate.commands, aivsreal.train.evaluate.report;"
        "import aivsreal.train.calibrate.command;"
        "print([name for name in ('torch', 'timm', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
