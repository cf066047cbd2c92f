"""No result is lost and none is there twice, however a scan ends. AIVSREAL_ROUNDS=50 kills it fifty times."""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hostile import encoded, picture

from aivsreal.runtime.errors import Fault, ResultsError
from aivsreal.runtime.pixels.read import stamp_of
from aivsreal.runtime.results.file import ResultsFile, rows_from_file
from aivsreal.runtime.results.row import latest_rows
from aivsreal.runtime.verdict import Judge, Label, Scanned, Verdict

SCAN = [sys.executable, "-m", "aivsreal.runtime.commands.scan"]
JUDGE = Judge("0123456789ab", "balanced", "onnx-cpu fp32")
ROUNDS = int(os.environ.get("AIVSREAL_ROUNDS", "4"))


def _scanned(path: Path, by_content: bool = False) -> Scanned:
    return Scanned(path, Verdict(Label.AI, 0.75, 1.1, "why"), stamp=stamp_of(path, by_content))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.jpg").write_bytes(encoded("JPEG", picture(index, (32, 24))))
    return sorted(folder.iterdir())


@pytest.fixture
def results(tmp_path: Path, photos: list[Path]) -> Path:
    with ResultsFile(tmp_path / "results.jsonl", JUDGE) as file:
        for path in photos[:3]:
            file.write(_scanned(path))
    return tmp_path / "results.jsonl"


def test_what_is_there_is_known_and_what_has_changed_is_not(results: Path, photos: list[Path]) -> None:
    photos[0].write_bytes(b"another size")
    os.utime(photos[1], ns=(1, 1))
    with ResultsFile(results, JUDGE, resume=True) as file:
        assert [file.is_known(path) for path in photos] == [False, False, True, False, False]
        assert file.skipped == 1


def test_a_file_is_known_by_whatever_path_it_is_named(
    results: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos[0].parent)
    with ResultsFile(results, JUDGE, resume=True) as file:
        assert all(file.is_known(Path(name)) for name in ("0.jpg", "../photos/1.jpg", "./2.jpg"))
        file.write(_scanned(Path("0.jpg")))
    rows = list(latest_rows(rows_from_file(results)))
    assert [row.scanned.path.name for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert rows[0].scanned.path == Path("0.jpg")


def test_a_file_that_is_as_it_was_before_its_latest_row_is_judged_again(results: Path, photos: list[Path]) -> None:
    content, before, times = photos[0].read_bytes(), photos[0].stat(), photos[1].stat()
    with ResultsFile(results, JUDGE, resume=True) as file:
        photos[0].write_bytes(b"another picture")
        file.write(_scanned(photos[0]))
        os.utime(photos[1], ns=(1, 1))
        file.write(_scanned(photos[1]))
        os.utime(photos[1], ns=(times.st_atime_ns, times.st_mtime_ns))
        assert not file.is_known(photos[1])
    photos[0].write_bytes(content)
    os.utime(photos[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    with ResultsFile(results, JUDGE, resume=True) as file:
        assert [file.is_known(path) for path in photos] == [False, False, True, False, False]


def test_by_content_a_new_time_is_no_change(tmp_path: Path, photos: list[Path]) -> None:
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, by_content=True) as file:
        for path in photos[:2]:
            file.write(_scanned(path, by_content=True))
    os.utime(photos[0], ns=(1, 1))
    status = photos[1].stat()
    content = bytearray(photos[1].read_bytes())
    content[-10] ^= 1
    photos[1].write_bytes(content)
    os.utime(photos[1], ns=(status.st_atime_ns, status.st_mtime_ns))  # a change that size and time do not show
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, resume=True, by_content=True) as file:
        assert [file.is_known(path) for path in photos[:2]] == [True, False]
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, resume=True) as file:
        assert [file.is_known(path) for path in photos[:2]] == [False, True]


def test_rows_without_a_sha256_cannot_be_gone_on_with_by_content(results: Path) -> None:
    with pytest.raises(ResultsError, match="without --by-content"):
        ResultsFile(results, JUDGE, resume=True, by_content=True)


