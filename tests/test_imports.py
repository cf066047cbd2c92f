"""Who may import whom, and that the lean half stays lean."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("runtime", "train", "export", "benchmarks")
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "tensorrt", "cuda", "pycuda")


def _loaded(code: str) -> set[str]:
    lines = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True).stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import aivsreal.runtime",
        "from aivsreal.runtime import Bundle, Detector, Label, Scanned, Verdict",
        "import aivsreal.runtime.scan",
        "import aivsreal.runtime.backend_tensorrt, aivsreal.runtime.kernel",
        "import aivsreal.runtime.doctor",
        "import aivsreal.benchmarks.bench",
    ],
)
def test_the_runtime_is_imported_without_anything_heavy(code: str) -> None:
    assert not _loaded(code) & set(HEAVY)


def _imported(path: Path) -> list[tuple[str, int]]:
    """Every module that a file names in an import, wherever in the file, with the level of a relative one."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module or ''}.{alias.name}", node.level) for alias in node.names]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_the_runtime_and_itself_and_no_other_stage(stage: str) -> None:
    files = sorted((ROOT / stage).rglob("*.py"))
    assert files
    for path in files:
        for name, level in _imported(path):
            assert level == 0, f"{path}: relative import of {name}"
            top, _, rest = name.partition(".")
            assert top not in (*STAGES, "tests", "conftest"), f"{path} imports {name}: write aivsreal.{name}"
            if top == "aivsreal":
                # Nothing imports the benchmarks, so they may measure training too.
                known = {"runtime", stage} | ({"train"} if stage == "benchmarks" else set())
                assert rest.split(".")[0] in known, f"{path} imports {name}: stages meet at files"


@pytest.mark.parametrize("stage", STAGES)
def test_the_type_checkers_link_is_there(stage: str) -> None:
    link = ROOT / ".view" / "aivsreal" / stage
    assert link.is_symlink()
    assert link.resolve() == ROOT / stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_bare_import_from_the_root_is_refused(stage: str) -> None:
    tried = subprocess.run([sys.executable, "-c", f"import {stage}"], cwd=ROOT, capture_output=True, text=True)
    assert tried.returncode == 1
    assert f"ImportError: write aivsreal.{stage}" in tried.stderr
