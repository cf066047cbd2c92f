"""Is the lean half lean: what `import aivsreal.runtime` and `aivsreal-scan --help` cost beside their dependencies.

Run `python -m aivsreal.benchmarks.start`; it prints one JSON line and exits with 1 where a bound does not hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter

import click

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.text import last_line

IMPORT_RATIO = 1.5  # the runtime over import numpy, PIL.Image
HELP_EXTRA_MS = 100.0  # aivsreal-scan --help beyond import click
MOST_PASSES = 4  # of --rounds each while a bound seems missed: a busy machine has held all of 10 rounds up by 25 ms

COMMANDS: dict[str, tuple[str, ...]] = {
    "dependencies": ("-c", "import numpy, PIL.Image"),
    "runtime": ("-c", "import aivsreal.runtime"),
    # The package loads its names when they are first used, so its own import says little: this one loads them.
    "detector": ("-c", "from aivsreal.runtime import Detector"),
    "click": ("-c", "import click"),
    "scan_help": ("-m", "aivsreal.runtime.commands.scan", "--help"),
}


def best_ms(commands: dict[str, tuple[str, ...]], rounds: int) -> dict[str, float]:
    """Shortest wall time of each command in a fresh interpreter, in milliseconds.

    The best of N and not the mean: what disturbs a start only ever adds. The commands take turns, so that a machine
    that grows slower does so for all; a first round that fills the file cache is not counted.

    Raises:
        subprocess.CalledProcessError: a command fails.
    """
    best = dict.fromkeys(commands, float("inf"))
    for turn in range(rounds + 1):
        for name, arguments in commands.items():
            elapsed = _elapsed_ms(arguments)
            if turn:
                best[name] = min(best[name], elapsed)
    return best


def _elapsed_ms(arguments: Sequence[str]) -> float:
    start = perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    return (perf_counter() - start) * 1000


def why_failed(error: subprocess.CalledProcessError) -> str:
    """The last line that a command said, or else its exit status."""
    return last_line(error.stderr or "") or f"exit status {error.returncode}"


def judged(best: dict[str, float]) -> dict[str, object]:
    """The comparisons and whether all of them hold."""
    ratio = best["runtime"] / best["dependencies"]
    detector_ratio = best["detector"] / best["dependencies"]
    extra_ms = best["scan_help"] - best["click"]
    return {
        "best_ms": {name: round(value, 1) for name, value in best.items()},
        "import_ratio": round(ratio, 3),
        "detector_ratio": round(detector_ratio, 3),
        "import_ratio_bound": IMPORT_RATIO,
        "help_extra_ms": round(extra_ms, 1),
        "help_extra_ms_bound": HELP_EXTRA_MS,
        "holds": max(ratio, detector_ratio) <= IMPORT_RATIO and extra_ms <= HELP_EXTRA_MS,
    }


@command("start")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Fresh interpreters a pass.")
def main(rounds: int) -> int:
    """Time imports in fresh interpreters and compare them with their bounds; up to four passes where one seems missed.

    More passes cannot hide a slow import: every command's shortest time is over all of them, its yardstick's too.
    """
    try:
        best = dict.fromkeys(COMMANDS, float("inf"))
        for passes in range(1, MOST_PASSES + 1):
            best = {name: min(best[name], elapsed) for name, elapsed in best_ms(COMMANDS, rounds).items()}
            result = judged(best)
            rounds_taken = rounds * passes
            if result["holds"]:
                break
    except subprocess.CalledProcessError as error:
        raise BackendError(
            f"python {' '.join(error.cmd[1:])} failed with {error.returncode}: {why_failed(error)}"
        ) from None
    click.echo(json.dumps({"benchmark": "imports", "rounds": rounds_taken, **result, "machine": machine_facts()}))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    main()
