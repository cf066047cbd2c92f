"""How many files there are to judge, before they are listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aivsreal.runtime.files.find import argument_paths, count_if_few


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for name in ("a.png", "photos/b.JPG", "photos/notes.txt", "photos/below/c.webp", "photos/below/d.heic"):
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "photos" / "loop")
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["a.png"], ["a.png", "a.png"], ["photos"], ["."], ["photos/notes.txt"], ["gone.png", "photos"]]
)
def test_few_files_are_counted_as_they_will_be_judged(tree: Path, arguments: list[str]) -> None:
    assert tree == Path.cwd()
    count = len(list(argument_paths(arguments, [])))
    assert count_if_few(arguments, 9) == count
    assert count_if_few(arguments, count + 1) == count
    assert count_if_few(arguments, count) is None


def test_what_is_not_known_or_too_much_to_look_at_is_not_counted(tree: Path) -> None:
    assert count_if_few(["a.png", "-"], 9) is None
    for index in range(60):
        (tree / "photos" / f"{index}.txt").touch()
    assert count_if_few(["photos"], 3) is None  # three images may still come, after the 60 others
    assert count_if_few(["photos"], 9) == 3
