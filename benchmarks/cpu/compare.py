"""Beside what a user would pick instead: plain loops and the installable detectors, on the same files, in turns.

Each runs in a process of its own, the peers in environments of their own that are made here with pip. Two times are
told of each: an image's, in a process that is warm, and that of a whole run from the start of Python to the last
verdict, which is what one waits for who types a command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from aivsreal.benchmarks.cpu.scanning import scan_command
from aivsreal.benchmarks.timing import ratio, rounded
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import AivsrealError
from aivsreal.runtime.text import last_line

OURS = "aivsreal:auto"
PLAIN = ("plain-torch", "plain-onnx", "plain-openvino")
PEERS = {"sahu65": "sahu65==1.1.0", "prnu": "prnu==0.1.0"}
BOUNDS = {  # how many times as long as ours an image takes, by shape
    "12-megapixel": {"plain-onnx": 3.0, "sahu65": 10.0, "prnu": 10.0},
    "1024px": {"plain-onnx": 2.0, "sahu65": 10.0, "prnu": 10.0},
}
WHOLE_BOUNDS = {"sahu65": 10.0, "prnu": 10.0}  # times ours, for a whole run of either shape
WHOLE_RUNS = 3
_WORKER = Path(__file__).with_name("contender.py")

Row = dict[str, Any]


@dataclass(slots=True)
class Contender:
    """One process that judges files."""

    name: str
    process: subprocess.Popen[str]
    first_s: list[float] = field(default_factory=list)
    """From the start of Python to the first verdict, of each whole run."""
    whole_s: list[float] = field(default_factory=list)
    chunk: int = 1
    ms: list[float] = field(default_factory=list)
    failed: int = 0

    def judge(self, files: Sequence[Path]) -> float:
        """Seconds that the files took.

        Raises:
            AivsrealError: the process ended.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps([str(file) for file in files]) + "\n")
            self.process.stdin.flush()
            seconds, failed = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise AivsrealError(f"{self.name} ended: what it said is above") from None
        self.failed += failed
        return float(seconds)


def peer_python(name: str, envs: Path, tell: Callable[[str], None]) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing.

    Raises:
        AivsrealError: it cannot be installed.
    """
    python = envs / name / "bin" / "python"
    if not python.exists():
        tell(f"installing {PEERS[name]} into {envs / name}")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PEERS[name]]
        for command in ([sys.executable, "-m", "venv", str(envs / name)], pip):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise AivsrealError(f"{PEERS[name]} cannot be installed: {last_line(done.stderr)}")
    return python


def compare_rows(
    bundle: Bundle,
    files: Mapping[str, Sequence[Path]],
    names: Sequence[str],
    *,
    pythons: dict[str, Path],
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> Iterator[Row]:
    """A row for each shape and contender, ours first, with the ratio to ours and its interval.

    Args:
        bundle: what is measured as ours; the plain loops run its network on what its spec sees.
        files: by shape; contenders that are slow judge fewer of them in a round.
        names: of contenders beside ours.
        pythons: interpreters of those that have an environment of their own.
        rounds: how often each has its turn.
        seconds: about as long a turn takes.
        tell: says what goes on.

    Raises:
        AivsrealError: ours does not run.
    """
    for shape, paths in files.items():
        contenders = []
        for name in (OURS, *names):
            try:
                contenders.append(_warm(_begun(name, pythons, bundle), paths, seconds))
                tell(f"{shape}: {name} is warm, {contenders[-1].chunk} files a round")
            except AivsrealError as error:
                if name == OURS:
                    raise
                yield {"shape": shape, "contender": name, "not_measured": str(error)}
        try:
            for turn in range(WHOLE_RUNS):
                for one in contenders:
                    tell(f"{shape}: whole run {turn + 1} of {one.name}")
                    _run_whole(one, pythons, bundle, paths)
            for turn in range(rounds):
                for one in contenders:
                    start = turn * one.chunk
                    chunk = [paths[(start + index) % len(paths)] for index in range(one.chunk)]
                    one.ms.append(1000 * one.judge(chunk) / one.chunk)
            yield from (_row(shape, one, contenders[0], paths) for one in contenders)
        finally:
            for one in contenders:
                _end(one)


def _begun(name: str, pythons: dict[str, Path], bundle: Bundle) -> Contender:
    environment = {**os.environ, "AIVSREAL_BENCH_BUNDLE": str(bundle.path.resolve())}
    process = subprocess.Popen(
        [str(pythons.get(name, sys.executable)), "-I", str(_WORKER), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    return Contender(name, process)


def _run_whole(one: Contender, pythons: dict[str, Path], bundle: Bundle, paths: Sequence[Path]) -> None:
    """Judge the files once in a process that starts with them, and note how long that took.

    Ours is the command that a user types, its output included; the others are called as their packages show.

    Raises:
        AivsrealError: the process ended.
    """
    if one.name.startswith("aivsreal:"):
        backend = one.name.partition(":")[2]
        for files, times in ((paths[:1], one.first_s), (paths, one.whole_s)):
            begun = perf_counter()
            scan = scan_command(backend, str(bundle.path.resolve()), *files)
            done = subprocess.run(scan, capture_output=True, text=True)
            times.append(perf_counter() - begun)
            if done.returncode:
                raise AivsrealError(f"{one.name} ended: {last_line(done.stderr)}")
        return
    begun = perf_counter()
    fresh = _begun(one.name, pythons, bundle)
    try:
        fresh.judge(paths[:1])
        one.first_s.append(perf_counter() - begun)
        fresh.judge(paths[1:])
        one.whole_s.append(perf_counter() - begun)
    finally:
        _end(fresh)


def _warm(one: Contender, paths: Sequence[Path], seconds: float) -> Contender:
    try:
        one.judge(paths[:2])
        count = min(8, len(paths)) if one.judge(paths[:1]) < 0.2 else 2
        each_s = one.judge(paths[:count]) / count
    except AivsrealError:
        _end(one)
        raise
    one.failed = 0
    one.chunk = max(1, min(2 * len(paths), round(seconds / each_s)))
    return one


def _row(shape: str, one: Contender, ours: Contender, paths: Sequence[Path]) -> Row:
    value = ratio(one.ms, ours.ms)
    whole = ratio(one.whole_s, ours.whole_s)
    row: Row = {
        "shape": shape, "contender": one.name, "files": len(paths), "files_a_round": one.chunk, "rounds": len(one.ms),
        "ms_per_image": round(median(one.ms), 2), "times_ours": rounded(value),
        "first_image_s": round(median(one.first_s), 2), "whole_runs": len(one.whole_s),
        "whole_run_s": round(median(one.whole_s), 2), "whole_run_times_ours": rounded(whole), "failed": one.failed,
    }  # fmt: skip
    held = {
        "bound": (value[0], BOUNDS.get(shape, {}).get(one.name)),
        "whole_run_bound": (whole[0], WHOLE_BOUNDS.get(one.name)),
    }
    bounds = {name: bound for name, (_, bound) in held.items() if bound is not None}
    if not bounds:
        return row
    return {**row, **bounds, "holds": all(held[name][0] >= bound for name, bound in bounds.items())}


def _end(one: Contender) -> None:
    if one.process.stdin:
        one.process.stdin.close()
    if one.process.stdout:
        one.process.stdout.close()
    one.process.terminate()
    one.process.wait()
