"""JPEGs decoded at a smaller scale: large enough, seen in the same box, checked as strictly as whole ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hostile import marked
from PIL import Image

from aivsreal.benchmarks.cpu.photos import enlarged, jpeg_from_pixels
from aivsreal.runtime.errors import Fault
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import square_from_image, square_from_pixels
from aivsreal.runtime.spec import Geometry, PreprocessSpec

SPEC = PreprocessSpec()


def _photo(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small_HWC = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return enlarged(small_HWC, width, height, 1)


@pytest.mark.parametrize(
    ("size", "divisor"), [((1000, 800), 1), ((1100, 1100), 2), ((2500, 2200), 4), ((6000, 4200), 8)]
)
def test_the_scale_leaves_twice_the_input_and_its_square_is_that_of_every_pixel(
    tmp_path: Path, size: tuple[int, int], divisor: int
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg_from_pixels(_photo(*size)))
    whole_HWC, scaled_HWC = pixels_from_file(path), pixels_from_file(path, least_side=SPEC.least_side)
    assert whole_HWC.shape[:2] == size[::-1]
    assert scaled_HWC.shape[:2] == (-(-size[1] // divisor), -(-size[0] // divisor))
    difference = np.abs(
        square_from_pixels(whole_HWC, SPEC).astype(int) - square_from_pixels(scaled_HWC, SPEC).astype(int)
    )
    assert difference.mean() < 1.5  # of 255, where grain of 6 was added to each pixel
    decoded = decoded_from_file(path, DecodePlan(SPEC, least_side=SPEC.least_side))
    assert (decoded.pixels[0] == square_from_pixels(scaled_HWC, SPEC)).all()


def test_other_formats_and_frames_are_decoded_whole(tmp_path: Path) -> None:
    image = Image.fromarray(_photo(1200, 1100))
    for suffix in ("png", "webp"):
        image.save(tmp_path / f"a.{suffix}")
        assert pixels_from_file(tmp_path / f"a.{suffix}", least_side=100).shape == (1100, 1200, 3)
    image.save(tmp_path / "two.mpo", save_all=True, append_images=[image])
    assert decoded_from_file(tmp_path / "two.mpo", DecodePlan(least_side=100)).pixels[0].shape == (138, 150, 3)
    image.save(tmp_path / "two.tiff", save_all=True, append_images=[image])
    frames = decoded_from_file(tmp_path / "two.tiff", DecodePlan(frames=2, least_side=100)).pixels
    assert [pixels_HWC.shape for pixels_HWC in frames] == [(1100, 1200, 3)] * 2


def test_a_turned_picture_is_reduced_and_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_photo(2400, 1200)).save(tmp_path / "turned.jpg", exif=exif)
    assert pixels_from_file(tmp_path / "turned.jpg", least_side=500).shape == (1200, 600, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 8}])
def test_a_part_that_is_missing_is_noticed_at_a_smaller_scale_too(tmp_path: Path, options: dict[str, object]) -> None:
    stream = io.BytesIO()
    Image.fromarray(_photo(1100, 1100)).save(stream, "JPEG", quality=80, **options)
    whole = stream.getvalue()
    plan = DecodePlan(SPEC, least_side=SPEC.least_side)
    for share in (0.4, 0.6, 0.8):
        path = tmp_path / f"{share}.jpg"
        path.write_bytes(whole[: int(len(whole) * share)] + b"\xff\xd9")
        fault = decoded_from_file(path, plan).fault
        assert fault is decoded_from_file(path, DecodePlan()).fault
        if share == 0.4 or not options.get("progressive"):  # a cut in the last scan of those lacks fine detail alone
            assert fault is Fault.PARTIAL
        path.write_bytes(path.read_bytes()[:-2])  # and without an end marker
        assert decoded_from_file(path, plan).fault is Fault.PARTIAL
    (tmp_path / "open.jpg").write_bytes(whole[:-2])
    assert decoded_from_file(tmp_path / "open.jpg", plan).error is None
    grey = tmp_path / "grey.jpg"
    marked((128, 128, 128), (1100, 1100)).save(grey, **options)
    assert decoded_from_file(grey, plan).error is None


@pytest.mark.parametrize("geometry", list(Geometry))
@pytest.mark.parametrize("size", [(300, 224), (224, 224), (256, 256), (90, 400), (31, 17)])
def test_a_square_from_pillows_image_is_that_from_its_pixels(geometry: Geometry, size: tuple[int, int]) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    spec = PreprocessSpec(geometry=geometry)
    square_SSC = square_from_image(Image.fromarray(pixels_HWC), spec)
    assert (square_SSC == square_from_pixels(pixels_HWC, spec)).all()
    with pytest.raises(ValueError, match="RGB"):
        square_from_image(Image.new("L", (300, 300)), spec)
