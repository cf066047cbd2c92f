"""Standard streams as a command finds them: closed, full, or of an encoding that lacks a character.

What goes to standard output is what was asked for, so that it cannot be written is an error; what goes to standard
error is only told, and what nobody can read is dropped.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from aivsreal.runtime.errors import ResultsError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def take_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr`, unless something else already has, as a test does."""
    # What is opened next would get the number of a stream that is closed: a results file would be standard error.
    closed = [number for number in range(3) if _fill(number)]
    if sys.stdout is sys.__stdout__:
        results = _Results(1, closed=1 in closed or sys.stdout is None)
        sys.stdout = _text(results, sys.stdout, line_buffering=results.isatty())
    if sys.stderr is sys.__stderr__:
        messages = _Messages(os.devnull, "w") if sys.stderr is None else _Messages(2, "w", closefd=False)
        sys.stderr = _text(messages, sys.stderr, line_buffering=True)


class _Results(io.FileIO):
    """Standard output: the first write that fails is an error, and what comes after it is dropped."""

    def __init__(self, descriptor: int, closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._closed, self._failed = closed, False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._failed:  # what Python still holds when it ends
            return memoryview(data).nbytes
        self._failed = True
        if self._closed:
            raise ResultsError("standard output is closed: send it to a file")
        try:
            written = super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ResultsError(f"standard output cannot be written: {error.strerror}") from None
        self._failed = False
        return written


class _Messages(io.FileIO):
    """Standard error: what cannot be written is dropped, and the work goes on."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _text(raw: io.FileIO, as_before: TextIO | None, line_buffering: bool) -> TextIO:
    # Python's own standard error writes what its encoding lacks as \u2603 too.
    encoding = "utf-8" if as_before is None else as_before.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=line_buffering)


def _fill(number: int) -> bool:
    """Put the null device where a standard stream is closed; whether it was."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one, as those below it are filled
        assert null == number
        return True
    return False
