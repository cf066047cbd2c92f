"""aivsreal-bench: measures this machine; what cannot be measured on it says so and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click

from aivsreal.benchmarks.cpu import compare, cpu, drift, memory
from aivsreal.benchmarks.report import main as report
from aivsreal.runtime.errors import AivsrealError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aivsreal", prog_name="aivsreal-bench")
def main() -> None:
    """Measure how fast aivsreal is on this machine: one JSON object a line on standard output."""


@main.command()
@click.option("--bundle", metavar="FOLDER", help="Model to measure.  [default: the shipped one]")
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Again for each.  [1 8 64 256]")
@click.option("--size", type=(int, int), default=(1920, 1080), show_default=True, help="Width and height of an image.")
@click.option("--seconds", type=click.FloatRange(0.01), default=5.0, show_default=True, help="For each measurement.")
def gpu(bundle: str | None, batches: tuple[int, ...], size: tuple[int, int], seconds: float) -> None:
    """Kernel, engine, graph and end to end, beside PyTorch, ONNX Runtime and the roofline.

    Exit status: 0 what must hold holds or could not be measured, 1 something does not hold, 2 no usable model.
    """
    from aivsreal.benchmarks.gpu import OURS, Row, claims, measured, ours
    from aivsreal.benchmarks.gpu_peers import ONNX, ROOFLINE, TORCH, onnx_rows, roofline_rows, torch_rows
    from aivsreal.benchmarks.machine import machine_facts
    from aivsreal.runtime.bundle.folder import Bundle

    try:
        opened = Bundle.open(bundle)
    except AivsrealError as error:
        click.echo(f"aivsreal-bench: {error}", err=True)
        sys.exit(2)
    wanted = batches or (1, 8, 64, 256)
    facts = {"bundle": opened.digest, "image": list(size), "seconds": seconds, "machine": machine_facts()}
    rows: list[Row] = []

    def all_rows() -> Iterator[Row]:
        yield from measured(lambda: ours(opened, wanted, size, seconds), OURS, wanted)
        yield from measured(lambda: torch_rows(opened, wanted, seconds), TORCH, wanted)
        yield from measured(lambda: onnx_rows(opened, wanted, seconds), ONNX, wanted)
        yield from measured(lambda: roofline_rows(opened, wanted), ROOFLINE, wanted)

    def told(row: Row) -> None:
        rows.append(row)
        click.echo(json.dumps({"benchmark": "gpu", **row, **facts}))

    for row in all_rows():
        told(row)
    judged = claims(rows)
    for row in judged:
        told(row)
    sys.exit(int(any(row["holds"] is False for row in judged)))


for command in (cpu, compare, drift, memory):
    main.add_command(command)
main.add_command(report, "report")


if __name__ == "__main__":
    main()