def test_errors_are_known_unless_they_are_to_be_tried_again(tmp_path: Path, photos: list[Path]) -> None:
    gone = tmp_path / "gone.jpg"
    with ResultsFile(tmp_path / "r.jsonl", JUDGE) as file:
        file.write(Scanned(photos[0], error="damaged", fault=Fault.DAMAGED, stamp=stamp_of(photos[0])))
        file.write(Scanned(gone, error="no such file", fault=Fault.MISSING))
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, resume=True) as file:
        assert file.is_known(photos[0])
        assert file.is_known(gone)
        assert (file.skipped, file.skipped_errors) == (2, 2)
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, resume=True, retry_errors=True) as file:
        assert not file.is_known(photos[0])


@pytest.mark.parametrize(("before", "after"), [("", "\n"), ("\n \r\n", "\n\n"), ("", "\r\n  ")])
def test_empty_lines_are_passed_over(results: Path, photos: list[Path], before: str, after: str) -> None:
    rows = len(list(rows_from_file(results)))
    results.write_text(before + results.read_text() + after)
    with ResultsFile(results, JUDGE, resume=True) as file:
        assert file.is_known(photos[0])
        file.write(_scanned(photos[-1]))
    assert len(list(rows_from_file(results))) == rows + 1


def test_a_line_that_is_no_json_is_said_to_be_that(results: Path) -> None:
    results.write_text(results.read_text() + "oops\n")
    with pytest.raises(ResultsError, match="is no JSON"):
        list(rows_from_file(results))


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_dropped_and_its_file_judged_again(results: Path, photos: list[Path], left: int) -> None:
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:2]) + lines[2][:left])
    assert len(list(rows_from_file(results))) == (3 if left == -1 else 2)  # -1: whole, but for its newline
    with ResultsFile(results, JUDGE, resume=True) as file:
        assert [file.is_known(path) for path in photos[:3]] == [True, True, left == -1]
        file.write(_scanned(photos[3]))
    names = [row.scanned.path.name for row in rows_from_file(results)]
    assert names == ["0.jpg", "1.jpg", *(["2.jpg"] if left == -1 else []), "3.jpg"]


@pytest.mark.parametrize("torn", [b"{", b'{"path": "a', b'{"path": "a.jpg", "label": "ai"'])
def test_an_only_row_that_is_torn_is_dropped(tmp_path: Path, photos: list[Path], torn: bytes) -> None:
    (tmp_path / "r.jsonl").write_bytes(torn)
    with ResultsFile(tmp_path / "r.jsonl", JUDGE, resume=True) as file:
        file.write(_scanned(photos[0]))
    assert [row.scanned.path for row in rows_from_file(tmp_path / "r.jsonl")] == [photos[0]]


@pytest.mark.parametrize("content", [encoded("JPEG"), b"a\nline without an end", b'{"other": 1}\n{"rest": '])
def test_going_on_with_another_file_changes_no_byte(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ResultsError, match="is no results file"):
        ResultsFile(tmp_path / "file", JUDGE, resume=True)
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_that_is_no_results_file_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\nmy own\n")
    for resume in (False, True):
        with pytest.raises(ResultsError, match=r"notes\.txt"):
            ResultsFile(notes, JUDGE, resume=resume)
    assert notes.read_text() == "mine\nmy own\n"
    with pytest.raises(ResultsError, match="not a regular file"):
        ResultsFile(Path("/dev/null"), JUDGE)
    with pytest.raises(ResultsError, match="cannot be written"):
        ResultsFile(tmp_path / "absent" / "r.jsonl", JUDGE)


def test_results_of_another_judge_are_not_mixed_in(results: Path) -> None:
    for judge in (Judge("another12345", "balanced", "b"), Judge(JUDGE.bundle, "cautious", "b")):
        with pytest.raises(ResultsError, match="name another file"):
            ResultsFile(results, judge, resume=True)
    ResultsFile(results, Judge(JUDGE.bundle, JUDGE.operating_point, "torch fp32"), resume=True).close()


def test_a_scan_that_is_gone_on_with_counts_the_errors_that_are_there(tmp_path: Path, photos: list[Path]) -> None:
    (photos[0].parent / "broken.jpg").write_bytes(b"broken")
    command = [*SCAN, str(photos[0].parent), "--output", str(tmp_path / "r.jsonl"), "--resume"]
    for _ in range(2):
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 1
    assert "r.jsonl already: 6 files, errors 1" in again.stderr


