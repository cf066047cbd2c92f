"""An output replaces what this program wrote before, or nothing: no photograph, no input, no other output."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import write_image
from hostile import encoded
from PIL import Image, PngImagePlugin

from aivsreal.runtime.commands.report import main as report
from aivsreal.runtime.commands.scan import main as scan
from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.results.heatmap import write_map
from aivsreal.runtime.results.output import CSV, DRAWING, REPORT, check_apart, check_replaceable, replacing


def _scan(*arguments: object) -> Result:
    return CliRunner().invoke(scan, [str(argument) for argument in arguments])


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(report, [str(argument) for argument in arguments])


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, map_bundle: Path) -> Path:
    """A folder with two photographs and the results of one."""
    folder = tmp_path / "here"
    for index, name in enumerate(("a.jpg", "b.jpg")):
        write_image(folder / name, index, size=(300, 240))
    monkeypatch.chdir(folder)
    assert _scan("b.jpg", "--bundle", map_bundle, "--output", "o.jsonl").exit_code == 0
    return folder


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--html", "a.jpg", "b.jpg"],  # what a shell makes of --html *.jpg
        ["b.jpg", "--output", "a.jpg"],
        ["b.jpg", "--output", "q", "--html", "q"],
        ["b.jpg", "--output", "q", "--html", "../here/q"],
        ["b.jpg", "--html", "q", "--heatmaps", "q"],
        ["b.jpg", "--heatmaps", "."],  # b.jpg.png is a photograph
    ],
)
def test_a_scan_replaces_no_photograph_and_no_other_output(
    here: Path, map_bundle: Path, arguments: list[str], overwrite: list[str]
) -> None:
    os.link("a.jpg", "b.jpg.png")
    before = _content(here)
    result = _scan(*arguments, *overwrite, "--bundle", map_bundle)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    after = _content(here)
    assert {path: content for path, content in after.items() if content} == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--csv", "a.jpg"],
        ["--html", "a.jpg"],
        ["--csv", "o.jsonl"],
        ["--html", "o.jsonl"],
        ["--csv", "link"],
        ["--csv", "q", "--html", "./q"],
        ["--html", "."],
    ],
)
def test_a_report_replaces_neither_its_input_nor_a_photograph(
    here: Path, map_bundle: Path, arguments: list[str], overwrite: list[str]
) -> None:
    os.symlink("o.jsonl", "link")
    before = _content(here)
    result = _report("o.jsonl", *arguments, *overwrite, "--bundle", map_bundle)
    assert result.exit_code == 2, result.output
    assert _content(here) == before


def test_what_was_written_before_is_replaced_and_notes_only_when_asked(here: Path, map_bundle: Path) -> None:
    outputs = ["--html", "r.html", "--assets", "--heatmaps", "maps"]
    for _ in range(2):
        assert _scan("b.jpg", *outputs, "--bundle", map_bundle).exit_code == 0
        assert _report("o.jsonl", "--csv", "t.csv", "--bundle", map_bundle).exit_code == 0
    notes = here / "notes.txt"
    notes.write_text("mine")
    for command in (["b.jpg", "--html", "notes.txt"], ["b.jpg", "--output", "notes.txt"]):
        assert _scan(*command, "--bundle", map_bundle).exit_code == 2
        assert notes.read_text() == "mine"
    assert _scan("b.jpg", "--html", "notes.txt", "--overwrite", "--bundle", map_bundle).exit_code == 0
    assert "aivsreal report" in notes.read_text()


def test_a_results_file_is_begun_anew_only_when_asked(here: Path, map_bundle: Path) -> None:
    for asked, code, rows in (([], 2, ["b.jpg"]), (["--overwrite"], 0, ["a.jpg"])):
        assert _scan("a.jpg", "--output", "o.jsonl", *asked, "--bundle", map_bundle).exit_code == code
        assert [json.loads(line)["path"] for line in Path("o.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("refused", [["--html", "folder"], ["--heatmaps", "a.jpg"]])
def test_rows_stay_where_another_output_is_refused(here: Path, map_bundle: Path, refused: list[str]) -> None:
    (here / "folder").mkdir()
    before = _content(here)
    assert _scan("a.jpg", "--output", "o.jsonl", "--overwrite", *refused, "--bundle", map_bundle).exit_code == 2
    assert _content(here) == before


def test_a_report_stays_where_the_rows_are_refused(here: Path, map_bundle: Path) -> None:
    assert _scan("b.jpg", "--html", "r.html", "--bundle", map_bundle).exit_code == 0
    before = _content(here)
    assert _scan("a.jpg", "--output", "o.jsonl", "--html", "r.html", "--bundle", map_bundle).exit_code == 2
    assert _content(here) == before


def test_pictures_beside_a_report_replace_nothing_else(here: Path, map_bundle: Path) -> None:
    photo = write_image(here / "r_files" / "000001.jpg", 7)
    content = photo.read_bytes()
    os.mkfifo(here / "r_files" / "pipe.jpg")
    for _ in range(2):
        assert _scan("a.jpg", "b.jpg", "--html", "r.html", "--assets", "--bundle", map_bundle).exit_code == 0
        assert photo.read_bytes() == content
        assert len(list((here / "r_files").iterdir())) == 4


def test_a_file_that_is_gone_on_with_and_is_a_photograph_keeps_every_byte(here: Path, map_bundle: Path) -> None:
    before = _content(here)
    result = _scan("b.jpg", "--output", "a.jpg", "--resume", "--bundle", map_bundle)
    assert result.exit_code == 2
    assert "it is a JPEG picture" in result.stderr
    assert _content(here) == before


def test_a_report_is_said_to_be_there_when_it_is(here: Path, map_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _scan("b.jpg", "--html", "r.html", "--bundle", map_bundle)
    assert "report in r.html" in whole.stderr

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aivsreal.runtime.results.output.os.replace", full)
    result = _scan("b.jpg", "--html", "s.html", "--bundle", map_bundle)
    assert result.exit_code == 2
    _, error = result.stderr.splitlines()  # after the line on backend and bundle
    assert error.startswith("aivsreal-scan: s.html: cannot be written")
    assert not list(here.glob("*s.html*"))


def _drawn() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Software", "aivsreal, bundle levit")
    return encoded("PNG", pnginfo=text)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!doctype html>\n<html><head><title>aivsreal report</title>", REPORT),
        (b"path,label,p_ai,logit,reason,evidence,error,fault\r\n", CSV),
        (_drawn(), DRAWING),
    ],
)
def test_each_kind_is_known_by_its_content_and_replaced_by_itself_alone(
    tmp_path: Path, content: bytes, kind: object
) -> None:
    (tmp_path / "file").write_bytes(content)
    for other in (REPORT, CSV, DRAWING):
        if other is kind:
            check_replaceable(tmp_path / "file", other)
        else:
            with pytest.raises(OutputError):
                check_replaceable(tmp_path / "file", other)


@pytest.mark.parametrize(
    "content",
    [encoded("PNG"), encoded("WEBP"), encoded("AVIF"), encoded("TIFF"), encoded("BMP"), b"8BPS\0\1", b"\xff\x0a\x01"],
)
def test_no_picture_is_replaced_even_when_asked(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for kind in (REPORT, CSV, DRAWING):
        with pytest.raises(OutputError, match="pictures are not replaced"):
            check_replaceable(tmp_path / "file", kind, overwrite=True)


def test_an_array_is_replaced_beside_our_picture_alone(tmp_path: Path) -> None:
    map_hw, picture = np.zeros((4, 4), np.float32), Image.new("RGB", (32, 32))
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(OutputError, match=r"a\.npy is a numpy array"):
        write_map(tmp_path, Path("a"), picture, map_hw, {"Title": "t"})
    write_map(tmp_path, Path("a"), picture, map_hw, {"Title": "t"}, overwrite=True)
    write_map(tmp_path, Path("a"), picture, map_hw + 1, {"Title": "t"})
    assert (np.load(tmp_path / "a.npy") == 1).all()


def test_a_stream_becomes_the_file_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    (tmp_path / "link").symlink_to("file")

    def broken() -> None:
        with replacing(target) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert (target.read_text(), sorted(os.listdir(tmp_path))) == ("old", ["file", "link"])
    with replacing(tmp_path / "link") as stream:
        stream.write(b"new")
    assert target.read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_a_table_goes_into_a_pipe_too(here: Path) -> None:
    command = [sys.executable, "-m", "aivsreal.runtime.commands.report", "o.jsonl", "--csv", "/dev/stdout"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("b.jpg,")


def test_a_table_that_cannot_be_written_is_one_error(here: Path, map_bundle: Path) -> None:
    assert here == Path.cwd()
    result = _report("o.jsonl", "--csv", "/dev/full", "--bundle", map_bundle)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["aivsreal-report: /dev/full: cannot be written: No space left on device"]


def test_two_outputs_are_told_apart_by_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    check_apart({"--html": tmp_path / "x", "--csv": tmp_path / "y"})
    with pytest.raises(OutputError, match="--html and --csv"):
        check_apart({"--html": tmp_path / "x", "--csv": tmp_path / "link"})


def test_an_evaluation_goes_over_an_evaluation_alone(tmp_path: Path) -> None:
    from aivsreal.train.evaluate.report import check_report, write_report

    about = {"arch": "levit_128s", "bundle": "0", "operating_point": "balanced"}
    told: list[str] = []
    for _ in range(2):
        write_report(tmp_path / "out", about, [], told.append)
    (tmp_path / "out" / "report.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"report\.json is another file"):
        check_report(tmp_path / "out", ["val"], False)
    check_report(tmp_path / "out", ["val"], True)
    write_image(tmp_path / "out" / "roc-val.png", 1)
    with pytest.raises(OutputError, match="a PNG picture"):
        check_report(tmp_path / "out", ["val"], True)


@pytest.mark.parametrize("name", ["best.json", "metrics.jsonl", "curves.png"])
def test_a_run_begins_in_no_folder_that_has_something_of_that_name(
    tiny_data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from aivsreal.train.cli import main

    (tmp_path / name).write_text("mine")
    result = CliRunner().invoke(main, [str(tiny_data), "-o", str(tmp_path), "--epochs", "1", "--device", "cpu"])
    assert result.exit_code == 2
    assert f"already holds {name}" in result.output
    assert (tmp_path / name).read_text() == "mine"
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_stops_at_a_map_and_loses_no_row(
    here: Path, map_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Callable[..., object]] = []

    def full(*arguments: object, **options: object) -> None:
        calls.append(full)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aivsreal.runtime.results.heatmap.np.save", full)
    result = _scan("a.jpg", "b.jpg", "--bundle", map_bundle, "--heatmaps", "maps", "--batch-size", 1)
    assert (result.exit_code, len(calls)) == (2, 1)
    assert len(result.stdout.splitlines()) == 1
    assert not list(here.rglob("*.npy"))
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert _scan("a.jpg", "b.jpg", "--bundle", map_bundle, "--heatmaps", "maps").exit_code == 0
