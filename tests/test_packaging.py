"""The wheel holds what users need and nothing else, and the checkout is laid out as the tools expect."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "train", "export", "benchmarks")
BUNDLE = "aivsreal/runtime/models/levit192/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a clean copy: a `build/` left in the checkout would put deleted modules into it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_the_shipped_bundle(wheel: zipfile.ZipFile) -> None:
    modules = {f"aivsreal/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    bundle = {BUNDLE + name for name in ("manifest.json", "evaluation.json", "model.onnx", "README.md")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    compiled = [path for path in (ROOT / "runtime" / "gpu").iterdir() if path.suffix in (".cu", ".fatbin")]
    kernels = {f"aivsreal/{path.relative_to(ROOT)}" for path in compiled}
    assert {Path(name).suffix for name in kernels} == {".cu", ".fatbin"}
    results = ("report.html", "report.js", "row.schema.json")
    data = {"aivsreal/runtime/py.typed", *(f"aivsreal/runtime/results/{name}" for name in results)}
    parts = ("graph.onnx", "trained.safetensors", "int8.safetensors", "manifest.json", "evaluation.json")
    accurate = {f"aivsreal/export/accurate/{name}" for name in parts}
    assert packed == modules | bundle | kernels | data | accurate


def test_the_wheel_needs_four_small_packages_and_offers_the_extras(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    needed = {text.split(">")[0] for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text}
    assert needed == {"numpy", "pillow", "click", "rich"}
    extras = {
        "accurate",
        "ray",
        "openvino",
        "cpu",
        "gpu",
        "tensorrt",
        "jetpack6",
        "jetpack7",
        "pycuda",
        "torch",
        "explain",
        "heic",
        "provenance",
        "train",
        "export",
        "dev",
    }
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_every_command_can_be_loaded() -> None:
    commands = {point.name: point for point in entry_points(group="console_scripts") if point.name.startswith("aivsr")}
    names = ("scan", "doctor", "bench", "explain", "report", "train", "evaluate", "calibrate", "export")
    assert set(commands) == {f"aivsreal-{name}" for name in names}
    assert all(callable(point.load()) for point in commands.values())


@pytest.mark.parametrize("folder", FOLDERS)
def test_type_checkers_see_the_namespace(folder: str) -> None:
    # Without these links mypy finds no module of ours and says "Success".
    assert (ROOT / ".view" / "aivsreal" / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_under_its_bare_name_is_refused(folder: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert f"write aivsreal.{folder}" in result.stderr
