"""The results file of a scan: rows are appended and flushed, and a later scan goes on where this one ended.

However a scan ends, each row in the file is whole, but for a last line that a crash of the machine may have torn: it
is dropped when the file is opened again, and its file is judged again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from aivsreal.runtime.errors import ResultsError
from aivsreal.runtime.locks import locked
from aivsreal.runtime.pixels.kinds import HEAD, kind_of
from aivsreal.runtime.pixels.read import stamp_of
from aivsreal.runtime.results.row import Row, absolute, line_from_row, row_from_line
from aivsreal.runtime.verdict import FileStamp, Judge, Scanned

_BEGINNING = b'{"path": '  # of each row
_MAX_LINE = 1 << 24
SYNC_EVERY_S = 5.0  # a loss of power costs at most so much; the end of a process, even by kill -9, costs nothing


def rows_from_file(path: Path) -> Iterator[Row]:
    """Each whole row of a results file, streamed; empty lines and a torn last one are passed over.

    Raises:
        ResultsError: the file cannot be read, or a line in it is no row.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield row_from_line(line)
                except ValueError as error:
                    if not line.endswith(b"\n"):
                        return
                    raise ResultsError(f"{path}: line {number} is {error}: is it a results file?") from None
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror or error}") from None


class ResultsFile:
    """A `Writer` that appends rows; a context manager, or call `close`.

    Args:
        path: the file; it is made where it is not there.
        resume: go on with a file that has rows.
        by_content: know a file by path and SHA-256, not by path, size and time.
        retry_errors: do not know files that ended in an error.
        overwrite: begin a results file anew.

    Raises:
        ResultsError: it has rows and `resume` was not asked for, or they are of another judge, or it is no results
            file, or it is in use, or it cannot be written.
    """

    def __init__(
        self, path: Path, judge: Judge, *, resume: bool = False, by_content: bool = False, retry_errors: bool = False,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self.count = 0
        """Rows that were written since it was opened."""
        self.skipped = 0
        """Files that `is_known` knew."""
        self._judge = judge
        self._by_content = by_content
        self._retry_errors = retry_errors
        self.skipped_errors = 0
        """Those of them that had ended in an error."""
        self._known: dict[bytes, bytes] = {}  # of each file the state of its latest row
        self._errors: set[bytes] = set()
        self._synced_s = time.monotonic()
        self._descriptor = self._opened()
        try:
            if os.fstat(self._descriptor).st_size:
                self._check_ours()
                if resume:
                    self._read_back()
                elif overwrite:
                    os.ftruncate(self._descriptor, 0)
                else:
                    raise ResultsError(
                        f"{path} has results: go on with --resume, begin anew with --overwrite, or name another file"
                    )
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_known(self, path: Path) -> bool:
        """Whether a row is there for this state of the file, a verdict or an error."""
        if not self._known:
            return False
        place = _place(path)
        known = self._known.get(place) == self._state(stamp_of(path, self._by_content))
        self.skipped += known
        self.skipped_errors += known and place in self._errors
        return known

    def write(self, scanned: Scanned) -> None:
        """Append one row and hand it to the system.

        Raises:
            ResultsError: it cannot be written, for example because the disk is full; the rows before it are whole.
        """
        line = line_from_row(Row(scanned, self._judge)).encode()
        self._follow_rotation()
        end = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise self._cannot_write(error) from None
        self.count += 1
        if self._known:
            self._known.pop(_place(scanned.path), None)  # its latest row is this one now
        if time.monotonic() - self._synced_s > SYNC_EVERY_S:
            self._sync()

    def close(self) -> None:
        """Put all on the disk and close.

        Raises:
            ResultsError: the disk failed.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise ResultsError(f"{self.path} cannot be written: {error.strerror or error}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ResultsError(f"{self.path} is not a regular file: leave --output out and use --jsonl")
            if not locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise ResultsError(f"{self.path} is in use: another scan writes to it")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _follow_rotation(self) -> None:
        """Where the file was moved or removed, as log rotation does, go on in a new one of the same name."""
        ours = os.fstat(self._descriptor)
        try:
            if os.path.samestat(ours, os.stat(self.path)):
                return
        except OSError:
            pass  # not there: made below, or said why not
        self._sync()
        fresh = self._opened()
        os.close(self._descriptor)
        self._descriptor = fresh
        if os.fstat(fresh).st_size:
            self._check_ours()
            self._mend_end()

    def _check_ours(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            head = file.read(HEAD)
            file.seek(0)
            line = file.readline(_MAX_LINE)
            while line.isspace():
                line = file.readline(_MAX_LINE)
        if not line:
            return
        try:
            row_from_line(line)
        except ValueError as error:
            if not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                return  # the only row, and torn
            what = kind_of(head)
            found = f"line 1 is {error}" if what is None else f"it is {what.name}"
            raise ResultsError(f"{self.path} is no results file, {found}: name another file") from None

    def _read_back(self) -> None:
        # Rows first: what is no results file after all is left as it is.
        self._take_rows()
        self._mend_end()

    def _mend_end(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            whole, last = 0, b""
            for last in file:
                whole += len(last)
        if not last.endswith(b"\n"):
            try:
                row_from_line(last)
                os.write(self._descriptor, b"\n")  # only its end was lost
            except ValueError:
                os.ftruncate(self._descriptor, whole - len(last))

    def _take_rows(self) -> None:
        for row in rows_from_file(self.path):
            if who(row.judge) != who(self._judge):
                raise ResultsError(
                    f"{self.path} has verdicts of {who(row.judge)}, and this scan uses {who(self._judge)}: "
                    "name another file"
                )
            scanned = row.scanned
            if self._by_content and scanned.verdict and (scanned.stamp is None or scanned.stamp.sha256 is None):
                raise ResultsError(f"{self.path} has rows without a SHA-256: go on without --by-content")
            place = _place(scanned.path)
            # Of two rows for a path the later counts, here too.
            (self._errors.add if scanned.error else self._errors.discard)(place)
            self._known[place] = self._state(scanned.stamp)
        if self._retry_errors:
            for place in self._errors:
                del self._known[place]

    def _state(self, stamp: FileStamp | None) -> bytes:
        state: object = None
        if stamp is not None:
            state = stamp.sha256 or stamp.size if self._by_content else (stamp.size, stamp.mtime_ns)
        return hashlib.blake2b(repr(state).encode(), digest_size=8).digest()

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._cannot_write(error) from None
        self._synced_s = time.monotonic()

    def _cannot_write(self, error: OSError) -> ResultsError:
        return ResultsError(
            f"{self.path} cannot be written: {error.strerror or error}; its rows are whole: go on with --resume"
        )


def _place(path: Path) -> bytes:
    # 16 bytes for each file, and 8 for its state, since there may be millions.
    return hashlib.blake2b(os.fsencode(absolute(path)), digest_size=16).digest()


def who(judge: Judge) -> str:
    """Whose verdicts belong together: what ran the network does not matter."""
    one = f"bundle {judge.bundle} at point {judge.operating_point}"
    return one if judge.second is None else f"{one} with a second opinion of {who(judge.second)}"
