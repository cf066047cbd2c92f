"""On what a benchmark ran: processor, Python and package versions; nothing that names the machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aivsreal.runtime.machine import usable_cores

PACKAGES = tuple("aivsreal numpy pillow click onnxruntime onnxruntime-gpu openvino tensorrt torch timm".split())
_INSTRUCTIONS = frozenset({"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimddp", "bf16"})


def machine_facts(packages: tuple[str, ...] = PACKAGES) -> dict[str, object]:
    """CPU, what makes networks fast on it, usable cores, system, Python, versions of those `packages` that are there.

    Versions are read from the metadata: asking costs no import.
    """
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    lines = _cpuinfo()
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return {
        "cpu": _cpu_model(lines),
        "cores": usable_cores(),
        "instructions": sorted(words & _INSTRUCTIONS),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _cpu_model(lines: list[str]) -> str:
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    # ARM kernels give no model name; a Jetson says what it is in the device tree.
    board = Path("/proc/device-tree/model")
    on_board = board.read_text(errors="replace").strip("\0 ") if board.is_file() else ""
    return facts.get("model name") or on_board or platform.processor() or platform.machine()
