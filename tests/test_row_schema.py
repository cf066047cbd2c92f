"""The JSON schema of a results row says what `results/row.py` writes, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.results.row import Row, json_from_row, row_from_json
from aivsreal.runtime.verdict import Evidence, FileStamp, Judge, Label, Origin, Scanned, Verdict

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((ROOT / "runtime" / "results" / "row.schema.json").read_text(encoding="utf-8"))
KINDS = {"string": str, "number": (int, float), "integer": int, "array": list, "object": dict, "null": type(None)}

JUDGE = Judge("5f261f3e8e2d", "cautious", "onnx-cpu fp32")
PATH = Path("photos/a.jpg")
VERDICTS = [Verdict(label, 0.5, -0.1, "why") for label in Label]
STAMP = FileStamp(10, 20, "0" * 64, "etag")
FULL = Scanned(
    PATH, VERDICTS[0], first=VERDICTS[1], frames=((0, 0.5), (3, 0.25)), stamp=STAMP,
    evidence=tuple(Evidence("c2pa", origin, "says") for origin in Origin),
)  # fmt: skip
ROWS = [
    Row(FULL, replace(JUDGE, second=JUDGE)),
    *(Row(Scanned(PATH, verdict, stamp=FileStamp(1, 0)), JUDGE) for verdict in VERDICTS),
    *(Row(Scanned(PATH, error="no", fault=fault), JUDGE) for fault in Fault),
]


def problems(value: Any, schema: dict[str, Any], at: str = "row") -> Iterator[str]:
    """Where a value is not as the words of JSON Schema say that this schema uses; a field without a schema too."""
    known = {
        "$schema", "title", "description", "type", "enum", "required", "oneOf", "properties", "items",
        "minimum", "maximum", "pattern",
    }  # fmt: skip
    assert set(schema) <= known, f"{at}: the schema uses {set(schema) - known}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, KINDS[kind]) for kind in kinds):
        yield f"{at} is a {type(value).__name__}"
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{at}: {value} is out of range"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: {value}"
    if isinstance(value, dict):
        yield from (f"{at} lacks {name}" for name in schema.get("required", []) if name not in value)
        either = [set(one["required"]) <= set(value) for one in schema.get("oneOf", [])]
        if either and either.count(True) != 1:
            yield f"{at} is a verdict and an error, or neither"
        for name, part in value.items():
            if name not in schema["properties"]:
                yield f"{at}.{name} is not in the schema"
            else:
                yield from problems(part, schema["properties"][name], f"{at}.{name}")
    if isinstance(value, list):
        for part in value:
            yield from problems(part, schema["items"], f"{at}[]")


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_as_the_schema_says(row: Row) -> None:
    values = json_from_row(row)
    assert list(problems(values, SCHEMA)) == []
    assert row_from_json(json.loads(json.dumps(values))) == row


def test_the_schema_has_no_field_and_no_word_that_is_never_written() -> None:
    written = [json_from_row(row) for row in ROWS]
    assert {name for values in written for name in values} == set(SCHEMA["properties"])
    full = written[0]
    for name in ("first", "second_opinion"):
        assert set(full[name]) == set(SCHEMA["properties"][name]["properties"])  # type: ignore[call-overload]
    assert SCHEMA["properties"]["fault"]["enum"] == [fault.value for fault in Fault]
    assert set(SCHEMA["properties"]["label"]["enum"]) == {label.value for label in Label}
    origins = SCHEMA["properties"]["evidence"]["items"]["properties"]["origin"]["enum"]
    assert origins == [origin.value for origin in Origin]


@pytest.mark.parametrize(
    "change",
    [
        {"label": "fake"},
        {"p_ai": 1.5},
        {"size": "10"},
        {"error": "no", "fault": "damaged"},
        {"new": 1},
        {"sha256": "x"},
    ],
)
def test_a_row_that_is_none_is_told(change: dict[str, object]) -> None:
    assert list(problems({**json_from_row(ROWS[1]), **change}, SCHEMA))


def test_the_description_of_a_row_names_the_same_fields() -> None:
    import aivsreal.runtime.results.row as module

    said = module.__doc__ or ""
    for name in SCHEMA["properties"]:
        assert re.search(rf"^    (?:\w+, )?{name}\b", said, re.M), name
