"""On what a benchmark ran: processor, Python and package versions; nothing that names the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("aivsreal", "numpy", "pillow", "click", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch", "timm")


def machine_facts(packages: tuple[str, ...] = PACKAGES) -> dict[str, object]:
    """CPU model, cores that this process may use, system, Python, and versions of those `packages` that are installed.

    Versions are read from the metadata: asking costs no import.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    # ARM kernels give no model name; a Jetson says what it is in the device tree.
    board = Path("/proc/device-tree/model")
    on_board = board.read_text(errors="replace").strip("\0 ") if board.is_file() else ""
    return facts.get("model name") or on_board or platform.processor() or platform.machine()
