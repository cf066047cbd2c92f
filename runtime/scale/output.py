"""What a scan on many machines leaves: a folder of parts, written by one process, each whole or not there.

A part is Parquet with a column for each field of a row, or JSON Lines as `results.row` has them. Names sort in the
order of the runs, so where a file stands in two rows, because it has changed, the later one counts here too.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.fields import object_from_json
from aivsreal.runtime.results.row import Row, json_from_row, line_from_row, row_from_json
from aivsreal.runtime.scale.storage import files, joined, opened, write

ROWS_A_PART = 50_000
PART_EVERY_S = 60.0  # what the end of the driver costs at most, to be judged again
FORMS = frozenset({".parquet", ".jsonl"})

_FRAMES = pa.list_(pa.struct([("frame", pa.int64()), ("p_ai", pa.float64())]))
_EVIDENCE = pa.list_(pa.struct([("source", pa.string()), ("origin", pa.string()), ("detail", pa.string())]))
SCHEMA = pa.schema(
    [("path", pa.string()), ("label", pa.string()), ("p_ai", pa.float64()), ("logit", pa.float64()),
     ("reason", pa.string()), ("frames", _FRAMES), ("evidence", _EVIDENCE), ("error", pa.string()),
     ("fault", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string()),
     ("etag", pa.string()), ("bundle", pa.string()), ("operating_point", pa.string()), ("backend", pa.string())]
)  # fmt: skip
"""The fields of `results.row`; null where a row does not have one."""

Keys = npt.NDArray[np.bytes_]
"""Sorted, 16 bytes each."""


def table_from_rows(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of `SCHEMA`. A byte of a path that is no UTF-8 becomes `\\udcff`, as a line of JSON has it."""
    values = [json_from_row(row) for row in rows]
    return pa.Table.from_pylist([one | {"path": _utf8(str(one["path"]))} for one in values], schema=SCHEMA)


def key_of(path: str, etag: str | None, size: int | None, mtime_ns: int | None) -> bytes:
    """What a file is known by: its path, and its ETag, or else size and time, where a listing gives them."""
    state = etag or ((size, mtime_ns) if mtime_ns else None)
    return hashlib.blake2b(repr((_utf8(path), state)).encode(), digest_size=16).digest()


def is_known(keys: Keys, known: Keys) -> npt.NDArray[np.bool_]:
    """Which of the keys are among the known ones."""
    if not len(known):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.asarray(known[at] == keys)


def known_keys(place: str, bundle: str, point: str, retry_errors: bool) -> tuple[Keys, int]:
    """Keys of the rows in an output, and how many of these are errors.

    Raises:
        ResultsError: it has verdicts of another model or operating point, or a part that is none.
    """
    found, errors = [np.empty(0, "S16")], 0
    columns = ("path", "etag", "size", "mtime_ns", "error", "bundle", "operating_point")
    for rows in _batches(place, columns):
        for one in rows:
            if (one["bundle"], one["operating_point"]) != (bundle, point):
                raise ResultsError(
                    f"{place} has verdicts of bundle {one['bundle']} at point {one['operating_point']}, and this scan "
                    f"uses {bundle} at {point}: name another output"
                )
        failed = [one["error"] is not None for one in rows]
        errors += sum(failed)
        kept = [one for one, bad in zip(rows, failed, strict=True) if not (bad and retry_errors)]
        each = [key_of(one["path"], one["etag"], one["size"], one["mtime_ns"]) for one in kept]
        found.append(np.array(each, "S16"))
    return np.unique(np.concatenate(found)), 0 if retry_errors else errors


def rows_from_output(place: str) -> Iterator[Row]:
    """Each row of an output, streamed, in the order of the runs.

    Raises:
        ResultsError: a part is none.
    """
    for rows in _batches(place, SCHEMA.names):
        for one in rows:
            try:
                row = _row(one)
            except ValueError as error:
                raise ResultsError(f"{place} has a row that is none: {error}") from None
            yield row


def latest_rows_from_output(place: str) -> Iterator[Row]:
    """The row that counts for each file: as `rows_from_output`, but those of files with several come last.

    It takes 8 bytes of memory a row, for finding out which these are.

    Raises:
        ResultsError: a part is none.
    """
    found = [np.empty(0, np.uint64)]
    found += [np.array([_short(one["path"]) for one in rows], np.uint64) for rows in _batches(place, ("path",))]
    hashes = np.concatenate(found)
    hashes.sort()
    doubled = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    latest: dict[str, Row] = {}
    for row in rows_from_output(place):
        path = str(row.scanned.path)
        if doubled and _short(_utf8(path)) in doubled:
            latest[path] = row
        else:
            yield row
    yield from latest.values()


def is_begun(place: str) -> bool:
    """Whether an output has a part."""
    return next(_parts(place), None) is not None


class Parts:
    """Writes tables of rows as parts of an output.

    Args:
        place: folder, or URI of one.
        run: name of this run; later ones sort later.
        lines: JSON Lines and not Parquet.
    """

    def __init__(self, place: str, run: str, lines: bool) -> None:
        self._place, self._run, self._lines = place, run, lines
        self._waiting: list[pa.Table] = []
        self._written_s = time.monotonic()
        self._number = self.rows = 0
        """Rows that were written."""

    def add(self, table: pa.Table) -> None:
        """Keep rows, and write a part when it is time.

        Raises:
            ResultsError: it cannot be written.
        """
        self._waiting.append(table)
        late = time.monotonic() - self._written_s > PART_EVERY_S
        if late or sum(one.num_rows for one in self._waiting) >= ROWS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is kept.

        Raises:
            ResultsError: it cannot be written.
        """
        self._written_s = time.monotonic()
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        name = f"part-{self._run}-{self._number:06}{'.jsonl' if self._lines else '.parquet'}"
        write(joined(self._place, name), _lines(table) if self._lines else _parquet(table))
        self._waiting.clear()
        self._number += 1
        self.rows += table.num_rows


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _lines(table: pa.Table) -> bytes:
    return "".join(line_from_row(_row(one)) for one in table.to_pylist()).encode()


def _row(values: Mapping[str, Any]) -> Row:
    there = {name: value for name, value in values.items() if value is not None}
    return row_from_json({"size": None, "mtime_ns": None} | there)


def _parts(place: str) -> Iterator[str]:
    for entry in files(joined(place, ""), FORMS):
        if entry.path.rpartition("/")[2].startswith("part-"):
            yield entry.path


def _batches(place: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for part in sorted(_parts(place)):
        try:
            with opened(part) as file:
                lines = part.endswith(".jsonl")
                for rows in _from_lines(file, columns) if lines else _from_parquet(file, columns):
                    if not all(isinstance(row["path"], str) for row in rows):
                        raise ValueError("a row has no path")
                    yield rows
        except (OSError, ValueError, KeyError) as error:
            raise ResultsError(f"{part} is no part of results: {error}: move it away") from None


def _from_lines(file: IO[bytes], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    rows = [object_from_json(line) for line in file.read().splitlines()]
    yield [{name: row.get(name) for name in columns} for row in rows]


def _from_parquet(file: IO[bytes], columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for batch in pq.ParquetFile(file).iter_batches(8192, columns=list(columns)):
        yield batch.to_pylist()


def _short(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def _utf8(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
