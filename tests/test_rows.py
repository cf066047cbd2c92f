"""The row of results: what is written is read back, and what is no row is said to be none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.results.row import Row, latest_rows, line_from_row, row_from_line
from aivsreal.runtime.verdict import Evidence, FileStamp, Judge, Label, Origin, Scanned, Verdict

JUDGE = Judge("0123456789ab", "balanced", "onnx-cpu fp32")
VERDICT = Verdict(Label.AI, 0.75, 1.0986, "p_ai 0.750 is at or above 0.569 (balanced)")
ROWS = (
    Scanned(Path("a.jpg"), VERDICT, stamp=FileStamp(10, 1_700_000_000_000_000_001)),
    Scanned(
        Path("b.gif"),
        VERDICT,
        evidence=(Evidence("png:parameters", Origin.AI, "a cat"),),
        stamp=FileStamp(10, 5, "ab" * 32),
        frames=((0, 0.5), (7, 0.9)),
    ),
    Scanned(Path(os.fsdecode(b"c\xff\n\"'.jpg")), error="empty file", fault=Fault.EMPTY, stamp=FileStamp(0, 5)),
    Scanned(Path("gone.jpg"), error="no such file", fault=Fault.MISSING),
)


@pytest.mark.parametrize("scanned", ROWS, ids=lambda scanned: scanned.path.suffix)
def test_what_is_written_is_read_back(scanned: Scanned) -> None:
    line = line_from_row(Row(scanned, JUDGE))
    assert line.isascii()
    assert line.count("\n") == 1
    assert line.endswith("}\n")
    assert row_from_line(line) == Row(scanned, JUDGE)


def test_the_names_and_their_order_are_stable() -> None:
    verdict, _, error, _ = (list(json.loads(line_from_row(Row(scanned, JUDGE)))) for scanned in ROWS)
    both = ["size", "mtime_ns", "bundle", "operating_point", "backend"]
    assert verdict == ["path", "label", "p_ai", "logit", "reason", "evidence", *both]
    assert error == ["path", "error", "fault", *both]


def test_fields_of_a_later_version_are_passed_over() -> None:
    line = json.dumps(json.loads(line_from_row(Row(ROWS[0], JUDGE))) | {"colour": "red"})
    assert row_from_line(line).scanned == ROWS[0]


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", "1", '{"path": "a", "label": "ai"}', '{"path": 1}', "[" * 10**5])
def test_what_is_no_row_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        row_from_line(line)


def test_a_size_without_end_is_a_value_error() -> None:
    values = json.loads(line_from_row(Row(ROWS[0], JUDGE)))
    for size in ("1e999", "9" * 400 + ".5"):
        line = json.dumps({**values, "size": 0}).replace('"size": 0', f'"size": {size}')
        with pytest.raises(ValueError, match="size must be a whole number"):
            row_from_line(line)


def test_of_two_rows_for_a_path_the_later_counts() -> None:
    newer = Scanned(Path("a.jpg"), error="empty file", fault=Fault.EMPTY, stamp=FileStamp(0, 9))
    rows = [Row(scanned, JUDGE) for scanned in (ROWS[0], ROWS[1], newer)]
    assert [row.scanned for row in latest_rows(rows)] == [newer, ROWS[1]]
