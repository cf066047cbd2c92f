"""Where a command is started must not matter: no home folder, one of somebody else, streams that are closed or full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_image
from hostile import encoded

ROOT = Path(__file__).resolve().parents[1]
# A user who is only a number, as in many containers: the system's list of users does not know it.
NOBODY = """
import pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import runpy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
SCAN, DOCTOR = "aivsreal.runtime.commands.scan", "aivsreal.runtime.commands.doctor"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG"))
    return path


def _started(
    *arguments: object, before: tuple[str, ...] = (), **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """A command in this environment but for these variables; None takes one away."""
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    command = [*before, sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


NO_HOME = {"HOME": None, "XDG_DATA_HOME": None, "XDG_CACHE_HOME": None}


@pytest.mark.parametrize("options", [(), ("--isolate",), ("--backend", "onnx-cpu")])
def test_a_scan_needs_no_home_folder(image: Path, options: tuple[str, ...]) -> None:
    result = _started("-c", NOBODY, SCAN, image, *options, **NO_HOME)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(image))
    assert "Traceback" not in result.stderr


def test_the_doctor_needs_no_home_folder() -> None:
    result = _started("-c", NOBODY, DOCTOR, **NO_HOME)
    assert result.returncode == 0, result.stderr
    assert "a scan\tok" in result.stdout


def test_an_extended_bundle_needs_one_and_says_so(tmp_path: Path, image: Path) -> None:
    options = ("--int8", "--data", tmp_path)
    result = _started("-c", NOBODY, "aivsreal.export.cli", *options, **NO_HOME)
    assert result.returncode == 2
    assert "no home folder" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def closed_home(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A home folder that cannot be looked into, and what takes root's right to look away."""
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() != 0:
        home.chmod(0)
        return home, ()
    if shutil.which("setpriv") is None:
        pytest.skip("root may look everywhere, and there is no setpriv")
    home.chmod(0o700)
    os.chown(home, 12345, 12345)
    return home, ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


@pytest.mark.parametrize("module", [SCAN, DOCTOR])
def test_a_home_folder_of_somebody_else_is_passed_over(
    module: str, image: Path, closed_home: tuple[Path, tuple[str, ...]]
) -> None:
    home, before = closed_home
    arguments = [image] if module == SCAN else []
    result = _started("-m", module, *arguments, before=before, HOME=str(home), XDG_DATA_HOME=None, XDG_CACHE_HOME=None)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_a_bundle_that_may_not_be_looked_at_is_one_message(
    image: Path, closed_home: tuple[Path, tuple[str, ...]]
) -> None:
    home, before = closed_home
    result = _started("-m", SCAN, image, "--bundle", home / "bundle", before=before)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_relative_cache_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG has it; else each folder that a scan is started in would get one."""
    from aivsreal.runtime.cache import cache_folder, usable_cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert (cache_folder(), usable_cache_folder("things")) == (None, None)


SCRIPT = f"{sys.executable} -m"
# A shell opens and closes what the command is started with.
QUIET = ("2>&-", "2>/dev/full", "2> >(true)", ">&-", "<&- >&- 2>&-")


def _in_shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=folder, env={**os.environ, **variables}, capture_output=True
    )


@pytest.mark.parametrize("streams", QUIET)
@pytest.mark.parametrize("isolate", ["", "--isolate"])
def test_a_results_file_is_written_whatever_the_streams_are(image: Path, streams: str, isolate: str) -> None:
    line = f"{SCRIPT} {SCAN} a.jpg --backend onnx-cpu {isolate} --output o.jsonl {streams}"
    result = _in_shell(line, image.parent)
    assert result.returncode == 0, result.stderr
    (row,) = (image.parent / "o.jsonl").read_text().splitlines()
    assert '"label"' in row


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_rows_are_written_though_nobody_reads_the_messages(image: Path, streams: str) -> None:
    result = _in_shell(f"{SCRIPT} {SCAN} a.jpg --backend onnx-cpu {streams}", image.parent)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"a.jpg\t")


@pytest.mark.parametrize("streams", [">&-", "> /dev/full"])
@pytest.mark.parametrize("arguments", [f"{SCAN} a.jpg", f"{SCAN} a.jpg --csv", f"{SCAN} --help", DOCTOR])
def test_a_standard_output_that_cannot_be_written_is_one_message(image: Path, streams: str, arguments: str) -> None:
    result = _in_shell(f"{SCRIPT} {arguments} {streams}", image.parent)
    assert result.returncode == 2
    assert result.stderr.count(b"standard output ") == 1
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr


@pytest.mark.parametrize("arguments", [SCAN + " a.jpg", DOCTOR])
def test_a_reader_that_goes_away_is_no_traceback(image: Path, arguments: str) -> None:
    result = _in_shell(f"(sleep 0.2; {SCRIPT} {arguments}) | exec 0<&-", image.parent)
    assert result.returncode == 141
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("form", ["", "--csv", "--jsonl"])
def test_a_character_that_standard_output_lacks_is_escaped(image: Path, encoding: str, form: str) -> None:
    image.rename(image.parent / "snow\u2603.jpg")
    write_image(image.parent / "z.png", 1)
    result = _in_shell(f"{SCRIPT} {SCAN} . --backend onnx-cpu {form}", image.parent, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()[-2:]
    assert b"snow\\u2603.jpg" in first
    assert b"z.png" in second


def test_a_folder_that_is_gone_is_one_message_where_it_is_needed(image: Path) -> None:
    line = f"mkdir gone; cd gone; rmdir ../gone; {SCRIPT} {SCAN} --backend onnx-cpu"
    assert _in_shell(f"{line} {image}", image.parent).returncode == 0
    result = _in_shell(f"{line} {image} --output o.jsonl", image.parent)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"is gone" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("limit", ["inf", "nan", "1e10", "0"])
def test_a_time_limit_that_is_none_is_refused(image: Path, limit: str) -> None:
    result = _started("-m", SCAN, image, "--time-limit", limit)
    assert (result.returncode, result.stdout) == (2, "")
    assert "86400" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("descriptors", [14, 18, 20, 26])
def test_where_few_files_can_be_opened_there_are_fewer_processes_or_one_message(image: Path, descriptors: int) -> None:
    line = f"ulimit -n {descriptors}; {SCRIPT} {SCAN} --backend onnx-cpu --isolate --threads 8 {'a.jpg ' * 8}"
    result = _in_shell(line, image.parent)
    rows = result.stdout.splitlines()
    assert b"Traceback" not in result.stderr
    if result.returncode == 2:
        assert descriptors < 20
        assert rows == []
        assert result.stderr.count(b"--isolate") == 2
    else:
        assert result.returncode == 0, result.stderr
        assert len(rows) == 8
