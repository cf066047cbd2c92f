"""How large the rooms, files and functions are, and whether they keep their limits.

Run `python -m aivsreal.benchmarks.sizes`; it exits with 1 where a limit is passed. `--lines` counts lines too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.text import markdown_table

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("runtime", "train", "export", "benchmarks")
MODULES, FILE, FUNCTION = 9, 400, 50  # the most that a room, a file and a function may have
# More, and why.
EXCUSED = {
    "runtime/": (15, "the values, each a module of its own, and the doors: detector, options, explain"),
    "benchmarks/": (10, "commands, each a module that is run by its name"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A file, or a function in it."""

    name: str
    lines: int
    most: int

    def __str__(self) -> str:
        return f"{self.name} {self.lines}"


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of modules."""

    name: str
    files: tuple[Measured, ...]
    functions: tuple[Measured, ...]

    @property
    def modules(self) -> Measured:
        """How many there are besides `__init__`."""
        count = sum(not one.name.endswith("__init__.py") for one in self.files)
        return Measured(self.name, count, EXCUSED.get(self.name, (MODULES, ""))[0])

    @property
    def passed(self) -> Iterator[str]:
        """The limits that it does not keep."""
        for kind, ones in (("modules", (self.modules,)), ("lines", (*self.files, *self.functions))):
            yield from (f"{one} {kind}, and {one.most} are the most" for one in ones if one.lines > one.most)


def rooms(root: Path = ROOT) -> list[Room]:
    """The rooms of a checkout."""
    folders = [folder for stage in STAGES for folder in sorted({file.parent for file in (root / stage).rglob("*.py")})]
    return [_room(folder, f"{folder.relative_to(root)}/") for folder in folders]


def _room(folder: Path, name: str) -> Room:
    files, functions = list[Measured](), list[Measured]()
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        files.append(Measured(f"{name}{file.name}", len(text.splitlines()), FILE))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                called = f"{name}{file.name} {node.name}"
                functions.append(Measured(called, lines, EXCUSED.get(called, (FUNCTION, ""))[0]))
    return Room(name, tuple(files), tuple(functions))


def table(measured: list[Room], lines: bool) -> str:
    """The rooms as Markdown: of each how many modules it has and may have, and with `lines` how long they are."""
    head = ["room", "modules", "at most"]
    rows = [[f"`{one.name}`", str(one.modules.lines), str(one.modules.most)] for one in measured]
    if not lines:
        return markdown_table(head, rows)
    for row, room in zip(rows, measured, strict=True):
        longest = [max(ones, key=lambda one: one.lines, default="") for ones in (room.files, room.functions)]
        row += [f"{sum(one.lines for one in room.files):,}", *(str(one).removeprefix(room.name) for one in longest)]
    whole = sum(one.lines for room in measured for one in room.files)
    rows.append(["all", str(sum(room.modules.lines for room in measured)), "", f"{whole:,}", "", ""])
    return markdown_table([*head, "lines", "longest file", "longest function"], rows)


@command("sizes")
@click.option("--lines", is_flag=True, help="Count lines too, and name the longest file and function of each room.")
def main(lines: bool) -> int:
    """Print the rooms with their modules; exit with 1 where a room, a file or a function is past its limit."""
    measured = rooms()
    passed = [line for room in measured for line in room.passed]
    click.echo(table(measured, lines))
    click.echo(f"\nA file has at most {FILE} lines and a function {FUNCTION}; more may have:\n")
    for name, (most, why) in EXCUSED.items():
        click.echo(f"- `{name}` {most}: {why}")
    for line in passed:
        click.echo(line, err=True)
    return int(bool(passed))


if __name__ == "__main__":
    main()
