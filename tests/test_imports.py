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
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "tensorrt", "cuda", "pycuda", "ray", "pyarrow", "boto3", "pandas")


def _loaded(code: str) -> set[str]:
    lines = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True).stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import aivsreal.runtime",
        "from aivsreal.runtime import Bundle, Detector, Label, Scanned, Verdict",
        "import aivsreal.runtime.commands.scan",
        "import aivsreal.runtime.gpu.backend, aivsreal.runtime.gpu.kernel",
        "import aivsreal.runtime.commands.doctor",
        "import aivsreal.benchmarks.cli",
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


# From the values at the bottom to the commands on top; a room imports only what stands lower, and its own files.
FLOORS = (
    ("errors", "spec", "preprocess", "verdict", "uri", "machine", "text", "cache", "fields", "locks", "telemetry"),
    ("bundle", "pixels"),
    ("evidence", "gpu", "networks"),
    ("backends", "files"),
    ("options",),
    ("detector",),
    ("explain", "results"),
    ("scale",),
    ("commands",),
)
TRAIN_FLOORS = (
    ("config", "samples", "plot", "progress"),
    ("evaluate",),
    ("batches", "calibrate"),
    ("fit",),
    ("start",),
    ("run", "pack"),
    ("cli",),
)
# Each heavy library has one file that names it; the export and the training are made of torch and onnx.
HOMES = {
    "onnxruntime": {"runtime/backends/onnx.py"},
    "openvino": {"runtime/backends/openvino.py"},
    "torch": {
        *(f"runtime/networks/{name}.py" for name in ("arch", "levit", "mapped", "vit")),
        "runtime/backends/torch.py",
        "runtime/explain.py",
    },
    "timm": {f"runtime/networks/{name}.py" for name in ("encoder", "levit", "vit")},
    "onnx": {"runtime/backends/torch.py", "runtime/networks/encoder.py"},
    "cuda": {"runtime/gpu/bindings.py"},
    "pycuda": {"runtime/gpu/pycuda.py"},
    "pytorch_grad_cam": {"runtime/explain.py"},
    "ray": {f"runtime/scale/{name}.py" for name in ("cluster", "judging", "listing")},
    "boto3": {"runtime/scale/storage.py"},
    "c2pa": {"runtime/evidence/c2pa.py"},
    "pillow_heif": {"runtime/pixels/images.py"},
}


def _modules() -> dict[str, Path]:
    files = [path for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py"))]
    return {".".join(("aivsreal", *path.relative_to(ROOT).with_suffix("").parts)): path for path in files}


def _edges() -> dict[str, set[str]]:
    """The modules of ours that each module of ours imports, also inside functions and for type checkers."""
    modules = _modules()
    edges = {}
    for name, path in modules.items():
        imported = {full for full, _ in _imported(path)}
        named = {full if full in modules else full.rpartition(".")[0] for full in imported}
        edges[name] = (named & set(modules)) - {name}
    return edges


def _floor(inside: str, floors: tuple[tuple[str, ...], ...]) -> tuple[int, str]:
    places = [
        (len(room), floor, room)
        for floor, rooms in enumerate(floors)
        for room in rooms
        if f"{inside}.".startswith(f"{room}.")
    ]
    assert places, f"{inside} is in no room"
    _, floor, room = max(places)
    return floor, room


@pytest.mark.parametrize(("stage", "floors"), [("runtime", FLOORS), ("train", TRAIN_FLOORS)])
def test_the_rooms_of_a_stage_import_only_what_stands_below_them(
    stage: str, floors: tuple[tuple[str, ...], ...]
) -> None:
    edges = _edges()
    assert len(edges) > 100
    assert edges["aivsreal.runtime.detector"] >= {"aivsreal.runtime.verdict", "aivsreal.runtime.backends.choose"}
    above = f"aivsreal.{stage}."
    for module, imported in edges.items():
        if not module.startswith(above) or module.endswith("__init__"):
            continue
        floor, room = _floor(module.removeprefix(above), floors)
        for other in sorted(name for name in imported if name.startswith(above)):
            below, beside = _floor(other.removeprefix(above), floors)
            assert below < floor or beside == room or below == floor == 0, f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges, done = _edges(), set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_each_heavy_library_is_named_where_it_belongs_and_nowhere_else() -> None:
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        for name, _ in _imported(path):
            library = name.partition(".")[0]
            assert file in HOMES.get(library, {file}), f"{file} imports {library}"
    for library, homes in HOMES.items():
        for file in homes:
            assert library in {name.partition(".")[0] for name, _ in _imported(ROOT / file)}, f"{file}: {library}"


def test_all_that_the_library_offers_can_be_imported() -> None:
    import aivsreal.runtime

    for name in aivsreal.runtime.__all__:
        assert getattr(aivsreal.runtime, name) is not None
    assert not hasattr(aivsreal.runtime, "nothing")


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


def test_rooms_files_and_functions_keep_their_limits() -> None:
    ran = subprocess.run([sys.executable, "-m", "aivsreal.benchmarks.sizes"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "| `runtime/gpu/` | 9 | 9 |" in ran.stdout


def test_what_is_past_its_limit_is_named(tmp_path: Path) -> None:
    from aivsreal.benchmarks.sizes import rooms

    room = tmp_path / "runtime" / "room"
    room.mkdir(parents=True)
    for index in range(10):
        (room / f"m{index}.py").touch()
    (room / "m0.py").write_text("x = 1\n" * 401)
    (room / "m1.py").write_text("def f():\n" + "    x = 1\n" * 50)
    assert [line for one in rooms(tmp_path) for line in one.passed] == [
        "runtime/room/ 10 modules, and 9 are the most",
        "runtime/room/m0.py 401 lines, and 400 are the most",
        "runtime/room/m1.py f 51 lines, and 50 are the most",
    ]
