"""Files through decoding and network: in order, in growing batches, never more than a few ahead."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import write_image

from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.files.decode import Decoded, DecodePlan
from aivsreal.runtime.files.pipeline import judged_batches
from aivsreal.runtime.files.pool import DecodePool, Task


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.png", 1)


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(DecodePlan(), workers=2) as pool:
        yield pool


def _paths(batch: Sequence[Decoded]) -> list[Path]:
    assert all(decoded.error is None or "no such file" in decoded.error for decoded in batch)
    return [decoded.path for decoded in batch]


def test_batches_grow_to_the_full_size_and_keep_the_order(pool: DecodePool, image: Path, tmp_path: Path) -> None:
    paths = [image if index % 3 else tmp_path / f"{index}.png" for index in range(40)]
    batches = list(judged_batches(paths, pool, _paths, 8))
    assert [len(batch) for batch in batches] == [1, 2, 4, 8, 8, 8, 8, 1]
    assert [path for batch in batches for path in batch] == paths


def test_the_first_result_comes_before_a_batch_of_files_was_asked_for(pool: DecodePool, image: Path) -> None:
    taken = itertools.count()
    batches = judged_batches((image for _ in taken), pool, _paths, 64)
    assert next(batches) == [image]
    batches.close()  # type: ignore[attr-defined]
    assert next(taken) <= 1 + 2 + 8  # one and two in or before the network, twice the next four ahead


def test_what_the_paths_raise_comes_after_the_results_of_those_before(pool: DecodePool, image: Path) -> None:
    def listed() -> Iterator[Path]:
        yield from [image] * 9
        raise OSError("the network share is gone")

    given: list[Path] = []
    batches = judged_batches(listed(), pool, _paths, 4)
    with pytest.raises(OSError, match="share is gone"):
        given.extend(path for batch in batches for path in batch)
    assert len(given) == 9


def test_no_more_than_a_few_batches_are_ahead_of_the_reader(pool: DecodePool, image: Path) -> None:
    taken = itertools.count()
    batches = judged_batches((image for _ in taken), pool, _paths, 4)
    given = sum(len(next(batches)) for _ in range(10))
    batches.close()  # type: ignore[attr-defined]
    assert next(taken) <= given + 2 * 4 + 2 * 4 + 1  # the window, and two batches in or before the network


def test_files_are_decoded_while_the_network_runs(image: Path) -> None:
    tasks: list[Task] = []

    class Watched(DecodePool):
        def submit(self, path: Path) -> Task:
            tasks.append(super().submit(path))
            return tasks[-1]

    def judge(batch: Sequence[Decoded]) -> int:
        if len(tasks) < 9:  # what is ahead of it is decoded before it goes on
            tasks[-1].future.result(timeout=10)
        return len(batch)

    with Watched(DecodePlan(), workers=2) as pool:
        assert sum(judged_batches([image] * 9, pool, judge, 4)) == 9


def test_what_the_network_raises_comes_out_and_ends_it(pool: DecodePool, image: Path) -> None:
    def judge(batch: Sequence[Decoded]) -> int:
        if len(batch) == 2:
            raise BackendError("out of memory")
        return len(batch)

    batches = judged_batches([image] * 9, pool, judge, 4)
    assert next(batches) == 1
    with pytest.raises(BackendError, match="out of memory"):
        list(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aivsreal-judge")]


def test_nothing_gives_nothing(pool: DecodePool) -> None:
    assert list(judged_batches([], pool, _paths, 4)) == []


def test_all_before_a_path_that_has_yet_to_come_is_given_before_it_is_waited_for(pool: DecodePool, image: Path) -> None:
    given = 0
    seen: list[tuple[int, int]] = []

    def feed() -> Iterator[Path | None]:
        yield None
        for asked in range(1, 30):
            yield image
            if asked in (1, 4, 5, 29):
                yield None
                seen.append((asked, given))

    for batch in judged_batches(feed(), pool, _paths, 8):
        given += len(batch)
    assert seen == [(1, 1), (4, 4), (5, 5), (29, 29)]
