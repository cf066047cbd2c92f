"""Watching a folder as a device does: files settle, change, go, and the scan goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import encoded, picture

from aivsreal.runtime.files.watch import LOOK_EVERY_S, Watcher


class FakeClock:
    """A fake: seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _watcher(folder: Path) -> tuple[Watcher, FakeClock]:
    clock = FakeClock()
    return Watcher([folder], settled_after_s=2.0, clock=clock), clock


def _look(watcher: Watcher, clock: FakeClock, seconds: float) -> list[str]:
    clock.now_s += seconds
    return [path.name for path in watcher.settled()]


def test_a_file_of_two_folders_that_overlap_is_told_once(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    clock = FakeClock()
    watcher = Watcher([tmp_path, inner], settled_after_s=1.0, clock=clock)
    (inner / "a.png").write_bytes(b"-")
    assert watcher.settled() == []
    clock.now_s = 2.0
    assert watcher.settled() == [inner / "a.png"]


def test_a_file_is_told_once_it_has_settled_and_again_when_it_has_changed(tmp_path: Path) -> None:
    watcher, clock = _watcher(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert _look(watcher, clock, 0) == []
    assert _look(watcher, clock, 1) == []
    (tmp_path / "a.jpg").write_bytes(b"12")  # still being written
    assert _look(watcher, clock, 1.5) == []
    assert _look(watcher, clock, 1) == []
    assert _look(watcher, clock, 1) == ["a.jpg"]
    assert _look(watcher, clock, 10) == []
    (tmp_path / "a.jpg").write_bytes(b"123")
    assert _look(watcher, clock, 1) == []
    assert _look(watcher, clock, 2) == ["a.jpg"]


def test_what_is_deleted_and_rotated_is_forgotten_and_its_name_may_come_again(tmp_path: Path) -> None:
    watcher, clock = _watcher(tmp_path / "camera")
    assert _look(watcher, clock, 0) == []  # the folder is not there yet
    (tmp_path / "camera").mkdir()
    for index in range(300):
        (tmp_path / "camera" / f"{index}.jpg").write_bytes(b"1")
        _look(watcher, clock, 1)
        if index >= 5:
            (tmp_path / "camera" / f"{index - 5}.jpg").unlink()
    assert len(watcher._since) <= 6
    shutil.rmtree(tmp_path / "camera")
    assert _look(watcher, clock, 1) == []
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "299.jpg").write_bytes(b"other")
    assert _look(watcher, clock, 1) == []
    assert _look(watcher, clock, 2) == ["299.jpg"]


def test_links_to_nowhere_wait_and_looking_takes_a_tenth_of_the_time_at_most(tmp_path: Path) -> None:
    watcher, clock = _watcher(tmp_path)
    (tmp_path / "link.jpg").symlink_to("absent.jpg")
    assert _look(watcher, clock, 0) == []
    assert _look(watcher, clock, 10) == []
    assert watcher.pause_s >= LOOK_EVERY_S


@pytest.mark.parametrize("took_s", [0.01, 2.0, 20.0, 200.0])
def test_looking_takes_a_tenth_of_a_core_at_most_however_many_files_there_are(
    took_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, clock = _watcher(tmp_path)
    processor_s = iter([5.0, 5.0 + took_s])
    monkeypatch.setattr("time.thread_time", lambda: next(processor_s))
    assert _look(watcher, clock, 0) == []
    assert took_s / (took_s + watcher.pause_s) == pytest.approx(min(0.1, took_s / (took_s + LOOK_EVERY_S)))


def test_the_command_judges_new_files_and_goes_on_after_it_was_stopped(tmp_path: Path) -> None:
    folder, output = tmp_path / "camera", tmp_path / "results.jsonl"
    folder.mkdir()
    (folder / "early.jpg").write_bytes(encoded("JPEG", picture(0)))
    command = [
        sys.executable,
        "-m",
        "aivsreal.runtime.commands.scan",
        "--watch",
        str(folder),
        "--output",
        str(output),
        "--resume",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert _names(output, 1) == ["early.jpg"]
        part = folder / "late.jpg.part"
        part.write_bytes(encoded("JPEG", picture(1)))
        os.rename(part, folder / "late.jpg")
        (folder / "early.jpg").unlink()
        (folder / "broken.jpg").write_bytes(b"broken")
        assert sorted(_names(output, 3)) == ["broken.jpg", "early.jpg", "late.jpg"]
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "stopped by SIGTERM" in errors
    assert "Traceback" not in errors
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        (folder / "again.jpg").write_bytes(encoded("JPEG", picture(2)))
        assert sorted(_names(output, 4)) == ["again.jpg", "broken.jpg", "early.jpg", "late.jpg"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def _names(output: Path, count: int) -> list[str]:
    for _ in range(1200):
        lines = output.read_text().splitlines() if output.exists() else []
        if len(lines) >= count:
            return [os.path.basename(json.loads(line)["path"]) for line in lines]
        time.sleep(0.05)
    raise AssertionError("no rows came")
