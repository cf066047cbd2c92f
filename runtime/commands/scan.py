"""aivsreal-scan: judge files and folders from the command line. Heavy imports stand where they are needed."""

from __future__ import annotations

import atexit
import gc
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aivsreal.runtime.backends import BACKENDS
from aivsreal.runtime.commands.frame import Number, command
from aivsreal.runtime.commands.scan_options import Known, Options, ended

if TYPE_CHECKING:
    from aivsreal.runtime.commands.stop import Stop
    from aivsreal.runtime.detector import Detector
    from aivsreal.runtime.files.find import Search
    from aivsreal.runtime.results.file import ResultsFile
    from aivsreal.runtime.results.heatmap import HeatMaps
    from aivsreal.runtime.results.html import HtmlReport
    from aivsreal.runtime.results.writers import Tally, Writer


@command("aivsreal-scan")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.UNPROCESSED)
@click.option("--all-files", is_flag=True, help="In folders, know pictures by their content, not by their names.")
@click.option(
    "--exclude", multiple=True, metavar="GLOB",
    help="In folders, leave out what has such a name, or with a / such a path below the folder; repeat it for more.",
)  # fmt: skip
@click.option("--bundle", metavar="MODEL", help="Model to use: accurate, or a folder.  [default: the shipped one]")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="What runs the model; auto takes the best that is installed.",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True, help="Images judged at once."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for decoding, and for the model.")
@click.option("--operating-point", metavar="NAME", help="Bounds between real, unsure and ai.  [default: the model's]")
@click.option(
    "--views", type=click.Choice(["fast", "full"]), default="fast", show_default=True,
    help="Parts of a picture that are judged: one, or several and their mean.",
)  # fmt: skip
@click.option("--jsonl", is_flag=True, help="Write one JSON object a line.")
@click.option("--csv", is_flag=True, help="Write comma-separated rows with a heading.")
@click.option("--html", metavar="FILE", help="Also write a report that opens in any browser, offline.")
@click.option("--assets", is_flag=True, help="With --html, put its pictures into a folder beside it.")
@click.option("--heatmaps", metavar="FOLDER", help="Also draw what moved each score, as FOLDER/<path>.png and .npy.")
@click.option("--output", metavar="FILE", help="Append JSON lines to FILE, not to standard output.")
@click.option("--overwrite", is_flag=True, help="Replace files that aivsreal did not write too, but for pictures.")
@click.option("--resume", is_flag=True, help="Go on with --output: skip files that it has, by path, size and time.")
@click.option("--by-content", is_flag=True, help="Write SHA-256s, and resume by path and SHA-256.")
@click.option("--retry-errors", is_flag=True, help="With --resume, judge again what ended in an error.")
@click.option("--watch", is_flag=True, help="Go on for ever: judge new and changed files of folders as they settle.")
@click.option("--isolate", is_flag=True, help="Decode in processes of their own: one that crashes costs one file.")
@click.option("--time-limit", type=Number(0, 86400), help="Seconds to decode a file.")
@click.option("--max-pixels", type=click.IntRange(min=1), help="Largest image to decode.")
@click.option(
    "--frames", type=click.IntRange(1, 256), default=1, show_default=True, help="Frames or pages judged of a file."
)
@click.option("--trust-metadata", is_flag=True, help="Call ai what its metadata declare to be; p_ai stays.")
@click.option("--ray", metavar="ADDRESS", help="Judge on a Ray cluster: its address, auto, or local for this machine.")
@click.option("--actors", type=click.IntRange(min=1), help="With --ray, how many judge.  [default: as many as fit]")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="With --ray, GPUs of an actor, or a part.",
)
@click.option("--uris", metavar="COLUMN", help="With --ray, PATHs are Parquet or JSON Lines with this column of names.")
@click.option("--contents", metavar="COLUMN", help="With --ray, PATHs are tables with this column of files' bytes.")
@click.option(
    "--second-opinion", metavar="MODEL",
    help="Let this model judge again what the first does not call real, for example accurate.",
)  # fmt: skip
def main(**values: Any) -> int:
    """Tell AI-generated images from real ones.

    PATH is an image, a folder (searched with its subfolders), or - for a list of paths on standard input, one a line.

    Results go to standard output in the order of the files: a table on a terminal, else path, label, p_ai (the
    probability that the image is AI-generated) and evidence (what its metadata say) between tabs. In names, \\n, \\t,
    \\\\ and \\xff stand for characters that would break a row. All else goes to standard error.

    Exit status: 0 all were judged, 1 some could not be, 2 wrong use, no usable model or results that cannot be written,
    130 and 143 stopped by Ctrl-C and SIGTERM, 141 standard output was closed.
    """
    options = Options(**values)
    options.check()
    atexit.register(gc.freeze)  # at the end all memory goes at once: looking for cycles in it before took 22 ms
    if options.ray is not None:
        from aivsreal.runtime.commands.scan_on_ray import scan_on_ray

        return scan_on_ray(options)
    with _opened(options) as detector:
        click.echo(_description(detector, options.operating_point), err=True)
        return _scan(detector, options)


