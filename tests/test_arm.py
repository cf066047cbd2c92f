"""The lean install works on ARM boards: each of its packages has a wheel for aarch64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def _resolved(requirements: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "--ignore-installed"]
    return subprocess.run([*command, *options, *requirements], capture_output=True, text=True)


@pytest.mark.parametrize("python", ["3.10", "3.13"])
def test_every_package_of_the_lean_install_has_a_wheel_for_arm(python: str, tmp_path: Path) -> None:
    if _resolved(["click"]).returncode != 0:
        pytest.skip("no package index can be reached")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    done = _resolved(
        [*project["dependencies"], *project["optional-dependencies"]["cpu"]],
        "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--target={tmp_path}", *platforms,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wheels = [item["download_info"]["url"].rsplit("/", 1)[-1] for item in json.loads(done.stdout)["install"]]
    assert {name.split("-")[0].lower() for name in wheels} >= {"numpy", "pillow", "click", "rich", "onnxruntime"}
    assert all(name.endswith(("aarch64.whl", "-any.whl")) for name in wheels), wheels
