"""Cores as a container allows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aivsreal.runtime.machine import usable_cores

BOUND = len(os.sched_getaffinity(0))


def _groups(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    own = tmp_path / "cgroup"
    own.write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "fs", own


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 1),  # the level above limits
        ("0::/../../x\n", {"cpu.max": "100000 100000\n"}, 1),  # a namespace that hides where it is
        ("4:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, BOUND),  # more than there are
        ("0::/\n", {"cpu.max": "max 100000\n"}, BOUND),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
        ("0::/\n", {"cpu.max": "words\n"}, BOUND),
        ("nonsense\n", {}, BOUND),
    ],
)
def test_a_containers_quota_limits_the_cores(
    tmp_path: Path, membership: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(*_groups(tmp_path, membership, files)) == cores


def test_a_quota_is_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores(*_groups(tmp_path, "0::/\n", {"cpu.max": "250000 100000\n"})) == 3


def test_without_control_groups_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == BOUND
