"""`python -m aivsreal.train.pack`: views as small files that a training reads like any data set."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from conftest import write_image
from PIL import Image

from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.train.batches.cache import FilePixels
from aivsreal.train.pack import main
from aivsreal.train.samples import Sample, samples_from_data


def _pack(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--short-side", "48", "--workers", "1", *map(str, arguments)])


def test_views_and_their_table_make_a_data_set(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "val_unseen", "test"):
        for label in ("real", "ai"):
            for source in ("one", "two"):  # of which the files have the same names
                write_image(data / split / label / source / "1.png", len(split + label + source), (150, 60), True)
    (data / "train" / "ai" / "one" / "broken.png").write_bytes(b"words")
    result = _pack(data, out)
    assert result.exit_code == 0, result.output
    assert "8 of 9 views" in result.stderr
    assert "broken.png" in result.stderr
    packed = samples_from_data(out)
    originals = [s for s in samples_from_data(data) if s.split != "test" and s.path.name != "broken.png"]
    assert [(s.split, s.label, s.source) for s in packed] == [(s.split, s.label, s.source) for s in originals]
    assert len({s.path for s in packed}) == 8
    for small, original in zip(packed, originals, strict=True):
        view_HWC, kept_HWC = FilePixels(48)(original), pixels_from_file(small.path)
        assert kept_HWC.shape == view_HWC.shape == (48, 72, 3)
        assert np.abs(kept_HWC.astype(int) - view_HWC).mean() < 3


def test_packing_again_takes_up_where_it_was(tiny_data: Path, tmp_path: Path) -> None:
    assert _pack(tiny_data, tmp_path, "--split", "val_unseen").exit_code == 0
    first = sorted((tmp_path / "val_unseen").rglob("*.avif"))
    assert len(first) == 12
    stamps = [path.stat().st_mtime_ns for path in first[1:]]
    table = (tmp_path / "images.csv").read_text()
    first[0].unlink()
    assert _pack(tiny_data, tmp_path, "--split", "val_unseen").exit_code == 0
    assert [path.stat().st_mtime_ns for path in first[1:]] == stamps
    assert first[0].is_file()
    assert (tmp_path / "images.csv").read_text() == table
    assert not list(tmp_path.rglob("*.part"))


def test_views_of_another_size_or_of_what_has_changed_are_made_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    originals = [
        write_image(data / split / label / "1.png", len(split + label), (150, 60), True)
        for split in ("train", "val_unseen")
        for label in ("real", "ai")
    ]

    def packed(side: int) -> list[tuple[Path, int]]:
        result = _pack(data, out, "--short-side", side)
        assert result.exit_code == 0, result.output
        assert "4 of 4 views" in result.stderr
        return [(sample.path, sample.path.stat().st_mtime_ns) for sample in samples_from_data(out)]

    packed(64)
    before = packed(48)
    assert all(pixels_from_file(path).shape[0] == 48 for path, _ in before)
    assert packed(48) == before
    write_image(originals[0], 99, (150, 60), True)
    after = packed(48)
    assert len(set(before) - set(after)) == 1
    (changed,) = (path for path, _ in set(after) - set(before))
    assert np.abs(pixels_from_file(changed).astype(int) - FilePixels(48)(Sample(originals[0], "", "", ""))).mean() < 3
    Image.fromarray(pixels_from_file(changed)[:20]).save(changed, "AVIF")  # by whom does not say of what
    assert packed(48) != after
    assert pixels_from_file(changed).shape[0] == 48


def test_what_the_table_cannot_name_is_told_and_left_out(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "val_unseen"):
        for label in ("real", "ai"):
            write_image(data / split / label / "1.png", 1, (150, 60))
    for name in (b"caf\xe9.png", b"caf\xe9/2.png"):
        write_image(data / "train" / "real" / os.fsdecode(name), 2, (150, 60))
    result = _pack(data, out)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("is not UTF-8") == 2
    assert "4 of 6 views" in result.stderr
    assert [sample.path.name for sample in samples_from_data(out)] == ["1.avif"] * 4


def test_no_data_is_one_error(tmp_path: Path) -> None:
    result = _pack(tmp_path / "absent", tmp_path / "out")
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr


def test_a_smaller_quality_and_fewer_images_of_each_source(tiny_data: Path, tmp_path: Path) -> None:
    sizes = {}
    for quality in (85, 30):
        out = tmp_path / str(quality)
        assert _pack(tiny_data, out, "--quality", quality, "--per-source", 2).exit_code == 0
        packed = samples_from_data(out)
        counts = Counter((sample.split, sample.label, sample.source) for sample in packed)
        assert set(counts.values()) == {2}
        sizes[quality] = sum(sample.path.stat().st_size for sample in packed)
    assert sizes[30] < 0.8 * sizes[85]
    before = (tmp_path / "30" / "images.csv").read_text()
    assert _pack(tiny_data, tmp_path / "85", "--quality", 30, "--per-source", 2).exit_code == 0  # made again
    assert sum(sample.path.stat().st_size for sample in samples_from_data(tmp_path / "85")) == sizes[30]
    assert (tmp_path / "85" / "images.csv").read_text() == before


def test_a_split_that_is_not_there_and_the_originals_folder_cost_no_table(tiny_data: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    assert _pack(tiny_data, out).exit_code == 0
    table = (out / "images.csv").read_text()
    result = _pack(tiny_data, out, "--split", "tset")
    assert (result.exit_code, "'tset'" in result.stderr) == (2, True)
    assert (out / "images.csv").read_text() == table
    data.mkdir()
    rows = (f"{path},{path.parent.name},{path.parent.parent.name},mine" for path in tiny_data.rglob("*.png"))
    (data / "images.csv").write_text("\n".join(["path,label,split,source", *rows]))
    before = (data / "images.csv").read_text()
    for named in (data, data / "images.csv"):
        result = _pack(named, data)
        assert (result.exit_code, "another folder" in result.stderr) == (2, True)
    assert (data / "images.csv").read_text() == before


def test_a_folder_that_cannot_be_written_is_one_message(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = _pack(tiny_data, tmp_path / "file")
    assert (result.exit_code, "cannot be written" in result.stderr) == (2, True)
