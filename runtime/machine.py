"""What this machine has for us: which processor, how many cores that this process may keep busy, products of INT8."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_GROUPS = Path("/sys/fs/cgroup")
_WORDS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})  # x86 twice, and ARM's dot product


def usable_cores(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores for threads that compute, at least 1: the affinity mask, and a container's quota where there is one.

    A container that may use two cores of a machine with 64 still sees 64: threads for all of them would only take each
    other's turns, and each of them would hold its memory.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(groups, own)
    return max(1, bound if quota is None else min(bound, math.ceil(quota)))


def cpu_digest(cpuinfo: Path = _CPUINFO) -> str:
    """Twelve hexadecimal digits that differ between processors with other instructions."""
    told = sorted(set(_lines(cpuinfo, "flags", "Features", "model name", "CPU part")))
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]


def has_int8_products(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether it multiplies and adds four bytes at once: without that, INT8 is slower than FP32 or about as fast."""
    flags = (line.partition(":")[2].split() for line in _lines(cpuinfo, "flags", "Features"))
    return any(_WORDS & set(words) for words in flags)


def _lines(file: Path, *beginnings: str) -> list[str]:
    """Those lines of a file of the system's that begin so; none where it is not there."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith(beginnings or "")]


def _quota(groups: Path, own: Path) -> float | None:
    """Cores that the control groups allow, the least of all levels; None where there is no limit."""
    quotas: list[float | None] = []
    for controllers, place in _memberships(own):
        if controllers == "":  # version 2: one tree
            quotas += [_ratio(*_words(folder / "cpu.max", 2)) for folder in _upwards(groups, place)]
        elif "cpu" in controllers.split(","):
            for folder in (*_upwards(groups / controllers, place), *_upwards(groups / "cpu", place)):
                limit = _words(folder / "cpu.cfs_quota_us", 1)
                quotas.append(_ratio(*limit, *_words(folder / "cpu.cfs_period_us", 1)))
    return min((quota for quota in quotas if quota is not None), default=None)


def _memberships(own: Path) -> list[tuple[str, str]]:
    parts = (line.split(":", 2) for line in _lines(own))
    return [(part[1], part[2]) for part in parts if len(part) == 3]


def _upwards(root: Path, place: str) -> list[Path]:
    """The group's folder and those above it. Inside a container the root is the container's own group."""
    names = [name for name in place.split("/") if name not in ("", "..")]
    return [root.joinpath(*names[:count]) for count in range(len(names), -1, -1)]


def _words(file: Path, count: int) -> list[str]:
    try:
        words = file.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
    return words if len(words) == count else []


def _ratio(limit: str = "max", period: str = "0") -> float | None:
    try:
        quota, span = float(limit), float(period)
    except ValueError:  # "max": no limit
        return None
    return quota / span if quota > 0 and span > 0 else None
