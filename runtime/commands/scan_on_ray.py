"""`aivsreal-scan --ray`: the same options, many machines; rows go to parts of an output, counts to the terminal."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from datetime import datetime, timezone
from importlib.util import find_spec
from secrets import token_hex
from typing import TYPE_CHECKING

import click

from aivsreal.runtime.commands.scan_options import Known, Options, ended
from aivsreal.runtime.errors import MissingExtra
from aivsreal.runtime.text import escaped

if TYPE_CHECKING:
    import pyarrow as pa

    from aivsreal.runtime.results.writers import Tally
    from aivsreal.runtime.scale.judging import How


def scan_on_ray(options: Options) -> int:
    """Scan, and give the exit status.

    Raises:
        MissingExtra: Ray or what it needs is not installed.
        AivsrealError: there is no cluster, or it cannot judge; an output is in use, or cannot be written.
    """
    _prepare(options)
    from rich.console import Console

    from aivsreal.runtime.commands.stop import Stop
    from aivsreal.runtime.errors import ResultsError
    from aivsreal.runtime.files.find import Search
    from aivsreal.runtime.results.writers import Tally, shown_count
    from aivsreal.runtime.scale.cluster import chosen_pool, cluster, judged_tables
    from aivsreal.runtime.scale.lease import Lease
    from aivsreal.runtime.scale.listing import Columns, Listing, places_from_arguments
    from aivsreal.runtime.scale.output import Parts, is_begun, known_keys

    output, notes, tally = str(options.output), list[str](), Tally()
    how, search = _how(options), Search(exclude=options.exclude)
    run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{token_hex(2)}"
    with ExitStack() as stack:
        lease = stack.enter_context(Lease(output, run, _say))
        if is_begun(output) and not options.resume:
            raise ResultsError(f"{output} has results: go on with --resume, or name another output")
        keys, failed = known_keys(output, how.digest, how.operating_point or "", options.retry_errors)
        columns = Columns(options.uris, options.contents) if options.uris or options.contents else None
        places = places_from_arguments(options.paths, search, columns, notes)
        click.echo(stack.enter_context(cluster(str(options.ray))), err=True)
        pool = chosen_pool(options.actors, options.threads, options.gpus, grows=options.ray != "local")
        click.echo(
            f"{pool.count} actors of {pool.threads} threads and {pool.gpus:g} GPUs | bundle {how.digest} | "
            f"operating point {how.operating_point}", err=True,
        )  # fmt: skip
        parts, stop = Parts(output, run, options.jsonl), stack.enter_context(Stop())
        listing, progress = Listing(places, search, columns, keys), _Progress(tally)
        tables = judged_tables(listing, how, pool, options.contents is not None) if places else iter(())
        console = Console(stderr=True)
        with shown_count(console, progress.now) if console.is_terminal else nullcontext():
            for table in stop.until(tables):
                progress.add(table)
                lease.check()
                parts.add(table)
        lease.check()
        parts.flush()
    if stop.signal is not None:
        notes.append(f"stopped by {stop.signal.name}; {options.how_to_go_on()}")
    known = Known(output, len(keys), failed)
    return ended(stop, tally, map(escaped, notes), [tally.summary(progress.seconds)], known)


def _prepare(options: Options) -> None:
    for module in ("ray", "pyarrow", "boto3"):
        if find_spec(module) is None:
            raise MissingExtra("ray", module, "scan on a cluster")
    if options.ray == "local":
        # Ray opens its ports to the network and obeys whoever reaches them: now only who has this secret. It reads it
        # when it is imported.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))


def _how(options: Options) -> How:
    from aivsreal.runtime.bundle.folder import Bundle
    from aivsreal.runtime.scale.judging import How

    bundle = Bundle.open(options.bundle)
    return How(
        bundle=None if options.bundle is None else str(bundle.path),
        digest=bundle.digest,
        backend=options.backend,
        operating_point=bundle.manifest.point(options.operating_point, options.views == "full").name,
        options=options.how(),
    )


def _say(line: str) -> None:
    click.echo(escaped(line), err=True)


class _Progress:
    """How far a scan is, and what it waits for."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._begun_s = self._last_s = time.monotonic()

    def add(self, table: pa.Table) -> None:
        """Count the rows of one block."""
        self._tally.add_labels(table.column("label").to_pylist())
        self._last_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Up to the last block, with the start of the actors."""
        return self._last_s - self._begun_s

    def now(self) -> str:
        """One line for a terminal."""
        tally, quiet_s = self._tally, time.monotonic() - self._last_s
        if not tally.total:
            return "waiting for the first block: actors start, and open their models"
        waits = f"; waiting for actors, {quiet_s:.0f} s" if quiet_s > 10 else ""
        return f"{tally.total:,} files, {tally.rate(self.seconds)}, errors {tally.errors:,}{waits}"
