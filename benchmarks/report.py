"""Tables of what the benchmarks recorded: reads their JSON lines and prints Markdown.

Run `python -m aivsreal.benchmarks.report benchmarks/results/*.jsonl`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from aivsreal.benchmarks.cpu import tables as cpu_tables
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.text import interval, markdown_table

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # header, rows


def ablation(rows: Sequence[Row]) -> Table:
    """Presets, best on unseen sources first; each with its change against the reference preset of the same seed."""
    columns, header = _ablation_columns(rows, "seed")
    unseen = columns[-1][1]
    lines = []
    for row in sorted(rows, key=lambda row: -float(row["last"][unseen]["auc"])):
        changes = [row.get(f"{measure}_change", {}).get(split) for measure, split in columns]
        cells = [f"{row['last'][split][measure]:.3f}" for measure, split in columns]
        cells += ["-" if change is None else f"{change:+.3f}" for change in changes]
        lines.append([f"`{row['preset']}`", str(row["seed"]), *cells])
    return header, lines


def ablation_over_seeds(rows: Sequence[Row]) -> Table:
    """Presets that were trained with several seeds: means, and the changes as mean [least, most]."""
    columns, header = _ablation_columns(rows, "seeds")
    by_preset: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_preset[row["preset"]].append(row)
    found = []
    for preset, group in by_preset.items():
        if len(group) < 2 or any("auc_change" not in row for row in group):
            continue
        aucs = [fmean(row["last"][split][measure] for row in group) for measure, split in columns]
        changes = [[row[f"{measure}_change"][split] for row in group] for measure, split in columns]
        ranges = [interval(fmean(values), min(values), max(values), form="+.3f") for values in changes]
        found.append((aucs[-1], [f"`{preset}`", str(len(group)), *(f"{auc:.3f}" for auc in aucs), *ranges]))
    return header, [line for _, line in sorted(found, reverse=True)]


def _ablation_columns(rows: Sequence[Row], seeds: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Measures with their splits, the pooled AUC first, and the header; earlier rows have no macro AUC."""
    splits = [name for name in rows[0]["last"] if name.startswith("val")]
    titles = {"auc": "AUC"}
    if all("macro_auc" in row["last"][split] for row in rows for split in splits):
        titles["macro_auc"] = "macro AUC"
    columns = [(measure, split) for measure in titles for split in splits]
    names = [f"{titles[measure]} {split}" for measure, split in columns]
    return columns, ["preset", seeds, *names, *(f"change {name.removeprefix('AUC ')}" for name in names)]


def geometry(rows: Sequence[Row]) -> Table:
    """Views of an image, with the gain over the spec's own."""
    return ["split", "geometry", "views", "AUC", "gain"], [
        [
            row["split"],
            row["geometry"],
            str(row["views"]),
            interval(*row["auc"]),
            interval(*row["auc_gain"], form="+.3f"),
        ]
        for row in rows
    ]


def training(rows: Sequence[Row]) -> Table:
    """Images a second through loading and through a step."""
    return ["arch", "size", "device", "loading: files", "cache", "step: FP32", "half", "compiled"], [
        [
            row["arch"], str(row["size"]), row["device"],
            *(f"{row['loading_images_per_s'][name]:.0f}" for name in ("files", "cache")),
            *(_rate(row["step_images_per_s"].get(name)) for name in ("fp32", "half", "compiled")),
        ]
        for row in rows
    ]  # fmt: skip


def gpu(rows: Sequence[Row]) -> Table:
    """Parts of the way on a GPU and what they are measured against, then the figures that must hold."""
    header = ["what", "batch", "GPU", "precision", "p50 ms", "p90 ms", "p99 ms", "images a second", "bound", "holds"]
    return header, [_claim(row) if "bound" in row else _part(row) for row in rows if not _is_check(row)]


def gpu_checks(rows: Sequence[Row]) -> Table:
    """What `aivsreal-bench proof` compared."""
    known = {"benchmark", "what", "batch", "gpu", "binding", "kernel", "holds", "machine", "worst"}
    return ["check", "GPU", "found", "holds"], [
        [
            row["what"], str(row.get("gpu", "-")),
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in known),
            _yes(row["holds"]),
        ]
        for row in rows
        if _is_check(row)
    ]  # fmt: skip


def _is_check(row: Row) -> bool:
    return "holds" in row and "bound" not in row


