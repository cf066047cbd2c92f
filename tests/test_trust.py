"""What SECURITY.md promises: nothing is loaded unverified, nothing is unpickled, and nothing leaves the machine."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import encoded, picture

from aivsreal.runtime.bundle.folder import SHIPPED, Bundle
from aivsreal.runtime.errors import BundleError

ROOT = Path(__file__).resolve().parents[1]
# Audit hooks see every socket and every unpickling of the process, whoever asks for it, and cannot be taken away.
GUARDED = """
import os, sys
def guard(event, arguments):
    if event.startswith("socket.") or event == "pickle.find_class":
        os.write(2, ("AUDIT " + event + "\\n").encode())
        os._exit(99)
sys.addaudithook(guard)
from aivsreal.runtime.commands.scan import main
main()
"""


def _guarded(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", GUARDED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_scan_opens_no_socket_and_unpickles_nothing(tmp_path: Path) -> None:
    from importlib.util import find_spec

    from signing import signed

    folder = tmp_path / "photos"
    folder.mkdir()
    content = encoded("JPEG")
    (folder / "image.jpg").write_bytes(signed(content, "image/jpeg") if find_spec("c2pa") else content)
    (folder / "broken.jpg").write_bytes(b"broken")
    output = tmp_path / "r.jsonl"
    result = _guarded(folder, "--output", output)
    assert result.returncode == 1, result.stderr
    assert "AUDIT" not in result.stderr
    assert len(output.read_text().splitlines()) == 2


def test_the_guard_would_notice(tmp_path: Path) -> None:
    code = GUARDED.replace("from aivsreal.runtime.commands.scan import main", "import socket; main = socket.socket")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (99, "AUDIT socket.__new__\n")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0,
    reason="this machine does not let us take the network away",
)
def test_a_scan_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encoded("JPEG"))
    command = ["unshare", "-rn", sys.executable, "-m", "aivsreal.runtime.commands.scan", str(tmp_path), "--isolate"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("stage", ["runtime", "export"])
def test_nothing_that_unpickles_or_evaluates_is_called(stage: str) -> None:
    for path in sorted((ROOT / stage).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & {name.split(".")[0] for name in names}, (
                    path
                )
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system"), f"{path}: {called}"
                if called == "torch.load":
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("weights_only") == "True", path
                if called == "np.load":
                    assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, path


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "con\n", "manifest.json", "\\x"]
)
def test_no_name_in_a_manifest_leaves_the_bundle(tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED, bundle)
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"][name] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="plain file name"):
        Bundle.open(bundle)


def test_a_network_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED, bundle)
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xaa\x55")
    result = _guarded(tmp_path, "--bundle", bundle)
    assert (result.returncode, result.stdout) == (2, "")
    assert "SHA-256" in result.stderr


def test_a_module_beside_the_pictures_is_not_imported(tmp_path: Path) -> None:
    """Where a scan is started is not where code may come from, also for the processes that decode."""
    for name in ("json", "numpy", "PIL", "aivsreal", "select", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code from the folder of pictures was run')")
    (tmp_path / "image.jpg").write_bytes(encoded("JPEG", picture(1)))
    scan = Path(sys.executable).parent / "aivsreal-scan"
    command = [str(scan), "image.jpg", "--isolate"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    assert "code from" not in result.stdout + result.stderr
