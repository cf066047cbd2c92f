"""End a long command between two steps when it is asked to by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class _Asked(BaseException):
    """Raised where the command only waits, so that it need not wait any longer."""


class Stop:
    """A context manager that notes the first SIGINT or SIGTERM; the second raises KeyboardInterrupt with its number.

    A signal that is ignored, as in a job that was started with `&` or `nohup`, stays so. Use it in the main thread.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The one that asked, or None."""
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """The items, ending when a signal comes, also one that comes while the next item is waited for."""
        rest = iter(items)
        while self.signal is None:
            try:
                self._waits = True
                item = next(rest)
                self._waits = False
            except (_Asked, StopIteration):
                return
            finally:
                self._waits = False
            yield item

    def sleep(self, seconds: float) -> None:
        """Sleep, or less where a signal comes."""
        try:
            self._waits = True
            if self.signal is None:
                time.sleep(seconds)
            self._waits = False
        except _Asked:
            pass
        finally:
            self._waits = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt(number)
        self.signal = signal.Signals(number)
        if self._waits:
            self._waits = False
            raise _Asked


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, so that no part of a file stays; for the main thread, as `Stop`."""

    def end(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
