"""Keeps the cores busy: while a batch is in the network the next files are decoded, and results leave in their order.

Everything is bounded, so a slow reader or a slow network slows the decoding and memory stays flat: about two batches of
files are ahead, and two batches are in or before the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from aivsreal.runtime.files.decode import Decoded
from aivsreal.runtime.files.pool import DecodePool, Task

T = TypeVar("T")

_JUDGING = 2  # batches in or before the network: one runs, one waits, so that it never waits for a reader of results


def judged_batches(
    paths: Iterable[Path | None],
    pool: DecodePool,
    judge: Callable[[Sequence[Decoded]], T],
    batch_size: int,
) -> Iterator[T]:
    """What `judge` says of batches of decoded files, in the order of the files.

    The first batch has one file, and each further one twice as many, up to `batch_size`: a few files are answered at
    once, and many fill their batches. That does not depend on timing, so the same files make the same batches, unless
    they have to be waited for.

    Args:
        paths: read as far as the window needs, so it may be an endless stream. None says that the next one has not come
            yet: the results of all before it are given first, in batches of what is there, and then it is waited for.
        pool: decodes; it stays open.
        judge: runs the network on a batch; it is called in a thread of its own, beside the decoding and the caller.

    Raises:
        BackendError: what `judge` or the pool raises.
    """
    failed = list[Exception]()
    rest, size, must_wait = _submitted(paths, pool, failed), 1, False
    window, judging = deque[Task](), deque[Future[T]]()
    lane = ThreadPoolExecutor(1, "aivsreal-judge")
    try:
        while True:
            ahead = max(2 * size, pool.workers + 1)
            must_wait = must_wait or _must_wait(rest, window, ahead)
            ready = bool(window) and all(task.future.done() for task in islice(window, size))
            # A result is given as soon as it is known; is none, and a batch is ready, the network gets that first.
            if judging and (judging[0].done() or len(judging) == _JUDGING or not ready):
                yield judging.popleft().result()
                continue
            if not window:
                if failed:
                    raise failed[0]
                if not must_wait:
                    return
                must_wait = False
                continue
            batch = [pool.result(window.popleft()) for _ in range(min(size, len(window)))]
            size = min(2 * size, batch_size)
            judging.append(lane.submit(judge, batch))
    finally:
        lane.shutdown(wait=True, cancel_futures=True)


def _submitted(paths: Iterable[Path | None], pool: DecodePool, failed: list[Exception]) -> Iterator[Task | None]:
    """Files as they are decoded; where `paths` raises, the results of those before it come first."""
    try:
        for path in paths:
            yield None if path is None else pool.submit(path)
    except Exception as error:
        failed.append(error)


def _must_wait(rest: Iterator[Task | None], window: deque[Task], ahead: int) -> bool:
    """Fill the window; whether the next file has not come yet."""
    for task in islice(rest, max(0, ahead - len(window))):
        if task is None:
            return True
        window.append(task)
    return False
