"""What a file is by its first bytes, and that an error says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import encoded

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.files.find import Search
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.pixels.kinds import HEAD, Kind, kind_of

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF", "BMP"])
def test_pictures_that_are_decoded_are_known(name: str) -> None:
    kind = kind_of(encoded(name)[:HEAD])
    assert kind
    assert (kind.picture, kind.decoded) == (True, True)


@pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
@pytest.mark.parametrize(("kind", "name"), [("AVIF", "an AVIF picture"), ("HEIF", "an HEIC picture")])
def test_a_picture_whose_major_brand_is_that_of_any_picture_is_known_by_the_others(
    tmp_path: Path, kind: str, name: str, brand: bytes
) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    whole = encoded(kind)
    (tmp_path / "picture.bin").write_bytes(content := whole[:8] + brand + whole[12:])
    assert kind_of(content[:HEAD]) == Kind(name, True, True)
    assert list(Search(all_files=True).paths(tmp_path)) == [tmp_path / "picture.bin"]
    assert pixels_from_file(tmp_path / "picture.bin").shape == (72, 96, 3)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xff\x0a\x40", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "MP4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "QuickTime"),
        (b"\x1aE\xdf\xa3\1", "Matroska"),
        (LFS, "git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns=''/>", "SVG"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
        (b"PK\3\4....", "ZIP"),
    ],
)
def test_what_is_no_picture_that_is_read_here_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=word) as caught:
        pixels_from_file(tmp_path / "a.jpg")
    assert caught.value.fault is Fault.NOT_AN_IMAGE
    kind = kind_of(content)
    assert kind
    assert not kind.decoded


@pytest.mark.parametrize("content", [b"", b"words", b"BM and more words", b"\0" * 100, b"RIFF....WAVX"])
def test_what_is_not_known_is_nothing(content: bytes) -> None:
    assert kind_of(content) is None
