"""The report and the CSV of a results file, made after the scan."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import write_image

from aivsreal.runtime.commands.report import main
from aivsreal.runtime.commands.scan import main as scan
from aivsreal.runtime.results.html import HtmlReport
from aivsreal.runtime.verdict import Scanned


@pytest.fixture
def scanned(tmp_path: Path, tiny_bundle: Path) -> tuple[Path, Path]:
    """A folder of three images and one broken file, scanned in two runs, and its results file."""
    folder, results = tmp_path / "photos", tmp_path / "results.jsonl"
    write_image(folder / "a.png", 1)
    (folder / "broken.png").write_bytes(b"no image")
    arguments = [str(folder), "--bundle", str(tiny_bundle), "--output", str(results)]
    assert CliRunner().invoke(scan, arguments).exit_code == 1
    for index, name in enumerate(("b.png", "=c.png")):
        write_image(folder / name, index + 2)
    assert CliRunner().invoke(scan, [*arguments, "--resume"]).exit_code == 1
    return folder, results


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_report_of_several_runs_has_them_all(scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    _, results = scanned
    html, table = tmp_path / "report.html", tmp_path / "report.csv"
    result = _run(results, "--html", html, "--csv", table, "--bundle", tiny_bundle)
    assert result.exit_code == 0, result.output
    assert "4 files of" in result.stderr
    assert "with the 3 pictures" in result.stderr
    with table.open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows.keys() == {"a.png", "b.png", "=c.png", "broken.png"}
    judged = {Path(row["path"]).name: row for row in map(json.loads, results.read_text().splitlines())}
    assert rows["b.png"]["p_ai"] == f"{judged['b.png']['p_ai']:.6f}"
    assert rows["broken.png"]["label"] == "error"
    assert all(name in html.read_text() for name in rows)


def test_a_changed_file_gives_no_picture_and_its_verdict_stays(
    scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, results = scanned
    write_image(folder / "a.png", 9, size=(200, 100))
    (folder / "b.png").unlink()
    result = _run(results, "--html", tmp_path / "report.html", "--bundle", tiny_bundle)
    assert result.exit_code == 0, result.output
    assert "4 files of" in result.stderr
    assert "with the 1 pictures" in result.stderr


def test_one_that_is_stopped_leaves_the_report_that_is_there(
    scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = tmp_path / "report.html"
    assert _run(scanned[1], "--html", html, "--bundle", tiny_bundle).exit_code == 0
    before = html.read_bytes()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aivsreal.runtime.results.html.HtmlReport.write", stopped)
    result = _run(scanned[1], "--html", html, "--bundle", tiny_bundle)
    assert (result.exit_code, "no report was written" in result.stderr) == (130, True)
    assert html.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "report.html", "results.jsonl"]


def test_one_that_is_stopped_leaves_the_pictures_of_the_report_that_is_there(
    scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [scanned[1], "--html", tmp_path / "r.html", "--assets", "--bundle", tiny_bundle]
    assert _run(*arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "r_files").iterdir()}
    assert len(before) == 3
    scanned[1].write_text("".join(reversed(scanned[1].read_text().splitlines(keepends=True))))
    with monkeypatch.context() as stopping:
        write = HtmlReport.write

        def stopped(report: HtmlReport, one: Scanned) -> None:
            write(report, one)
            if one.path.name == "b.png":
                raise KeyboardInterrupt

        stopping.setattr(HtmlReport, "write", stopped)
        assert _run(*arguments).exit_code == 130
    assert {path.name: path.read_bytes() for path in (tmp_path / "r_files").iterdir()} == before
    scanned[1].write_text(scanned[1].read_text().splitlines(keepends=True)[0])
    assert _run(*arguments).exit_code == 0
    assert len(list((tmp_path / "r_files").iterdir())) == 1


def test_no_part_of_a_file_stays_after_sigterm(
    scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "aivsreal.runtime.results.html.HtmlReport.write"
    monkeypatch.setattr(written, lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        result = _run(scanned[1], "--html", tmp_path / "r.html", "--csv", tmp_path / "r.csv", "--bundle", tiny_bundle)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, "no report was written" in result.stderr) == (143, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "results.jsonl"]


def test_a_text_that_is_no_unicode_stops_no_table(scanned: tuple[Path, Path], tmp_path: Path) -> None:
    row = json.loads(scanned[1].read_text().splitlines()[0])
    scanned[1].write_text(json.dumps(row | {"reason": "why \ud800"}) + "\n")
    assert _run(scanned[1], "--csv", tmp_path / "r.csv").exit_code == 0
    assert r"why \ud800" in (tmp_path / "r.csv").read_text()


def test_rows_of_two_operating_points_are_no_report_of_one(
    scanned: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.jsonl"
    other = [row | {"operating_point": "other"} for row in map(json.loads, scanned[1].read_text().splitlines()[:1])]
    other[0]["path"] = "elsewhere.png"
    both.write_text(scanned[1].read_text() + json.dumps(other[0]) + "\n")
    result = _run(both, "--html", tmp_path / "r.html", "--csv", tmp_path / "r.csv", "--bundle", tiny_bundle)
    assert (result.exit_code, "and of bundle" in result.stderr) == (2, True)
    assert not list(tmp_path.glob("r.*"))
    assert _run(both, "--csv", tmp_path / "r.csv").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RESULTS"], "nothing to make"),
        (["RESULTS", "--csv", "x.csv", "--assets"], "--assets is for --html"),
        (["nowhere.jsonl", "--csv", "x.csv"], "nowhere.jsonl cannot be read"),
        (["RESULTS", "--html", "x.html"], "name it with --bundle"),
        (["RESULTS", "--csv", "no/folder/x.csv"], "cannot be written"),
        (["empty.jsonl", "--csv", "x.csv"], "has no rows"),
        (["other.jsonl", "--csv", "x.csv"], "is it a results file?"),
        (["surrogate.jsonl", "--html", "x.html"], "is it a results file?"),
    ],
)
def test_wrong_use_is_one_error(
    scanned: tuple[Path, Path], arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("other.jsonl").write_text("{}\n")
    row = json.loads(scanned[1].read_text().splitlines()[0])
    Path("surrogate.jsonl").write_text(json.dumps(row | {"path": "\ud800.jpg"}) + "\n")
    result = _run(*(os.fspath(scanned[1]) if argument == "RESULTS" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.glob("x.html"))
