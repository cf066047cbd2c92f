"""Judges blocks of listed files in an actor of Ray: a detector, and threads that read and decode, once an actor."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import ray

from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import AivsrealError, BundleError
from aivsreal.runtime.files.own_process import set_up_pillow
from aivsreal.runtime.files.pool import DecodePool
from aivsreal.runtime.options import ScanOptions
from aivsreal.runtime.pixels.read import Snapshot, snapshot_from_file
from aivsreal.runtime.results.row import Row
from aivsreal.runtime.scale.listing import entries_from_table
from aivsreal.runtime.scale.output import table_from_rows
from aivsreal.runtime.scale.storage import Entry, content_of
from aivsreal.runtime.uri import path_from_text
from aivsreal.runtime.verdict import FileStamp, Scanned

FAILURE = "failure"
"""The column of a table that has no rows of results, but the reason why there are none."""


@dataclass(frozen=True, slots=True)
class How:
    """How files are judged, the same in every actor."""

    bundle: str | None = None
    """Its folder, on every machine; None for the shipped one."""
    digest: str = ""
    """Of the bundle that the driver has: another one is refused."""
    backend: str = "auto"
    operating_point: str | None = None
    options: ScanOptions = field(default_factory=ScanOptions)
    """Its threads are of one actor: those that read and decode, and those of the network; `cluster` sets them."""


class Judging:
    """What `Dataset.map_batches` calls with tables of `listing.SCHEMA`; it gives tables of `output.SCHEMA`.

    An actor that has died, for example of a file that took its decoder's process along, is started again by Ray and
    gets the same block. It then decodes in processes of their own, so that such a file costs itself.
    """

    def __init__(self, how: How) -> None:
        self._how = how
        self._entries: dict[Path, Entry] = {}

    def __call__(self, files: pa.Table) -> pa.Table:
        """Judge one block; where nothing can be judged here, for lack of a backend or of the bundle, say so."""
        try:
            return table_from_rows(self._rows(entries_from_table(files)))
        except AivsrealError as error:
            # Not raised: Ray would send the trace of a defect, and not every error of ours can be sent.
            return pa.table({FAILURE: [f"on {socket.gethostname()}: {error}"]})

    @cached_property
    def _detector(self) -> Detector:
        how = self._how
        set_up_pillow(how.options.max_pixels)
        detector = Detector.open(how.bundle, how.backend, how.operating_point, how.options.threads)
        if detector.bundle.digest != how.digest:
            raise BundleError(f"its bundle is {detector.bundle.digest}, not {how.digest}: install the same everywhere")
        return detector

    @cached_property
    def _pool(self) -> DecodePool:
        options = self._how.options
        again = ray.get_runtime_context().was_current_actor_reconstructed
        return self._detector.decode_pool(replace(options, isolate=options.isolate or again), self._read)

    def _rows(self, entries: list[Entry]) -> list[Row]:
        paths = [path_from_text(entry.path) for entry in entries]
        self._entries = dict(zip(paths, entries, strict=True))
        judged = self._detector.scan(paths, self._how.options, self._pool)
        judge = self._detector.judge_of_rows
        return [Row(self._stamped(one), judge) for one in judged]

    def _read(self, path: Path, by_content: bool) -> Snapshot:
        entry = self._entries[path]
        if entry.content is None and "://" not in entry.path:
            return snapshot_from_file(path, by_content)
        content = content_of(entry)
        digest = hashlib.sha256(content).hexdigest() if by_content else None
        return Snapshot(path, content, FileStamp(len(content), entry.mtime_ns or 0, digest, entry.etag))

    def _stamped(self, scanned: Scanned) -> Scanned:
        """What failed has the state that was listed."""
        entry = self._entries[scanned.path]
        if scanned.stamp is not None or entry.size is None:
            return scanned
        return replace(scanned, stamp=FileStamp(entry.size, entry.mtime_ns or 0, etag=entry.etag))
