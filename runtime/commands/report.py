"""`aivsreal-report`: the HTML report and the CSV of a results file, also of a scan that took several runs."""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import BundleError, Fault, MissingExtra, ResultsError
from aivsreal.runtime.uri import is_uri, path_from_text

if TYPE_CHECKING:
    from aivsreal.runtime.bundle.folder import Bundle
    from aivsreal.runtime.files.pool import Task
    from aivsreal.runtime.results.facts import Ran
    from aivsreal.runtime.results.html import HtmlReport
    from aivsreal.runtime.results.row import Row
    from aivsreal.runtime.results.writers import CsvWriter
    from aivsreal.runtime.verdict import FileStamp, Judge, Label, OperatingPoint, Scanned

_AHEAD = 32  # pictures that are decoded before their turn
_FIRST = 1000  # of each label, from an output of a cluster: a page of a million rows opens in no browser


@command("aivsreal-report", "stopped; no report was written")
@click.argument("results", type=path_from_text)
@click.option("--html", type=click.Path(path_type=Path), help="Report that opens in any browser, offline.")
@click.option("--assets", is_flag=True, help="With --html, put its pictures into a folder beside it.")
@click.option("--csv", type=click.Path(path_type=Path), help="Comma-separated rows with a heading.")
@click.option("--overwrite", is_flag=True, help="Replace files that aivsreal did not write too, but for pictures.")
@click.option("--first", type=click.IntRange(min=1), help="With --html, show so many of each label, and of the errors.")
@click.option("--bundle", metavar="MODEL", help="Model that judged: accurate, or a folder.  [default: the shipped one]")
def main(
    *, results: Path, html: Path | None, assets: bool, csv: Path | None, overwrite: bool, first: int | None,
    bundle: str | None,
) -> None:  # fmt: skip
    """Make a report of RESULTS, which `aivsreal-scan --output RESULTS` wrote. Nothing is judged again.

    RESULTS may be the output of a scan on a cluster too, a folder or a URI: then --html shows the first 1,000 of each
    label unless --first says otherwise, and without --html and --csv the counts are told.

    Where a file has several rows the latest counts. Pictures are read from the files again, where those are still as
    they were judged; heat maps are not in a results file.

    Exit status: 0 fine, 2 wrong use, or something could not be read or written.
    """
    if html is None and csv is None and not _is_of_cluster(results):
        raise click.UsageError("nothing to make: give --html FILE, --csv FILE or both")
    if assets and html is None:
        raise click.UsageError("--assets is for --html")
    from aivsreal.runtime.commands.stop import ended_by_sigterm
    from aivsreal.runtime.files.own_process import set_up_pillow

    set_up_pillow()
    files = _Files(results, html, assets, csv, overwrite)
    with ended_by_sigterm():
        for line in _made(files, first, bundle):
            click.echo(line, err=True)


@dataclass(frozen=True, slots=True)
class _Files:
    """What is read, and what is made of it; the fields are the command's options."""

    results: Path
    html: Path | None
    assets: bool
    csv: Path | None
    overwrite: bool


def _made(files: _Files, first: int | None, bundle: str | None) -> Iterator[str]:
    from aivsreal.runtime.bundle.folder import Bundle
    from aivsreal.runtime.results.output import CSV, check_apart, check_replaceable
    from aivsreal.runtime.results.writers import Tally
    from aivsreal.runtime.text import escaped, typed

    results, html, csv = files.results, files.html, files.csv
    check_apart({name: path for name, path in (("--html", html), ("--csv", csv)) if path is not None})
    if csv is not None:
        check_replaceable(csv, CSV, [results], files.overwrite)
    rows = _rows(results)
    head = next(rows, None)
    if head is None:
        raise ResultsError(f"{results} has no rows: scan with aivsreal-scan --output {typed(results)} first")
    tally, faults, choice = Tally(), _Faults(), _Choice(results, first)
    with ExitStack() as stack:
        table = None if csv is None else _table(stack, csv)

        def counted() -> Iterator[Scanned]:
            for row in chain([head], rows):
                if html is not None:
                    _check_alike(results, head.judge, row.judge)
                tally.add(row.scanned)
                faults.add(row.scanned)
                if table is not None:
                    table.write(row.scanned)
                if html is not None and choice.takes(row.scanned):
                    yield row.scanned

        scanned: Iterable[Scanned] = counted()
        report: HtmlReport | None = None
        if html is not None:
            from aivsreal.runtime.results.html import HtmlReport

            opened = Bundle.open(bundle)
            ran = _ran(results, head.judge, opened, choice.told)
            report = stack.enter_context(HtmlReport(html, ran, files.assets, [results], files.overwrite))
            report.wanted = False  # one that is stopped leaves what was there, as the CSV does
            scanned = _with_pictures(scanned, opened, ran.point)
        for one in scanned:
            assert report is not None
            report.write(one)
        if report is not None:
            report.wanted = True
    yield f"{tally.total} files of {escaped(results)}: {tally.counts()}"
    yield from faults.told()
    if html is not None and report is not None:
        yield f"report in {escaped(html)}, with {report.told} whose files are still as they were judged"