def _opened(options: Options) -> Detector:
    from concurrent.futures import ThreadPoolExecutor

    from aivsreal.runtime.bundle.folder import Bundle

    with ThreadPoolExecutor(1) as beside:
        # Its files are hashed, 28 ms of a start, while Python loads what comes next.
        bundle = beside.submit(Bundle.open, options.bundle)
        from aivsreal.runtime.backends.choose import WORTH_A_SLOW_START
        from aivsreal.runtime.detector import Detector
        from aivsreal.runtime.files.find import Search, count_if_few

        opened = bundle.result()
        # Only auto chooses, and only it needs the folders looked at.
        choose = options.backend == "auto" and not options.watch
        search = Search(options.all_files, options.exclude)
        few = count_if_few(options.paths, WORTH_A_SLOW_START, search) if choose else None
        return Detector.open(
            opened,
            options.backend,
            options.operating_point,
            options.threads,
            images=few,
            second_opinion=options.second_opinion,
            full_views=options.views == "full",
        )


def _scan(detector: Detector, options: Options) -> int:
    from aivsreal.runtime.commands.stop import Stop
    from aivsreal.runtime.files.find import Search
    from aivsreal.runtime.files.own_process import set_up_pillow
    from aivsreal.runtime.results.output import check_apart
    from aivsreal.runtime.results.writers import Tally
    from aivsreal.runtime.text import escaped

    tally, notes, begin = Tally(), list[str](), time.perf_counter()
    search, how = Search(options.all_files, options.exclude, options.own_folders()), options.how()
    set_up_pillow(how.max_pixels)
    named = (("--output", options.output), ("--html", options.html), ("--heatmaps", options.heatmaps))
    check_apart({option: Path(name) for option, name in named if name is not None})
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())  # first: it lasts until all is written
        maps, report = _beside(stack, detector, options)
        results = _results(stack, detector, options)  # last, as it begins anew: what is refused has lost no row
        if report is not None:
            report.wanted = True
        rows = _writer(stack, detector, options, results, tally)
        writers = [rows, *(one for one in (maps, report) if one is not None)]
        pool, last = stack.enter_context(detector.decode_pool(how)), None
        for paths in _rounds(options, search, stop, results, notes):
            for batch in detector.scan_batches(paths, how, pool):
                for last in batch:
                    tally.add(last)
                    for writer in writers:
                        writer.write(last)
                if stop.signal is not None:
                    break
        if report is not None:
            report.complete = stop.signal is None
    if stop.signal is not None:
        where = f"after {escaped(last.path)}" if last else "before the first file"
        notes.append(f"stopped by {stop.signal.name} {where}; {options.how_to_go_on()}")
    # Only now is all written, and the running count gone from the terminal.
    passed = None if options.watch else search.told()
    told = [*([passed] if passed else []), *_told(detector, options, maps), tally.summary(time.perf_counter() - begin)]
    known = None if results is None else Known(str(options.output), results.skipped, results.skipped_errors)
    return ended(stop, tally, notes, told, known)


def _results(stack: ExitStack, detector: Detector, options: Options) -> ResultsFile | None:
    if options.output is None:
        return None
    from aivsreal.runtime.results.file import ResultsFile

    results = ResultsFile(
        Path(options.output), detector.judge_of_rows, resume=options.resume, by_content=options.by_content,
        retry_errors=options.retry_errors, overwrite=options.overwrite,
    )  # fmt: skip
    return stack.enter_context(results)


