"""The picture as a viewer shows it: deep values on a scale that is known, transparency on white, or an error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, picture
from PIL import Image

from aivsreal.runtime.errors import Fault, ImageError
from aivsreal.runtime.files.decode import Decoded, DecodePlan, decoded_from_file
from aivsreal.runtime.pixels.images import pixels_from_array, pixels_from_image

GREY = np.asarray(picture().convert("L"))
COLOURS = np.asarray(picture())


def _decoded(folder: Path, content: bytes) -> Decoded:
    (folder / "image").write_bytes(content)
    return decoded_from_file(folder / "image", DecodePlan())


def _grey(decoded: Decoded) -> np.ndarray:
    assert decoded.error is None
    (pixels_HWC,) = decoded.pixels
    assert (pixels_HWC == pixels_HWC[..., :1]).all()
    return pixels_HWC[..., 0].astype(int)


def _notes(decoded: Decoded) -> list[str]:
    return [one.detail for one in decoded.evidence if one.source == "decoding"]


def _hot(values: np.ndarray, value: float) -> np.ndarray:
    """With one pixel as sensors and renderers leave it."""
    values = values.copy()
    values[3, 5] = value
    return values


UNIT = GREY.astype(np.float32) / 255
# Values of one channel, the note that they make, and how far a level may be off.
DEEP = {
    "16 bits": (GREY.astype(np.uint16) * 257, None),
    "14 bits": ((GREY * (16383 / 255)).astype(np.uint16), "taken as 14 bits"),
    "12 bits in 16": ((GREY * (4095 / 255)).astype(np.uint16), "taken as 12 bits"),
    "8 bits in 16": (GREY.astype(np.uint16), "taken as 8 bits"),
    "8 bits in 32": (GREY.astype(np.int32), "taken as 8 bits"),
    "16 bits in 32": (GREY.astype(np.int32) * 257, "taken as 16 bits"),
    "8 bits in 32 with a hot pixel": (_hot(GREY.astype(np.int32), 2**31 - 1), "taken as 8 bits"),
    "floats of 0 to 1": (UNIT, None),
    "floats of 0 to 1 with a highlight": (_hot(UNIT, 1.5), "taken as 0 to 1"),
    "floats of 0 to 1 with infinity": (_hot(UNIT, np.inf), None),
    "floats of 0 to 255": (GREY.astype(np.float32), None),
}


@pytest.mark.parametrize(("values", "note"), DEEP.values(), ids=DEEP)
def test_deep_values_keep_their_picture(tmp_path: Path, values: np.ndarray, note: str | None) -> None:
    decoded = _decoded(tmp_path, encoded("TIFF", Image.fromarray(values)))
    wrong = np.abs(_grey(decoded) - GREY) > 1
    assert wrong.sum() <= 1  # the hot pixel
    assert [note in said for said in _notes(decoded)] == ([] if note is None else [True])
    assert (pixels_from_image(Image.fromarray(values)) == decoded.pixels[0]).all()


OWN = {
    "scene-linear floats": UNIT * 10 + 0.5,
    "floats on both sides of zero": UNIT - 0.5,
    "integers with a sign": GREY.astype(np.int32) - 128,
    "integers of no known range": GREY.astype(np.int32) * 5_000_000,
    "floats with a dead pixel": _hot(UNIT * 1000, 1e30),
}


@pytest.mark.parametrize("values", OWN.values(), ids=OWN)
def test_values_of_no_known_range_take_their_own_and_say_so(tmp_path: Path, values: np.ndarray) -> None:
    decoded = _decoded(tmp_path, encoded("TIFF", Image.fromarray(values)))
    grey = _grey(decoded)
    assert np.corrcoef(grey.ravel(), GREY.ravel())[0, 1] > 0.99
    assert (np.percentile(grey, 1) <= 20, np.percentile(grey, 99) >= 230) == (True, True)
    (note,) = _notes(decoded)
    assert note.startswith("the range of its values is not stated")


def test_integers_of_32_bits_without_a_sign_are_read_as_such(tmp_path: Path) -> None:
    values = (GREY.astype(np.uint32) << 24) + 77
    tiff = bytearray(encoded("TIFF", Image.fromarray(values.view(np.int32))))
    at = tiff.index(struct.pack("<HHII", 339, 3, 1, 2))  # SampleFormat: 2 has a sign
    tiff[at + 8] = 1
    assert np.corrcoef(_grey(_decoded(tmp_path, bytes(tiff))).ravel(), GREY.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_deep_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path, dtype: type) -> None:
    values = (255 - GREY).astype(np.uint16) * 257 if dtype is np.uint16 else ((255 - GREY) / 255).astype(dtype)
    tiff = bytearray(encoded("TIFF", Image.fromarray(values)))
    at = tiff.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation: 0 has its zero white
    tiff[at + 8] = 0
    assert np.abs(_grey(_decoded(tmp_path, bytes(tiff))) - GREY).max() <= 1


def _png16(values_HWC: np.ndarray, key: bytes = b"") -> bytes:
    """A PNG of 16 bits, big-endian as PNG is, which Pillow does not write in colour."""
    colour = {1: 0, 3: 2, 4: 6}[values_HWC.shape[2]]
    header = struct.pack(">IIBBBBB", values_HWC.shape[1], values_HWC.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
        if data or name != b"tRNS"
    )


def test_the_transparent_colour_of_a_16_bit_png_lies_on_white_and_its_neighbours_do_not(tmp_path: Path) -> None:
    deep = COLOURS.astype(np.uint16) * 257
    deep[:, :48] = (0x8040, 0x8041, 0x8042)
    deep[:, 47] = (0x8040, 0x8041, 0x8043)  # the same in its upper bytes
    decoded = _decoded(tmp_path, _png16(deep, struct.pack(">HHH", 0x8040, 0x8041, 0x8042)))
    (pixels_HWC,) = decoded.pixels
    assert (pixels_HWC[:, :47] == 255).all()
    assert (pixels_HWC[:, 47] == 0x80).all()
    assert (pixels_HWC[:, 48:] == COLOURS[:, 48:]).all()
    grey = GREY.astype(np.uint16)[..., None] * 257
    grey[:, :48] = 0x1234
    grey[:, 47] = 0x1235
    (pixels_HWC,) = _decoded(tmp_path, _png16(grey, b"\x12\x34")).pixels
    assert (pixels_HWC[:, :47] == 255).all()
    assert (pixels_HWC[:, 47] == 0x12).all()
    assert np.abs(pixels_HWC[:, 48:, 0].astype(int) - GREY[:, 48:]).max() <= 1


def test_the_transparent_colour_of_an_8_bit_png_lies_on_white(tmp_path: Path) -> None:
    colours = COLOURS.copy()
    colours[:, :48] = (1, 2, 3)
    (pixels_HWC,) = _decoded(tmp_path, encoded("PNG", Image.fromarray(colours), transparency=(1, 2, 3))).pixels
    assert (pixels_HWC[:, :48] == 255).all()
    assert (pixels_HWC[:, 48:] == COLOURS[:, 48:]).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_12_bits_in_16_keep_their_picture(tmp_path: Path, channels: int) -> None:
    deep = (COLOURS * (4095 / 255)).round().astype(np.uint16)
    if channels == 4:
        deep = np.dstack((deep, np.full(GREY.shape, 65535, np.uint16)))
    decoded = _decoded(tmp_path, _png16(deep))
    assert np.abs(decoded.pixels[0].astype(int) - COLOURS).max() <= 1
    assert _notes(decoded) == [f"its 16-bit values end at {deep[..., :3].max():,}: taken as 12 bits"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_12_bits_in_16_keeps_its_colours_in_either_byte_order(tmp_path: Path, order: str) -> None:
    deep = (COLOURS * (4095 / 255)).round().astype(f"{order}u2")
    at = 8 + deep.nbytes
    words = [
        *((256, 4, 1, 96), (257, 4, 1, 72), (258, 3, 3, at + 2 + 12 * 8 + 4), (259, 4, 1, 1), (262, 4, 1, 2)),
        *((273, 4, 1, 8), (277, 4, 1, 3), (279, 4, 1, deep.nbytes)),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", *word) for word in words)
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at) + deep.tobytes()
    tiff += struct.pack(f"{order}H", 8) + entries + struct.pack(f"{order}I", 0) + struct.pack(f"{order}HHH", 16, 16, 16)
    assert np.abs(_decoded(tmp_path, tiff).pixels[0].astype(int) - COLOURS).max() <= 1


def _bmp(alpha: int) -> bytes:
    """A BMP of 32 bits with a mask for alpha, as Photoshop and Windows write it."""
    rows = np.dstack((COLOURS[::-1, :, ::-1], np.full(GREY.shape, alpha, np.uint8))).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 96, 72, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 122 + len(rows), 0, 0, 122) + header + rows


def test_a_bmp_whose_alpha_was_left_at_zero_is_opaque(tmp_path: Path) -> None:
    for alpha in (0, 255):
        assert (_decoded(tmp_path, _bmp(alpha)).pixels[0] == COLOURS).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_picture_of_which_nothing_can_be_seen_is_no_picture(tmp_path: Path, kind: str) -> None:
    clear = Image.merge("RGBA", (*picture().split(), Image.new("L", (96, 72))))
    decoded = _decoded(tmp_path, encoded(kind, clear, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert (decoded.fault, decoded.pixels) == (Fault.BLANK, ())
    assert decoded.error == "nothing can be seen: every pixel is transparent"
    decoded = _decoded(tmp_path, encoded(kind, Image.new("RGB", (96, 72), (9, 200, 30))))
    assert (decoded.fault, decoded.error) == (Fault.BLANK, "nothing can be seen: every pixel has one colour")
    with pytest.raises(ImageError, match="nothing can be seen"):
        pixels_from_image(Image.new("F", (32, 32), float("nan")))
    with pytest.raises(ImageError, match="nothing can be seen"):
        pixels_from_array(np.full((40, 50, 3), 255, np.uint8))
    clear.putpixel((50, 40), (0, 0, 0, 255))  # one pixel is enough
    assert _decoded(tmp_path, encoded(kind, clear)).error is None


def test_an_image_that_its_owner_loaded_keeps_its_deep_transparent_colour() -> None:
    deep = COLOURS.astype(np.uint16) * 257
    deep[:, :48] = 0x8080
    with Image.open(io.BytesIO(_png16(deep, struct.pack(">HHH", 0x8080, 0x8080, 0x8080)))) as image:
        image.load()
        assert (pixels_from_image(image)[:, :48] == 255).all()
