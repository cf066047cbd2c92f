"""Documents that state numbers: between `<!-- made by: COMMAND -->` and `<!-- made -->` stands what COMMAND prints.

Run `python -m aivsreal.benchmarks.documents` in a checkout after a measurement; a test fails where that was forgotten.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import ResultsError

_MADE = re.compile(r"^(<!-- made by: (.+?) -->\n).*?^(<!-- made -->)$", re.S | re.M)


def documents(checkout: Path) -> list[Path]:
    """The README and what lies in `docs/`."""
    return [checkout / "README.md", *sorted((checkout / "docs").glob("*.md"))]


def rendered(text: str, output: Callable[[str], str]) -> str:
    """The document with each marked part as its command prints it now.

    Args:
        text: the document.
        output: what a command prints.
    """
    return _MADE.sub(lambda found: f"{found[1]}{output(found[2]).strip()}\n{found[3]}", text)


def commands(text: str) -> list[str]:
    """What the marked parts are made by."""
    return [found[2] for found in _MADE.finditer(text)]


def output_of(line: str, checkout: Path) -> str:
    """What a command prints that is typed in the checkout; `python` is the one that runs.

    Raises:
        ResultsError: it failed.
    """
    words = shlex.split(line)
    if words[:2] != ["python", "-m"]:
        raise ResultsError(f"a document is made by `python -m ...`, not by {line}")
    ran = subprocess.run([sys.executable, *words[1:]], cwd=checkout, capture_output=True, text=True)
    if ran.returncode:
        raise ResultsError(f"{line} ended with {ran.returncode}: {ran.stderr.strip()}")
    return ran.stdout


@command("documents")
def main() -> None:
    """Render what is marked in README.md and docs/ of this folder, a checkout, again."""
    checkout = Path.cwd()
    for file in documents(checkout):
        before = file.read_text(encoding="utf-8")
        after = rendered(before, lambda line: output_of(line, checkout))
        if after != before:
            file.write_text(after, encoding="utf-8")
            click.echo(f"{file.relative_to(checkout)}: made again", err=True)


if __name__ == "__main__":
    main()