def _beside(stack: ExitStack, detector: Detector, options: Options) -> tuple[HeatMaps | None, HtmlReport | None]:
    """Writers of what was asked for beside the rows; the report is not wanted until all outputs are open."""
    maps = report = None
    second = None if detector.second is None else detector.second.bundle
    if options.heatmaps is not None:
        from aivsreal.runtime.bundle.folder import no_maps
        from aivsreal.runtime.results.heatmap import HeatMaps

        if not detector.backend.has_maps:
            raise no_maps(detector.bundle)
        maps = HeatMaps(Path(options.heatmaps), detector.bundle, options.overwrite, second)
    if options.html is not None:
        from aivsreal.runtime.results.facts import Ran
        from aivsreal.runtime.results.html import HtmlReport

        backend = detector.backend
        ran = Ran(
            detector.bundle, detector.point, backend.name, backend.precision, detector.why, options.paths,
            detector.judge_of_rows.second, second,
        )  # fmt: skip
        inputs = [Path(name) for name in options.paths]
        report = stack.enter_context(HtmlReport(Path(options.html), ran, options.assets, inputs, options.overwrite))
        report.wanted = False
    return maps, report


def _told(detector: Detector, options: Options, maps: HeatMaps | None) -> Iterator[str]:
    """What was written beside the rows, once it is."""
    from aivsreal.runtime.text import escaped

    if maps is not None:
        where = escaped(options.heatmaps or "")
        yield f"drew {maps.count} heat maps in {where}: what moved the score, not what was edited"
    if options.html is not None:
        without = "" if detector.backend.has_maps else "; without heat maps, which this bundle's network does not give"
        yield f"report in {escaped(options.html)}{without}"


def _rounds(
    options: Options, search: Search, stop: Stop, results: ResultsFile | None, notes: list[str]
) -> Iterator[Iterator[Path | None]]:
    """The files to judge: all that were named, or again and again what has settled since."""
    from aivsreal.runtime.files.find import argument_paths

    def unknown(paths: Iterable[Path | None]) -> Iterator[Path | None]:
        return stop.until(path for path in paths if path is None or results is None or not results.is_known(path))

    if not options.watch:
        yield unknown(argument_paths(options.paths, notes, search))
        return
    from aivsreal.runtime.files.watch import Watcher

    watcher = Watcher((Path(path) for path in options.paths), search=search)
    while stop.signal is None:
        if ready := watcher.settled():
            yield unknown(ready)
        stop.sleep(watcher.pause_s)


def _description(detector: Detector, asked_point: str | None) -> str:
    chosen = "the bundle's default" if asked_point is None else "asked for"
    told = (
        f"backend {detector.backend.name}, {detector.backend.precision} ({detector.why}) | "
        f"bundle {detector.bundle.described} | operating point {detector.point.name} ({chosen})"
    )
    if detector.second is None:
        return told
    same = asked_point is not None and detector.second.point.name == asked_point
    return f"{told}\nsecond opinion: {_description(detector.second, asked_point if same else None)}"


def _writer(
    stack: ExitStack, detector: Detector, options: Options, results: ResultsFile | None, tally: Tally
) -> Writer:
    """Rows for a program or a table for a terminal, with a running count on whichever stream is a terminal."""
    from aivsreal.runtime.results.writers import CsvWriter, JsonLinesWriter, TableWriter, TabWriter, shown_count

    plain: Writer
    if results is not None:
        plain = results
    elif options.jsonl:
        plain = JsonLinesWriter(sys.stdout, detector.judge_of_rows)
    else:
        plain = CsvWriter(sys.stdout) if options.csv else TabWriter(sys.stdout)
    table = sys.stdout.isatty() and not options.jsonl and not options.csv and results is None
    if not table and ((sys.stdout.isatty() and results is None) or not sys.stderr.isatty()):
        return plain  # nobody watches, or the rows themselves are watched
    from rich.console import Console

    console = Console(stderr=not table)
    stack.enter_context(shown_count(console, lambda: f"{tally.total:,} files"))
    return TableWriter(console) if table else plain


if __name__ == "__main__":
    main()
