"""How many files there are to judge, before they are listed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from hostile import encoded

from aivsreal.runtime.files.find import Search, argument_paths, count_if_few, has_image_name


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


@pytest.mark.parametrize("search", [{"exclude": ("below",)}, {"exclude": ("*.png", "below/*")}, {"exclude": ("b.*",)}])
def test_what_is_excluded_is_not_counted(tree: Path, search: dict[str, Any]) -> None:
    count = len(list(argument_paths(["."], [], Search(**search))))
    assert 0 < count < 4
    assert count_if_few(["."], 9, Search(**search)) == count


@pytest.mark.parametrize(
    ("name", "image"),
    [
        *((f"a.{suffix}", True) for suffix in "HIF heics heifs avifs apng pjpeg pjp jif jpg jpe MPO".split()),
        *((f"a.jpg{rest}", True) for rest in ("_large", ":orig", "-small", "?width=8&height=9")),
        *((name, False) for name in ("a.jxl", "jpg", ".jpg", "a.jpg.txt", "a.jpg_json", "a.jpgx", "._a.jpg")),
    ],
)
def test_names_of_pictures(name: str, image: bool) -> None:
    assert has_image_name(name) == image


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures with and without names of pictures, and what a Mac and a Synology put beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/noname", "photos/below/c.dat", "photos/@eaDir/a.jpg", "elsewhere/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("JPEG"))
    (tmp_path / "photos" / "._a.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / "photos" / "pipe")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "linked")
    return tmp_path


def test_what_is_not_looked_at_is_counted(mixed: Path) -> None:
    assert mixed == Path.cwd()
    search = Search()
    assert [path.name for path in search.paths(Path("photos"))] == ["a.jpg"]
    assert (search.others, search.links, search.folders, search.excluded) == (5, 1, 1, 0)
    assert search.told() == (
        "not looked at: 5 files with other names, 1 linked folder, 1 folder of a system's thumbnails"
    )


def test_all_files_are_known_by_their_content(mixed: Path) -> None:
    assert mixed == Path.cwd()
    search = Search(all_files=True)
    assert [path.name for path in search.paths(Path("photos"))] == ["a.jpg", "c.dat", "noname"]
    assert (search.others, search.links, search.folders) == (3, 1, 1)  # a pipe is not opened


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    nested = [f"{tmp_path}{'/d' * depth}" for depth in range(1500)]
    names = [f"{tmp_path}/a.jpg", f"{nested[-1]}/x.jpg", f"{nested[1]}/z.jpg", f"{tmp_path}/e.jpg"]
    try:
        for folder in nested[1:]:
            os.mkdir(folder)
        for name in names:
            Path(name).touch()
        assert [str(path) for path in Search().paths(tmp_path)] == names
    finally:  # here, since shutil and so pytest recurse too
        for name in names:
            Path(name).unlink(missing_ok=True)
        for folder in reversed(nested[1:]):
            os.rmdir(folder)


def test_what_is_named_is_taken_whatever_its_name(mixed: Path) -> None:
    assert mixed == Path.cwd()
    named = ["photos/notes.txt", "photos/._a.jpg", "photos/@eaDir", "photos/linked"]
    found = [str(path) for path in argument_paths(named, [], Search(exclude=("*.txt",)))]
    assert found == ["photos/notes.txt", "photos/._a.jpg", "photos/@eaDir/a.jpg", "photos/linked/d.jpg"]


def test_nothing_is_told_where_all_was_looked_at(mixed: Path) -> None:
    search = Search()
    assert list(search.paths(mixed / "elsewhere"))
    assert search.told() is None


def test_what_is_not_known_or_too_much_to_look_at_is_not_counted(tree: Path) -> None:
    assert count_if_few(["a.png", "-"], 9) is None
    for index in range(60):
        (tree / "photos" / f"{index}.txt").touch()
    assert count_if_few(["photos"], 3) is None  # three images may still come, after the 60 others
    assert count_if_few(["photos"], 9) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"a.png\r\nphotos/below/c.webp\r\n",
        b"\xef\xbb\xbfa.png\r\nphotos/below/c.webp",
        b"a.png\0photos/below/c.webp\0",
        b"\r\n\r\na.png\n\n\nphotos/below/c.webp\n",
        "a.png\r\nphotos/below/c.webp\r\n".encode("utf-16"),
        b"\xfe\xff" + "a.png\r\nphotos/below/c.webp".encode("utf-16-be"),
    ],
    ids=["crlf", "bom", "nul", "empty lines", "utf-16", "utf-16 of the other order"],
)
def test_a_list_from_elsewhere_is_read(tree: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [path for path in _listed(content, monkeypatch) if path is not None]
    assert found == [Path("a.png"), Path("photos/below/c.webp")]
    assert all(path.is_relative_to(tree) or (tree / path).exists() for path in found)


def test_names_may_have_what_lists_end_lines_with(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "odd.png\r").touch()
    assert list(_listed(b"odd.png\r\ngone.png\r\n", monkeypatch)) == [Path("odd.png\r"), Path("gone.png")]
    assert list(_listed(b"two\nlines.png\0a.png\0", monkeypatch)) == [Path("two\nlines.png"), Path("a.png")]


def _listed(content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    notes: list[str] = []
    found = list(argument_paths(["-"], notes))
    assert notes == []
    return found


def test_the_pictures_of_a_run_are_not_judged_by_it(tmp_path: Path) -> None:
    for name in ("a.png", "maps/a.png", "other/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    (tmp_path / "link").symlink_to(tmp_path / "maps")
    search = Search(own=frozenset([os.path.realpath(tmp_path / "maps")]))
    assert [path.name for path in search.paths(tmp_path)] == ["a.png", "b.png"]
    assert search.told() == "not looked at: 1 linked folder, 1 folder that this run writes into"
