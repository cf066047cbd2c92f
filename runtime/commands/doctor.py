"""aivsreal-doctor: what is here to run on, what is missing, what would run, and the command that mends each line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import AivsrealError, BackendError

if TYPE_CHECKING:
    from aivsreal.runtime.bundle.folder import Bundle

OK, MISSING, BROKEN = "ok", "missing", "broken"
_TEGRA = Path("/etc/nv_tegra_release")  # the first line is like "# R36 (release), REVISION: 4.0, ..."
_JETPACKS = {"R35": "JetPack 5", "R36": "JetPack 6", "R38": "JetPack 7", "R39": "JetPack 7"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    state: str
    """`ok`; `missing`, which may be what one wants; `broken`, which is installed and does not work."""
    detail: str
    mend: str = ""
    """What to type to change that."""


def findings(bundle_path: str | None = None) -> list[Finding]:
    """Look at the machine, from the system up to the backend that a scan would take."""
    found = [_system(), _checked("packages", _packages)]
    bundle, line = _bundle(bundle_path)
    found += [line, _accurate()]
    found += [
        _checked(
            "GPU", _gpu, "install NVIDIA's driver, then run nvidia-smi (a Jetson: sudo apt install nvidia-jetpack)"
        ),
        _checked("kernel", _kernel),
        *_tensorrt(bundle),
        *_onnxruntime(bundle),
        _openvino(bundle),
        _installed("PyTorch", ("torch", "timm"), "torch", "for --backend torch, training and Grad-CAM"),
        _installed("HEIC files", ("pillow-heif",), "heic", "pillow-heif is not installed"),
    ]
    if bundle is not None:
        found.append(_would_run(bundle))
    return found


def jetpack(release: Path = _TEGRA) -> str:
    """The JetPack of this Jetson, with the release that tells it; empty on anything else."""
    try:
        words = release.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    tag = next((word for word in words if word.startswith("R") and word[1:].isdigit()), "")
    return f"{_JETPACKS.get(tag, 'an unknown JetPack')} (L4T {tag or 'unknown'})"


def _checked(what: str, look: Callable[[], str | Finding], mend: str = "") -> Finding:
    from aivsreal.runtime.errors import MissingExtra

    try:
        seen = look()
    except MissingExtra as error:
        return Finding(what, MISSING, f"{error.module} is not installed", f"pip install 'aivsreal[{error.extra}]'")
    except AivsrealError as error:
        # Where the line has a command of its own, the error's own advice would only say it twice.
        return (
            Finding(what, MISSING, str(error).split(": run ")[0], mend) if mend else Finding(what, BROKEN, str(error))
        )
    return seen if isinstance(seen, Finding) else Finding(what, OK, seen)


def _system() -> Finding:
    board = jetpack()
    detail = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("system", OK, f"{detail}, {board}" if board else detail)


def _packages() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("aivsreal", "numpy", "pillow"))


def _bundle(path: str | None) -> tuple[Bundle | None, Finding]:
    from aivsreal.runtime.bundle.engine_key import engines_of
    from aivsreal.runtime.bundle.folder import Bundle

    try:
        bundle = Bundle.open(path)
        engines = len(engines_of(bundle))
    except AivsrealError as error:
        return None, Finding("bundle", BROKEN, str(error), "aivsreal-doctor --bundle FOLDER for another one")
    return bundle, Finding("bundle", OK, f"{bundle.described}, {engines} engines")


def _accurate() -> Finding:
    from aivsreal.runtime.bundle.folder import ACCURATE, HOW_TO_GET_ACCURATE, Bundle, bundle_folder
    from aivsreal.runtime.bundle.manifest import MANIFEST

    mend = " && ".join(HOW_TO_GET_ACCURATE)
    if not os.path.isfile(bundle_folder(ACCURATE) / MANIFEST):
        return Finding("accurate model", MISSING, f"for --bundle {ACCURATE} and --second-opinion {ACCURATE}", mend)
    try:
        bundle = Bundle.open(ACCURATE)
    except AivsrealError as error:
        return Finding("accurate model", BROKEN, str(error), mend)
    return Finding("accurate model", OK, bundle.described)


def _gpu() -> str:
    from aivsreal.runtime.gpu.driver import open_driver

    with closing(open_driver()) as driver:
        gpu = driver.gpu
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB{' shared with the CPU' if gpu.shares_memory else ''}"
        capability = "{}.{}".format(*gpu.capability)
        cuda = "{}.{}".format(*gpu.cuda)
        return f"{gpu.name}, compute capability {capability}, {memory}, driver for CUDA {cuda}, by {driver.name}"


def _kernel() -> Finding:
    from aivsreal.runtime.gpu.driver import open_driver
    from aivsreal.runtime.gpu.kernel import KERNELS, PreprocessKernel

    try:
        driver = open_driver()
    except BackendError:
        packed = sorted(path.name for path in KERNELS.glob("*.fatbin"))
        return Finding("kernel", OK if packed else BROKEN, f"{', '.join(packed) or 'not packed'}; no GPU to load it on")
    with closing(driver), driver.current(), closing(PreprocessKernel(driver)) as kernel:
        return Finding("kernel", OK, kernel.origin)


def _tensorrt(bundle: Bundle | None) -> list[Finding]:
    from aivsreal.runtime.gpu.backend import TensorrtBackend
    from aivsreal.runtime.gpu.engine import installed_libraries

    try:
        libraries = installed_libraries()
    except BackendError as error:
        return [Finding("TensorRT", BROKEN, str(error), "pip install --force-reinstall tensorrt")]
    if not libraries:
        mend = "sudo apt install nvidia-jetpack" if jetpack() else "pip install 'aivsreal[tensorrt]'"
        return [Finding("TensorRT", MISSING, "neither tensorrt nor tensorrt_rtx is installed", mend)]
    listed = ", ".join(f"{kind.product} {module.__version__}" for kind, module in libraries.items())
    if bundle is None:
        return [Finding("TensorRT", OK, listed)]

    def runs() -> str:
        with closing(TensorrtBackend(bundle)) as backend:
            return backend.detail

    return [Finding("TensorRT", OK, listed), _checked("engine", runs, "aivsreal-export --fp16")]


def _openvino(bundle: Bundle | None) -> Finding:
    found = _installed("OpenVINO", ("openvino",), "openvino", "often the fastest on a CPU")
    if bundle is None or found.state != OK:
        return found

    def runs() -> str:
        from aivsreal.runtime.backends.openvino import OpenvinoBackend

        with closing(OpenvinoBackend(bundle)) as backend:
            return f"{found.detail}, runs in {backend.precision}"

    return _checked("OpenVINO", runs)


def _onnxruntime(bundle: Bundle | None) -> list[Finding]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(both) == 2:
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'aivsreal[gpu]'"
        return [Finding("ONNX Runtime", BROKEN, "onnxruntime and onnxruntime-gpu overwrite each other's files", mend)]
    if bundle is None:
        return [
            Finding("ONNX Runtime", OK if both else MISSING, ", ".join(f"{name} {_version(name)}" for name in both))
        ]

    def runs(provider: str) -> str:
        from aivsreal.runtime.backends.onnx import OnnxBackend

        with closing(OnnxBackend(bundle, provider=provider)) as backend:
            return f"{', '.join(f'{name} {_version(name)}' for name in both)} runs as {backend.name}"

    return [
        _checked("ONNX Runtime, CPU", lambda: runs("cpu"), "pip install 'aivsreal[cpu]'"),
        _checked(
            "ONNX Runtime, CUDA", lambda: runs("cuda"), "pip uninstall -y onnxruntime && pip install 'aivsreal[gpu]'"
        ),
    ]


def _installed(what: str, packages: tuple[str, ...], extra: str, without: str) -> Finding:
    if not all(map(_version, packages)):
        return Finding(what, MISSING, without, f"pip install 'aivsreal[{extra}]'")
    return Finding(what, OK, ", ".join(f"{name} {_version(name)}" for name in packages))


def _would_run(bundle: Bundle) -> Finding:
    from aivsreal.runtime.backends.choose import open_backend

    try:
        backend, why = open_backend(bundle)
    except AivsrealError as error:
        return Finding("a scan", BROKEN, str(error), "pip install 'aivsreal[cpu]'")
    with closing(backend):
        return Finding("a scan", OK, f"runs {backend.name}, {backend.precision} ({why})")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@command("aivsreal-doctor")
@click.option("--bundle", metavar="MODEL", help="Model to look at: accurate, or a folder.  [default: the shipped one]")
@click.option("--jsonl", is_flag=True, help="Write one JSON object a line.")
def main(bundle: str | None, jsonl: bool) -> int:
    """Say what is here to run on, what is missing, and what to type to change that.

    Exit status: 0 a scan would run, 1 something that is installed does not work, 2 a scan would not run.
    """
    lines = findings(bundle)
    if jsonl:
        for line in lines:
            click.echo(json.dumps(asdict(line)))
    else:
        _print(lines)
    runs = any(line.what == "a scan" and line.state == OK for line in lines)
    return 2 if not runs else int(any(line.state == BROKEN for line in lines))


def _print(lines: list[Finding]) -> None:
    """A table on a terminal, else rows with tabs."""
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join((line.what, line.state, line.detail, line.mend)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "", "found", "to change that, type"):
        table.add_column(title, overflow="fold")
    colours = {OK: "green", MISSING: "yellow", BROKEN: "red"}
    for line in lines:
        table.add_row(line.what, Text(line.state, colours[line.state]), Text(line.detail), Text(line.mend))
    Console().print(table)


if __name__ == "__main__":
    main()
