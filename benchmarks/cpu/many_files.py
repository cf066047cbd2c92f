"""Whether a scan of very many small files needs more memory, or more time for each, than one of few."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from aivsreal.benchmarks.cpu.photos import write_photos
from aivsreal.benchmarks.cpu.scanning import peak_of_process_mib
from aivsreal.runtime.errors import BackendError

MEMORY_BOUND = 1.2
GROWTH_BOUND = 1.1  # of the time for a file, last tenth over first: noise of one run is about 5 %
_SOURCES = 50

Row = dict[str, Any]


def many_files_row(sources: Sequence[Path], many: int, few: int, backend: str, bundle: str | None = None) -> Row:
    """Peak memory and time a file of `aivsreal-scan` over a folder of `many` files and one of `few`.

    The files are hard links to some tens of JPEGs of 340 x 256 pixels, so that the folder fits into any disk.

    Raises:
        OSError: the files cannot be written.
        RuntimeError: a scan failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_photos(sources[:_SOURCES], Path(scratch, "photos"), "256px")
        seen = {}
        for count in (few, many):
            folder = Path(scratch, str(count))
            for index in range(count):
                part = folder / f"{index // 1000:04d}"
                part.mkdir(parents=True, exist_ok=True)
                os.link(photos[index % len(photos)], part / f"{index % 1000:04d}.jpg")
            seen[count] = _scanned(folder, count, backend, bundle)
    (peak_few, _, _), (peak_many, ms, growth) = seen[few], seen[many]
    return {
        "files": many, "against": few, "backend": backend, "peak_mib": round(peak_many, 1),
        "peak_mib_few": round(peak_few, 1), "memory_ratio": round(peak_many / peak_few, 3),
        "memory_bound": MEMORY_BOUND,
        "ms_per_file": round(ms, 3), "growth": round(growth, 3), "growth_bound": GROWTH_BOUND,
        "holds": peak_many / peak_few <= MEMORY_BOUND and growth <= GROWTH_BOUND,
    }  # fmt: skip


def _scanned(folder: Path, count: int, backend: str, bundle: str | None) -> tuple[float, float, float]:
    """Peak MiB, milliseconds a file, and the time of the last tenth over that of the second tenth."""
    chosen = [] if bundle is None else ["--bundle", bundle]
    command = [sys.executable, "-m", "aivsreal.runtime.commands.scan", str(folder), "--backend", backend, *chosen]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout
    marks = {count // 10: 0.0, 2 * count // 10: 0.0, 9 * count // 10: 0.0, count: 0.0}
    rows, peak, begun = 0, 0.0, perf_counter()
    for _ in child.stdout:
        rows += 1
        if rows % 50 == 0 or rows == count:
            peak = max(peak, peak_of_process_mib(child.pid))
        if rows in marks:
            marks[rows] = perf_counter() - begun
    child.stdout.close()
    child.wait()
    if child.returncode != 0 or rows != count:
        raise BackendError(f"the scan of {count} files ended with {child.returncode} after {rows} rows")
    first, second, ninth, last = marks.values()
    return peak, 1000 * last / count, (last - ninth) / (second - first)
