"""aivsreal-bench: measures this machine; what cannot be measured on it says so and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from aivsreal.benchmarks.cpu.commands import compare, cpu, drift, memory, on_ray
from aivsreal.benchmarks.report import main as report
from aivsreal.runtime.commands.frame import HELP, Group

PARTS = ("ours", "torch", "onnx", "roofline")


@click.group("aivsreal-bench", cls=Group, context_settings=HELP)
@click.version_option(package_name="aivsreal", prog_name="aivsreal-bench")
def main() -> None:
    """Measure how fast aivsreal is on this machine: one JSON object a line on standard output."""


@main.command()
@click.option("--bundle", metavar="FOLDER", help="Model to measure.  [default: the shipped one]")
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Again for each.  [1 8 64 256]")
@click.option("--size", type=(int, int), default=(1920, 1080), show_default=True, help="Width and height of an image.")
@click.option("--seconds", type=click.FloatRange(0.01), default=5.0, show_default=True, help="For each measurement.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only that; repeat it.  [default: all]")
@click.option(
    "--compile-mode", type=click.Choice(["max-autotune", "reduce-overhead"]), default="max-autotune",
    show_default=True, help="Of torch.compile; the first takes minutes to compile.",
)  # fmt: skip
def gpu(
    bundle: str | None, batches: tuple[int, ...], size: tuple[int, int], seconds: float, parts: tuple[str, ...],
    compile_mode: str,
) -> None:  # fmt: skip
    """Kernel, engine, graph and end to end, beside PyTorch, ONNX Runtime and the roofline.

    Exit status: 0 what must hold holds or could not be measured, 1 something does not hold, 2 no usable model.
    """
    from aivsreal.benchmarks.machine import machine_facts
    from aivsreal.benchmarks.proof.gpu import OURS, Row, claims, measured, ours
    from aivsreal.benchmarks.proof.gpu_peers import ONNX, ROOFLINE, TORCH, onnx_rows, roofline_rows, torch_rows
    from aivsreal.runtime.bundle.folder import Bundle

    opened = Bundle.open(bundle)
    wanted = batches or (1, 8, 64, 256)
    facts = {"bundle": opened.digest, "image": list(size), "seconds": seconds, "machine": machine_facts()}
    rows: list[Row] = []

    asked: dict[str, tuple[Callable[[], Iterator[Row]], tuple[str, ...]]] = {
        "ours": (lambda: ours(opened, wanted, size, seconds), OURS),
        "torch": (lambda: torch_rows(opened, wanted, seconds, compile_mode), TORCH),
        "onnx": (lambda: onnx_rows(opened, wanted, seconds), ONNX),
        "roofline": (lambda: roofline_rows(opened, wanted), ROOFLINE),
    }

    def told(row: Row) -> None:
        rows.append(row)
        print(json.dumps({"benchmark": "gpu", **row, **facts}), flush=True)  # whoever stops it has what was measured

    for part in parts or PARTS:
        part_rows, whats = asked[part]
        for row in measured(part_rows, whats, wanted):
            told(row)
    judged = claims(rows)
    for row in judged:
        told(row)
    sys.exit(int(any(row["holds"] is False for row in judged)))


@main.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of what was found out.")
@click.option("--bundle", metavar="FOLDER", help="Model to prove.  [default: the shipped one]")
@click.option("--payload", type=click.Path(exists=True, path_type=Path), help="What payload.sh packed, unpacked.")
@click.option("--work", type=click.Path(path_type=Path), help="For all else.  [default: a temporary folder]")
@click.option("--seconds", type=click.FloatRange(0.01), default=0.5, show_default=True, help="For each measurement.")
@click.option("--limit", type=click.FloatRange(1), default=270.0, show_default=True, help="Seconds for all of it.")
@click.option("--sizes", type=click.IntRange(1), default=500, show_default=True, help="Images for the kernel.")
@click.option("--soak", type=click.IntRange(10), default=10_000, show_default=True, help="Batches for leaks.")
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="Images to scan.")
@click.option("--size", type=(int, int), default=(1920, 1080), show_default=True, help="Of an image that is timed.")
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="To time.  [64 1 256 8]")
def proof(
    out: Path, bundle: str | None, payload: Path | None, work: Path | None, seconds: float, limit: float, sizes: int,
    soak: int, images: int, size: tuple[int, int], batches: tuple[int, ...],
) -> None:  # fmt: skip
    """Prove what runs on this GPU: kernel, engine, labels, speed, leaks and threads; needs five minutes.

    Exit status: 0 all of it holds, 1 something does not or could not be tried: the table says what and why. Not here,
    and no fault, may be PyTorch, ONNX Runtime's CUDA provider, and pycuda, which a payload brings.
    """
    import tempfile

    from aivsreal.benchmarks.proof.steps import BATCHES, Wish, prove

    chosen = tuple(map(str, batches)) or BATCHES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if work is None else work
        wish = Wish(
            out=out.absolute(), work=folder.absolute(), bundle=bundle, payload=payload, seconds=seconds, limit_s=limit,
            sizes=sizes, soak=soak, images=images, size=size, batches=chosen,
        )  # fmt: skip
        sys.exit(not prove(wish))


for command in (cpu, compare, drift, memory, on_ray):
    main.add_command(command)
main.add_command(report, "report")


if __name__ == "__main__":
    main()