def _table(stack: ExitStack, csv: Path) -> CsvWriter:
    from aivsreal.runtime.results.output import replacing
    from aivsreal.runtime.results.writers import CsvWriter
    from aivsreal.runtime.text import escaped

    stream = io.TextIOWrapper(stack.enter_context(replacing(csv)), "utf-8", "backslashreplace", newline="")
    stack.callback(stream.detach)  # what it holds is flushed by each row, and the file below closes itself
    return CsvWriter(stream, escaped(csv))


def _is_of_cluster(results: Path) -> bool:
    return is_uri(str(results)) or results.is_dir()


def _rows(results: Path) -> Iterator[Row]:
    """The row that counts for each file."""
    if not _is_of_cluster(results):
        from aivsreal.runtime.results.file import rows_from_file
        from aivsreal.runtime.results.row import latest_rows

        return latest_rows(rows_from_file(results))
    if find_spec("pyarrow") is None:
        raise MissingExtra("ray", "pyarrow", "read what a scan on a cluster has left")
    from aivsreal.runtime.scale.output import latest_rows_from_output

    return latest_rows_from_output(str(results))


class _Choice:
    """Which rows a page shows: all, or the first of each label and of the errors."""

    def __init__(self, results: Path, first: int | None) -> None:
        self._most = first or (_FIRST if _is_of_cluster(results) else None)
        self._taken: Counter[Label | None] = Counter()

    def takes(self, scanned: Scanned) -> bool:
        label = None if scanned.verdict is None else scanned.verdict.label
        self._taken[label] += 1
        return self._most is None or self._taken[label] <= self._most

    @property
    def told(self) -> list[str]:
        return [] if self._most is None else [f"at most the first {self._most:,} of each label and of the errors"]


class _Faults:
    """The kinds of errors, with an example of each."""

    def __init__(self) -> None:
        self._counts: Counter[Fault] = Counter()
        self._examples: dict[Fault, Scanned] = {}

    def add(self, scanned: Scanned) -> None:
        if scanned.fault is not None:
            self._counts[scanned.fault] += 1
            self._examples.setdefault(scanned.fault, scanned)

    def told(self) -> Iterator[str]:
        from aivsreal.runtime.text import escaped

        for fault, count in self._counts.most_common():
            one = self._examples[fault]
            yield f"{count:,} {fault.value}, for example {escaped(one.path)}: {escaped(one.error or '')}"


def _ran(results: Path, judge: Judge, bundle: Bundle, told: list[str]) -> Ran:
    from aivsreal.runtime.results.facts import Ran

    if judge.bundle != bundle.digest:
        raise ResultsError(
            f"{results} was judged by bundle {judge.bundle}, and {bundle.path} is {bundle.digest}: "
            "name it with --bundle"
        )
    backend, _, precision = judge.backend.rpartition(" ")
    point = bundle.manifest.point(judge.operating_point)
    return Ran(
        bundle, point, backend, precision, "as its results file says", [str(results), *told], judge.second,
        _at_hand(judge.second),
    )  # fmt: skip


def _check_alike(results: Path, one: Judge, other: Judge) -> None:
    from aivsreal.runtime.results.file import who

    if who(one) != who(other):
        raise ResultsError(
            f"{results} has verdicts of {who(one)} and of {who(other)}, and a report states the bounds of one: "
            "make one of the results of each, or --csv alone of all"
        )


def _at_hand(judge: Judge | None) -> Bundle | None:
    """A second judge's bundle, where it is the accurate model that this user has."""
    from aivsreal.runtime.bundle.folder import ACCURATE, Bundle

    if judge is None:
        return None
    with suppress(BundleError):
        bundle = Bundle.open(ACCURATE)
        return bundle if bundle.digest == judge.bundle else None
    return None


def _with_pictures(scanned: Iterable[Scanned], bundle: Bundle, point: OperatingPoint) -> Iterator[Scanned]:
    """The results with the square that was judged, where the file is still the one that was judged."""
    from aivsreal.runtime.files.decode import DecodePlan
    from aivsreal.runtime.files.pool import DecodePool
    from aivsreal.runtime.verdict import View

    rest, spec = iter(scanned), bundle.manifest.spec
    windows = bundle.manifest.windows(point)
    windows = replace(windows, parts=windows.parts[:1])  # the one that is shown
    with DecodePool(DecodePlan(spec, least_side=windows.least_side, windows=windows)) as pool:  # as a scan decodes
        window: deque[tuple[Scanned, Task | None]] = deque()
        while True:
            for one in islice(rest, _AHEAD - len(window)):
                window.append((one, None if one.verdict is None else pool.submit(one.path)))
            if not window:
                return
            one, task = window.popleft()
            decoded = None if task is None else pool.result(task)
            if decoded is not None and decoded.pixels and _state(decoded.stamp) == _state(one.stamp) is not None:
                one = replace(one, view=View(decoded.pixels[0]))
            yield one


def _state(stamp: FileStamp | None) -> tuple[int, int] | None:
    return None if stamp is None else (stamp.size, stamp.mtime_ns)


if __name__ == "__main__":
    main()
