"""aivsreal-scan: judge files and folders from the command line. Heavy imports stand where they are needed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.errors import AivsrealError

if TYPE_CHECKING:
    from aivsreal.runtime.detector import Detector
    from aivsreal.runtime.report import Writer

# 128 + the signal's number, as a shell reports a command that it ended.
INTERRUPTED, PIPE_CLOSED = 130, 141


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.UNPROCESSED)
@click.option("--bundle", metavar="FOLDER", help="Model to use.  [default: the shipped one]")
@click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "onnx", "torch"]),
    default="auto",
    show_default=True,
    help="What runs the model; auto takes the best that is installed.",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True, help="Images judged at once."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for decoding, and for the model.")
@click.option("--operating-point", metavar="NAME", help="Bounds between real, unsure and ai.  [default: the model's]")
@click.option("--jsonl", is_flag=True, help="Write one JSON object a line.")
@click.version_option(package_name="aivsreal", prog_name="aivsreal-scan")
def main(
    paths: tuple[str, ...],
    bundle: str | None,
    backend: str,
    batch_size: int,
    threads: int | None,
    operating_point: str | None,
    jsonl: bool,
) -> None:
    """Tell AI-generated images from real ones.

    PATH is an image, a folder (searched with its subfolders), or - for a list of paths on standard input, one a line.

    Results go to standard output in the order of the files: a table on a terminal, else path, label and p_ai (the
    probability that the image is AI-generated) between tabs. In names, \\n, \\t, \\\\ and \\xff stand for characters
    that would break a row. All else goes to standard error.

    Exit status: 0 all were judged, 1 some could not be, 2 wrong use or no usable model.
    """
    try:
        from aivsreal.runtime.detector import Detector

        with Detector.open(bundle, backend, operating_point, threads) as detector:
            click.echo(_description(detector, operating_point), err=True)
            code = _scan(detector, paths, batch_size, threads, jsonl)
    except AivsrealError as error:
        click.echo(f"aivsreal-scan: {error}", err=True)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader has gone: what Python still holds for stdout must not raise again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    sys.exit(code)


def _scan(detector: Detector, paths: Iterable[str], batch_size: int, threads: int | None, jsonl: bool) -> int:
    from aivsreal.runtime.report import Tally

    tally, notes = Tally(), list[str]()
    begin = time.perf_counter()
    try:
        with ExitStack() as stack:
            writer = _writer(stack, detector, jsonl)
            for scanned in detector.scan(_files(paths, notes), batch_size, threads):
                writer.write(scanned)
                tally.add(scanned)
    except KeyboardInterrupt:
        notes.append("interrupted: the results above are whole, the rest was not judged")
        raise
    finally:
        for note in [*notes, tally.summary(time.perf_counter() - begin)]:
            click.echo(note, err=True)
    return 1 if notes or tally.errors else 0


def _files(paths: Iterable[str], notes: list[str]) -> Iterator[Path]:
    """Files of the arguments, streamed; what yields none is noted."""
    from aivsreal.runtime.images import image_paths
    from aivsreal.runtime.report import escaped

    for argument in paths:
        found = False
        for name in _lines_of_stdin() if argument == "-" else [argument]:
            if not os.path.isdir(name):
                found = True
                yield Path(name)
                continue
            empty = True
            for path in image_paths(Path(name)):
                empty = False
                yield path
            found = True
            if empty:
                notes.append(f"{escaped(name)}: no images in this folder")
        if not found:
            notes.append("standard input: no paths")


def _lines_of_stdin() -> Iterator[str]:
    for line in sys.stdin.buffer:
        name = line.rstrip(b"\n")
        if name:
            yield os.fsdecode(name)


def _description(detector: Detector, asked_point: str | None) -> str:
    bundle, point = detector.bundle, detector.point
    where = "shipped" if bundle.is_shipped else str(bundle.path)
    chosen = "the bundle's default" if asked_point is None else "asked for"
    return (
        f"backend {detector.backend.name}, {detector.backend.precision} ({detector.why}) | "
        f"bundle {bundle.manifest.arch} {bundle.digest} ({where}) | operating point {point.name} ({chosen})"
    )


def _writer(stack: ExitStack, detector: Detector, jsonl: bool) -> Writer:
    """Rows for a program or a table for a terminal, with a running count on whichever stream is a terminal."""
    from aivsreal.runtime.report import CountingWriter, JsonLinesWriter, TableWriter, TabWriter

    plain = JsonLinesWriter(sys.stdout, detector.judge_of_rows) if jsonl else TabWriter(sys.stdout)
    table = sys.stdout.isatty() and not jsonl
    if not table and (sys.stdout.isatty() or not sys.stderr.isatty()):
        return plain  # nobody watches, or the rows themselves are watched
    from rich.console import Console

    console = Console(stderr=not table)
    return stack.enter_context(CountingWriter(TableWriter(console) if table else plain, console))


if __name__ == "__main__":
    main()
