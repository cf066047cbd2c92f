"""What a person sees while training: a bar on a terminal, one line an epoch everywhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainDisplay:
    """A context manager around the progress bar on stderr."""

    def __init__(self, epochs: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)), BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn(),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("train", epoch=1, loss=0.0)

    def __enter__(self) -> TrainDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """One step is done."""
        self.bar.update(self.task, completed=step, total=steps, epoch=epoch + 1, loss=loss)

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done: print its line."""
        parts = [f"epoch {row['epoch']:>3}"]
        for name, value in row.items():
            if isinstance(value, dict):
                numbers = " ".join(f"{measure} {number:.4f}" for measure, number in value.items())
                parts.append(f"{name} {numbers}")
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)
