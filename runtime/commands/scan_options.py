"""What was typed after `aivsreal-scan`, and what of it contradicts itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from aivsreal.runtime.commands.stop import Stop
    from aivsreal.runtime.options import ScanOptions
    from aivsreal.runtime.results.writers import Tally


class Options(NamedTuple):  # a dataclass takes three times as long to make, and `--help` waits for it
    """What was typed; the fields are the command's options."""

    paths: tuple[str, ...]
    all_files: bool
    exclude: tuple[str, ...]
    bundle: str | None
    backend: str
    batch_size: int
    threads: int | None
    operating_point: str | None
    jsonl: bool
    csv: bool
    html: str | None
    assets: bool
    heatmaps: str | None
    output: str | None
    overwrite: bool
    resume: bool
    by_content: bool
    retry_errors: bool
    watch: bool
    isolate: bool
    time_limit: float | None
    max_pixels: int | None
    frames: int
    trust_metadata: bool
    ray: str | None
    actors: int | None
    gpus: float
    uris: str | None
    contents: str | None
    second_opinion: str | None
    views: str

    def check(self) -> None:
        """Refuse what contradicts itself, before anything is loaded.

        Raises:
            click.UsageError: options that need each other are not together.
        """
        if self.resume and self.output is None:
            raise click.UsageError("--resume goes on with a results file: name it with --output")
        if self.all_files and self.watch:
            raise click.UsageError("--all-files reads the beginning of each file, and --watch looks again and again")
        if self.overwrite and self.resume:
            raise click.UsageError("--overwrite begins anew and --resume goes on: choose one")
        if self.overwrite and self.output is None and self.html is None and self.heatmaps is None:
            raise click.UsageError("--overwrite is for --output, --html and --heatmaps")
        if self.retry_errors and not self.resume:
            raise click.UsageError("--retry-errors is for --resume")
        self._check_ray()
        if self.output is not None and self.jsonl and self.ray is None:
            raise click.UsageError("--output writes JSON lines already: leave --jsonl out")
        if self.csv and (self.jsonl or self.output is not None):
            raise click.UsageError("--csv, --jsonl and --output are different forms of the rows: choose one")
        if self.assets and self.html is None:
            raise click.UsageError("--assets is for --html")
        if self.html is not None and self.resume:
            raise click.UsageError(
                "--html shows what this run judges, and with --resume that is not all: use aivsreal-report"
            )
        if self.second_opinion is not None and self.second_opinion == self.bundle:
            raise click.UsageError("--second-opinion is of another model than --bundle")
        if self.watch and any(not os.path.isdir(path) for path in self.paths):
            raise click.UsageError("--watch is for folders that are there")

    def _check_ray(self) -> None:
        if self.ray is None:
            if self.actors is not None or self.gpus or self.uris is not None or self.contents is not None:
                raise click.UsageError("--actors, --gpus, --uris and --contents are for --ray")
            return
        if self.output is None:
            raise click.UsageError("--ray needs --output: a folder, or s3://bucket/folder")
        if self.csv or self.html is not None or self.heatmaps is not None or self.overwrite:
            raise click.UsageError("--csv, --html, --heatmaps and --overwrite are not for --ray: use aivsreal-report")
        if self.second_opinion is not None:
            raise click.UsageError("--second-opinion is not for --ray: its tables have one verdict a row")
        if self.watch or self.all_files or "-" in self.paths:
            raise click.UsageError(
                "--watch, --all-files and - are not for --ray: name files in a table, and its column with --uris"
            )
        if self.by_content and self.resume:
            raise click.UsageError("with --ray, --resume goes by ETag, or size and time: leave --by-content out")

    def how(self) -> ScanOptions:
        """What of it the library takes; a report and heat maps need what the network saw."""
        from aivsreal.runtime.options import ScanOptions

        named = ("batch_size", "threads", "isolate", "frames", "by_content", "trust_metadata")
        limits = {"time_limit_s": self.time_limit, "max_pixels": self.max_pixels}
        return ScanOptions(
            **{name: getattr(self, name) for name in named},
            **{name: value for name, value in limits.items() if value is not None},  # type: ignore[arg-type]
            views=self.html is not None or self.heatmaps is not None,
        )

    def own_folders(self) -> frozenset[str]:
        """Folders that it writes pictures into, by their real paths: see `Search.own`."""
        places: list[Path | str] = [] if self.heatmaps is None else [self.heatmaps]
        if self.html is not None and self.assets:
            from aivsreal.runtime.results.output import assets_folder

            places.append(assets_folder(Path(self.html)))
        return frozenset(map(os.path.realpath, places))

    def how_to_go_on(self) -> str:
        """What to type to go on with a scan that was stopped."""
        from aivsreal.runtime.text import typed

        if self.output is None:
            return "the rows above are whole; with --output FILE a scan can be gone on with"
        words = sys.argv[1:] if self.resume else _resuming(sys.argv[1:], by_etag=self.ray is not None)
        told = f"go on with: {typed('aivsreal-scan', *words)}"
        if "-" in self.paths:
            told += ", with the same list on standard input"
        if self.html is None:
            return told
        bundle = [] if self.bundle is None else ["--bundle", self.bundle]
        report = typed("aivsreal-report", self.output, "--html", self.html, *["--assets"][: self.assets], *bundle)
        return f"{told}; its report is then made by: {report}"


def _resuming(words: list[str], by_etag: bool) -> list[str]:
    """What was typed, with `--resume` in place of what is refused beside it."""
    refused = {"--overwrite", "--html", "--assets", *(["--by-content"] if by_etag else [])}
    options = (one for one in click.get_current_context().command.params if isinstance(one, click.Option))
    take_a_value = {name for one in options if not one.is_flag for name in one.opts}
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word == "--":  # what comes after it are paths
            return [*kept, "--resume", word, *rest]
        option = [word, *islice(rest, word in take_a_value)]
        if word.partition("=")[0] not in refused:
            kept += option
    return [*kept, "--resume"]


class Known(NamedTuple):
    """What an output had before the scan, of the files that were asked for."""

    place: str
    files: int
    errors: int


def ended(stop: Stop, tally: Tally, notes: Iterable[str], told: Iterable[str], known: Known | None) -> int:
    """Tell how a scan ended, and give its exit status.

    Args:
        notes: what went otherwise than was asked for; any makes the status 1.
        known: what was not judged, as it is there already.
    """
    from aivsreal.runtime.text import escaped

    wrong, already = list(notes), list[str]()
    if known is not None and known.files:
        already = [f"in {escaped(known.place)} already: {known.files} files, errors {known.errors}"]
    for note in [*wrong, *already, *told]:
        click.echo(note, err=True)
    if stop.signal is not None:
        return 128 + stop.signal  # as a shell reports a command that a signal ended
    return 1 if wrong or tally.errors or (known is not None and known.errors) else 0
