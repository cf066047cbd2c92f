"""The cache of decoded images: exact, decoded once, growing with the data, never over something else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_image

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.train.batches import cache as cache_module
from aivsreal.train.batches.cache import CachedPixels, FilePixels, cached_pixels, reduced
from aivsreal.train.batches.data import Crops, ResidentViews, TrainBatches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.config import TrainConfig
from aivsreal.train.samples import Sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    paths = [
        write_image(tmp_path / "images" / f"{index}.png", index, size=(30 + index % 15, 30)) for index in range(20)
    ]
    return [Sample(path, "real", "train", "made") for path in paths]


def _open(folder: Path, samples: list[Sample], short_side: int = 30) -> tuple[CachedPixels, list[str], list[str]]:
    told: list[str] = []
    cache, problems = cached_pixels(folder, samples, short_side, 2, told.append)
    return cache, problems, told


def test_the_pixels_are_those_of_the_files(tmp_path: Path, samples: list[Sample]) -> None:
    cache, problems, told = _open(tmp_path / "cache", samples)
    assert (problems, len(told)) == ([], 1)
    for sample in samples:
        np.testing.assert_array_equal(cache(sample), pixels_from_file(sample.path))


def test_an_image_is_decoded_once_and_again_when_its_file_changes(tmp_path: Path, samples: list[Sample]) -> None:
    _open(tmp_path / "cache", samples)
    assert _open(tmp_path / "cache", samples)[2] == []
    write_image(samples[3].path, 99, size=(41, 30))
    os.utime(samples[3].path, (1, 1))
    cache, _, told = _open(tmp_path / "cache", samples)
    assert [text.partition(": ")[2].partition(",")[0] for text in told] == ["1 images added"]
    for sample in samples:
        np.testing.assert_array_equal(cache(sample), pixels_from_file(sample.path))
    del cache
    assert "built anew" in _open(tmp_path / "cache", samples, short_side=16)[2][0]


def test_a_cache_grows_under_those_who_use_it(tmp_path: Path, samples: list[Sample]) -> None:
    cache, _, _ = _open(tmp_path / "cache", samples[:-2])
    before_HWC = cache(samples[3])
    write_image(samples[3].path, 99, size=(41, 30))
    more, _, told = _open(tmp_path / "cache", samples)
    assert [text.partition(": ")[2].partition(",")[0] for text in told] == ["3 images added"]
    np.testing.assert_array_equal(cache(samples[3]), before_HWC)
    assert samples[-1] not in cache
    for sample in samples:
        np.testing.assert_array_equal(more(sample), pixels_from_file(sample.path))
    with pytest.raises(DataError, match="another training uses it with views of another size; give another --cache"):
        _open(tmp_path / "cache", samples, short_side=16)
    del cache, more
    assert len(_open(tmp_path / "cache", samples, short_side=16)[0].places) == 20


def test_a_cache_knows_its_images_from_any_folder(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(tmp_path / "cache", samples)
    monkeypatch.chdir(tmp_path / "images")
    near = [Sample(Path(sample.path.name), "real", "train", "made") for sample in samples]
    cache, _, told = _open(tmp_path / "cache", near)
    assert told == []
    np.testing.assert_array_equal(cache(near[4]), pixels_from_file(samples[4].path))


def test_a_build_that_is_stopped_goes_on(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = cache_module.decoded

    def stopped(*arguments: Any) -> Any:
        for number, pair in enumerate(decoded(*arguments)):
            if number == 7:
                raise KeyboardInterrupt
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            _open(tmp_path / "cache", samples)
    with (tmp_path / "cache" / "pixels.bin").open("ab") as file:
        file.write(b"of one that was killed")
    cache, _, told = _open(tmp_path / "cache", samples)
    assert told[0].partition(": ")[2].startswith("13 images added")
    for sample in samples:
        np.testing.assert_array_equal(cache(sample), pixels_from_file(sample.path))


def test_a_view_that_was_not_written_whole_is_made_again(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(np.ndarray[Any, Any]):
        def tobytes(self, *_: Any) -> bytes:
            raise KeyboardInterrupt

    decoded = cache_module.decoded

    def stopped(*arguments: Any) -> Any:
        for number, (sample, pixels_HWC) in enumerate(decoded(*arguments)):
            yield sample, pixels_HWC.view(Stopping) if number == 3 else pixels_HWC

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            _open(tmp_path / "cache", samples)
    cache, problems, _ = _open(tmp_path / "cache", samples)
    assert problems == []
    assert all(sample in cache for sample in samples)


@pytest.mark.parametrize("size", [None, 0, 30_000])
def test_views_that_a_copy_lacks_are_made_again(tmp_path: Path, samples: list[Sample], size: int | None) -> None:
    _open(tmp_path / "cache", samples)
    pixels = tmp_path / "cache" / "pixels.bin"
    if size is None:
        pixels.unlink()
    else:
        os.truncate(pixels, size)
    cache, _, told = _open(tmp_path / "cache", samples)
    assert [text.partition(": ")[2].partition(",")[0] for text in told] == [f"{11 if size else 20} images added"]
    for sample in samples:
        np.testing.assert_array_equal(cache(sample), pixels_from_file(sample.path))


def test_a_cache_of_more_images_serves_some_of_them(tmp_path: Path, samples: list[Sample]) -> None:
    for index in (5, 6):
        samples[index].path.write_bytes(b"words")
    _open(tmp_path / "cache", samples)
    cache, problems, told = _open(tmp_path / "cache", samples[:6])
    assert told == []
    assert list(cache.places) == [str(sample.path) for sample in samples[:5]]
    assert [problem.partition(":")[0] for problem in problems] == [str(samples[5].path)]
    np.testing.assert_array_equal(cache(samples[4]), pixels_from_file(samples[4].path))


def test_trainings_that_start_together_build_one_cache(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    building, waiting = Event(), Event()
    add = cache_module._add
    told: list[str] = []

    def slow(*arguments: Any) -> Any:
        building.set()
        assert waiting.wait(60)
        return add(*arguments)

    def tell(text: str) -> None:
        told.append(text)
        if text.endswith("waiting"):
            waiting.set()

    monkeypatch.setattr(cache_module, "_add", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached_pixels, tmp_path / "cache", samples, 30, 1, tell)
        assert building.wait(60)
        second = pool.submit(cached_pixels, tmp_path / "cache", samples, 30, 1, tell)
        caches = [future.result(60)[0] for future in (first, second)]
    assert [text.rpartition(" ")[2] for text in told] == ["waiting", "MiB"]
    for cache in caches:
        np.testing.assert_array_equal(cache(samples[3]), pixels_from_file(samples[3].path))


@pytest.mark.parametrize("name", ["pixels.bin", "index.json.part"])
def test_a_half_written_cache_is_built_anew(tmp_path: Path, samples: list[Sample], name: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_bytes(b"half")
    cache, _, _ = _open(tmp_path / "cache", samples)
    np.testing.assert_array_equal(cache(samples[0]), pixels_from_file(samples[0].path))


def test_a_broken_image_is_told_each_time_and_left_out(tmp_path: Path, samples: list[Sample]) -> None:
    samples[5].path.write_bytes(b"words")
    for _ in range(2):
        cache, problems, _ = _open(tmp_path / "cache", samples)
        assert len(problems) == 1
        assert str(samples[5].path) in problems[0]
        assert samples[5] not in cache
    np.testing.assert_array_equal(cache(samples[6]), pixels_from_file(samples[6].path))


@pytest.mark.parametrize("name", ["holiday.txt", "index.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, samples: list[Sample], name: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_text("words")
    with pytest.raises(DataError, match=r"another folder|empty or new folder"):
        _open(tmp_path / "cache", samples)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]


def test_larger_images_are_scaled_to_the_short_side(tmp_path: Path, samples: list[Sample]) -> None:
    cache, _, _ = _open(tmp_path / "cache", samples, short_side=15)
    assert cache(samples[10]).shape == (15, 20, 3)
    np.testing.assert_array_equal(cache(samples[10]), FilePixels(15)(samples[10]))
    small_HWC = np.zeros((10, 12, 3), dtype=np.uint8)
    assert reduced(small_HWC, 15).shape == (15, 18, 3)  # and smaller ones up: crops of a group have one side


@pytest.mark.parametrize(("height", "width"), [(40, 200), (200, 40), (60, 40), (41, 61)])
def test_a_view_is_the_middle_of_the_image_and_at_most_three_to_two(height: int, width: int) -> None:
    index_HWC = np.stack(np.meshgrid(np.arange(width), np.arange(height), [0]), -1).reshape(height, width, 3)
    view_HWC = reduced(index_HWC.astype(np.uint8), min(height, width))
    wanted = tuple(min(side, round(1.5 * min(height, width))) for side in (height, width))
    assert view_HWC.shape[:2] == wanted
    for axis, side in ((1, height), (0, width)):
        first, last = (int(view_HWC[at, at, axis]) for at in (0, -1))
        assert abs(first - (side - 1 - last)) <= 1, "as much is left out at one end as at the other"
    small_HWC = reduced(index_HWC.astype(np.uint8), 20)
    assert min(small_HWC.shape[:2]) == 20
    assert max(small_HWC.shape[:2]) == round(max(wanted) * 20 / min(wanted))


def test_views_in_a_gpus_memory_are_cut_like_those_that_threads_cut(tmp_path: Path, samples: list[Sample]) -> None:
    cache, _, _ = _open(tmp_path / "cache", samples)
    resident = ResidentViews(cache, samples, torch.device("cpu"))
    crops = Crops(np.array([3, 17, 9]), 12, np.array([[0.0, 0.99], [0.5, 0.5], [0.99, 0.0]]))
    batches = TrainBatches(samples, TrainConfig(), cache, Machine(workers=1))
    cut_BHWC, window_B3 = resident.cut(crops)
    (threads_BHWC,), threads_B3 = batches._cut([crops])
    assert torch.equal(cut_BHWC, threads_BHWC)
    assert torch.equal(window_B3, threads_B3)
    assert torch.equal(cut_BHWC[0], torch.from_numpy(cache(samples[3])[:12, -12:].copy()))


def test_a_view_of_a_large_photo_is_decoded_small_and_differs_little(tmp_path: Path) -> None:
    path = write_image(tmp_path / "photo.jpg", 1, size=(1500, 1000), smooth=True)
    sample = Sample(path, "real", "train", "made")
    view_HWC = FilePixels(100)(sample)
    assert view_HWC.shape == (100, 150, 3)
    whole_HWC = reduced(pixels_from_file(path), 100)
    assert np.abs(view_HWC.astype(int) - whole_HWC).mean() < 1.5
