"""Writers of scan results: tab-separated rows, JSON lines, comma-separated rows, and a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.results.row import Row, line_from_row
from aivsreal.runtime.text import escaped
from aivsreal.runtime.verdict import Evidence, Judge, Label, Origin, Scanned

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {Label.AI: "bold red", Label.REAL: "green", Label.UNSURE: "yellow"}


class Writer(Protocol):
    """Writes one result at a time and leaves nothing in a buffer."""

    def write(self, scanned: Scanned) -> None:
        """Write and flush one result."""


class TabWriter:
    """`path<TAB>label<TAB>p_ai<TAB>evidence`, or `error` and its message in the middle; see `escaped` for odd names."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, scanned: Scanned) -> None:
        """Write and flush one row."""
        verdict = scanned.verdict
        middle = (
            f"error\t{escaped(scanned.error or '')}"
            if verdict is None
            else f"{verdict.label.value}\t{verdict.p_ai:.6f}"
        )
        _write(self._stream, f"{escaped(scanned.path)}\t{middle}\t{evidence_cell(scanned.evidence)}\n")


class CsvWriter:
    """Comma-separated rows (RFC 4180) under a heading; names are written as `escaped` shows them."""

    FIELDS = ("path", "label", "p_ai", "logit", "reason", "evidence", "error", "fault", "first_label", "first_p_ai")

    def __init__(self, stream: TextIO, name: str = "standard output") -> None:
        self._stream = stream
        self._name = name
        self._row(self.FIELDS)

    def write(self, scanned: Scanned) -> None:
        """Write and flush one row."""
        verdict, evidence = scanned.verdict, evidence_cell(scanned.evidence)
        path = escaped(scanned.path)
        if path[:1] in "=+-@":
            path = f"./{path}"  # the same file, and no formula to a spreadsheet
        if verdict is None:
            fault = "" if scanned.fault is None else scanned.fault.value
            self._row((path, "error", "", "", "", evidence, escaped(scanned.error or ""), fault, "", ""))
        else:
            figures = (f"{verdict.p_ai:.6f}", f"{verdict.logit:.6f}")
            first = ("", "") if scanned.first is None else (scanned.first.label.value, f"{scanned.first.p_ai:.6f}")
            self._row((path, verdict.label.value, *figures, verdict.reason, evidence, "", "", *first))

    def _row(self, cells: Sequence[str]) -> None:
        _write(self._stream, ",".join(map(_quoted, cells)) + "\r\n", self._name)


class JsonLinesWriter:
    """One row a line, as `aivsreal.runtime.results.row` describes it."""

    def __init__(self, stream: TextIO, judge: Judge) -> None:
        self._stream = stream
        self._judge = judge

    def write(self, scanned: Scanned) -> None:
        """Write and flush one line."""
        _write(self._stream, line_from_row(Row(scanned, self._judge)))


class TableWriter:
    """Aligned and coloured lines for a terminal, printed above a progress display that the console may have."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = False

    def write(self, scanned: Scanned) -> None:
        """Print one line."""
        from rich.text import Text

        if not self._begun:
            self._print(Text(f"{'label':<7} {'p_ai':>5}  {'evidence':<8}  path", style="dim"))
            self._begun = True
        verdict, path = scanned.verdict, escaped(scanned.path)
        if verdict is None:
            self._print(
                Text.assemble((f"{'error':<7}", "bold magenta"), f" {'':>16} {path}: {escaped(scanned.error or '')}")
            )
        else:
            label = (f"{verdict.label.value:<7}", _STYLES[verdict.label])
            origin = strongest_origin(scanned.evidence)
            declared = "" if origin is None else origin.value
            self._print(Text.assemble(label, f" {verdict.p_ai:5.3f}  {declared:<8}  {path}"))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


@contextmanager
def shown_count(console: Console, told: Callable[[], str]) -> Iterator[None]:
    """A line under the rows, gone from the screen at the end, that says how far a scan is.

    A scan streams its files and does not know how many there will be, so there is a count and no bar.
    """
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Told(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(told())

    columns = (SpinnerColumn(), Told(), TimeElapsedColumn())
    # Rich would otherwise catch what is written to stdout, and print results on stderr.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as display:
        display.add_task("scan", total=None)
        yield


class Tally:
    """Counts of a scan."""

    def __init__(self) -> None:
        self._labels: Counter[str | None] = Counter()  # None for errors
        self.second_opinions = 0

    def add(self, scanned: Scanned) -> None:
        """Count one result."""
        self.add_labels([None if scanned.verdict is None else scanned.verdict.label.value])
        self.second_opinions += scanned.first is not None

    def add_labels(self, labels: Iterable[str | None]) -> None:
        """Count results by their labels, None for an error."""
        self._labels.update(labels)

    @property
    def errors(self) -> int:
        """How many could not be judged."""
        return self._labels[None]

    @property
    def total(self) -> int:
        """All of them."""
        return self._labels.total()

    def counts(self) -> str:
        """How many of each label, and errors."""
        labels = ", ".join(
            f"{self._labels[label.value]} {label.value}" for label in (Label.AI, Label.REAL, Label.UNSURE)
        )
        asked = f", {self.second_opinions} of them a second opinion" if self.second_opinions else ""
        return f"judged {self.total - self.errors}: {labels}{asked}; errors {self.errors}"

    def rate(self, seconds: float) -> str:
        """How fast they were judged, in words."""
        return f"{(self.total - self.errors) / seconds if seconds > 0 else 0.0:.1f} images/s"

    def summary(self, seconds: float) -> str:
        """One line for the end of a scan."""
        return f"{self.counts()}; {seconds:.1f} s, {self.rate(seconds)}"


def strongest_origin(evidence: Sequence[Evidence]) -> Origin | None:
    """What the metadata say at most, in the order of `Origin`; None where they say nothing."""
    stated = {one.origin for one in evidence}
    return next((origin for origin in Origin if origin in stated), None)


def evidence_cell(evidence: Sequence[Evidence]) -> str:
    """One cell: `ai (png:prompt, png:workflow)`, or nothing."""
    origin = strongest_origin(evidence)
    if origin is None:
        return ""
    return f"{origin.value} ({', '.join(one.source for one in evidence if one.origin is origin)})"


def _quoted(cell: str) -> str:
    # A semicolon too: where spreadsheets take it for the separator, `a;=1+1.jpg` would be a cell and a formula.
    return '"{}"'.format(cell.replace('"', '""')) if any(sign in cell for sign in ',;"\r\n') else cell


def _write(stream: TextIO, line: str, name: str = "standard output") -> None:
    try:
        stream.write(line)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResultsError(f"{name} cannot be written: {error.strerror or error}") from None
