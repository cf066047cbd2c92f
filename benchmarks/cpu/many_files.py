"""Whether a scan of very many small files needs more memory, or more time for each, than one of few."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from aivsreal.benchmarks.cpu.photos import write_linked_photos
from aivsreal.benchmarks.cpu.scanning import peak_of_process_mib, scan_command
from aivsreal.runtime.errors import BackendError

MEMORY_BOUND = 1.2
GROWTH_BOUND = 1.1  # of the time for a file, last tenth over first: noise of one run is about 5 %

Row = dict[str, Any]


def many_files_row(sources: Sequence[Path], many: int, few: int, backend: str, bundle: str | None = None) -> Row:
    """Peak memory and time a file of `aivsreal-scan` over a folder of `many` files and one of `few`.

    The files are JPEGs of 340 x 256 pixels.

    Raises:
        OSError: the files cannot be written.
        BackendError: a scan failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        seen = {}
        for count in (few, many):
            folder = write_linked_photos(sources, Path(scratch), "256px", count)
            seen[count] = _scanned(count, scan_command(backend, bundle, folder))
    (peak_few, _, _), (peak_many, ms, growth) = seen[few], seen[many]
    return {
        "files": many, "against": few, "backend": backend, "peak_mib": round(peak_many, 1),
        "peak_mib_few": round(peak_few, 1), "memory_ratio": round(peak_many / peak_few, 3),
        "memory_bound": MEMORY_BOUND,
        "ms_per_file": round(ms, 3), "growth": round(growth, 3), "growth_bound": GROWTH_BOUND,
        "holds": peak_many / peak_few <= MEMORY_BOUND and growth <= GROWTH_BOUND,
    }  # fmt: skip


def _scanned(count: int, command: Sequence[str]) -> tuple[float, float, float]:
    """Peak MiB, milliseconds a file, and the time of the last tenth over that of the second tenth."""
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
