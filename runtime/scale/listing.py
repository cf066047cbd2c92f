"""What there is to judge, as a source of Ray Data: listings of places, and rows of tables, without what is known."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.files.find import Search
from aivsreal.runtime.scale.output import Keys, is_known, key_of
from aivsreal.runtime.scale.storage import SCHEMES, Entry, entry_from_path, files, images, opened
from aivsreal.runtime.uri import is_uri

TABLES = frozenset({".parquet", ".jsonl", ".ndjson"})
FILES_A_BLOCK = 256
_TASKS = 256  # that list or read tables, at most
# Names are bytes: a file's may be no UTF-8.
FIELDS = [("path", pa.binary()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("etag", pa.string())]
SCHEMA = pa.schema([*FIELDS, ("content", pa.binary())])


@dataclass(frozen=True, slots=True)
class Columns:
    """Where tables name what is to be judged."""

    uris: str | None = None
    """Column of names: of files in a storage, or of paths."""
    content: str | None = None
    """Column of the files' bytes, in JSON as base64; then the other one only names them."""


def places_from_arguments(
    arguments: Iterable[str], search: Search, columns: Columns | None, notes: list[str]
) -> list[str]:
    """The places to list, or the tables to read, each once.

    Args:
        columns: the arguments are tables, or folders of tables, with these columns.
        notes: gets a line for each argument where nothing is.

    Raises:
        DataError: a storage does not answer or refuses.
    """
    found = dict[str, str]()
    for argument in arguments:
        if columns is not None:
            tables = {entry.path: entry.path for entry in files(argument, TABLES)}
            found |= tables
            if not tables:
                notes.append(f"{argument}: no tables ({', '.join(sorted(TABLES))}) there")
        elif next(images(argument, search), None) is None:
            notes.append(f"{argument}: no images there")
        else:
            found.setdefault(argument.rstrip("/") + "/", argument)
    if columns is not None:
        return list(found)
    return [
        place for name, place in found.items() if not any(name.startswith(other) and name != other for other in found)
    ]


class Listing(Datasource):
    """Rows of `SCHEMA`: a task a place, which lists while others already judge.

    Args:
        places: of `places_from_arguments`.
        columns: the places are tables with these.
    """

    def __init__(self, places: list[str], search: Search, columns: Columns | None, known: Keys) -> None:
        self._places = places
        self._search = search
        self._columns = columns
        self._known = ray.put(known) if len(known) else None

    @property
    def tasks(self) -> int:
        """How many list or read tables."""
        return min(_TASKS, len(self._places))

    def estimate_inmemory_data_size(self) -> int | None:
        """It is not known."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """As many tasks as there are places, within reason."""
        about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        shares = [self._places[index::_TASKS] for index in range(self.tasks)]
        return [ReadTask(_reading(share, self._search, self._columns, self._known), about) for share in shares]


def entries_from_table(table: pa.Table) -> list[Entry]:
    """The entries of a block of `SCHEMA`."""
    rows = zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True)
    return [Entry(os.fsdecode(path), *rest) for path, *rest in rows]


def _reading(
    places: list[str], search: Search, columns: Columns | None, known: Any
) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        keys: Keys = np.empty(0, "S16") if known is None else ray.get(known)
        for place in places:
            entries = images(place, search) if columns is None else _of_table(place, columns)
            while block := list(islice(entries, FILES_A_BLOCK)):
                if left := [one for one, seen in zip(block, _are_known(block, keys), strict=True) if not seen]:
                    yield _table_from_entries(left)

    return read


def _are_known(block: list[Entry], known: Keys) -> Iterable[bool]:
    return is_known(np.array([key_of(one.path, one.etag, one.size, one.mtime_ns) for one in block], "S16"), known)


def _table_from_entries(entries: list[Entry]) -> pa.Table:
    values = [(os.fsencode(one.path), one.size, one.mtime_ns, one.etag, one.content) for one in entries]
    arrays = [pa.array(each, type=field.type) for each, field in zip(zip(*values, strict=True), SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _of_table(place: str, columns: Columns) -> Iterator[Entry]:
    (table,) = files(place, TABLES)
    names = [name for name in (columns.uris, columns.content) if name is not None]
    rows = _parquet_rows(place, names) if place.endswith(".parquet") else _json_rows(place)
    try:
        for number, row in enumerate(rows):
            path = f"{place}#{number}" if columns.uris is None else str(row[columns.uris])
            if columns.content is not None:
                value = row[columns.content]
                content = value if isinstance(value, bytes) else base64.b64decode(value or "", validate=True)
                yield Entry(path, len(content), table.mtime_ns, table.etag, content)
            elif is_uri(path) and path.partition("://")[0] not in SCHEMES:
                raise DataError(f"{place}: row {number}: {path} is in no storage that is read: {', '.join(SCHEMES)}")
            else:
                yield Entry(path) if is_uri(path) else entry_from_path(Path(path))  # of a folder too: a row is a file
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(f"{place}: is no table with {' and '.join(names)}: {error}") from None


def _parquet_rows(place: str, names: list[str]) -> Iterator[dict[str, Any]]:
    with opened(place) as file:
        for batch in pq.ParquetFile(file).iter_batches(FILES_A_BLOCK // 8, columns=names):
            yield from batch.to_pylist()


def _json_rows(place: str) -> Iterator[dict[str, Any]]:
    with opened(place) as file:
        rest = b""
        while some := file.read(1 << 20):
            *lines, rest = (rest + some).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())
        if rest.strip():
            yield json.loads(rest)