def test_two_scans_do_not_write_to_one_file(results: Path) -> None:
    with ResultsFile(results, JUDGE, resume=True), pytest.raises(ResultsError, match="in use"):
        ResultsFile(results, JUDGE, resume=True)


def test_what_took_the_place_of_a_results_file_is_left_alone(results: Path, photos: list[Path]) -> None:
    photo = photos[0].read_bytes()
    with ResultsFile(results, JUDGE, resume=True) as file:
        results.rename(results.with_suffix(".1"))
        results.write_bytes(photo)
        with pytest.raises(ResultsError, match="it is a JPEG picture"):
            file.write(_scanned(photos[4]))
    assert results.read_bytes() == photo


def test_a_results_file_that_is_rotated_away_is_begun_anew(results: Path, photos: list[Path]) -> None:
    with ResultsFile(results, JUDGE, resume=True) as file:
        results.rename(results.with_suffix(".1"))
        file.write(_scanned(photos[3]))
        results.unlink()
        file.write(_scanned(photos[4]))
    assert len(list(rows_from_file(results.with_suffix(".1")))) == 3
    assert [row.scanned.path for row in rows_from_file(results)] == [photos[4]]


def test_a_row_is_not_joined_to_a_line_without_an_end_of_what_took_the_files_place(
    results: Path, photos: list[Path]
) -> None:
    with ResultsFile(results, JUDGE, resume=True) as file:
        saved = results.read_bytes().removesuffix(b"\n")  # as an editor saves it that puts a new file there
        results.rename(results.with_suffix(".1"))
        results.write_bytes(saved)
        file.write(_scanned(photos[3]))
    assert [row.scanned.path for row in rows_from_file(results)] == photos[:4]


def test_a_full_disk_leaves_whole_rows_and_says_how_to_go_on(tmp_path: Path, photos: list[Path]) -> None:
    """A limit on the size of files stands in for the disk's end: the write that crosses it is cut short, then fails."""
    output = tmp_path / "results.jsonl"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    command = [*SCAN, str(photos[0].parent), "--output", str(output)]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert (full.returncode, full.stdout) == (2, "")
    assert full.stderr.count("cannot be written") == 1
    assert "--resume" in full.stderr
    assert "Traceback" not in full.stderr
    kept = output.read_bytes()
    assert kept.endswith(b"}\n")
    assert 0 < kept.count(b"\n") < 5
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    assert output.read_bytes().startswith(kept)
    assert _names(output) == Counter(f"{index}.jpg" for index in range(5))


