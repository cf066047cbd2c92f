"""Files as they come: every format, every turn, every kind of damage."""

from __future__ import annotations

import os
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from aivsreal.runtime.errors import ImageError
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.pixels.images import pixels_from_array, pixels_from_file, pixels_from_image

LOSSLESS = ("png", "bmp", "tiff", "webp")


def _sample() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "avif", "JPG"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    image = Image.new("RGB", (32, 24), (200, 100, 50))
    image.paste((50, 100, 200), (0, 0, 16, 16))
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels_HWC = pixels_from_file(path)
    assert (pixels_HWC.dtype, pixels_HWC.shape) == (np.uint8, (24, 32, 3))
    assert np.abs(pixels_HWC[20, 24].astype(int) - (200, 100, 50)).max() <= 4
    assert np.abs(pixels_HWC[4, 4].astype(int) - (50, 100, 200)).max() <= 4


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    _sample().save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert (pixels_from_file(path) == np.asarray(_sample())).all()


def test_the_first_of_many_frames_is_read(tmp_path: Path) -> None:
    for name, kind in (("a.jpg", "MPO"), ("a.gif", "GIF"), ("a.tiff", "TIFF")):
        frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
        frames[0].paste("black", (0, 0, 8, 8))
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:])
        red = pixels_from_file(tmp_path / name)[12, 16]
        assert red[0] > 250
        assert red[2] < 5


def test_heic_is_read_or_its_extra_named(tmp_path: Path) -> None:
    path = tmp_path / "image.heic"
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.from_pillow(_sample()).save(path)
        assert pixels_from_file(path).shape == (24, 32, 3)
    else:
        path.write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(ImageError, match=r"aivsreal\[heic\]"):
            pixels_from_file(path)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_turn_is_applied(tmp_path: Path, turn: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    _sample().save(tmp_path / "image.png", exif=exif)
    with Image.open(tmp_path / "image.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == ((24, 32, 3) if turn < 5 else (32, 24, 3))
    assert (pixels_from_file(tmp_path / "image.png") == expected).all()


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 24), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 16, 24))
    palette = Image.new("P", (32, 24), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (0, 0, 16, 24))
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba", "la", "palette"):
        assert (pixels_from_file(tmp_path / f"{name}.png")[12, 24] == 255).all()
    assert (pixels_from_file(tmp_path / "rgba.png")[12, 4] == (255, 0, 0)).all()


def test_deep_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.abs(pixels_from_file(tmp_path / "deep.png")[..., 0] - values / 257.0).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "F"])
def test_every_mode_of_an_open_image_becomes_rgb(mode: str) -> None:
    image = Image.merge("LAB", _sample().split()) if mode == "LAB" else _sample().convert(mode)
    pixels_HWC = pixels_from_image(image)
    assert (pixels_HWC.dtype, pixels_HWC.shape) == (np.uint8, (24, 32, 3))


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT cut short"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"words that are no image", "not an image"),
        (b"\xff\xd8\xff\xe0 cut short", "image"),
        (_png_header(100_000, 100_000), "pixels"),
        (_png_header(15, 400), "too small"),
        (_png_header(400, 400), "a part of the picture is missing"),
    ],
)
def test_each_kind_of_damage_is_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as error:
        pixels_from_file(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "avif"])
def test_a_file_that_is_cut_at_any_place_never_escapes_as_another_error(tmp_path: Path, suffix: str) -> None:
    whole = write_image(tmp_path / f"whole.{suffix}", 1).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    refused = 0
    for share in range(1, 20):
        path.write_bytes(whole[: len(whole) * share // 20])
        try:
            pixels_from_file(path)
        except ImageError:
            refused += 1
    assert refused >= 15  # a BMP's or TIFF's last rows may be missing without notice of the decoder


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tiff", "avif"):
        whole = np.frombuffer(write_image(tmp_path / f"whole.{suffix}", 1, (40, 30)).read_bytes(), dtype=np.uint8)
        for _ in range(40):
            broken = whole.copy()
            where = rng.integers(0, len(whole), 4)
            broken[where] = rng.integers(0, 255, 4)
            (tmp_path / f"broken.{suffix}").write_bytes(broken.tobytes())
            try:
                pixels_from_file(tmp_path / f"broken.{suffix}")
            except ImageError:
                continue


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name in ("pipe.jpg", "link.jpg", "absent.jpg", "."):
        with pytest.raises(ImageError):
            pixels_from_file(tmp_path / name)


def test_folders_are_walked_in_order_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/c.txt", "a/deep/x.webp", "c/y.heic", ".hidden.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "dangling.jpg").symlink_to("nowhere")
    found = [path.relative_to(tmp_path).as_posix() for path in image_paths(tmp_path)]
    assert found == [".hidden.gif", "a/dangling.jpg", "a/deep/x.webp", "a/z.JPG", "b.png", "c/y.heic"]


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\n.png"
    write_image(tmp_path / "plain.png", 1).rename(os.fsdecode(odd))
    (path,) = image_paths(tmp_path)
    assert os.fsencode(path) == odd
    assert pixels_from_file(path).shape == (72, 96, 3)


@pytest.mark.parametrize(
    "array", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), np.float32), np.zeros((8, 20, 3), np.uint8)]
)
def test_an_array_must_be_rgb_bytes_of_a_sensible_size(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="array"):
        pixels_from_array(array)
