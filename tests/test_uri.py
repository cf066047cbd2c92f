"""Names in object storage stay as they were spelled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from aivsreal.runtime.results.row import Row, line_from_row, row_from_line
from aivsreal.runtime.uri import Uri, is_uri, path_from_text
from aivsreal.runtime.verdict import FileStamp, Judge, Label, Scanned, Verdict

NAME = "s3://bucket/a//b/./c d%20.jpg"


def test_a_uri_is_spelled_as_it_was_given() -> None:
    uri = Uri(NAME)
    assert (str(uri), os.fspath(uri), f"{uri}", uri.name, uri.suffix) == (NAME, NAME, NAME, "c d%20.jpg", ".jpg")
    assert uri == Uri(NAME) != Uri("s3://bucket/a/b/c d%20.jpg")
    assert len({uri, Uri(NAME), Path(NAME)}) == 2
    again = pickle.loads(pickle.dumps(uri))
    assert (again, str(again)) == (uri, NAME)


def test_only_what_has_a_scheme_is_a_uri() -> None:
    assert all(is_uri(text) for text in ("s3://b", "abfss://c@account.dfs.core.windows.net/x"))
    assert not any(is_uri(text) for text in ("/s3://b", "a.jpg", "C:/x", "s3:/b", "./s3://b", "://b"))
    assert type(path_from_text("a.jpg")) is type(Path("a.jpg"))


def test_a_row_keeps_the_uri_and_the_etag() -> None:
    verdict = Verdict(Label.AI, 0.75, 1.5, "because")
    row = Row(Scanned(Uri(NAME), verdict, stamp=FileStamp(7, 0, etag="abc")), Judge("b", "p", "onnx-cpu fp32"))
    line = line_from_row(row)
    assert f'"path": "{NAME}"' in line
    assert '"size": 7, "mtime_ns": 0, "etag": "abc"' in line
    assert row_from_line(line) == row
