"""Prints what the benchmarks recorded, their JSON lines, as tables in Markdown, and draws it.

Run `python -m aivsreal.benchmarks.report benchmarks/results/*.jsonl`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from aivsreal.benchmarks.tables import TABLES, Row
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.text import markdown_table


def rows_from_files(paths: Iterable[Path]) -> dict[str, list[Row]]:
    """Recorded lines by benchmark, in the order of the files.

    Raises:
        ResultsError: a file cannot be read or holds something else.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    for path in paths:
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                _made_on(row["machine"])
                found[row["benchmark"]].append(row)
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ResultsError(f"{path}: holds a line that no benchmark wrote; give files of results") from None
    return found


def plots(rows: dict[str, list[Row]], folder: Path) -> list[Path]:
    """Bars of `compare` and `cpu` as PNGs in `folder`; those whose benchmark was not recorded are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    bars = {
        "compare": [(f"{row['contender']}\n{row['shape']}", row["ms_per_image"]) for row in _done(rows, "compare")],
        "cpu": [
            (f"{row['backend']} {row['precision']}\nbatch {row['batch']}", 1000 / row["images_per_s"])
            for row in _done(rows, "cpu")
            if row["what"] == "network"
        ],
    }
    for name, values in bars.items():
        if not values:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * len(values)), layout="constrained")
        drawn = axes.barh([label for label, _ in values], [ms for _, ms in values])
        axes.bar_label(drawn, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds an image (logarithmic)")
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written


def _done(rows: dict[str, list[Row]], name: str) -> list[Row]:
    return [row for row in rows.get(name, []) if "not_measured" not in row]


@command("aivsreal-bench report")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plots", "to", type=click.Path(path_type=Path), help="Write PNGs of cpu and compare into this folder.")
def main(files: Sequence[Path], to: Path | None) -> None:
    """Print Markdown tables of what FILES hold, the benchmarks' lines."""
    found = rows_from_files(files)
    for path in plots(found, to) if to else []:
        click.echo(f"wrote {path}", err=True)
    for name, rows in found.items():
        if name not in TABLES:
            click.echo(f"{name}: {len(rows)} lines, no table", err=True)
            continue
        on_machine: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            on_machine[_made_on(row["machine"])].append(row)
        for machine, measured in on_machine.items():
            click.echo(f"### {name}\n\n{machine}\n")
            for table in TABLES[name]:
                header, lines = table(measured)
                if lines:
                    click.echo(f"{markdown_table(header, lines)}\n")


def _made_on(machine: Row) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
    return f"{machine['cpu']}, {machine['cores']} cores; {versions}"


if __name__ == "__main__":
    main()
