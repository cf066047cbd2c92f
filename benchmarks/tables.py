"""The tables of what benchmarks recorded: most are columns, a title and the form of a cell each."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from aivsreal.runtime.text import NOT_MEASURED, interval

Row = dict[str, Any]
Made = tuple[list[str], list[list[str]]]  # header, rows
Table = Callable[[Sequence[Row]], Made]
Cell = str | Callable[[Row], str]


class _Cells(string.Formatter):
    """`{name:form}` of a row: three numbers are a value with its interval, and what the row lacks is `missing`."""

    def __init__(self, missing: str) -> None:
        self.missing = missing

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The value, None where there is none."""
        try:
            return super().get_field(field_name, args, kwargs)
        except KeyError:
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Its cell."""
        if value is None:
            return self.missing
        if isinstance(value, bool):
            return _yes(value)
        return interval(*value, form=format_spec) if isinstance(value, list) else format(value, format_spec)


def table(*columns: tuple[str, Cell], what: str | None = None, names: int = 1, missing: str = "") -> Table:
    """A table with a line for each row.

    Args:
        columns: the title and the form of a cell, as of `str.format` with the row's fields, or what makes it of a row.
        what: only of rows that are of this.
        names: how many columns say of what a row is; of one that was not measured the reason stands after them.
        missing: what stands for a field that a row has not.
    """
    cells = _Cells(missing)

    def cell(row: Row, form: Cell) -> str:
        return cells.vformat(form, (), row) if isinstance(form, str) else form(row)

    def line(row: Row) -> list[str]:
        if "not_measured" not in row:
            return [cell(row, form) for _, form in columns]
        told = [cell(row, form) for _, form in columns[:names]]
        return [*told, f"{NOT_MEASURED}: {row['not_measured']}", *[""] * (len(columns) - names - 1)]

    def made(rows: Sequence[Row]) -> Made:
        return [title for title, _ in columns], [line(row) for row in rows if what in (None, row.get("what"))]

    return made


def _listed(name: str, form: str) -> Cell:
    return lambda row: ", ".join(format(value, form) for value in row[name])


def _backend(row: Row) -> str:
    """With its precision, which one that could not be opened has not."""
    return f"{row['backend']} {row.get('precision', '')}".rstrip()


def ablation(rows: Sequence[Row]) -> Made:
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


def ablation_over_seeds(rows: Sequence[Row]) -> Made:
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


def sources_over_seeds(rows: Sequence[Row]) -> Made:
    """One recipe on so many sources: AUC on unseen ones as mean [least, most] of the seeds."""
    by_count: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_count[row["sources"]].append(row)
    lines = []
    for count, group in sorted(by_count.items()):
        values = [[row["last"]["val_unseen"][measure] for row in group] for measure in ("auc", "macro_auc")]
        images = f"{min(row['images'] for row in group):,} to {max(row['images'] for row in group):,}"
        aucs = [interval(fmean(one), min(one), max(one), form=".3f") for one in values]
        lines.append([str(count), images, str(len(group)), *aucs])
    return ["sources", "images", "seeds", "AUC val_unseen", "macro AUC val_unseen"], lines


def gpu(rows: Sequence[Row]) -> Made:
    """Parts of the way on a GPU and what they are measured against, then the figures that must hold."""
    header = ["what", "batch", "GPU", "precision", "p50 ms", "p90 ms", "p99 ms", "images a second", "bound", "holds"]
    return header, [_claim(row) if "bound" in row else _part(row) for row in rows if not _is_check(row)]


def _part(row: Row) -> list[str]:
    missing = NOT_MEASURED if "not_measured" in row else "-"
    times = [f"{row[name]:.3f}" if name in row else missing for name in ("p50_ms", "p90_ms", "p99_ms")]
    facts = [str(row.get(name, "-")) for name in ("batch", "gpu", "precision")]
    rate = f"{row['images_per_s']:.0f}" if "images_per_s" in row else NOT_MEASURED
    return [row["what"], *facts, *times, rate, "-", "-"]


def _claim(row: Row) -> list[str]:
    figure = NOT_MEASURED if row["figure"] is None else f"{row['figure']:g}"
    return [f"{row['what']}: {figure}", *["-"] * 7, f"{row['bound']:g}", _yes(row["holds"])]


def gpu_checks(rows: Sequence[Row]) -> Made:
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


def _yes(holds: bool | None) -> str:
    return {None: NOT_MEASURED, True: "yes", False: "no"}[holds]


def onnx_graph(rows: Sequence[Row]) -> Made:
    """The exported graph beside plain exports of the same network, batch 1: a line for each graph of a row."""
    graphs = [
        {"graph": name, **times, "nodes": row["nodes"].get(name), "layers": row.get("tensorrt_layers", {}).get(name)}
        for row in rows
        for name, times in row["ms"].items()
    ]
    return table(
        ("graph", "{graph}"), ("nodes", "{nodes}"), ("TensorRT layers", "{layers}"), ("p50 ms", "{p50:.2f}"),
        ("p90 ms", "{p90:.2f}"), ("p99 ms", "{p99:.2f}"), missing="-",
    )(graphs)  # fmt: skip


TABLES: dict[str, tuple[Table, ...]] = {
    "gpu": (gpu, gpu_checks),
    "ablation": (ablation, ablation_over_seeds),
    "onnx_graph": (onnx_graph,),
    "sources": (sources_over_seeds,),
    "views": (
        table(
            ("delivery", "{tier}"), ("geometry", "{geometry}"), ("views", "{views}"), ("AUC", "{auc:.3f}"),
            ("gain", "{auc_gain:+.3f}"), ("macro AUC", "{macro_auc:.3f}"), ("gain", "{macro_auc_gain:+.3f}"),
        ),
    ),
    "training": (
        table(
            ("arch", "{arch}"), ("size", "{size}"), ("device", "{device}"),
            ("loading: files", "{loading_images_per_s[files]:.0f}"), ("cache", "{loading_images_per_s[cache]:.0f}"),
            ("step: FP32", "{step_images_per_s[fp32]:.0f}"), ("half", "{step_images_per_s[half]:.0f}"),
            ("compiled", "{step_images_per_s[compiled]:.0f}"), missing=NOT_MEASURED,
        ),
    ),
    "imports": (
        table(
            ("imports over numpy and Pillow", "{import_ratio:.2f}"), ("with Detector", "{detector_ratio:.2f}"),
            ("at most", "{import_ratio_bound:g}"), ("--help over click", "{help_extra_ms:.0f} ms"),
            ("at most", "{help_extra_ms_bound:.0f} ms"), ("holds", "{holds}"),
        ),
    ),
    "maps": (
        table(
            ("map", "{map}"), ("layer", "{layer}"), ("deletion", "{deletion:.3f}"), ("insertion", "{insertion:.3f}"),
            ("road", "{road:.3f}"), ("pointing generated", "{pointing_generated:.3f}"),
            ("iou generated", "{iou_generated:.3f}"), missing="-",
        ),
    ),
    "report_opening": (
        table(
            ("rows", "{rows}"), ("MB", lambda row: f"{row['bytes'] / 1e6:.1f}"), ("median", "{median_s:.2f} s"),
            ("at most", "{median_s_bound:g} s"), ("worst", "{worst_s:.2f} s"), ("holds", "{holds}"),
        ),
    ),
    "cpu": (
        table(
            ("backend", "{backend}"), ("precision", "{precision}"), ("batch", "{batch}"), ("p50 ms", "{p50_ms:.1f}"),
            ("p90 ms", "{p90_ms:.1f}"), ("p99 ms", "{p99_ms:.1f}"), ("images/s", "{images_per_s:.0f}"),
            ("CPU ms an image", "{cpu_ms_per_image:.1f}"), what="network",
        ),
        table(
            ("backend", "{backend}"), ("precision", "{precision}"), ("ms an image", "{ms_per_image:.2f}"),
            ("times as fast as ONNX Runtime FP32", "{times_as_fast_as_onnx_fp32:.2f}"), ("at least", "{bound:g}"),
            ("p_ai differs by (mean, max)", "{p_ai_difference[mean]:.4f}, {p_ai_difference[max]:.4f}"), what="paired",
        ),
        table(
            ("photographs", "{shape}"), ("backend", _backend), ("read", "{cpu_ms[read]:.2f} ms"),
            ("decode", "{cpu_ms[decode]:.2f} ms"), ("preprocess", "{cpu_ms[preprocess]:.2f} ms"),
            ("inference", "{cpu_ms[inference]:.2f} ms"), ("images/s", "{images_per_s:.0f}"),
            ("share of the bound", "{share_of_bound:.2f} (at least {bound_share})"), what="scan", names=2,
        ),
        table(
            ("backend", "{backend}"), ("shell to verdict", "{best_ms[scan]:.0f} ms"),
            ("imports alone", "{best_ms[imports]:.0f} ms"), ("ratio", "{ratio:.2f}"), ("at most", "{ratio_bound:g}"),
            what="start",
        ),
        table(
            ("backend", "{backend}"), ("photographs", "{shape}"), ("files", "{files}"),
            ("peak memory", "{peak_mib:.0f} MiB"), what="memory", names=2,
        ),
    ),
    "compare": (
        table(
            ("photographs", "{shape}"), ("contender", "{contender}"), ("ms an image", "{ms_per_image:.1f}"),
            ("times ours", "{times_ours:.2f}"), ("at least", "{bound:g}"),
            ("first image, cold", "{first_image_s:.2f} s"), ("whole run, cold", "{files} in {whole_run_s:.2f} s"),
            ("times ours", "{whole_run_times_ours:.2f}"), ("at least", "{whole_run_bound:g}"), names=2,
        ),
    ),
    "drift": (
        table(
            ("images", "{images}"), ("backend", "{backend}"), ("mean p_ai drift", "{mean:.5f}"),
            ("at most", "{mean_bound:g}"), ("99 %", "{p99:.5f}"), ("largest", "{max:.5f}"),
            ("real and ai exchanged", "{flips_outside_unsure}"),
        ),
    ),
    "memory": (
        table(
            ("files", "{files:,}"), ("against", "{against:,}"), ("peak memory", "{peak_mib:.0f} MiB"),
            ("ratio", "{memory_ratio:.2f}"), ("at most", "{memory_bound:g}"), ("ms a file", "{ms_per_file:.2f}"),
            ("last tenth over second", "{growth:.2f}"), ("at most", "{growth_bound:g}"),
        ),
    ),
    "ray": (
        table(
            ("files", "{files:,}"), ("photographs", "{shape}"), ("backend", "{backend}"),
            ("plain, images/s", _listed("rate_plain", ".0f")), ("on Ray", _listed("rate", ".0f")),
            ("share", "{share:.2f}"), ("at least", "{bound:g}"),
            ("CPU ms an image, plain", _listed("cpu_ms_plain", ".1f")), ("on Ray", _listed("cpu_ms", ".1f")),
            ("share", "{cpu_share:.2f}"), what="speed",
        ),
        table(
            ("files", "{files:,}"), ("against", "{against:,}"), ("driver", "{driver_mib:.0f} MiB"),
            ("with few", "{driver_mib_few:.0f} MiB"), ("actor", "{actor_mib:.0f} MiB"),
            ("with few", "{actor_mib_few:.0f} MiB"), ("at most", "{bound:g} times"), what="memory",
        ),
    ),
}  # fmt: skip
"""By the name of the benchmark."""
