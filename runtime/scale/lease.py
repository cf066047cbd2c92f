"""One run at a time writes to an output: it says so in a small file that it renews, and a second one is refused.

Storages have no locks, so a run that was killed leaves its file behind. It is taken over when it is not renewed any
more, at once where the run was on this machine and has ended. Should two runs take one over in the same moment, the
later one has it and the other notices before it writes its next part.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.fields import from_json, object_from_json
from aivsreal.runtime.scale.storage import joined, opened, remove, write

BEAT_S = 5.0
GONE_AFTER_S = 4 * BEAT_S
SETTLED_S = 1.0  # longer than there may be between the look and the writing of two runs that begin together
NAME = "_running.json"


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who writes to an output."""

    run: str
    host: str
    pid: int
    beats: int
    """How often it said so."""

    def __str__(self) -> str:
        return f"run {self.run} on {self.host}, process {self.pid}"

    @property
    def has_ended(self) -> bool:
        """Whether it was on this machine, and is no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


class Lease:
    """The right to write to an output; a context manager that takes it, and gives it back.

    Args:
        run: name of this run.
        tell: is told what is waited for.

    Raises:
        ResultsError: another run has it, or the file cannot be written.
    """

    def __init__(self, place: str, run: str, tell: Callable[[str], None]) -> None:
        self._place, self._file, self._run, self._tell = place, joined(place, NAME), run, tell
        self._beats = 0
        self._lost: str | None = None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="aivsreal-lease", daemon=True)

    def __enter__(self) -> Lease:
        other = self._read()
        if other is not None and not other.has_ended:
            self._wait_for(other)
        self._write()
        time.sleep(SETTLED_S)
        self._look()
        self.check()
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        if self._lost is None:
            with suppress(OSError):  # it is not there any more, or the storage is not: then it ends by itself
                remove(self._file)

    def check(self) -> None:
        """To be called before a part is written.

        Raises:
            ResultsError: another run has taken the output over.
        """
        if self._lost is not None:
            raise ResultsError(f"{self._place} is in use: {self._lost} writes to it")

    def _wait_for(self, other: _Holder) -> None:
        self._tell(f"{other} wrote to {self._place} and may have ended: looking for {GONE_AFTER_S:.0f} s")
        until_s = time.monotonic() + GONE_AFTER_S
        while time.monotonic() < until_s:
            time.sleep(BEAT_S / 2)
            now = self._read()
            if now is None:
                return
            if now != other:
                raise ResultsError(f"{self._place} is in use: {now} writes to it")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S) and self._lost is None:
            try:
                self._look()
                if self._lost is None:
                    self._write()
            except (ResultsError, OSError):
                continue  # a storage that does not answer now; should it not come back, no part can be written either

    def _look(self) -> None:
        now = self._read()
        if now is not None and now.run != self._run:
            self._lost = str(now)

    def _write(self) -> None:
        self._beats += 1
        holder = _Holder(self._run, socket.gethostname(), os.getpid(), self._beats)
        write(self._file, json.dumps(asdict(holder)).encode())

    def _read(self) -> _Holder | None:
        try:
            with opened(self._file) as file:
                return from_json(_Holder, object_from_json(file.read()), "it", lenient=True)
        except FileNotFoundError:
            return None
        except ValueError:
            raise ResultsError(f"{self._file} is none of ours: name another output, or move it away") from None
