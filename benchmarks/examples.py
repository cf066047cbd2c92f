"""What documents show of the program as it is: an example of each output, the fields of a row, the modules by room.

Run `python -m aivsreal.benchmarks.examples WHAT`.
"""

from __future__ import annotations

import ast
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import Fault
from aivsreal.runtime.files.find import SUFFIXES
from aivsreal.runtime.results.writers import CsvWriter, JsonLinesWriter, TableWriter, TabWriter, Tally, Writer
from aivsreal.runtime.text import markdown_table, share
from aivsreal.runtime.verdict import Evidence, FileStamp, Judge, OperatingPoint, Origin, Scanned, verdict_from_logit

_ROOT = Path(__file__).resolve().parents[1]
_SCHEMA = _ROOT / "runtime" / "results" / "row.schema.json"
_POINT = OperatingPoint("cautious", 0.85, 0.44, 0.01)
_JUDGE = Judge("5f261f3e8e2d", _POINT.name, "onnx-cpu fp32")
FORMATS = ("table", "tsv", "jsonl", "csv")
_MEANING = {
    "balanced": "both errors alike, with an `unsure` band around the threshold",
    "cautious": "accuses last: `ai` only where at most 1 % of the real images of the calibration were",
    "sensitive": "clears last: `real` only where at most 5 % of the AI images of the calibration were",
}


def scanned() -> list[Scanned]:
    """Results of a made-up scan: one of each kind."""
    declared = (Evidence("png:parameters", Origin.AI, "Stable Diffusion: a castle Steps: 20, Sampler: Euler a"),)
    return [
        _judged("photos/beach.jpg", -2.31, 2_483_112),
        _judged("photos/castle.png", 4.07, 1_310_554, declared),
        _judged("photos/poster.webp", 0.62, 88_230),
        Scanned(
            Path("photos/half.png"),
            error="a part of the picture is missing: the check sum of its IDAT does not fit",
            fault=Fault.PARTIAL,
            stamp=FileStamp(204_800, 1_795_709_400_000_000_000),
        ),
    ]


def _judged(path: str, logit: float, size: int, evidence: tuple[Evidence, ...] = ()) -> Scanned:
    stamp = FileStamp(size, 1_795_709_400_000_000_000)
    verdict = verdict_from_logit(logit, 1.56, _POINT)
    verdict = replace(verdict, p_ai=round(verdict.p_ai, 6))  # the same on every machine
    return Scanned(Path(path), verdict, evidence=evidence, stamp=stamp)


def rows(kind: str) -> str:
    """The made-up scan in one of the formats of `aivsreal-scan`, as a block of Markdown."""
    from rich.console import Console

    stream = io.StringIO()
    if kind == "table":
        console = Console(file=stream, width=100, force_terminal=False)
        writer: Writer = TableWriter(console)
    else:
        writer = (
            {"tsv": TabWriter, "csv": CsvWriter}[kind](stream) if kind != "jsonl" else JsonLinesWriter(stream, _JUDGE)
        )
    tally = Tally()
    for one in scanned():
        writer.write(one)
        tally.add(one)
    end = f"{tally.counts()}\n" if kind == "table" else ""
    return f"```text\n{stream.getvalue()}{end}```"


def fields() -> str:
    """The fields of a results row, from their JSON schema."""
    properties: dict[str, Any] = json.loads(_SCHEMA.read_text(encoding="utf-8"))["properties"]
    return markdown_table(
        ("field", "type", "what"), [(f"`{n}`", _type(p), p["description"]) for n, p in properties.items()]
    )


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if value["type"] == "array":
        return f"list of {{{_names(value['items'])}}}"
    if value["type"] == "object":
        return f"{{{_names(value)}}}"
    return value["type"] if isinstance(value["type"], str) else " or ".join(value["type"])


def _names(value: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in value["properties"])


def points() -> str:
    """The operating points of the shipped model."""
    manifest = Bundle.open(_ROOT / "runtime" / "models" / "levit192").manifest
    lines = []
    for point in manifest.points:
        default = " (default)" if point.name == manifest.default_point else ""
        bounds = (f"{point.ai_at_or_above:.2f}", f"{point.real_below:.2f}")
        lines.append((f"`{point.name}`{default}", _MEANING.get(point.name, ""), *bounds, share(point.false_alarm_rate)))
    return markdown_table(("operating point", "what it does", "`ai` from", "`real` below", "real called `ai`"), lines)


def modules() -> str:
    """Each module and its first sentence, by room."""
    rooms: dict[str, list[tuple[str, str]]] = {}
    for stage in ("runtime", "train", "export", "benchmarks"):
        for file in sorted((_ROOT / stage).rglob("*.py")):
            said = " ".join(
                (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
            )
            rooms.setdefault(str(file.parent.relative_to(_ROOT)), []).append((file.name, said))
    blocks = []
    for room, files in rooms.items():
        what = dict(files).get("__init__.py", "")
        table = markdown_table(("file", "what"), [(f"`{name}`", said) for name, said in files if name != "__init__.py"])
        blocks.append(f"### {room}/\n\n{what}\n\n{table}")
    return "\n\n".join(blocks)


def suffixes() -> str:
    """By which names files of a folder are known."""
    return " ".join(f"`.{suffix}`" for suffix in SUFFIXES)


OTHERS = {"suffixes": suffixes, "fields": fields, "points": points, "modules": modules}


@command("examples")
@click.argument("what", type=click.Choice((*FORMATS, *OTHERS)))
def main(what: str) -> None:
    """Print WHAT as Markdown."""
    click.echo(OTHERS[what]() if what in OTHERS else rows(what))


if __name__ == "__main__":
    main()