def imports(rows: Sequence[Row]) -> Table:
    """What the runtime adds to the import of its dependencies."""
    return ["imports over numpy and Pillow", "with Detector", "at most", "--help over click", "at most", "holds"], [
        [
            f"{row['import_ratio']:.2f}", f"{row['detector_ratio']:.2f}", f"{row['import_ratio_bound']:g}",
            f"{row['help_extra_ms']:.0f} ms", f"{row['help_extra_ms_bound']:.0f} ms", _yes(row["holds"]),
        ]
        for row in rows
    ]  # fmt: skip


def onnx_graph(rows: Sequence[Row]) -> Table:
    """The exported graph beside plain exports of the same network, batch 1."""
    return ["graph", "nodes", "TensorRT layers", "p50 ms", "p90 ms", "p99 ms"], [
        [
            name, str(row["nodes"].get(name, "-")), str(row.get("tensorrt_layers", {}).get(name, "-")),
            *(f"{times[quantile]:.2f}" for quantile in ("p50", "p90", "p99")),
        ]
        for row in rows
        for name, times in row["ms"].items()
    ]  # fmt: skip


def maps(rows: Sequence[Row]) -> Table:
    """Whether a map names what moved the score: high insertion, low deletion, and pointing at what was changed."""
    names = ["deletion", "insertion", "road", "pointing_generated", "iou_generated"]
    return ["map", "layer", *(name.replace("_", " ") for name in names)], [
        [row["map"], row.get("layer") or "-", *(interval(*row[name]) if row.get(name) else "-" for name in names)]
        for row in rows
    ]


def report_opening(rows: Sequence[Row]) -> Table:
    """How long a browser takes to open the HTML report."""
    return ["rows", "MB", "median", "at most", "worst", "holds"], [
        [
            str(row["rows"]), f"{row['bytes'] / 1e6:.1f}", f"{row['median_s']:.2f} s", f"{row['median_s_bound']:g} s",
            f"{row['worst_s']:.2f} s", _yes(row["holds"]),
        ]
        for row in rows
    ]  # fmt: skip


def _part(row: Row) -> list[str]:
    missing = "not measured" if "not_measured" in row else "-"
    times = [f"{row[name]:.3f}" if name in row else missing for name in ("p50_ms", "p90_ms", "p99_ms")]
    facts = [str(row.get(name, "-")) for name in ("batch", "gpu", "precision")]
    return [row["what"], *facts, *times, _rate(row.get("images_per_s")), "-", "-"]


def _claim(row: Row) -> list[str]:
    figure = "not measured" if row["figure"] is None else f"{row['figure']:g}"
    return [f"{row['what']}: {figure}", *["-"] * 7, f"{row['bound']:g}", _yes(row["holds"])]


def _yes(holds: bool | None) -> str:
    return {None: "not measured", True: "yes", False: "no"}[holds]


TABLES: dict[str, tuple[Callable[[Sequence[Row]], Table], ...]] = {
    "gpu": (gpu, gpu_checks),
    "ablation": (ablation, ablation_over_seeds),
    "geometry": (geometry,),
    "training": (training,),
    "imports": (imports,),
    "onnx_graph": (onnx_graph,),
    "maps": (maps,),
    "report_opening": (report_opening,),
    **cpu_tables.TABLES,
}


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
                found[row["benchmark"]].append(row)
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ResultsError(f"{path}: holds a line that no benchmark wrote; give files of results") from None
    return found


def _rate(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}"


@command("aivsreal-bench report")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plots", type=click.Path(path_type=Path), help="Write PNGs of cpu and compare into this folder.")
def main(files: Sequence[Path], plots: Path | None) -> None:
    """Print Markdown tables of what FILES hold, the benchmarks' lines."""
    found = rows_from_files(files)
    for path in cpu_tables.plots(found, plots) if plots else []:
        click.echo(f"wrote {path}", err=True)
    for name, rows in found.items():
        if name not in TABLES:
            click.echo(f"{name}: {len(rows)} lines, no table", err=True)
            continue
        machine = rows[-1]["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
        click.echo(f"### {name}\n\n{machine['cpu']}, {machine['cores']} cores; {versions}\n")
        for table in TABLES[name]:
            header, lines = table(rows)
            if lines:
                click.echo(f"{markdown_table(header, lines)}\n")


if __name__ == "__main__":
    main()
