"""Decodes files in a few threads under a time limit; with `isolate`, each thread has a process that does the work.

A decoder that hangs cannot be stopped inside this process: its thread is given up and another takes its place. In a
process of its own it is killed, and one that crashes takes only that process with it.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TYPE_CHECKING

from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file, decoded_too_late
from aivsreal.runtime.machine import usable_cores
from aivsreal.runtime.pixels.read import Reader, snapshot_from_file, stamp_of

if TYPE_CHECKING:
    from aivsreal.runtime.files.process import DecodeProcess

TIME_LIMIT_S = 60.0  # a progressive JPEG of 178 megapixels took 4.0 s of a core where this was written
NO_THREAD = "no thread that decodes can be started: allow more (a container's limit of processes)"
MAX_TIME_LIMIT_S = 86400.0  # what waits for a process counts milliseconds in 32 bits


class Task:
    """A file that was given to the pool."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.future: Future[Decoded] = Future()
        self.begun_s: float | None = None


class DecodePool:
    """Threads that decode; a context manager, or call `close`.

    Args:
        workers: how many at once; None takes one a core.
        time_limit_s: seconds that one file may take, from when its turn comes.
        isolate: decode in processes, so that a crash costs one file.
        read: reads the files, in this process in any case.
    """

    def __init__(
        self,
        plan: DecodePlan,
        workers: int | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        isolate: bool = False,
        read: Reader = snapshot_from_file,
    ) -> None:
        if not 0 < time_limit_s <= MAX_TIME_LIMIT_S:  # nor is it nan
            raise ValueError(f"time_limit_s must be above 0 and at most {MAX_TIME_LIMIT_S:g}, not {time_limit_s}")
        self.plan = plan
        self._limit_s = time_limit_s
        self._isolate = isolate
        self._read = read
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._processes: list[DecodeProcess] = []
        self._closed = False
        self._lock = threading.Lock()
        self.workers = 0
        """How many files are decoded at once: fewer than were asked for where the system does not allow so many."""
        for _ in range(workers or usable_cores()):
            if not self._started():
                break
            self.workers += 1
        if not self.workers:
            raise BackendError(NO_THREAD)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, path: Path) -> Task:
        """Queue a file; tasks begin in the order of their submission.

        Raises:
            BackendError: it is closed; nobody would take the file.
        """
        if self._closed:
            raise BackendError("the pool is closed: make another one with Detector.decode_pool")
        task = Task(path)
        self._tasks.put(task)
        return task

    def result(self, task: Task) -> Decoded:
        """Wait for a task; one that is over the time limit becomes an error. Wait in the order of submission.

        Raises:
            BackendError: no process or thread that decodes can be started.
        """
        # A process keeps the limit by itself, and says in time that it did.
        limit_s = self._limit_s + (5.0 if self._isolate else 0.0)
        while True:
            begun_s = task.begun_s
            wait_s = limit_s if begun_s is None else begun_s + limit_s - time.monotonic()
            try:
                return task.future.result(timeout=max(0.01, wait_s))
            except FutureTimeout:
                if task.begun_s is None or time.monotonic() < task.begun_s + limit_s:
                    continue
            self._give_up(task)

    def close(self) -> None:
        """Stop: what is queued is dropped, what runs in a process is killed, what runs in a thread is let go."""
        self._closed = True
        while not self._tasks.empty():
            self._tasks.get()
        for _ in range(self.workers):
            self._tasks.put(None)
        for process in self._processes:
            process.close()

    def _started(self) -> bool:
        # Daemons: a thread that hangs in a decoder must not keep the process from ending.
        thread = threading.Thread(target=self._run, name="aivsreal-decode", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # can't start new thread
            return False
        return True

    def _run(self) -> None:
        process = self._process() if self._isolate else None
        try:
            while not self._closed and (task := self._tasks.get()) is not None:
                task.begun_s = time.monotonic()
                try:
                    if process is not None:
                        outcome = process.decode(task.path)
                    else:
                        outcome = decoded_from_file(task.path, self.plan, self._read)
                except BaseException as error:
                    if isinstance(error, BackendError) and self._leaves(error, task):
                        return
                    if not self._closed:
                        task.future.set_exception(error)
                    continue
                try:
                    task.future.set_result(outcome)
                except InvalidStateError:
                    return  # given up, and another thread has this one's place
        finally:
            if process is not None:
                process.close()

    def _leaves(self, error: BackendError, task: Task) -> bool:
        """Whether this thread ends and leaves its file to others, as the system allows it no process."""
        from aivsreal.runtime.files.process import NoProcess

        with self._lock:
            if not isinstance(error, NoProcess) or self.workers == 1 or self._closed:
                return False
            self.workers -= 1
        task.begun_s = None
        self._tasks.put(task)
        return True

    def _process(self) -> DecodeProcess:
        from aivsreal.runtime.files.process import DecodeProcess  # 15 ms of imports that a plain scan does not need

        process = DecodeProcess(self.plan, self._limit_s, self._read)
        self._processes.append(process)
        return process

    def _give_up(self, task: Task) -> None:
        stamp = stamp_of(task.path, self.plan.by_content)
        try:
            task.future.set_result(decoded_too_late(task.path, self._limit_s, stamp))
        except InvalidStateError:
            return  # it came in after all
        if not self._started():
            raise BackendError(NO_THREAD)
