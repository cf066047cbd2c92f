"""How a command ends: its exit status and the one line that says why, whatever stopped it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from aivsreal.runtime.commands.frame import Group, command
from aivsreal.runtime.commands.stop import Stop
from aivsreal.runtime.errors import AivsrealError, DataError


def _command(raised: BaseException | None, status: int | None = None) -> click.Command:
    @command("aivsreal-try", "stopped; what is in {out} is whole")
    @click.option("--out", default="runs")
    def main(out: str) -> int | None:
        """Try."""
        if raised is not None:
            raised.__traceback__ = None
            raise raised
        return status

    return main


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (DataError("no images in photos: name another folder"), 2, "no images in photos: name another folder"),
        (KeyboardInterrupt(), 130, "stopped; what is in {a} is whole"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "stopped; what is in {a} is whole"),
        (BrokenPipeError(), 141, "standard output was closed; the rows before that are whole"),
    ],
)
def test_what_stops_a_command_is_one_line_and_a_status(raised: BaseException, status: int, told: str) -> None:
    result = CliRunner().invoke(_command(raised), ["--out", "{a}"])
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", f"aivsreal-try: {told}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_is_told_by_its_number(number: signal.Signals) -> None:
    with Stop() as stop:
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt) as raised:
            signal.raise_signal(number)
    assert (stop.signal, raised.value.args) == (number, (number,))


@pytest.mark.parametrize(("status", "exit_code"), [(None, 0), (0, 0), (1, 1), (143, 143)])
def test_a_command_ends_with_the_status_that_it_returns(status: int | None, exit_code: int) -> None:
    result = CliRunner().invoke(_command(None, status))
    assert (result.exit_code, result.output) == (exit_code, "")


def test_a_name_in_a_message_steers_no_terminal() -> None:
    result = CliRunner().invoke(_command(DataError("a\x1b[31mb\u202e.jpg: cannot be written\nC:\\x")))
    assert result.stderr == "aivsreal-try: a\\x1b[31mb\\u202e.jpg: cannot be written\nC:\\x\n"


def test_a_name_in_wrong_use_steers_no_terminal() -> None:
    result = CliRunner().invoke(_command(None), ["\x1b[31mred"], color=True)
    assert (result.exit_code, "(\\x1b[31mred)" in result.stderr) == (2, True)


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    assert isinstance(CliRunner().invoke(_command(LookupError("a defect"))).exception, LookupError)


def test_wrong_use_is_told_with_the_usage() -> None:
    result = CliRunner().invoke(_command(None), ["--nothing"])
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_command_of_several_ends_alike() -> None:
    group = Group("aivsreal-try")

    @group.command()
    def part() -> None:
        raise AivsrealError("it cannot")

    result = CliRunner().invoke(group, ["part"])
    assert (result.exit_code, result.stderr) == (2, "aivsreal-try: it cannot\n")
    alone = CliRunner().invoke(group, [])
    assert (alone.exit_code, "Commands:\n  part" in alone.output, "Error" in alone.output) == (2, True, False)


@pytest.mark.parametrize("name", ["scan", "doctor", "explain", "report"])
def test_a_missing_bundle_is_told_alike(name: str, tmp_path: Path) -> None:
    arguments = {"explain": ["x.png", "-o", "maps"], "report": ["rows.jsonl", "--csv", "x.csv"], "scan": ["x.png"]}
    (tmp_path / "rows.jsonl").write_text("")
    command = [sys.executable, "-m", f"aivsreal.runtime.commands.{name}", *arguments.get(name, []), "--bundle", "none"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    if name != "doctor":  # whose table has it as a line
        assert result.stderr.startswith(f"aivsreal-{name}: ")
        assert result.stderr.count("\n") == 1