def test_a_standard_output_that_is_full_is_one_error(photos: list[Path]) -> None:
    with open("/dev/full", "wb") as full:
        command = [*SCAN, str(photos[0].parent)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr.count("standard output cannot be written: No space left on device") == 1
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_and_says_how_to_go_on(
    tmp_path: Path, photos: list[Path], number: signal.Signals, code: int
) -> None:
    output = tmp_path / "results.jsonl"
    command = [*SCAN, "-", "--output", str(output), "--batch-size", "2"]
    names = b"".join(os.fsencode(path) + b"\n" for path in photos)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(names)  # the list stays open: the scan waits for more of it when the signal comes
        process.stdin.flush()
        _wait_for(output, len(photos))  # all of them: none waits for a name that has not come
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code
    assert f"stopped by {number.name} after {photos[-1]}" in errors
    assert f"--output {output} --batch-size 2 --resume, with the same list on standard input" in errors
    assert output.read_bytes().endswith(b"}\n")
    again = subprocess.run([*command, "--resume"], input=names, capture_output=True)
    assert again.returncode == 0
    assert _names(output) == Counter(path.name for path in photos)


def test_a_stopped_scan_with_a_report_goes_on_by_the_two_commands_that_it_says(
    tmp_path: Path, photos: list[Path]
) -> None:
    photos[0].rename(photos[0].with_name("-0.jpg"))
    (tmp_path / "r.jsonl").touch()
    command = [*SCAN, "--output", "../r.jsonl", "--overwrite", "--html", "../r.html", "--", "-0.jpg", "-"]
    names = b"".join(path.name.encode() + b"\n" for path in photos[1:])
    folder = photos[0].parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder) as process:
        assert process.stdin
        process.stdin.write(names[: names.index(b"\n") + 1])
        process.stdin.flush()
        _wait_for(tmp_path / "r.jsonl", 2)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1].decode()
    line = next(line for line in errors.splitlines() if "go on with: " in line)
    going_on = line.partition("go on with: aivsreal-scan ")[2].partition(", with the same list")[0]
    again = subprocess.run([*SCAN, *shlex.split(going_on)], input=names, capture_output=True, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert _names(tmp_path / "r.jsonl") == Counter(["-0.jpg", *(path.name for path in photos[1:])])
    report = [*SCAN[:2], "aivsreal.runtime.commands.report", *shlex.split(line.partition("aivsreal-report ")[2])]
    made = subprocess.run(report, capture_output=True, cwd=folder)
    assert made.returncode == 0, made.stderr
    assert "4.jpg" in (tmp_path / "r.html").read_text()


def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, {ROUNDS} rounds")
    rng = random.Random(seed)
    folder, output = tmp_path / "many", tmp_path / "results.jsonl"
    folder.mkdir()
    source = tmp_path / "source.jpg"
    source.write_bytes(encoded("JPEG", picture(0, (640, 480))))
    expected = Counter[str]()
    for index in range(150):
        shutil.copy(source, folder / f"{index:03}.jpg")
        expected[f"{index:03}.jpg"] = 1
    (folder / "broken.jpg").write_bytes(b"broken")
    (folder / "nowhere.jpg").symlink_to("absent")
    expected.update(["broken.jpg", "nowhere.jpg"])
    command = [*SCAN, str(folder), "--output", str(output), "--resume", "--batch-size", "4"]
    killed = whole = 0
    while killed < ROUNDS:
        before = output.stat().st_size if output.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            if rng.random() < 0.8:  # mostly while it writes, else while it starts
                while process.poll() is None and (output.stat().st_size if output.exists() else 0) == before:
                    time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            ended = process.poll()
            process.kill()
            assert process.stderr
            errors = process.stderr.read()
        assert ended in (None, 0, 1), errors  # 0: it was killed before that, between the last row and its end
        if output.exists():
            rows = _names(output)  # each line is whole, but for the last
            assert max(rows.values(), default=1) == 1
            assert set(rows) <= set(expected)
        killed += ended is None
        if ended is not None:
            assert _names(output) == expected
            whole += 1
            output.unlink()
    if not output.exists() or _names(output) != expected:
        assert subprocess.run(command, capture_output=True).returncode in (0, 1)
    assert _names(output) == expected
    print(f"killed {killed} times, {whole + 1} times whole in the end")


def _names(output: Path) -> Counter[str]:
    return Counter(row.scanned.path.name for row in rows_from_file(output))


def _wait_for(output: Path, rows: int) -> None:
    for _ in range(1200):
        if output.exists() and output.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.05)
    raise AssertionError("no rows came")


def test_wrong_use_of_the_results_options_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from aivsreal.runtime.commands.scan import main

    for arguments, words in (
        (["--resume"], "--output"),
        (["--retry-errors"], "--resume"),
        (["--output", str(tmp_path / "r"), "--jsonl"], "--jsonl"),
        (["--watch"], "folders"),
    ):
        result = CliRunner().invoke(main, ["absent.jpg", *arguments])
        assert result.exit_code == 2
        assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_json_lines_in_a_results_file_and_on_standard_output_are_the_same(tmp_path: Path, photos: list[Path]) -> None:
    folder = str(photos[0].parent)
    printed = subprocess.run([*SCAN, folder, "--jsonl"], capture_output=True, check=True).stdout
    output = tmp_path / "r.jsonl"
    written = subprocess.run([*SCAN, folder, "--output", str(output)], capture_output=True, check=True)
    assert written.stdout == b""
    same = [
        [{**json.loads(line), "logit": 0, "p_ai": 0} for line in text.splitlines()]
        for text in (printed, output.read_bytes())
    ]
    assert same[0] == same[1]
