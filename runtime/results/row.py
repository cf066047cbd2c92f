"""The row of a scan's results: one JSON object a line, ASCII, the same on standard output and in a results file.

Always, in this order:

    path              as it was given or found; a byte that is no UTF-8 is a lone surrogate, as in Python
    then for a verdict
    label             real, ai or unsure
    p_ai              calibrated probability that the picture is AI-generated, 0 to 1
    logit             what the network said, before calibration
    reason            why p_ai became this label
    first             only where a second model judged again, whose verdict the row has then: what the first one said,
                      {"label", "p_ai", "logit", "reason"}
    frames            only where several frames were judged: [{"frame": 0, "p_ai": 0.5}, ...]; p_ai is of their mean
    evidence          what the metadata says: [{"source", "origin", "detail"}, ...], often empty; never changes p_ai;
                      of source "decoding": what was passed over or presumed so that the picture could be judged
    or for an error
    error             what happened, for people
    fault             its kind, one of `errors.Fault`
    and for both
    size, mtime_ns    of the file as it was judged; null where it could not even be looked at
    sha256            of its content, only where it was asked for
    etag              of an object in a storage, only where that gives one
    bundle            the first twelve digits of the model's digest
    operating_point   the bounds that were used
    backend           what ran the network, with its precision
    second_opinion    only in a scan with one: {"bundle", "operating_point", "backend"} of the model that judges again
                      what the first does not call real

Rows are only ever appended. Where a path stands in two rows, because its file has changed, the later one counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.fields import from_json, object_from_json
from aivsreal.runtime.uri import path_from_text
from aivsreal.runtime.verdict import Evidence, FileStamp, Judge, Scanned, Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results."""

    scanned: Scanned
    judge: Judge


def line_from_row(row: Row) -> str:
    """The row as one line of ASCII that ends with a newline."""
    return json.dumps(json_from_row(row), allow_nan=False) + "\n"


def row_from_line(line: str | bytes) -> Row:
    """Read what `line_from_row` wrote. Fields that a later version added are passed over.

    Raises:
        ValueError: it is no row.
    """
    try:
        return row_from_json(object_from_json(line))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("no JSON") from None
    except ValueError as error:
        raise ValueError(f"not a row of results: {error}") from None


def latest_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The row that counts for each file, by whatever path it was named, in the order of the files' first rows."""
    latest: dict[str, Row] = {}
    for row in rows:
        latest[absolute(row.scanned.path)] = row
    return iter(latest.values())


def absolute(path: Path) -> str:
    """The same for each way to name a file from this folder; links stay what they are."""
    try:
        return os.path.abspath(path)
    except OSError:  # the folder that this process is in was removed
        return str(path)


def json_from_row(row: Row) -> dict[str, object]:
    """The row as the object that its line is."""
    scanned, stamp = row.scanned, row.scanned.stamp
    values: dict[str, object] = {"path": str(scanned.path)}
    if scanned.verdict is not None:
        verdict = scanned.verdict
        values |= _json_from_verdict(verdict)
        if scanned.first is not None:
            values["first"] = _json_from_verdict(scanned.first)
        if scanned.frames:
            values["frames"] = [{"frame": frame, "p_ai": p_ai} for frame, p_ai in scanned.frames]
        values["evidence"] = [
            {"source": one.source, "origin": one.origin.value, "detail": one.detail} for one in scanned.evidence
        ]
    else:
        values |= {"error": scanned.error, "fault": None if scanned.fault is None else scanned.fault.value}
    values |= {"size": stamp and stamp.size, "mtime_ns": stamp and stamp.mtime_ns}
    if stamp is not None and stamp.sha256 is not None:
        values["sha256"] = stamp.sha256
    if stamp is not None and stamp.etag is not None:
        values["etag"] = stamp.etag
    values |= _json_from_judge(row.judge)
    if row.judge.second is not None:
        values["second_opinion"] = _json_from_judge(row.judge.second)
    return values


def row_from_json(values: Mapping[str, Any]) -> Row:
    """Read what `json_from_row` gave.

    Raises:
        ValueError: it is no row.
    """
    told = from_json(_Told, values, "a row", lenient=True)
    verdict = from_json(Verdict, values, "a verdict", lenient=True) if "label" in values else None
    scanned = Scanned(
        path_from_text(told.path),
        verdict,
        error=None if verdict else told.error,
        fault=None if verdict else told.fault,
        evidence=told.evidence,
        stamp=None if told.size is None else from_json(FileStamp, values, "the state of a file", lenient=True),
        frames=tuple((one.frame, one.p_ai) for one in told.frames),
        first=told.first,
    )
    return Row(scanned, replace(from_json(Judge, values, "a judge", lenient=True), second=told.second_opinion))


@dataclass(frozen=True, slots=True)
class _Frame:
    frame: int
    p_ai: float


@dataclass(frozen=True, slots=True)
class _Told:
    """What a row has beside the fields of `Verdict`, `FileStamp` and `Judge`."""

    path: str
    size: int | None
    error: str | None = None
    fault: Fault | None = None
    evidence: tuple[Evidence, ...] = ()
    frames: tuple[_Frame, ...] = ()
    first: Verdict | None = None
    second_opinion: Judge | None = None

    def __post_init__(self) -> None:
        os.fsencode(self.path)  # a surrogate that no byte of a name becomes: UnicodeEncodeError is a ValueError


def _json_from_verdict(verdict: Verdict) -> dict[str, object]:
    return {"label": verdict.label.value, "p_ai": verdict.p_ai, "logit": verdict.logit, "reason": verdict.reason}


def _json_from_judge(judge: Judge) -> dict[str, object]:
    return {"bundle": judge.bundle, "operating_point": judge.operating_point, "backend": judge.backend}
