"""Decoders that hang and crash, in threads and in processes. The hanging and crashing ones are fakes and say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture

from aivsreal.runtime.errors import BackendError, Fault, ImageError
from aivsreal.runtime.files import pool as decode_pool
from aivsreal.runtime.files import process as decode_process
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file
from aivsreal.runtime.files.pool import DecodePool
from aivsreal.runtime.pixels.read import Reader, Snapshot
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.uri import Uri
from aivsreal.runtime.verdict import FileStamp

# A fake decoder for the child process: files of these names crash it, hang, or answer with nonsense.
FAKE = """
import sys; sys.path[:] = sys.argv[2:]
import os, signal, time
from aivsreal.runtime.files import process as decode_process
real = decode_process.decoded_from_file
def fake(path, plan):
    if path.name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name.startswith("exit"):
        os._exit(0)
    if path.name.startswith("hang"):
        time.sleep(600)
    if path.name.startswith("nonsense"):
        for fd in range(3, 10):
            try:
                os.write(fd, b"\\0\\0\\0\\5hello")
            except OSError:
                pass
        time.sleep(600)
    return real(path, plan)
decode_process.decoded_from_file = fake
decode_process.main()
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    names = ("a", "crash", "b", "exit", "c", "hang", "d", "nonsense", "e")
    for index, name in enumerate(names):
        (tmp_path / f"{name}.png").write_bytes(encoded("PNG", picture(index)))
    (tmp_path / "broken.png").write_bytes(b"broken")
    return [*(tmp_path / f"{name}.png" for name in names), tmp_path / "broken.png"]


def _all(pool: DecodePool, paths: list[Path]) -> list[Decoded]:
    tasks = [pool.submit(path) for path in paths]
    return [pool.result(task) for task in tasks]


def test_a_process_decodes_what_a_thread_does(files: list[Path]) -> None:
    for plan in (DecodePlan(), DecodePlan(PreprocessSpec(64), frames=3, by_content=True)):
        with DecodePool(plan, 2, isolate=True) as isolated:
            for one, path in zip(_all(isolated, files), files, strict=True):
                here = decoded_from_file(path, plan)
                assert (one.path, one.stamp, one.frames, one.evidence) == (path, here.stamp, here.frames, here.evidence)
                assert (one.error, one.fault) == (here.error, here.fault)
                assert all((a == b).all() for a, b in zip(one.pixels, here.pixels, strict=True))


def test_a_decoder_that_crashes_or_hangs_in_its_process_costs_that_file(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_process, "BOOT", FAKE)
    with DecodePool(DecodePlan(PreprocessSpec(64)), 2, time_limit_s=3.0, isolate=True) as pool:
        outcomes = {one.path.stem: one for one in _all(pool, files)}
    faults = {name: one.fault for name, one in outcomes.items() if one.fault}
    assert faults.pop("nonsense") in (Fault.CRASHED, Fault.TIME_LIMIT)
    assert faults == {
        "crash": Fault.CRASHED,
        "exit": Fault.CRASHED,
        "hang": Fault.TIME_LIMIT,
        "broken": Fault.NOT_AN_IMAGE,
    }
    assert outcomes["crash"].error == "its decoder crashed (SIGSEGV)"
    assert outcomes["crash"].stamp
    assert all(len(outcomes[name].pixels) == 1 for name in "abcde")


