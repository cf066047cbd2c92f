"""A whole scan on this CPU, stage by stage, and how near it comes to what its stages allow.

On N cores no scan is faster than N / (processor seconds to decode + processor seconds to infer) images a second.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

from aivsreal.benchmarks.cpu.network import runner
from aivsreal.benchmarks.cpu.photos import SHAPES
from aivsreal.benchmarks.start import best_ms, why_failed
from aivsreal.benchmarks.timing import rounded, with_interval
from aivsreal.runtime.detector import AS_USUAL, Detector
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file
from aivsreal.runtime.machine import usable_cores
from aivsreal.runtime.pixels.images import opened
from aivsreal.runtime.pixels.read import snapshot_from_file
from aivsreal.runtime.preprocess import square_from_image

BOUND_SHARE = 0.85  # of the bound, on two cores
SCAN_S = 1.0  # at least so long a scan: its first and last files have the cores for themselves
START_RATIO = 2.0  # one image, cold, over importing what it needs

Row = dict[str, Any]


def scan_rows(
    backends: Sequence[str], bundle: str | None, photos: Mapping[str, Sequence[Path]], rounds: int
) -> Iterator[Row]:
    """A row for each backend and shape; with the reason where it cannot run."""
    for backend in backends:
        for shape, paths in photos.items():
            try:
                yield scan_row(backend, bundle, shape, paths, rounds)
            except BackendError as error:
                yield {"what": "scan", "shape": shape, "backend": backend, "not_measured": str(error)}


def scan_row(backend: str, bundle: str | None, shape: str, paths: Sequence[Path], rounds: int) -> Row:
    """Stages and the whole scan of the same files, in turns.

    Raises:
        BackendError: the backend cannot run here, or takes no squares.
    """
    with Detector.open(bundle, backend) as detector:
        if not detector.backend.takes_squares:
            raise BackendError(f"{detector.backend.name} resizes by itself: see aivsreal-bench gpu")
        list(detector.scan(paths))  # warm-up
        begun = perf_counter()
        list(detector.scan(paths))
        scanned = list(paths) * ceil(SCAN_S / (perf_counter() - begun))
        infer = runner(detector.backend, detector.bundle, AS_USUAL.batch_size)
        stages: dict[str, list[float]] = {}
        rates, shares = [], []
        for _ in range(rounds):
            now = {**_decode_ms(detector, paths), "inference": _cpu_ms(infer, 4) / AS_USUAL.batch_size}
            begun, begun_cpu = perf_counter(), process_time()
            count = sum(1 for _ in detector.scan(scanned))
            rates.append(count / (perf_counter() - begun))
            now["scan"] = (process_time() - begun_cpu) * 1000 / count
            shares.append(rates[-1] * (now["whole_file"] + now["inference"]) / 1000 / usable_cores())
            for name, value in now.items():
                stages.setdefault(name, []).append(value)
        share = median(shares)
        return {
            "what": "scan", "shape": shape, "size": list(SHAPES[shape]), "files": len(paths),
            "files_a_scan": len(scanned), "rounds": rounds,
            "backend": detector.backend.name, "precision": detector.backend.precision,
            "cpu_ms": {name: round(median(values), 3) for name, values in stages.items()},
            # What a scan spends beyond its stages does not depend on what else the machine does; its rate does.
            "scan_cpu_over_stages": round(_over_stages(stages), 3), "images_per_s": round(median(rates), 1),
            "share_of_bound": rounded(with_interval(shares)),
            "bound_share": BOUND_SHARE, "holds": share >= BOUND_SHARE,
        }  # fmt: skip


def _over_stages(stages: Mapping[str, Sequence[float]]) -> float:
    return median(stages["scan"]) / (median(stages["whole_file"]) + median(stages["inference"]))


def scan_command(backend: str, bundle: str | None, *words: str | Path) -> list[str]:
    """`aivsreal-scan` with more words, in a fresh interpreter."""
    model = [] if bundle is None else ["--bundle", bundle]
    return [sys.executable, "-m", "aivsreal.runtime.commands.scan", "--backend", backend, *model, *map(str, words)]


def start_row(image: Path, rounds: int, backend: str, bundle: str | None) -> Row:
    """One image from a shell to its verdict, beside importing ONNX Runtime, numpy and Pillow, in fresh interpreters.

    With the reason where one of them fails.
    """
    scan = tuple(scan_command(backend, bundle, image)[1:])
    try:
        best = best_ms({"imports": ("-c", "import onnxruntime, numpy, PIL.Image"), "scan": scan}, rounds)
    except subprocess.CalledProcessError as error:
        return {"what": "start", "backend": backend, "not_measured": why_failed(error)}
    ratio = best["scan"] / best["imports"]
    row: Row = {
        "what": "start", "backend": backend, "rounds": rounds, "best_ms": {k: round(v, 1) for k, v in best.items()},
        "ratio": round(ratio, 3),
    }  # fmt: skip
    # OpenVINO is for long scans: a short one takes it only where it is asked for by name, and is told what that costs.
    return row if backend == "openvino" else {**row, "ratio_bound": START_RATIO, "holds": ratio <= START_RATIO}


def memory_rows(images: Mapping[str, Sequence[Path]], backends: Sequence[str], bundle: str | None) -> Iterator[Row]:
    """Peak memory of a process that scans these files; with the reason where it fails."""
    for backend in backends:
        for shape, paths in images.items():
            row: Row = {"what": "memory", "backend": backend, "shape": shape, "files": len(paths)}
            try:
                yield {**row, "peak_mib": round(peak_mib(scan_command(backend, bundle, *paths)), 1)}
            except subprocess.CalledProcessError as error:
                yield {**row, "not_measured": why_failed(error)}


def peak_mib(command: Sequence[str]) -> float:
    """Peak resident memory of a command in MiB.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    peak = 0.0
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while child.poll() is None:
            peak = max(peak, peak_of_process_mib(child.pid))
            sleep(0.01)
        if child.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(child.returncode, command, stderr=said.read())
    return peak


def peak_of_process_mib(pid: int) -> float:
    """Peak resident memory so far of a running process in MiB, 0 where it has ended.

    Not what `wait4` says at the end: that counts the process that started it too (1.2 GB here, with torch).
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def _decode_ms(detector: Detector, paths: Sequence[Path]) -> dict[str, float]:
    """Processor milliseconds a file of reading, decoding, reducing, and of all that a scan does to a file."""
    spec = detector.bundle.manifest.spec
    plan = DecodePlan(spec, least_side=spec.least_side)
    spent = {"read": 0.0, "decode": 0.0, "preprocess": 0.0}
    for path in paths:
        begun = process_time()
        snapshot = snapshot_from_file(path)
        read = process_time()
        with opened(snapshot) as picture:
            ((_, frame),) = picture.frames(1, spec.least_side)
            decoded = process_time()
            square_from_image(frame, spec)
        for name, seconds in (
            ("read", read - begun),
            ("decode", decoded - read),
            ("preprocess", process_time() - decoded),
        ):
            spent[name] += 1000 * seconds / len(paths)
    begun = process_time()
    for path in paths:
        decoded_from_file(path, plan)
    return {**spent, "whole_file": 1000 * (process_time() - begun) / len(paths)}


def _cpu_ms(run: Callable[[], object], count: int) -> float:
    begun = process_time()
    for _ in range(count):
        run()
    return 1000 * (process_time() - begun) / count
