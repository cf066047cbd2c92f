"""The commands of aivsreal-bench that need no GPU."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import click

from aivsreal.runtime.errors import AivsrealError

MADE = "made of smaller ones, with grain"
DATA = click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
BUNDLE = click.option("--bundle", metavar="FOLDER", help="Model to measure.  [default: the shipped one]")
ROUNDS = click.option("--rounds", type=click.IntRange(2), default=9, show_default=True, help="Turns of each in pairs.")


@click.command()
@DATA
@BUNDLE
@click.option(
    "--backend", "backends", multiple=True, help="Again for each.  [onnx openvino onnx-int8 openvino-int8 torch]"
)
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Again for each.  [1 8 16]")
@click.option("--seconds", type=click.FloatRange(0.01), default=5.0, show_default=True, help="For each measurement.")
@click.option("--files", type=click.IntRange(1), default=24, show_default=True, help="Photographs of each size.")
@ROUNDS
def cpu(
    data: Path, bundle: str | None, backends: tuple[str, ...], batches: tuple[int, ...], seconds: float, files: int,
    rounds: int,
) -> None:  # fmt: skip
    """Network, stages, whole scans, start and memory on this CPU.

    Photographs of 12 megapixels and of 1024 pixels are made of the images in DATA.

    Exit status: 0 what must hold holds, 1 something does not, 2 wrong use or no usable model.
    """
    from aivsreal.benchmarks.cpu.network import CPU_BACKENDS, network_rows, paired_rows
    from aivsreal.benchmarks.cpu.scanning import memory_rows, scan_rows, start_row
    from aivsreal.runtime.backends import BACKENDS
    from aivsreal.runtime.backends.choose import INT8
    from aivsreal.runtime.bundle.folder import Bundle

    chosen = backends or CPU_BACKENDS
    _check_known(chosen, sorted({*BACKENDS, *CPU_BACKENDS}))
    squared = [name for name in chosen if name != "torch" and not name.endswith(INT8)]
    with tempfile.TemporaryDirectory() as scratch:
        opened = Bundle.open(bundle)
        photos = _photos(data, files, Path(scratch), ("12-megapixel", "1024px"))
        rows = chain(
            network_rows(opened, chosen, batches or (1, 8, 16), seconds),
            paired_rows(opened, chosen, rounds),
            scan_rows(squared, bundle, photos, rounds),
            (start_row(photos["1024px"][0], rounds, name, bundle) for name in ("auto", *squared)),
            memory_rows({"one 1024px": photos["1024px"][:1], **photos}, squared, bundle),
        )
        _tell("cpu", rows, bundle=opened.digest, images=MADE)


@click.command()
@DATA
@BUNDLE
@click.option("--with", "names", multiple=True, help="Again for each.  [all that are known]")
@click.option("--shape", "shapes", multiple=True, help="12-megapixel, 1024px or 256px.  [the first two]")
@click.option("--files", type=click.IntRange(2), default=24, show_default=True, help="Photographs of each size.")
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="For each turn.")
@click.option("--environments", type=click.Path(path_type=Path), help="Keep the peers' environments in this folder.")
@ROUNDS
def compare(
    data: Path, bundle: str | None, names: tuple[str, ...], shapes: tuple[str, ...], files: int, seconds: float,
    environments: Path | None, rounds: int,
) -> None:  # fmt: skip
    """A scan beside plain loops and other detectors, on the same photographs.

    The loops are Pillow, timm's transform and PyTorch, ONNX Runtime or OpenVINO; the detectors sahu65 and prnu are
    installed from the package index, each into an environment of its own (6.4 GB).

    Exit status: 0 what must hold holds, 1 something does not, 2 wrong use or no usable model.
    """
    from aivsreal.benchmarks.cpu.compare import PEERS, PLAIN, compare_rows, peer_python
    from aivsreal.benchmarks.cpu.photos import SHAPES
    from aivsreal.runtime.bundle.folder import Bundle

    wanted = shapes or ("12-megapixel", "1024px")
    chosen = list(names or (*PLAIN, *PEERS))
    _check_known(chosen, (*PLAIN, *PEERS, "aivsreal:onnx-cpu"))
    _check_known(wanted, SHAPES)
    with tempfile.TemporaryDirectory() as scratch:
        opened = Bundle.open(bundle)
        pythons, missing = {}, []
        for name in [name for name in chosen if name in PEERS]:
            try:
                pythons[name] = peer_python(name, environments or Path(scratch, "environments"), _say)
            except AivsrealError as error:
                chosen.remove(name)
                missing.append({"contender": name, "not_measured": str(error)})
        photos = _photos(data, files, Path(scratch), wanted)
        rows = compare_rows(opened, photos, chosen, pythons=pythons, rounds=rounds, seconds=seconds, tell=_say)
        _tell("compare", chain(missing, rows), bundle=opened.digest, images=MADE)


@click.command()
@DATA
@BUNDLE
@click.option("--backend", default="onnx-cpu", show_default=True)
@click.option("--images", type=click.IntRange(3), default=500, show_default=True)
@click.option("--grain", type=click.FloatRange(0), default=6.0, show_default=True, help="Noise put on enlarged images.")
def drift(data: Path, bundle: str | None, backend: str, images: int, grain: float) -> None:
    """What decoding JPEGs at a smaller scale does to p_ai, on images of DATA that are enlarged first.

    Exit status: 0 it is within its bound, 1 it is not, 2 wrong use or no usable model.
    """
    from aivsreal.benchmarks.cpu.photos import spread
    from aivsreal.benchmarks.studies.drift import drift_row
    from aivsreal.runtime.detector import Detector

    with Detector.open(bundle, backend) as detector:
        row = drift_row(detector, spread(data, images), grain)
        about = {"backend": detector.backend.name, "point": detector.point.name}
        _tell("drift", [row], bundle=detector.bundle.digest, **about)


@click.command()
@DATA
@BUNDLE
@click.option("--backend", default="auto", show_default=True)
@click.option("--files", type=click.IntRange(100), default=100_000, show_default=True)
@click.option("--against", type=click.IntRange(100), default=1000, show_default=True)
def memory(data: Path, bundle: str | None, backend: str, files: int, against: int) -> None:
    """Peak memory and time for each file of a scan of very many small files, against one of few.

    Exit status: 0 both stay within their bounds, 1 they do not, 2 wrong use or no usable model.
    """
    from aivsreal.benchmarks.cpu.many_files import many_files_row
    from aivsreal.benchmarks.cpu.photos import LINKED, spread
    from aivsreal.runtime.bundle.folder import Bundle

    digest = Bundle.open(bundle).digest
    _tell("memory", [many_files_row(spread(data, LINKED), files, against, backend, bundle)], bundle=digest)


@click.command("ray")
@DATA
@BUNDLE
@click.option("--backend", default="onnx-cpu", show_default=True)
@click.option("--files", type=click.IntRange(100), default=5000, show_default=True, help="For speed, and memory's few.")
@click.option("--many", type=click.IntRange(100), default=50_000, show_default=True, help="For memory.")
@click.option("--shape", default="1024px", show_default=True, help="For speed: 12-megapixel, 1024px or 256px.")
@click.option("--only", type=click.Choice(["speed", "memory"]), help="One of the two.")
@ROUNDS
def on_ray(
    data: Path, bundle: str | None, backend: str, files: int, many: int, shape: str, only: str | None, rounds: int
) -> None:  # fmt: skip
    """A scan on a Ray of this machine beside a plain one: images a second, and memory over many files and few.

    Exit status: 0 both are within their bounds, 1 they are not, 2 wrong use or no usable model.
    """
    from aivsreal.benchmarks.cpu.on_ray import memory_row, speed_row
    from aivsreal.benchmarks.cpu.photos import LINKED, spread
    from aivsreal.runtime.bundle.folder import Bundle

    sources = spread(data, LINKED)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed_row(sources, files, shape, rounds, backend=backend, bundle=bundle),
        "memory": lambda: memory_row(sources, many, files, backend, bundle),
    }
    rows = (measure() for name, measure in measures.items() if only in (None, name))
    _tell("ray", rows, bundle=Bundle.open(bundle).digest)


def _tell(benchmark: str, rows: Iterable[dict[str, Any]], **facts: str) -> None:
    """Prints rows as they are measured, and ends the command with the exit status that they make."""
    from aivsreal.benchmarks.machine import machine_facts

    holds = True
    for row in rows:
        holds = holds and row.get("holds") is not False
        click.echo(json.dumps({"benchmark": benchmark, **row, **facts, "machine": machine_facts()}))
    sys.exit(0 if holds else 1)


def _check_known(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise click.UsageError(f"{name!r} is not one of {', '.join(known)}")


def _photos(data: Path, count: int, folder: Path, shapes: Iterable[str]) -> dict[str, list[Path]]:
    from aivsreal.benchmarks.cpu.photos import spread, write_photos

    sources = spread(data, count)
    return {shape: write_photos(sources, folder / shape, shape) for shape in shapes}


def _say(text: str) -> None:
    click.echo(text, err=True)