def test_a_decoder_that_hangs_in_a_thread_costs_that_file(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(path: Path, plan: DecodePlan, _: Reader) -> Decoded:
        if path.stem in ("a", "hang"):
            time.sleep(5)
        return decoded_from_file(path, plan)

    monkeypatch.setattr(decode_pool, "decoded_from_file", fake)
    begin_s = time.monotonic()
    with DecodePool(DecodePlan(), 1, time_limit_s=0.8) as pool:
        outcomes = {one.path.stem: one for one in _all(pool, files)}
    assert {name for name, one in outcomes.items() if one.fault is Fault.TIME_LIMIT} == {"a", "hang"}
    assert "--time-limit" in (outcomes["a"].error or "")
    assert len(outcomes["e"].pixels) == 1
    assert time.monotonic() - begin_s < 4.5  # it did not wait for those that hang


def test_an_interpreter_does_not_wait_for_a_decoder_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from aivsreal.runtime.files import pool as decode_pool\n"
        "from aivsreal.runtime.files.decode import DecodePlan\n"
        "decode_pool.decoded_from_file = lambda path, plan, read: time.sleep(600)\n"
        "with decode_pool.DecodePool(DecodePlan(), 1, time_limit_s=0.2) as pool:\n"
        "    print(pool.result(pool.submit(Path(sys.argv[1]))).fault.value)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "time-limit\n", "")


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from aivsreal.runtime.files.process import DecodeProcess\n"
        "from aivsreal.runtime.files.decode import DecodePlan\n"
        "process = DecodeProcess(DecodePlan(), 30.0)\n"
        "assert not process.decode(Path(sys.argv[1])).error\n"
        "print(process._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    child = int(ended.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or "Z" in Path(f"/proc/{child}/stat").read_text().rsplit(")")[1][:3]:
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def test_a_process_that_cannot_start_is_one_error(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "BOOT", "raise SystemExit(1)")
    with DecodePool(DecodePlan(), 1, isolate=True) as pool, pytest.raises(BackendError, match="--isolate"):
        pool.result(pool.submit(files[0]))


def test_what_a_process_announces_is_not_believed(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    """A fake child that was taken over: it announces more pixels than were allowed."""
    liar = (
        "import sys, json, os\n"
        "os.write(1, b'ready'); os.read(0, 4096)\n"
        "told = {'stamp': None, 'error': None, 'fault': None, 'frames': [0], 'evidence': []}\n"
        "header = {**told, 'shapes': [[10**6, 10**6]]}\n"
        "header = json.dumps(header)\n"
        "os.write(1, len(header).to_bytes(4, 'big') + header.encode())\n"
    )
    monkeypatch.setattr(decode_process, "BOOT", liar)
    with DecodePool(DecodePlan(), 1, isolate=True) as pool:
        assert pool.result(pool.submit(files[0])).fault is Fault.CRASHED


def test_an_error_of_our_own_is_not_hidden(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, plan: DecodePlan, _: Reader) -> Decoded:
        raise LookupError("a defect")

    monkeypatch.setattr(decode_pool, "decoded_from_file", broken)
    with DecodePool(DecodePlan(), 1) as pool:
        with pytest.raises(LookupError, match="a defect"):
            pool.result(pool.submit(files[0]))
        with pytest.raises(LookupError, match="a defect"):  # and the thread goes on
            pool.result(pool.submit(files[1]))


def test_a_pool_that_is_closed_takes_no_file(files: list[Path]) -> None:
    with DecodePool(DecodePlan(), 1) as pool:
        pass
    with pytest.raises(BackendError, match="the pool is closed"):
        pool.submit(files[0])


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="time_limit_s"):
        DecodePool(DecodePlan(), 1, time_limit_s=0)


def test_squares_own_their_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG", picture(0, (73, 73))))
    (square_SSC,) = decoded_from_file(tmp_path / "a.png", DecodePlan(PreprocessSpec(64))).pixels
    assert square_SSC.shape == (64, 64, 3)
    assert square_SSC.base is None or isinstance(square_SSC.base, (bytes, np.ndarray))


@pytest.mark.parametrize("isolate", [False, True], ids=["threads", "processes"])
def test_what_is_no_file_of_the_systems_is_read_as_it_is_told(isolate: bool, tmp_path: Path) -> None:
    contents = {Uri(f"s3://bucket//{index}.png"): encoded("PNG", picture(index)) for index in range(3)}
    stamp = FileStamp(1234, 5, etag="an etag")

    def read(path: Path, by_content: bool) -> Snapshot:
        if path not in contents:
            raise ImageError(f"{path}: no such object", Fault.MISSING)
        return Snapshot(path, contents[Uri(str(path))], stamp)

    plan = DecodePlan(PreprocessSpec(64))
    with DecodePool(plan, 2, isolate=isolate, read=read) as pool:
        for outcome, (path, content) in zip(_all(pool, list(contents)), contents.items(), strict=True):
            (tmp_path / "same.png").write_bytes(content)
            assert (outcome.path, outcome.stamp, outcome.error) == (path, stamp, None)
            same = decoded_from_file(tmp_path / "same.png", plan)
            assert np.array_equal(outcome.pixels[0], same.pixels[0])
        gone = pool.result(pool.submit(Uri("s3://bucket/gone.png")))
        assert (gone.fault, gone.error) == (Fault.MISSING, "no such object")
