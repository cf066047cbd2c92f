"""Locks on files between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from typing import IO


def wait_for_lock(file: IO[str] | int, tell: Callable[[], None]) -> None:
    """Take the lock for this process alone; `tell` is called where another one has it, before it is waited for."""
    if not locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        tell()
        locked(file, fcntl.LOCK_EX)


def locked(file: IO[str] | int, operation: int) -> bool:
    """Whether the lock was taken, `operation` as of `fcntl.flock`; False only where another process has it.

    On a drive without locks, as some network drives are, nobody else is looked for.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
