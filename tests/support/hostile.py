"""Makes files as they come from broken disks, old programs and attackers, each with the row that it must end in."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from icc import P3, SRGB_CURVE, cmyk_profile, gamma_curve, rgb_profile
from PIL import Image, ImageCms

from aivsreal.runtime.errors import Fault

SIZE = (96, 72)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A slope with noise, so that no part of it is flat."""
    rng = np.random.default_rng(seed)
    slope_HWC = np.linspace(0, 200, size[0])[None, :, None] + rng.normal(20, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(slope_HWC, 0, 255).astype(np.uint8))


def marked(colour: str | tuple[int, int, int], size: tuple[int, int] = SIZE) -> Image.Image:
    """A plain sheet with a little of `picture` in its upper left corner."""
    sheet = Image.new("RGB", size, colour)
    sheet.paste(picture().crop((0, 0, 32, 32)))
    return sheet


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """An image file as bytes."""
    out = io.BytesIO()
    (image or picture()).save(out, kind, **options)
    return out.getvalue()


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with one chunk more, behind its header."""
    return png[:33] + struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) + png[33:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and then ends."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 1000)
        + b"IDAT"
    )


def good_files() -> Iterator[tuple[str, bytes]]:
    """Odd and whole: each must end in a verdict."""
    yield from _odd_encodings()
    yield from _several_pictures()
    yield from _odd_metadata_and_names()


def _odd_encodings() -> Iterator[tuple[str, bytes]]:
    grey, rgb = picture().convert("L"), picture()
    yield "cmyk.jpg", encoded("JPEG", rgb.convert("CMYK"))
    # YCCK: Pillow writes Adobe's transform 0; 2 makes the decoder turn the same data from YCCK to CMYK.
    yield "ycck.jpg", _with_transform(encoded("JPEG", rgb.convert("CMYK")), 2)
    yield "grey.jpg", encoded("JPEG", grey)
    yield "progressive.jpg", encoded("JPEG", progressive=True)
    yield "restarts.jpg", encoded("JPEG", restart_marker_blocks=2)
    yield "trailing.jpg", encoded("JPEG") + b"13 bytes here"
    yield "grey_end.jpg", encoded("JPEG", marked((128, 128, 128)))
    yield "grey_end_restarts.jpg", encoded("JPEG", marked((128, 128, 128)), restart_marker_blocks=3)
    yield "grey_end_progressive.jpg", encoded("JPEG", marked((128, 128, 128)), progressive=True)
    yield "deep.png", encoded("PNG", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))
    yield "one_bit.png", encoded("PNG", grey.convert("1"))
    palette = rgb.quantize(16)
    yield "palette_transparent.png", encoded("PNG", palette, transparency=3)
    yield "palette_alpha.png", encoded("PNG", palette, transparency=bytes(range(0, 256, 16)))
    yield "rgba.png", encoded("PNG", rgb.convert("RGBA"))
    yield "la.png", encoded("PNG", grey.convert("LA"))
    yield "lzw.tiff", encoded("TIFF", rgb, compression="tiff_lzw")
    yield "jpeg.tiff", encoded("TIFF", rgb, compression="jpeg")
    yield "float.tiff", encoded("TIFF", grey.convert("F"))
    yield "text_bomb.png", _with_text_bomb(encoded("PNG"))
    yield "not_ended.jpg", encoded("JPEG")[:-2]
    yield "not_ended_progressive.jpg", encoded("JPEG", progressive=True)[:-2] + b"and a trailer"
    yield "integers.tiff", encoded("TIFF", grey.convert("I"))


def _several_pictures() -> Iterator[tuple[str, bytes]]:
    grey, rgb = picture().convert("L"), picture()
    yield "animated.gif", encoded("GIF", rgb, save_all=True, append_images=[picture(1), picture(2)])
    yield "animated.webp", encoded("WEBP", rgb, save_all=True, append_images=[picture(1), picture(2)])
    yield "animated.png", encoded("PNG", rgb, save_all=True, append_images=[picture(1), picture(2)])
    yield "pages.tiff", encoded("TIFF", rgb, save_all=True, append_images=[picture(1), picture(2)])
    yield "two.jpg", encoded("MPO", rgb, save_all=True, append_images=[grey.resize((24, 18))])
    yield "hidden.png", encoded("PNG", rgb, save_all=True, default_image=True, append_images=[picture(1), picture(2)])
    yield "small_page.tiff", encoded("TIFF", rgb, save_all=True, append_images=[rgb.resize((12, 10))])


def _odd_metadata_and_names() -> Iterator[tuple[str, bytes]]:
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield f"turn{turn}.jpg", encoded("JPEG", exif=exif)
    odd_exif = Image.Exif()
    odd_exif[0x0112] = 77
    yield "turn77.jpg", encoded("JPEG", exif=odd_exif)
    yield "broken_exif.jpg", encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "icc.jpg", encoded("JPEG", icc_profile=profile)
    yield "icc.png", encoded("PNG", icc_profile=profile)
    yield "wide.jpg", encoded("JPEG", icc_profile=rgb_profile(P3, SRGB_CURVE))
    yield "linear.tiff", encoded("TIFF", icc_profile=rgb_profile(P3, gamma_curve(1.0)))
    yield "inks.tiff", encoded("TIFF", picture().convert("CMYK"), icc_profile=cmyk_profile())
    yield "pq.png", with_chunk(encoded("PNG"), b"cICP", b"\x09\x10\0\x01")
    yield "broken_icc.jpg", encoded("JPEG", icc_profile=b"no profile at all")
    yield "png_in.jpg", encoded("PNG")
    yield "jpeg_in.png", encoded("JPEG")
    yield "webp_in.gif", encoded("WEBP")
    yield "least.png", encoded("PNG", picture(0, (16, 16)))
    yield "narrow.png", encoded("PNG", picture(0, (16, 3000)))
    yield "flat.webp", encoded("WEBP", marked("white", (1000, 1000)))
    yield "black.bmp", encoded("BMP", marked("black"))
    yield "new\nline.jpg", encoded("JPEG")
    yield "quote'\"<b>&.jpg", encoded("JPEG")
    yield os.fsdecode(b"bytes\xff\xfe.jpg"), encoded("JPEG")
    yield "n" * 251 + ".jpg", encoded("JPEG")


def bad_files() -> Iterator[tuple[str, bytes, Fault]]:
    """Each must end in an error of that kind."""
    jpeg, progressive, png = encoded("JPEG"), encoded("JPEG", progressive=True), encoded("PNG")
    yield "empty.jpg", b"", Fault.EMPTY
    yield "text.jpg", b"These are words, and no picture.\n", Fault.NOT_AN_IMAGE
    yield "drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg' width='96' height='72'/>", Fault.NOT_AN_IMAGE
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 72\nshowpage\n", Fault.NOT_AN_IMAGE
    yield "zeros.jpg", bytes(5000), Fault.NOT_AN_IMAGE
    yield "cut.jpg", jpeg[: len(jpeg) // 2], Fault.PARTIAL
    yield "cut_header.jpg", jpeg[:200], Fault.DAMAGED
    yield "cut_and_ended.jpg", jpeg[: len(jpeg) * 2 // 3] + b"\xff\xd9", Fault.PARTIAL
    yield "cut_and_zeros.jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), Fault.PARTIAL
    yield "progressive_cut.jpg", progressive[: len(progressive) // 2], Fault.PARTIAL
    yield "progressive_cut_and_ended.jpg", _after_scans(progressive, 3) + b"\xff\xd9", Fault.PARTIAL
    restarts = encoded("JPEG", restart_marker_blocks=2)
    yield "restarts_cut_and_ended.jpg", restarts[: len(restarts) * 2 // 3] + b"\xff\xd9", Fault.PARTIAL
    cmyk = encoded("JPEG", picture().convert("CMYK"))
    yield "cmyk_cut_and_ended.jpg", cmyk[: len(cmyk) * 2 // 3] + b"\xff\xd9", Fault.PARTIAL
    yield "cut.png", png[: len(png) // 2], Fault.PARTIAL
    yield "cut_and_zeros.png", png[: len(png) // 2] + bytes(len(png) // 2), Fault.PARTIAL
    for kind in ("gif", "webp", "bmp", "tiff", "avif"):
        whole = encoded(kind.upper())
        said = Fault.DAMAGED if kind in ("webp", "avif") else Fault.PARTIAL  # their decoders do not say what is wrong
        yield f"cut.{kind}", whole[: len(whole) // 2], said
    for kind in ("webp", "avif"):
        whole = encoded(kind.upper(), picture(0, (300, 200)))
        yield f"cut_and_zeros.{kind}", whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2), Fault.PARTIAL
    lzw = encoded("TIFF", compression="tiff_lzw")
    yield "cut_lzw.tiff", lzw[:-40], Fault.DAMAGED
    tiff, samples = encoded("TIFF"), struct.pack("<HHI", 277, 3, 1)
    yield "many_samples.tiff", tiff.replace(samples + b"\x03\0", samples + b"\xff\xff"), Fault.DAMAGED  # Pillow logs it
    yield "bomb.png", png_header(100_000, 100_000), Fault.TOO_LARGE
    yield "wide_bomb.png", png_header(2**31 - 1, 16), Fault.TOO_LARGE
    yield (
        "bomb.gif",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b"," + bytes(9) + b"\x08",
        Fault.TOO_LARGE,
    )
    yield "dot.png", encoded("PNG", Image.new("RGB", (1, 1))), Fault.TOO_SMALL
    yield "line.png", encoded("PNG", Image.new("RGB", (1, 10_000))), Fault.TOO_SMALL
    yield "flat.png", encoded("PNG", Image.new("RGB", SIZE, "white")), Fault.BLANK
    yield "flat.jpg", encoded("JPEG", Image.new("RGB", SIZE, "grey")), Fault.BLANK
    yield (
        "transparent.png",
        encoded("PNG", Image.merge("RGBA", (*picture().split(), Image.new("L", SIZE)))),
        Fault.BLANK,
    )


def special_files(folder: Path) -> Iterator[tuple[str, Fault]]:
    """Makes what is no regular file in `folder`; its names, and the kind of their errors."""
    os.mkfifo(folder / "pipe.jpg")
    yield "pipe.jpg", Fault.NOT_A_FILE
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket has at most 107 bytes
        listener.bind("socket.jpg")
        os.chdir(here)
    yield "socket.jpg", Fault.NOT_A_FILE
    (folder / "device.jpg").symlink_to("/dev/zero")
    yield "device.jpg", Fault.NOT_A_FILE
    (folder / "nowhere.jpg").symlink_to("not there.jpg")
    yield "nowhere.jpg", Fault.MISSING
    (folder / "loop.jpg").symlink_to("loop.jpg")
    yield "loop.jpg", Fault.MISSING
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    yield "sparse.jpg", Fault.TOO_LARGE
    (folder / "loop_of_folders").mkdir()
    (folder / "loop_of_folders" / "again").symlink_to(folder)


def _after_scans(progressive: bytes, count: int) -> bytes:
    starts = [at for at in range(len(progressive) - 1) if progressive[at : at + 2] == b"\xff\xda"]
    return progressive[: starts[count]]


def _with_transform(jpeg: bytes, transform: int) -> bytes:
    at = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    return jpeg[: at + 15] + bytes([transform]) + jpeg[at + 16 :]


def _with_text_bomb(png: bytes) -> bytes:
    return with_chunk(png, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
