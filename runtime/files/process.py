"""A process that decodes one file after another for a thread of the pool, and that may crash.

Parent to child: four bytes of length, the path, eight bytes of length, and the content where the parent has read it.
Child to parent: four bytes of length, a JSON object, then the pixels it announces. No pickle: a decoder that was taken
over by a hostile file must not reach the parent through it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from aivsreal.runtime.errors import BackendError, Fault, ImageError
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file, undecoded
from aivsreal.runtime.files.own_process import set_up_pillow
from aivsreal.runtime.pixels.read import Reader, Snapshot, snapshot_from_file, stamp_of
from aivsreal.runtime.spec import spec_from_json
from aivsreal.runtime.verdict import Evidence, FileStamp, Origin

BOOT = "import sys; sys.path[:] = sys.argv[2:]; from aivsreal.runtime.files.process import main; main()"
_START_S = 60.0
_STARTING = threading.Lock()
_SPARE = 6  # descriptors that stay free for the scan itself: its files, its folders, its results
_READY = b"ready"
_MAX_HEADER = 1 << 24


class NoProcess(BackendError):
    """The system lets no further process be started, or none that it could be talked to."""


class _Gone(Exception):
    """The child has ended."""


class _Late(Exception):
    """The child is over its time limit."""


class DecodeProcess:
    """The parent's side: started when it is first needed, and again after a crash.

    Args:
        plan: how files are decoded.
        time_limit_s: seconds that one file may take.
        read: reads the files; by default the child does, so that their content is not sent to it.
    """

    def __init__(self, plan: DecodePlan, time_limit_s: float, read: Reader = snapshot_from_file) -> None:
        self._plan = plan
        self._limit_s = time_limit_s
        self._read = None if read is snapshot_from_file else read
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def decode(self, path: Path) -> Decoded:
        """Decode in the child.

        Raises:
            NoProcess: the system does not let it be started; another may decode the file.
            BackendError: it does not start.
        """
        try:
            snapshot = self._read and self._read(path, self._plan.by_content)
        except ImageError as error:
            return undecoded(path, str(error), error.fault, stamp_of(path, self._plan.by_content))
        child = self._child or self._started()
        name, content = os.fsencode(path), snapshot.content if snapshot else b""
        try:
            _write(child, len(name).to_bytes(4, "big") + name + len(content).to_bytes(8, "big"))
            _write(child, content)
            decoded = self._received(path, child, time.monotonic() + self._limit_s)
            return replace(decoded, stamp=snapshot.stamp) if snapshot else decoded
        except _Late:
            message, fault = (
                f"decoding took more than {self._limit_s:g} s: allow more with --time-limit",
                Fault.TIME_LIMIT,
            )
        except (_Gone, ValueError, KeyError, TypeError, RecursionError):
            message, fault = "its decoder crashed", Fault.CRASHED
            child.kill()
            code = child.wait()
            if code < 0 and code != -signal.SIGKILL:
                message += f" ({signal.Signals(-code).name})"
        self._end()
        return undecoded(
            path, message, fault, snapshot.stamp if snapshot else stamp_of(path, self._plan.by_content)
        )  # fmt: skip

    def close(self) -> None:
        """Kill the child. Any thread may call it."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        own, second = (spec and spec.to_json() for spec in (self._plan.spec, self._plan.second))
        plan = {**asdict(self._plan), "spec": own, "second": second, "limit_s": self._limit_s}
        spare = list[int]()
        with _STARTING:  # one after the other: a start needs for a moment what several would only lack together
            try:
                spare += [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE)]
                # A session of its own: Ctrl-C in the terminal is for the parent, which finishes the batch in hand.
                child = subprocess.Popen(
                    [sys.executable, "-c", BOOT, json.dumps(plan), *sys.path], bufsize=0, start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise NoProcess(
                    f"no process that decodes for --isolate can be started: {error.strerror}; allow more (ulimit -n, "
                    "or a container's limit of processes), or scan without --isolate"
                ) from None
            finally:
                for descriptor in spare:
                    os.close(descriptor)
        self._child = child
        try:
            if _read(child, len(_READY), time.monotonic() + _START_S) == _READY and not self._closed:
                return child
        except (_Gone, _Late):
            pass
        self._end()
        raise BackendError("the process that decodes for --isolate does not start: scan without --isolate")

    def _received(self, path: Path, child: subprocess.Popen[bytes], deadline_s: float) -> Decoded:
        length = int.from_bytes(_read(child, 4, deadline_s), "big")
        if length > _MAX_HEADER:
            raise ValueError("a header of that length is none")
        values: dict[str, Any] = json.loads(_read(child, length, deadline_s))
        stamp = None if values["stamp"] is None else FileStamp(*values["stamp"])
        if values["error"] is not None:
            return undecoded(path, str(values["error"]), Fault(values["fault"]), stamp)
        pixels = []
        most = max([self._plan.max_pixels, *(spec.size**2 for spec in self._plan.squares)])
        for height, width in values["shapes"]:
            if height < 1 or width < 1 or height * width > most:
                raise ValueError("pixels of that size were not asked for")
            raw = _read(child, 3 * height * width, deadline_s)
            pixels.append(np.frombuffer(raw, np.uint8).reshape(height, width, 3))
        evidence = tuple(Evidence(str(a), Origin(b), str(c)) for a, b, c in values["evidence"])
        frames = tuple(int(index) for index in values["frames"])
        first, second = tuple(pixels[: len(frames)]), tuple(pixels[len(frames) :])
        return Decoded(path, stamp, first, frames, evidence, second=second)


def _write(child: subprocess.Popen[bytes], content: bytes) -> None:
    assert child.stdin
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[child.stdin.write(rest) :]
    except (BrokenPipeError, ValueError):
        raise _Gone from None


def _read(child: subprocess.Popen[bytes], count: int, deadline_s: float) -> bytearray:
    assert child.stdout
    content = bytearray(count)
    view, filled = memoryview(content), 0
    try:
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        while filled < count:
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0 or not poll.poll(math.ceil(1000 * wait_s)):
                raise _Late
            got = os.readv(child.stdout.fileno(), [view[filled:]])
            if not got:
                raise _Gone
            filled += got
    except (OSError, ValueError):  # closed by another thread
        raise _Gone from None
    return content


def main() -> None:
    """The child's side: decode what stdin names until it ends."""
    import resource

    values = json.loads(sys.argv[1])
    limit_s = values.pop("limit_s")
    for name in ("spec", "second"):
        values[name] = values[name] and spec_from_json(values[name])
    plan = DecodePlan(**values)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, this process goes, not the scan
    set_up_pillow(plan.max_pixels)
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not land among the replies
    with open(0, "rb", closefd=False) as requests, open(replies, "wb") as out:
        out.write(_READY)
        out.flush()
        while len(length := requests.read(4)) == 4:
            path = Path(os.fsdecode(requests.read(int.from_bytes(length, "big"))))
            content = requests.read(int.from_bytes(requests.read(8), "big"))
            # The parent may be gone when a decoder hangs: the kernel ends this process then.
            signal.setitimer(signal.ITIMER_REAL, limit_s + 5.0)
            _reply(out.write, _decoded(path, content, plan))
            out.flush()
            signal.setitimer(signal.ITIMER_REAL, 0)


def _decoded(path: Path, content: bytes, plan: DecodePlan) -> Decoded:
    if not content:
        return decoded_from_file(path, plan)
    return decoded_from_file(path, plan, lambda *_: Snapshot(path, content, FileStamp(len(content), 0)))


def _reply(write: Any, decoded: Decoded) -> None:
    stamp = decoded.stamp
    header = json.dumps(
        {
            "stamp": stamp and [stamp.size, stamp.mtime_ns, stamp.sha256],
            "error": decoded.error,
            "fault": decoded.fault and decoded.fault.value,
            "shapes": [pixels_HWC.shape[:2] for pixels_HWC in (*decoded.pixels, *decoded.second)],
            "frames": decoded.frames,
            "evidence": [(one.source, one.origin.value, one.detail) for one in decoded.evidence],
        }
    ).encode()
    write(len(header).to_bytes(4, "big") + header)
    for pixels_HWC in (*decoded.pixels, *decoded.second):
        write(np.ascontiguousarray(pixels_HWC))
