"""The frame of every command: its exit status, and one style of message where it cannot go on.

0    all went well
1    some files could not be judged, or something that must hold does not
2    wrong use, no usable model or data, or results that cannot be written
130  stopped by Ctrl-C
141  standard output was closed, as by `head`
143  stopped by SIGTERM
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from aivsreal.runtime.commands.streams import take_streams
from aivsreal.runtime.errors import AivsrealError

REFUSED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
HELP = {"help_option_names": ["-h", "--help"]}


def command(name: str, stopped: str = "stopped") -> Callable[[Callable[..., int | None]], Command]:
    """A command of a function that returns its exit status, None for 0; a decorator.

    Args:
        name: what was typed, for messages.
        stopped: what is said after Ctrl-C; `{out}` stands for the value of `--out`, and so on.
    """

    def made(body: Callable[..., int | None]) -> Command:
        versioned = click.version_option(package_name="aivsreal", prog_name=name)(body)
        return click.command(name, cls=Command, context_settings=HELP, stopped=stopped)(versioned)

    return made


class _Framed(click.Command):
    """Reads what was typed in the frame."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Take the streams first: reading the arguments may write help."""
        take_streams()
        with frame(self.name):
            return super().make_context(info_name, args, parent, **extra)


class Command(_Framed):
    """A click command in the frame."""

    def __init__(self, *values: Any, stopped: str, **named: Any) -> None:
        super().__init__(*values, **named)
        self._stopped = stopped

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, and end the process."""
        with frame(self.name, self._stopped.format(**ctx.params)):
            sys.exit(super().invoke(ctx) or 0)


class Group(_Framed, click.Group):
    """A command of several commands, each of which ends in its frame."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was chosen."""
        with frame(self.name):
            return super().invoke(ctx)


@contextmanager
def frame(name: str | None, stopped: str = "stopped") -> Iterator[None]:
    """Ends the process with a line on standard error where the body raises what a user can mend or has done.

    A defect of ours is not caught: it ends with its traceback and 1.
    """
    try:
        yield
        return
    except AivsrealError as error:
        code, told = REFUSED, str(error)
    except KeyboardInterrupt as error:
        code, told = (128 + error.args[0] if error.args else INTERRUPTED), stopped
    except BrokenPipeError:
        code, told = PIPE_CLOSED, "standard output was closed; the rows before that are whole"
    except FileNotFoundError:
        try:
            os.getcwd()
        except FileNotFoundError:  # and so whatever was to be found from there
            code, told = REFUSED, "the folder that it was started in is gone: change to one that is there"
        else:
            raise
    except click.UsageError as error:  # it shows what was typed, which may be a name that a shell found
        if (message := _shown(error.format_message())) == error.format_message():
            raise
        raise click.UsageError(message, error.ctx) from None
    if sys.stderr.isatty():
        click.echo(err=True)  # the terminal wrote ^C, or a bar stands there
    click.echo(f"{name}: {_shown(told)}", err=True)
    sys.exit(code)


def _shown(message: str) -> str:
    from aivsreal.runtime.text import shown  # not at each start

    return shown(message)


class Number(click.FloatRange):
    """A number above `low` and up to `high`, if there is one; not `inf`, nor `nan`, which click has in every range.

    Without `above` it may be `low` too.
    """

    def __init__(self, low: float, high: float | None = None, above: bool = True) -> None:
        super().__init__(low, high, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, or out of the range.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
