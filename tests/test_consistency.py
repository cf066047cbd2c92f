"""The same picture, the same verdict: whatever the batch, the threads, the order, the process and the company."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import encoded, picture

from aivsreal.runtime import ScanOptions
from aivsreal.runtime.detector import Detector

COUNT = 18
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def detector() -> Iterator[Detector]:
    with Detector.open(threads=2) as detector:
        yield detector


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(COUNT):
        size = (200 + 37 * index, 500 - 17 * index)
        kind = ("JPEG", "PNG", "WEBP")[index % 3]
        (folder / f"{index:02}.img").write_bytes(encoded(kind, picture(index, size)))
    (folder / "broken.img").write_bytes(b"broken")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def reference(detector: Detector, paths: list[Path]) -> dict[Path, float]:
    scores = _scores(detector, paths, batch_size=1, threads=1)
    assert len(scores) == COUNT
    assert len({round(p_ai, 5) for p_ai in scores.values()}) > COUNT // 2  # else nothing could differ
    return scores


def _scores(detector: Detector, paths: list[Path], batch_size: int, threads: int) -> dict[Path, float]:
    scanned = list(detector.scan(paths, ScanOptions(batch_size, threads)))
    assert [one.path for one in scanned] == paths
    return {one.path: one.verdict.p_ai for one in scanned if one.verdict}


@pytest.mark.parametrize(("batch_size", "threads"), [(2, 3), (7, 1), (16, 4), (64, 8)])
def test_batches_and_threads_change_nothing(
    detector: Detector, paths: list[Path], reference: dict[Path, float], batch_size: int, threads: int
) -> None:
    assert _scores(detector, paths, batch_size, threads) == pytest.approx(reference, abs=TOLERANCE)


def test_the_order_changes_nothing(detector: Detector, paths: list[Path], reference: dict[Path, float]) -> None:
    for seed in range(2):
        shuffled = random.Random(seed).sample(paths, len(paths))
        assert _scores(detector, shuffled, 5, 2) == pytest.approx(reference, abs=TOLERANCE)


def test_eight_threads_share_one_detector(detector: Detector, paths: list[Path], reference: dict[Path, float]) -> None:
    def work(seed: int) -> dict[Path, float]:
        shuffled = random.Random(seed).sample(paths, len(paths))
        if seed % 2:
            return {path: detector.judge(path).p_ai for path in shuffled if path.name != "broken.img"}
        return _scores(detector, shuffled, 1 + seed, 2)

    with ThreadPoolExecutor(8) as pool:
        for scores in pool.map(work, range(8)):
            assert scores == pytest.approx(reference, abs=TOLERANCE)


def test_processes_that_decode_change_nothing(
    detector: Detector, paths: list[Path], reference: dict[Path, float]
) -> None:
    with detector.decode_pool(ScanOptions(threads=2, isolate=True)) as pool:
        for _ in range(2):  # the pool stays open for a second scan
            scores = {one.path: one.verdict.p_ai for one in detector.scan(paths, ScanOptions(4), pool) if one.verdict}
            assert scores == pytest.approx(reference, abs=TOLERANCE)


def test_frames_make_one_verdict_of_their_mean(detector: Detector, tmp_path: Path) -> None:
    images = [picture(seed, (260, 240)) for seed in range(3)]
    (tmp_path / "a.png").write_bytes(encoded("PNG", images[0], save_all=True, append_images=images[1:]))
    (one,) = detector.scan([tmp_path / "a.png"], ScanOptions(batch_size=2, threads=1, frames=3))
    assert one.verdict
    assert [frame for frame, _ in one.frames] == [0, 1, 2]
    logits = [detector.judge(image).logit for image in images]
    assert one.verdict.logit == pytest.approx(sum(logits) / 3, abs=1e-4)
    assert one.verdict.reason.endswith("from the mean of 3 frames")
