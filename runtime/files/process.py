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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aivsreal.runtime.errors import BackendError, Fault, ImageError
from aivsreal.runtime.fields import from_json, object_from_json
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file, decoded_too_late, undecoded
from aivsreal.runtime.files.own_process import set_up_pillow
from aivsreal.runtime.pixels.read import Reader, Snapshot, snapshot_from_file, stamp_of
from aivsreal.runtime.verdict import Evidence, FileStamp

BOOT = "import sys; sys.path[:] = sys.argv[2:]; from aivsreal.runtime.files.process import main; main()"
_START_S = 60.0
_STARTING = threading.Lock()
_SPARE = 6  # descriptors that stay free for the scan itself: its files, its folders, its results
_READY = b"ready"
_MAX_HEADER = 1 << 24


class NoProcess(BackendError):
    """The system lets no further process be started, or none that it could be talked to."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the child says of a file, before its pixels."""

    stamp: FileStamp | None
    error: str | None
    fault: Fault | None
    shapes: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    evidence: tuple[Evidence, ...]


class _Gone(Exception):
    """The child has ended."""


class _Late(Exception):
    """The child is over its time limit."""


class DecodeProcess:
    """The parent's side: started when it is first needed, and again after a crash.

    Args:
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
        by_content = self._plan.by_content
        try:
            snapshot = self._read and self._read(path, by_content)
        except ImageError as error:
            return undecoded(path, str(error), error.fault, stamp_of(path, by_content))
        child = self._child or self._started()
        name, content = os.fsencode(path), snapshot.content if snapshot else b""
        try:
            _write(child, len(name).to_bytes(4, "big") + name + len(content).to_bytes(8, "big"))
            _write(child, content)
            decoded = self._received(path, child, time.monotonic() + self._limit_s)
            return replace(decoded, stamp=snapshot.stamp) if snapshot else decoded
        except _Late:
            crash = None
        except (_Gone, ValueError):
            child.kill()
            code = child.wait()
            by_signal = f" ({signal.Signals(-code).name})" if code < 0 and code != -signal.SIGKILL else ""
            crash = f"its decoder crashed{by_signal}"
        self._end()
        stamp = snapshot.stamp if snapshot else stamp_of(path, by_content)
        if crash is None:
            return decoded_too_late(path, self._limit_s, stamp)
        return undecoded(path, crash, Fault.CRASHED, stamp)

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
        task = json.dumps({"plan": asdict(self._plan), "limit_s": self._limit_s})
        spare = list[int]()
        with _STARTING:  # one after the other: a start needs for a moment what several would only lack together
            try:
                spare += [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE)]
                # A session of its own: Ctrl-C in the terminal is for the parent, which finishes the batch in hand.
                child = subprocess.Popen(
                    [sys.executable, "-c", BOOT, task, *sys.path], bufsize=0, start_new_session=True,
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
        reply = from_json(_Reply, object_from_json(_read(child, length, deadline_s)), "a reply")
        if reply.error is not None:
            return undecoded(path, reply.error, Fault(reply.fault), reply.stamp)
        pixels = []
        most, windows = self._plan.largest, max(1, len(self._plan.windows.parts))
        for height, width in reply.shapes:
            if height < 1 or width < 1 or height * width > most:
                raise ValueError("pixels of that size were not asked for")
            raw = _read(child, 3 * height * width, deadline_s)
            pixels.append(np.frombuffer(raw, np.uint8).reshape(height, width, 3))
        count = windows * len(reply.frames)
        first, second = tuple(pixels[:count]), tuple(pixels[count:])
        return Decoded(path, reply.stamp, first, reply.frames, reply.evidence, second=second)


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

    task = object_from_json(sys.argv[1])
    plan, limit_s = from_json(DecodePlan, task["plan"], "a plan"), task["limit_s"]
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
            _reply(out, _decoded(path, content, plan))
            out.flush()
            signal.setitimer(signal.ITIMER_REAL, 0)


def _decoded(path: Path, content: bytes, plan: DecodePlan) -> Decoded:
    if not content:
        return decoded_from_file(path, plan)
    return decoded_from_file(path, plan, lambda *_: Snapshot(path, content, FileStamp(len(content), 0)))


def _reply(out: BinaryIO, decoded: Decoded) -> None:
    pixels = (*decoded.pixels, *decoded.second)
    shapes = tuple((len(pixels_HWC), len(pixels_HWC[0])) for pixels_HWC in pixels)
    reply = _Reply(decoded.stamp, decoded.error, decoded.fault, shapes, decoded.frames, decoded.evidence)
    header = json.dumps(asdict(reply)).encode()
    out.write(len(header).to_bytes(4, "big") + header)
    for pixels_HWC in pixels:
        out.write(np.ascontiguousarray(pixels_HWC).data)
