"""`aivsreal-bench proof`: the steps of the proof one after another, each in a process of its own with its time limit.

What a step printed is written as it ends, so that whoever stops it has all that was found out; a step that fails, hangs
or crashes is a line in the table, with what it said in `steps.jsonl`, and the rest goes on. `ok` of a step is None
where what it needs is not here and need not be: that is no failure.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aivsreal.benchmarks.proof.table import outcome, table_from
from aivsreal.runtime.text import last_line

LIMIT_S = 270.0
SAID = 6000  # characters of a step's output that its line keeps: the end
LOGGED = 200_000  # and that the log keeps
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
BATCHES = ("64", "1", "256", "8")  # the first are what is claimed of; who runs out of time has those


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for, as `aivsreal-bench proof` has it."""

    out: Path
    work: Path
    bundle: str | None
    """Model to prove; None is the shipped one."""
    payload: Path | None
    """Folder with archives of TensorRT-RTX, `images` and `wheels`, as run.sh unpacks it."""
    seconds: float
    """For each measurement."""
    limit_s: float
    """For all of it; who gives more gives each step more."""
    sizes: int
    soak: int
    images: int
    size: tuple[int, int]
    batches: tuple[str, ...]


@dataclass(slots=True)
class Proof:
    """The state of a run: what was found out, and the engine that the later steps use."""

    wish: Wish
    begin: float = field(default_factory=time.monotonic)
    steps: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bundle: Path | None = None
    """With an engine for this GPU, once there is one."""
    passed_over: list[dict[str, Any]] = field(default_factory=list)
    """Steps of a TensorRT that built no engine, where a later one did: one engine is enough."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Of the time for all of it."""
        return self.wish.limit_s - (time.monotonic() - self.begin)

    def run(self, name: str, limit_s: float, *command: str, ok: Sequence[int] = (0,), keep: Path | None = None) -> bool:
        """Run a command, and write what came of it; JSON lines on its standard output are rows."""
        left = self.left_s
        if left < 1:
            return self.skip(name, "the time for all of it was up")
        begin, limit = time.monotonic(), min(limit_s * max(1, self.wish.limit_s / LIMIT_S), left)
        out, err = self.wish.work / f"{len(self.steps)}.out", self.wish.work / f"{len(self.steps)}.err"
        try:
            code, why = self._ended([*command], out, err, limit)
        except BaseException:  # the proof itself is stopped: what the step has measured is kept
            self._add(list(_rows(out.read_text(errors="replace"))) if keep is None else [])
            self.note(name, False, "stopped", seconds=time.monotonic() - begin, command=command)
            raise
        printed, said = out.read_text(errors="replace"), err.read_text(errors="replace")
        rows = [] if keep is not None else list(_rows(printed))
        if keep is not None:
            shutil.copyfile(out, keep)
        # 1 after a claim that does not hold: it ran, and claims are judged at the end, of the rows of all steps.
        good: bool | None = code in ok or (code == 1 and any(map(_is_broken_claim, rows)))
        why = why or ("" if good else last_line(said or printed)[:400] or f"exit status {code}")
        unmeasured = [row for row in rows if "not_measured" in row]
        if good and unmeasured and not any("p50_ms" in row for row in rows):
            good = None if all(row.get("not_here") for row in unmeasured) else False
            why = str(unmeasured[0]["not_measured"])
        seconds, both = time.monotonic() - begin, (said.rstrip() + "\n" + printed.rstrip()).strip()
        self.note(name, good, why, seconds=seconds, code=code, command=command, said=both)
        self._add(rows)
        return bool(good)

    def _ended(self, command: list[str], out: Path, err: Path, limit_s: float) -> tuple[int | None, str]:
        """The exit status of a command, and why it has none that counts: it hung, crashed or is not there."""
        with out.open("wb") as stdout, err.open("wb") as stderr:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self.wish.work,
                    env={**os.environ, **self.environment}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return None, str(error)
            try:
                code = process.wait(limit_s)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    return None, f"not done after {limit_s:.0f} s"
                raise
        return code, f"ended by {signal.Signals(-code).name}" if code < 0 else ""

    def skip(self, name: str, why: str) -> bool:
        """A step that was not run."""
        self.note(name, False, why)
        return False

    def note(
        self, name: str, good: bool | None, why: str, *, seconds: float = 0.0, code: int | None = None,
        command: Sequence[str] = (), said: str = "",
    ) -> None:  # fmt: skip
        """Write what came of a step; None is for what is not here and need not be."""
        step = {
            "step": name, "ok": good, "why": why, "seconds": round(seconds, 1), "exit": code, "command": list(command),
            "said": said[-SAID:],
        }  # fmt: skip
        self.steps.append(step)
        with (self.wish.out / "steps.jsonl").open("a") as file:
            file.write(json.dumps(step) + "\n")
        with (self.wish.out / "log.txt").open("a") as file:
            file.write(f"#### {name}: {outcome(good, why)} ({seconds:.1f} s)\n{said[-LOGGED:]}\n\n")
        print(f"## {name}: {outcome(good, why[:300])} ({seconds:.1f} s)", flush=True)

    def _add(self, rows: list[dict[str, Any]]) -> None:
        rows = [row for row in rows if row.get("benchmark") == "gpu" and not row["what"].startswith("claim")]
        self.rows += rows
        with (self.wish.out / "results.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def prove(wish: Wish) -> bool:
    """All steps; whether none failed, and all that must hold of what was measured does."""
    for folder in (wish.out, wish.work):
        folder.mkdir(parents=True, exist_ok=True)
    for old in ("steps.jsonl", "results.jsonl", "log.txt", "summary.txt"):
        (wish.out / old).unlink(missing_ok=True)
    proof = Proof(wish, environment=_environment(wish))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as of `timeout`
    try:
        _steps(proof)
    finally:
        signal.signal(signal.SIGTERM, before)
        text, judged = table_from(proof.steps, proof.rows), _claims(proof)
        (wish.out / "summary.txt").write_text(text)
        with (wish.out / "results.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in judged)
        print(text, flush=True)
    outcomes = [step["ok"] for step in proof.steps if step not in proof.passed_over]
    return False not in (*outcomes, *(row["holds"] for row in judged))


def _steps(proof: Proof) -> None:
    wish = proof.wish
    images = _images(proof)
    waiting = _pycuda_begun(proof)
    proof.run("doctor", 60, _command("aivsreal-doctor"), ok=(0, 1))
    proof.run("kernel against Pillow", 70, *_check("kernel"), "--sizes", str(wish.sizes))
    _engine(proof, images)
    _same_labels(proof, images)
    _timed(proof)
    if proof.bundle is None:
        proof.skip("every artefact against model.onnx", "there is no engine")
    else:
        verify = [_command("aivsreal-export"), str(proof.bundle), "--verify", "--json", *_reference(images)]
        proof.run("every artefact against model.onnx", 50, *verify)
    _pycuda_ended(proof, waiting)


def _timed(proof: Proof) -> None:
    wish = proof.wish
    bench = [_command("aivsreal-bench"), "gpu", *_bundle(proof), "--seconds", str(wish.seconds)]
    bench += ["--size", *map(str, wish.size)]
    bench += [word for batch in wish.batches for word in ("--batch", batch)]
    proof.run("kernel, engine, graph, end to end", 80, *bench, "--part", "ours")
    proof.run("roofline", 40, *bench, "--part", "roofline")
    proof.run("PyTorch", 110, *bench, "--part", "torch", "--compile-mode", "reduce-overhead")
    alone = [] if proof.bundle else ["--kernel-alone"]
    most = str(max(1.0, min(35.0, proof.left_s - 25)))
    soak = [*_check("soak"), *_bundle(proof), *alone, "--batches", str(wish.soak), "--seconds", most]
    proof.run("memory", 45, *soak)
    if proof.bundle is None:
        proof.skip("two threads", "there is no engine")
    else:
        batches = str(max(3, wish.soak // 100))
        proof.run("two threads", 30, *_check("threads"), *_bundle(proof), "--batches", batches)
    proof.run("ONNX Runtime on CUDA", 25, *bench, "--part", "onnx")


def _engine(proof: Proof, images: Path | None) -> None:
    """The first TensorRT that builds an engine which runs and is as good as ONNX Runtime on 256 images."""
    wish, begin = proof.wish, len(proof.steps)
    for name, site in _tensorrts(wish):
        path = os.pathsep.join(([] if site is None else [str(site)]) + [os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
        proof.environment["PYTHONPATH"] = path
        target = wish.work / f"bundle-{name}"
        build = [_command("aivsreal-export"), _source(wish), "-o", str(target), "--fp16", "--engine", "--json"]
        most = str(max(map(int, wish.batches)))
        if proof.run(f"engine by {name}", 100, *build, "--max-batch", most, *_reference(images)):
            proof.bundle, proof.passed_over = target, proof.steps[begin:-1]
            return
        if not _installed("tensorrt"):
            graph = wish.work / "half" / "model.fp16.onnx"
            if not graph.is_file():
                half = [_command("aivsreal-export"), _source(wish), "-o", str(graph.parent), "--fp16", "--no-engine"]
                proof.run("half graph", 40, *half)
            for aim in ("CURRENT", "portable", "SM89", "SM80"):
                if proof.run(f"{name} step by step, {aim}", 30, *_check("probe"), str(graph), "--target", aim):
                    break
    if not any(step["step"].startswith("engine by") for step in proof.steps):
        proof.skip("engine", "neither installed here nor in the payload is there a TensorRT")


def _tensorrts(wish: Wish) -> Iterator[tuple[str, Path | None]]:
    """Names of the TensorRTs to try, each with the folder that it was unpacked into; None where it is installed."""
    if any(map(_installed, ("tensorrt", "tensorrt_rtx"))):
        yield "the installed TensorRT", None
    for archive in sorted(wish.payload.glob("rtx-*.tar.xz")) if wish.payload is not None else []:
        site = wish.work / archive.name.removesuffix(".tar.xz")
        with lzma.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as packed:
            packed.extractall(site, filter="data")
        yield archive.name.removesuffix(".tar.xz"), site


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # it is loaded, and knows not from where
        return True


def _same_labels(proof: Proof, images: Path | None) -> None:
    name = "labels of a scan equal ONNX Runtime's"
    if proof.bundle is None or images is None:
        proof.skip(name, "there is no engine" if proof.bundle is None else "there are no images")
        return
    paths = [str(path) for path in sorted(images.iterdir())[: proof.wish.images]]
    scans = []
    for backend in ("tensorrt", "onnx-cpu"):
        scans.append(proof.wish.work / f"{backend}.jsonl")
        scan = [_command("aivsreal-scan"), "--jsonl", "--backend", backend, *_bundle(proof), "--", *paths]
        if not proof.run(f"scan with {backend}", 60, *scan, keep=scans[-1]):
            proof.skip(name, f"the scan with {backend} failed")
            return
    proof.run(name, 30, *_check("labels"), *map(str, scans), *_bundle(proof))


def _images(proof: Proof) -> Path | None:
    """Those of the payload, or as many that are made here."""
    folder = None if proof.wish.payload is None else proof.wish.payload / "images"
    if folder is not None and folder.is_dir():
        return folder
    from PIL import Image

    from aivsreal.benchmarks.cpu.photos import enlarged
    from aivsreal.benchmarks.proof.gpu import photographs

    folder = proof.wish.work / "images"
    folder.mkdir(exist_ok=True)
    (noise,) = photographs(1, 48, 36)
    for number in range(proof.wish.images):
        Image.fromarray(enlarged(noise, 320 + number, 240, number)).save(folder / f"{number:03}.png", compress_level=1)
    return folder


def _pycuda_begun(proof: Proof) -> subprocess.Popen[bytes] | None:
    """pycuda comes as source and takes a minute to compile: beside the other steps."""
    wheels = None if proof.wish.payload is None else proof.wish.payload / "wheels"
    if wheels is None or not any(wheels.glob("pycuda*")):
        return None
    command = ["bash", "-c", _BUILD_PYCUDA, "pycuda", sys.executable, str(wheels), str(proof.wish.work / "pycuda")]
    with (proof.wish.work / "pycuda.log").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=proof.wish.work, start_new_session=True
        )  # fmt: skip


# With the driver's library under the name that the linker looks for, and without cuRAND, whose headers may be missing.
_BUILD_PYCUDA = r"""set -eux
python=$1 wheels=$2 target=$3
mkdir -p "$target.source" "$target.lib"
tar -xzf "$wheels"/pycuda*.tar.gz -C "$target.source" --strip-components 1
driver=$(ldconfig -p | sed -n 's/.*libcuda\.so\.1 .*=> //p' | head -1)
[ -n "$driver" ] || driver=$(find / -name 'libcuda.so.1' -not -path '/proc/*' 2>/dev/null | head -1)
ln -sf "$driver" "$target.lib/libcuda.so"
export CUDA_ROOT=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
cd "$target.source"
"$python" configure.py --no-cuda-enable-curand --cuda-root="$CUDA_ROOT" --cudadrv-lib-dir="$target.lib" --cxxflags=-O0
# With --target pip does not see what the Python at hand has.
set -- "$wheels"/pytools* "$wheels"/platformdirs* "$wheels"/siphash24* "$wheels"/mako* "$wheels"/markupsafe*
nice "$python" -m pip install --no-deps --no-build-isolation --target "$target" . "$@"
"""


def _pycuda_ended(proof: Proof, build: subprocess.Popen[bytes] | None) -> None:
    name = "kernel through pycuda"
    if build is None:
        proof.note(name, None, "no payload with pycuda was given")
        return
    try:
        code = build.wait(max(0.1, proof.left_s - 15))
    except subprocess.TimeoutExpired:
        os.killpg(build.pid, signal.SIGKILL)
        build.wait()
        code = -9
    said = (proof.wish.work / "pycuda.log").read_text(errors="replace")
    proof.note("pycuda builds", code == 0, "" if code == 0 else last_line(said)[:400], code=code, said=said.strip())
    if code == 0:
        proof.environment["PYTHONPATH"] = str(proof.wish.work / "pycuda")
        sizes = str(max(1, proof.wish.sizes // 10))
        proof.run(name, 40, *_check("kernel"), "--binding", "pycuda", "--sizes", sizes)


def _rows(printed: str) -> Iterator[dict[str, Any]]:
    for line in printed.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a step that was stopped
                continue


def _is_broken_claim(row: dict[str, Any]) -> bool:
    return str(row.get("what")).startswith("claim") and row.get("holds") is False


def _claims(proof: Proof) -> list[dict[str, Any]]:
    from aivsreal.benchmarks.machine import machine_facts
    from aivsreal.benchmarks.proof.gpu import claims

    facts = {"seconds": proof.wish.seconds, "image": list(proof.wish.size), "machine": machine_facts()}
    return [{"benchmark": "gpu", **row, **facts} for row in claims(proof.rows)]


def _environment(wish: Wish) -> dict[str, str]:
    caches = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    return {**{name: str(wish.work / folder) for name, folder in caches.items()}, **QUIET}


def _command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _check(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "aivsreal.benchmarks.proof.checks", name)


def _bundle(proof: Proof) -> list[str]:
    bundle = proof.bundle or proof.wish.bundle
    return [] if bundle is None else ["--bundle", str(bundle)]


def _reference(images: Path | None) -> list[str]:
    return [] if images is None else ["--reference", str(images)]


def _source(wish: Wish) -> str:
    from aivsreal.runtime.bundle.folder import Bundle

    return str(Bundle.open(wish.bundle).path)
