"""Locks on files between processes."""

from __future__ import annotations

import fcntl
from typing import IO


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
