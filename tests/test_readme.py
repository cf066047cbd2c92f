"""Runs what the README tells people to type, in its order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_image

from aivsreal.benchmarks.accuracy import table_from_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = ("python3 -m venv .venv && .venv/bin/pip install '.[cpu]' && .venv/bin/aivsreal-scan photos/", "make check")
# A README's training takes hours; the same command is run with a smaller network for one epoch.
SMALL = " --arch levit_128s --size 64 --epochs 1 --batch-size 8 --workers 0"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """What the README's commands find: `photos/` and `data/`."""
    folder = tmp_path_factory.mktemp("readme")
    for index in range(3):
        write_image(folder / "photos" / f"{index}.jpg", index, size=(320, 240))
    (folder / "data").symlink_to(tiny_data)
    return folder


def test_ci_runs_the_two_setup_commands() -> None:
    blocks = [block.strip() for block in _blocks("sh")]
    assert tuple(blocks[:2]) == SETUP
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"\n{SETUP[1]}\n" in ci
    parts = SETUP[0].replace(".venv", '"$scratch/venv"').replace('"$scratch/venv"/bin/pip', '"$scratch/venv/bin/pip"')
    for part in parts.split(" && ")[:2]:
        assert part.split(" install")[0] in ci
    assert "install --disable-pip-version-check --quiet '.[cpu]'" in ci


def test_the_commands_do_what_the_readme_says(folder: Path) -> None:
    lines = [line for block in _blocks("sh")[2:] for line in block.replace("\\\n", "").splitlines() if line]
    assert {line.split()[0] for line in lines} >= {
        f"aivsreal-{name}" for name in ("scan", "train", "export", "evaluate", "calibrate")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_DATA_HOME": str(folder / "home")}
    for line in lines:
        command = line + SMALL if line.startswith("aivsreal-train") else line
        result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"


def test_the_library_example_runs(folder: Path) -> None:
    (example,) = _blocks("python")
    result = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_every_option_in_the_readme_exists() -> None:
    from importlib.metadata import entry_points

    known = {
        option
        for point in entry_points(group="console_scripts")
        if point.name.startswith("aivsreal-")
        for parameter in point.load().params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README))
    others = {"--quiet", "--system-site-packages", "--nproc-per-node"}  # other programs'
    assert used <= known | others, used - known


def test_the_accuracy_is_what_the_shipped_bundle_records() -> None:
    told = json.loads((ROOT / "runtime" / "models" / "levit192" / "evaluation.json").read_text(encoding="utf-8"))
    shown = [line for line in README.splitlines() if line.startswith(("| val_", "| test "))]
    assert shown == table_from_results(told["metrics"]["evaluation"]["results"]).splitlines()[2:]
