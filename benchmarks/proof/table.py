"""What a proof found out, as a table that is read on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aivsreal.benchmarks.proof.gpu import claims

Row = dict[str, Any]
_LEFT_OUT = {"benchmark", "what", "batch", "machine", "gpu", "binding", "kernel", "bundle", "image", "seconds"}


def outcome(ok: bool | None, why: str) -> str:
    """What came of a step, in words; None is for what is not here and need not be."""
    return "ok" if ok else f"{'not here' if ok is None else 'NOT OK'}: {why}"


def table_from(steps: Sequence[Row], rows: Sequence[Row]) -> str:
    """Steps, then what was checked, what was timed, and what must hold."""
    lines = ["", "step | outcome | s"]
    lines += [f"{step['step']} | {outcome(step['ok'], step['why'][:200])} | {step['seconds']}" for step in steps]
    lines += ["", "check | outcome"]
    for row in rows:
        if "holds" in row and "p50_ms" not in row:
            facts = ", ".join(f"{name} {value}" for name, value in row.items() if name not in _LEFT_OUT)
            lines.append(f"{row['what']} | {facts[:600]}")
    lines += ["", "what | batch | p50 ms | p99 ms | images a second | more"]
    for row in sorted(rows, key=lambda row: row["batch"]):
        if "p50_ms" in row:
            more = {
                name: row[name]
                for name in ("differing_values", "mode", "copy_gb_per_s", "matmul_tflops")
                if name in row
            }
            figures = (row["what"], row["batch"], row["p50_ms"], row.get("p99_ms", ""), row["images_per_s"], more or "")
            lines.append(" | ".join(map(str, figures)))
    lines += ["", "what must hold | figure | bound | holds"]
    for row in claims([row for row in rows if "p50_ms" in row]):
        holds = "not measured" if row["holds"] is None else "yes" if row["holds"] else "NO"
        lines.append(f"{row['what'].removeprefix('claim: ')} | {row['figure']} | {row['bound']} | {holds}")
    gpus = sorted({str(row["gpu"]) for row in rows if row.get("gpu")})
    return "\n".join([*lines, "", f"GPU: {', '.join(gpus) or 'none'}", ""])
