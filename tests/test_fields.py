"""JSON becomes a dataclass, or one error says which field is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum

import pytest

from aivsreal.runtime.fields import from_json, object_from_json


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    rows: tuple[Inner, ...]
    box: tuple[int, int]
    counts: dict[str, int]
    colour: Colour
    free: dict[str, object]
    on: bool = True


WHOLE = Outer(Inner("a", 0.5), (Inner("b", None),), (1, 2), {"x": 3}, Colour.RED, {"any": [1]})
VALUES = json.loads(json.dumps(asdict(WHOLE)))


def test_what_asdict_made_comes_back() -> None:
    assert from_json(Outer, VALUES, "it") == WHOLE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": []}, "inner must be an object"),
        ({"inner": {"name": "a"}}, "inner needs exactly the fields"),
        ({"inner": {"name": 1, "share": 0}}, "name must be a text"),
        ({"inner": {"name": "a", "share": True}}, "share must be a number"),
        ({"inner": {"name": "a", "share": 10**400}}, "share must be a finite number"),
        ({"rows": [1]}, "a value of rows must be an object"),
        ({"box": [1]}, "box needs 2 values"),
        ({"box": [1, 2.5]}, "a value of box must be a whole number"),
        ({"counts": {"x": "3"}}, r"counts\.x must be a whole number"),
        ({"colour": "green"}, "colour must be one of red, blue"),
        ({"colour": ["red"]}, "colour must be one of red, blue"),
        ({"on": 1}, "on must be true or false"),
        ({"extra": 1}, "it needs exactly the fields"),
    ],
)
def test_a_field_of_another_kind_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_json(Outer, {**VALUES, **change}, "it")


def test_a_lenient_reader_passes_over_what_a_later_version_wrote() -> None:
    values = {name: value for name, value in VALUES.items() if name != "on"}
    assert from_json(Outer, {**values, "extra": 1}, "it", lenient=True) == WHOLE
    del values["box"]
    with pytest.raises(ValueError, match="it lacks box"):
        from_json(Outer, values, "it", lenient=True)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, b"\xff\xfe{"])
def test_what_is_no_object_of_finite_numbers_is_one_kind_of_error(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        object_from_json(content)
