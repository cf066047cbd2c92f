"""What a scan on Ray costs beside a plain one on the same machine, and whether its memory grows with the files."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aivsreal.benchmarks.cpu.photos import write_linked_photos
from aivsreal.benchmarks.cpu.scanning import peak_of_process_mib, scan_command
from aivsreal.benchmarks.timing import ratio, rounded
from aivsreal.runtime.errors import BackendError

SPEED_BOUND, MEMORY_BOUND = 0.8, 1.2
_RATE = re.compile(r"judged (\d+): .* ([\d.]+) images/s")
_LOOK_EVERY_S = 1.0
_ON_RAY = ("--ray", "local")
_TICKS = os.sysconf("SC_CLK_TCK")

Row = dict[str, Any]


def speed_row(
    sources: Sequence[Path], files: int, shape: str, rounds: int, *, backend: str, bundle: str | None
) -> Row:  # fmt: skip
    """Images a second of a plain scan and of one on a Ray of this machine, in turns, each once it has started.

    The processor time of all processes is given too, as what the last four fifths of the files add to that of a fifth:
    without the start, and a machine that does much else disturbs it less.

    Raises:
        BackendError: a scan failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = {count: write_linked_photos(sources, Path(scratch), shape, count) for count in (files // 5, files)}
        plain, on_ray = list[dict[str, float]](), list[dict[str, float]]()
        for turn in range(rounds):
            for seen, ray in ((plain, ()), (on_ray, _ON_RAY)):
                fifth, whole = (
                    _scanned(count, scan_command(
                        backend, bundle, folder, "--output", Path(scratch, f"{turn}-{count}{bool(ray)}"), *ray
                    ))
                    for count, folder in folders.items()
                )  # fmt: skip
                added_ms = 1000 * (whole["cpu_s"] - fifth["cpu_s"]) / (files - files // 5)
                seen.append({"rate": whole["rate"], "cpu_ms": added_ms})
    share, low, high = ratio([one["rate"] for one in on_ray], [one["rate"] for one in plain])
    cpu_share = ratio([one["cpu_ms"] for one in plain], [one["cpu_ms"] for one in on_ray])
    return {
        "what": "speed", "files": files, "shape": shape, "backend": backend, "cores": os.cpu_count(),
        "rate_plain": rounded([one["rate"] for one in plain], 1), "rate": rounded([one["rate"] for one in on_ray], 1),
        "cpu_ms_plain": rounded([one["cpu_ms"] for one in plain], 2),
        "cpu_ms": rounded([one["cpu_ms"] for one in on_ray], 2), "share": rounded([share, low, high]),
        "cpu_share": rounded(cpu_share),
        "bound": SPEED_BOUND, "load": rounded(os.getloadavg(), 1), "holds": share >= SPEED_BOUND,
    }  # fmt: skip


def memory_row(sources: Sequence[Path], many: int, few: int, backend: str, bundle: str | None) -> Row:
    """Peak memory of the driver and of the largest other process of Ray, over many files and over few.

    Raises:
        BackendError: a scan failed.
    """
    peaks = {}
    for count in (few, many):
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_linked_photos(sources, Path(scratch), "256px", count)
            output = Path(scratch, "out")
            peaks[count] = _scanned(count, scan_command(backend, bundle, folder, "--output", output, *_ON_RAY))
    ratios = {name: peaks[many][name] / peaks[few][name] for name in ("driver_mib", "actor_mib")}
    return {
        "what": "memory", "files": many, "against": few, "backend": backend,
        **{f"{name}{more}": round(peaks[count][name], 1)
           for name in ratios for count, more in ((many, ""), (few, "_few"))},
        "ratios": {name: round(value, 3) for name, value in ratios.items()}, "bound": MEMORY_BOUND,
        "rate": round(peaks[many]["rate"], 1), "holds": max(ratios.values()) <= MEMORY_BOUND,
    }  # fmt: skip


def _scanned(count: int, command: Sequence[str]) -> dict[str, float]:
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    driver_mib = actor_mib = 0.0
    ticks: dict[int, int] = {}
    while True:
        with suppress(subprocess.TimeoutExpired):
            told = child.communicate(timeout=_LOOK_EVERY_S)[1]
            break
        for process in _family(child.pid):
            with suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks[process] = int(fields[11]) + int(fields[12])
                peak = peak_of_process_mib(process)
                if process == child.pid:
                    driver_mib = max(driver_mib, peak)
                elif b"MapWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    actor_mib = max(actor_mib, peak)
    found = _RATE.search(told)
    if child.returncode != 0 or found is None or int(found[1]) != count:
        raise BackendError(f"the scan of {count} files ended with {child.returncode}: {told}")
    cpu_s = sum(ticks.values()) / _TICKS
    return {"rate": float(found[2]), "cpu_s": cpu_s, "driver_mib": driver_mib, "actor_mib": actor_mib}


def _family(first: int) -> Iterator[int]:
    """A process and all that it and its children have started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    known = {first}
    yield first
    while more := {process for process, parent in parents.items() if parent in known} - known:
        known |= more
        yield from more
