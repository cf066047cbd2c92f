"""JSON into frozen dataclasses: each field is there and of its kind, or one `ValueError` says which is not."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    list: ((list,), "a list"),
    dict: ((dict,), "an object"),
}


def object_from_json(content: bytes | bytearray | str) -> dict[str, Any]:
    """A JSON object that has finite numbers only.

    Raises:
        ValueError: it is none.
    """
    try:
        values: dict[str, Any] = _plain(dict, json.loads(content, parse_constant=_no_constant), "it")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return values


def check_fields(values: object, known: set[str] | frozenset[str], what: str) -> None:
    """See that an object has these fields and no other.

    Raises:
        ValueError: it has not, or is no object.
    """
    if set(_plain(dict, values, what)) != known:
        raise ValueError(f"{what} needs exactly the fields {sorted(known)}, not {sorted(values)}")  # type: ignore[call-overload]


def from_json(kind: type[T], values: object, what: str, lenient: bool = False) -> T:
    """A frozen dataclass from the object that `asdict` made of it, also of dataclasses, choices and tuples within.

    Args:
        kind: the dataclass. A value that is of its field's kind already is taken as it is.
        values: as JSON gave them.
        what: it is, for messages.
        lenient: fields with a default may be missing, and unknown ones are passed over, as a later version may write;
            in what is within too.

    Raises:
        ValueError: a field is missing, unknown, of another kind or, as the dataclass says, out of range.
    """
    kinds, needed = _fields(kind)  # type: ignore[arg-type]
    found = _plain(dict, values, what)
    if not lenient:
        check_fields(found, set(kinds), what)
    elif absent := needed - found.keys():
        raise ValueError(f"{what} lacks {', '.join(sorted(absent))}")
    return kind(**{name: _value(kinds[name], found[name], name, lenient) for name in kinds if name in found})


@lru_cache(maxsize=64)
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The kind of each field of a dataclass by its name, and which have no default."""
    without = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}, without


def _value(kind: Any, value: object, name: str, lenient: bool) -> Any:
    if (type(value) is kind and kind is not float) or kind in (Any, object):
        return value
    origin, inner = _parts(kind)
    if origin in (Union, UnionType):
        some = next(one for one in inner if one is not NoneType)
        return None if value is None else _value(some, value, name, lenient)
    if origin is tuple:
        items = _plain(list, value, name)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise ValueError(f"{name} needs {len(inner)} values, not {value!r}")
        return tuple(_value(inner[0], item, f"a value of {name}", lenient) for item in items)
    if origin is dict:
        found = _plain(dict, value, name)
        return {key: _value(inner[1], item, f"{name}.{key}", lenient) for key, item in found.items()}
    if is_dataclass(kind):
        return from_json(kind, value, name, lenient)  # type: ignore[arg-type]
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(str(choice.value) for choice in kind)
            raise ValueError(f"{name} must be one of {known}, not {value!r}") from None
    return _plain(kind, value, name)


@lru_cache(maxsize=64)
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of a generic: asked of `typing` for each value they were a tenth of reading a row."""
    return get_origin(kind), get_args(kind)


def _plain(kind: type, value: object, name: str) -> Any:
    allowed, told = _KINDS[kind]
    if type(value) not in allowed:
        raise ValueError(f"{name} must be {told}, not {value!r}")
    if kind is not float:
        return value
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
