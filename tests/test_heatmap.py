"""Colours of a map, and that its files stay below the folder that was named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.results.heatmap import FLAT, overlay, path_for, resized_map, write_map

GREY_HWC = np.full((64, 96, 3), 128, dtype=np.uint8)


def test_orange_speaks_for_ai_blue_for_real_and_nothing_leaves_the_image() -> None:
    map_hw = np.float32([[4.0, -4.0], [0.0, 0.0]])
    shown_HWC = np.asarray(overlay(GREY_HWC, map_hw), dtype=int)
    left, right, below = shown_HWC[4, 4], shown_HWC[4, 91], shown_HWC[60, 48]
    assert left[0] - left[2] > 80
    assert right[2] - right[0] > 80
    assert np.ptp(below) < 10


def test_a_flat_map_is_not_blown_up_where_its_unit_is_known() -> None:
    faint_hw = np.full((4, 4), 0.05, dtype=np.float32)
    assert np.ptp(np.asarray(overlay(GREY_HWC, faint_hw, floor=FLAT), dtype=int)) < 10
    assert np.ptp(np.asarray(overlay(GREY_HWC, faint_hw), dtype=int)) > 80


def test_what_the_network_did_not_see_is_dimmed_and_uncoloured() -> None:
    shown_HWC = np.asarray(overlay(GREY_HWC, np.ones((4, 4), dtype=np.float32), (20, 4, 76, 60)), dtype=int)
    assert (shown_HWC[:, :20] == shown_HWC[0, 0]).all()
    assert shown_HWC[0, 0].max() < 70
    assert shown_HWC[30, 50, 0] - shown_HWC[30, 50, 2] > 80


def test_a_large_image_is_shown_small_and_a_map_keeps_its_range() -> None:
    assert overlay(np.zeros((3000, 1500, 3), dtype=np.uint8), np.ones((4, 4), dtype=np.float32)).size == (512, 1024)
    map_hw = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    large_HW = resized_map(map_hw, 224, 224)
    assert large_HW.min() >= map_hw.min() - 1e-6
    assert large_HW.max() <= map_hw.max() + 1e-6


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("photos/a.jpg", "maps/photos/a.jpg"),
        ("/photos/a.jpg", "maps/photos/a.jpg"),
        ("../../etc/a.jpg", "maps/_/_/etc/a.jpg"),
        ("photos/../../a.jpg", "maps/_/a.jpg"),
        ("//x/a.jpg", "maps/x/a.jpg"),
    ],
)
def test_a_map_lies_below_its_folder_wherever_the_image_lies(image: str, place: str) -> None:
    assert path_for(Path("maps"), Path(image)) == Path(place)


def test_a_map_is_written_for_the_longest_and_oddest_name(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff" + "ü".encode() * 125 + b".png")  # 255 bytes, the most that a name may have
    other = odd.replace("ü.png", "x.png")
    assert path_for(tmp_path, Path(odd)) != path_for(tmp_path, Path(other))
    picture = Image.new("RGB", (8, 8))
    for name in (odd, other):
        png = write_map(tmp_path, Path(name), picture, np.ones((4, 4), dtype=np.float32), {"Title": odd})
        assert Image.open(png).text["Title"].startswith("\\udcff")


def test_what_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_map(tmp_path / "file", Path("a"), Image.new("RGB", (8, 8)), np.ones((4, 4), dtype=np.float32), {})


@pytest.mark.parametrize("names", [("x.jpg", "x.jpg.png/y.jpg"), ("x.jpg.png/y.jpg", "x.jpg")])
def test_a_folder_that_is_called_as_a_map_costs_no_map(tmp_path: Path, names: tuple[str, str]) -> None:
    picture, map_hw = Image.new("RGB", (8, 8)), np.zeros((4, 4), np.float32)
    for _ in range(2):  # and again, over its own
        places = [write_map(tmp_path, Path(name), picture, map_hw, {}) for name in names]
        assert len(set(places)) == 2
        assert all(place.is_file() for place in places)
    assert len(list(tmp_path.rglob("*.png"))) == 2 + any(place.is_dir() for place in tmp_path.glob("*.png"))


def test_a_map_lies_as_deep_as_its_image(tmp_path: Path) -> None:
    image = Path(*["a"] * 1500, "x.jpg")
    png = write_map(tmp_path, image, Image.new("RGB", (8, 8)), np.zeros((4, 4), np.float32), {})
    assert png.is_file()
    for place in png.parents[:1500]:  # here, since shutil and so pytest recurse too
        for file in place.glob("x.jpg.*"):
            file.unlink()
        place.rmdir()


def test_two_images_whose_paths_come_to_one_have_maps_of_their_own(tmp_path: Path) -> None:
    picture, map_hw = Image.new("RGB", (8, 8)), np.zeros((4, 4), dtype=np.float32)
    names = ("photos/a.jpg", "/photos/a.jpg")
    pngs = [write_map(tmp_path, Path(name), picture, map_hw + index, {}) for index, name in enumerate(names)]
    assert pngs[0] == tmp_path / "photos" / "a.jpg.png"
    assert [np.load(png.with_suffix(".npy")).mean() for png in pngs] == [0, 1]
    assert [write_map(tmp_path, Path(name), picture, map_hw, {}) for name in names] == pngs
