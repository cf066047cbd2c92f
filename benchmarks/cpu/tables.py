"""Tables and plots of what `aivsreal-bench cpu`, `compare`, `drift` and `memory` recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aivsreal.runtime.text import interval

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # header, rows


def network(rows: Sequence[Row]) -> Table:
    """Each backend and batch size."""
    header = ["backend", "precision", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "CPU ms an image"]
    lines = []
    for row in _only(rows, "network"):
        if "not_measured" in row:
            lines.append([row["backend"], f"not measured: {row['not_measured']}", *[""] * 6])
            continue
        times = (f"{row[name]:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms"))
        rates = (f"{row['images_per_s']:.0f}", f"{row['cpu_ms_per_image']:.1f}")
        lines.append([row["backend"], row["precision"], str(row["batch"]), *times, *rates])
    return header, lines


def paired(rows: Sequence[Row]) -> Table:
    """Each backend against ONNX Runtime in FP32, in turns."""
    header = [
        "backend",
        "precision",
        "ms an image",
        "times as fast as ONNX Runtime FP32",
        "at least",
        "p_ai differs by (mean, max)",
    ]
    return header, [
        [
            row["backend"], row["precision"], f"{row['ms_per_image']:.2f}",
            interval(*row["times_as_fast_as_onnx_fp32"], form=".2f"), f"{row['bound']:g}" if "bound" in row else "",
            f"{row['p_ai_difference']['mean']:.4f}, {row['p_ai_difference']['max']:.4f}",
        ]
        for row in _only(rows, "paired")
    ]  # fmt: skip


def scan(rows: Sequence[Row]) -> Table:
    """Stages in processor time, and the whole scan against what they allow."""
    header = ["photographs", "backend", "read", "decode", "preprocess", "inference", "images/s", "share of the bound"]
    return header, [
        [
            row["shape"], f"{row['backend']} {row['precision']}",
            *(f"{row['cpu_ms'][name]:.2f} ms" for name in ("read", "decode", "preprocess", "inference")),
            f"{row['images_per_s']:.0f}",
            interval(*row["share_of_bound"], form=".2f") + f" (at least {row['bound_share']})",
        ]
        for row in _only(rows, "scan")
    ]  # fmt: skip


def start(rows: Sequence[Row]) -> Table:
    """One image, cold."""
    return ["backend", "shell to verdict", "imports alone", "ratio", "at most"], [
        [row["backend"], *(f"{row['best_ms'][name]:.0f} ms" for name in ("scan", "imports")), f"{row['ratio']:.2f}",
         f"{row['ratio_bound']:g}" if "ratio_bound" in row else ""]
        for row in _only(rows, "start")
    ]  # fmt: skip


def peak(rows: Sequence[Row]) -> Table:
    """Peak memory of a scan."""
    return ["backend", "photographs", "files", "peak memory"], [
        [row["backend"], row["shape"], str(row["files"]), f"{row['peak_mib']:.0f} MiB"] for row in _only(rows, "memory")
    ]


def compare(rows: Sequence[Row]) -> Table:
    """What a user would pick instead."""
    header = [
        "photographs", "contender", "ms an image", "times ours", "at least", "first image, cold", "whole run, cold",
        "times ours", "at least",
    ]  # fmt: skip
    lines = []
    for row in rows:
        if "not_measured" in row:
            lines.append([row.get("shape", ""), row["contender"], f"not measured: {row['not_measured']}", *[""] * 6])
            continue
        bound, whole_bound = (f"{row[name]:g}" if name in row else "" for name in ("bound", "whole_run_bound"))
        warm = (f"{row['ms_per_image']:.1f}", interval(*row["times_ours"], form=".2f"), bound)
        cold = (f"{row['first_image_s']:.2f} s", f"{row['files']} in {row['whole_run_s']:.2f} s")
        lines.append(
            [
                row["shape"],
                row["contender"],
                *warm,
                *cold,
                interval(*row["whole_run_times_ours"], form=".2f"),
                whole_bound,
            ]
        )
    return header, lines


def drift(rows: Sequence[Row]) -> Table:
    """Decoding at a smaller scale against decoding every pixel."""
    return ["images", "backend", "mean p_ai drift", "at most", "99 %", "largest", "real and ai exchanged"], [
        [
            str(row["images"]), row["backend"], f"{row['mean']:.5f}", f"{row['mean_bound']:g}", f"{row['p99']:.5f}",
            f"{row['max']:.5f}", str(row["flips_outside_unsure"]),
        ]
        for row in rows
    ]  # fmt: skip


def memory(rows: Sequence[Row]) -> Table:
    """Very many files against few."""
    header = ["files", "against", "peak memory", "ratio", "at most", "ms a file", "last tenth over second", "at most"]
    return header, [
        [
            f"{row['files']:,}", f"{row['against']:,}", f"{row['peak_mib']:.0f} MiB", f"{row['memory_ratio']:.2f}",
            f"{row['memory_bound']:g}", f"{row['ms_per_file']:.2f}", f"{row['growth']:.2f}", f"{row['growth_bound']:g}",
        ]
        for row in rows
    ]  # fmt: skip


def ray_speed(rows: Sequence[Row]) -> Table:
    """A scan on a Ray of the machine against a plain one."""
    header = [
        "files", "photographs", "backend", "plain, images/s", "on Ray", "share", "at least", "CPU ms an image, plain",
        "on Ray", "share",
    ]  # fmt: skip
    return header, [
        [
            f"{row['files']:,}", row["shape"], row["backend"],
            *(", ".join(f"{rate:.0f}" for rate in row[name]) for name in ("rate_plain", "rate")),
            interval(*row["share"], form=".2f"), f"{row['bound']:g}",
            *(", ".join(f"{ms:.1f}" for ms in row[name]) for name in ("cpu_ms_plain", "cpu_ms")),
            interval(*row["cpu_share"], form=".2f"),
        ]
        for row in _only(rows, "speed")
    ]  # fmt: skip


def ray_memory(rows: Sequence[Row]) -> Table:
    """Very many files against few, on a Ray of the machine."""
    header = ["files", "against", "driver", "with few", "actor", "with few", "at most"]
    return header, [
        [
            f"{row['files']:,}", f"{row['against']:,}", f"{row['driver_mib']:.0f} MiB",
            f"{row['driver_mib_few']:.0f} MiB", f"{row['actor_mib']:.0f} MiB", f"{row['actor_mib_few']:.0f} MiB",
            f"{row['bound']:g} times",
        ]
        for row in _only(rows, "memory")
    ]  # fmt: skip


TABLES: dict[str, tuple[Callable[[Sequence[Row]], Table], ...]] = {
    "cpu": (network, paired, scan, start, peak),
    "compare": (compare,),
    "drift": (drift,),
    "memory": (memory,),
    "ray": (ray_speed, ray_memory),
}


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


def _only(rows: Sequence[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]
