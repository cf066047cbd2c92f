"""The fused preprocessing kernel on a GPU: what is uploaded for it, in one buffer, and its launch.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import Module, Stream
from aivsreal.runtime.gpu.resample import axis_weights
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.spec import PreprocessSpec

KERNELS = Path(__file__).resolve().parent
COLUMNS, WARPS = 32, 8  # as in preprocess.cu
SHORT, TALL = 8, 32  # output rows of a tile
ALIGNMENT = 16  # the kernel's vector loads
# `Image` in preprocess.cu. Offsets are bytes from the buffer's start, so it may lie at any address.
IMAGE = np.dtype(
    [(name, "<i8") for name in "pixels pitch x_bounds x_weights y_bounds y_weights".split()]
    + [(name, "<i4") for name in "width height x_stride y_stride".split()]
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Staging:
    """What a batch puts where in a buffer of `size` bytes: images, tables, then pixels with rows 16-byte aligned."""

    images_B: npt.NDArray[np.void]
    tables: tuple[tuple[int, npt.NDArray[np.int32]], ...]
    parts: tuple[tuple[int, int, PixelsHWC], ...]
    size: int

    def write(self, buffer: Bytes) -> None:
        """Fill the first `size` bytes of `buffer`; the bytes between rows keep what they were."""
        images = self.images_B.view(np.uint8).reshape(-1)
        buffer[: images.size] = images
        for offset, table in self.tables:
            buffer[offset : offset + table.nbytes] = table.reshape(-1).view(np.uint8)
        for offset, pitch, part_HWC in self.parts:
            height, row = part_HWC.shape[0], 3 * part_HWC.shape[1]
            lines = buffer[offset : offset + height * pitch].reshape(height, pitch)
            # As an image, not as lines: a box of a larger image has no two-dimensional view.
            np.copyto(lines[:, :row].reshape(height, row // 3, 3), part_HWC)


def staging_from_pixels(pixels: Sequence[PixelsHWC], spec: PreprocessSpec) -> Staging:
    """Plan the upload of decoded images of any sizes: of each the box that the spec shows to the network.

    Raises:
        ValueError: an image is not uint8 RGB.
    """
    images_B = np.zeros(len(pixels), IMAGE)
    tables: list[tuple[int, npt.NDArray[np.int32]]] = []
    parts: list[tuple[int, int, PixelsHWC]] = []
    placed: dict[int, tuple[int, int, int]] = {}
    end = _aligned(images_B.nbytes)

    def table(values: npt.NDArray[np.int32]) -> int:
        nonlocal end
        offset, end = end, _aligned(end + values.nbytes)
        tables.append((offset, values))
        return offset

    def axis(length: int) -> tuple[int, int, int]:
        """Offsets of bounds and weights, and the weights' stride; images of one size share them."""
        if length not in placed:
            weights = axis_weights(length, spec.size, spec.filter)
            placed[length] = (table(weights.bounds_S2), table(weights.weights_SK), weights.weights_SK.shape[1])
        return placed[length]

    for pixels_HWC in pixels:
        if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 [H, W, 3] in RGB order, not {pixels_HWC.dtype} {pixels_HWC.shape}")
        left, top, right, bottom = spec.box(pixels_HWC.shape[1], pixels_HWC.shape[0])
        parts.append((0, _aligned(3 * (right - left)), pixels_HWC[top:bottom, left:right]))
    for index, (_, pitch, part_HWC) in enumerate(parts):
        height, width = part_HWC.shape[:2]
        x_bounds, x_weights, x_stride = axis(width)
        y_bounds, y_weights, y_stride = axis(height)
        tail = (width, height, x_stride, y_stride)
        images_B[index] = (0, pitch, x_bounds, x_weights, y_bounds, y_weights, *tail)
    for index, (_, pitch, part_HWC) in enumerate(parts):
        parts[index] = (end, pitch, part_HWC)
        images_B[index]["pixels"] = end
        end += pitch * part_HWC.shape[0]
    return Staging(images_B, tuple(tables), tuple(parts), end)


class PreprocessKernel:
    """`preprocess.cu`, from the file compiled with it or else compiled here for this GPU.

    Raises:
        BackendError: neither can be loaded.
    """

    def __init__(self, driver: Driver) -> None:
        source = (KERNELS / "preprocess.cu").read_bytes()
        packed = KERNELS / f"preprocess-{hashlib.sha256(source).hexdigest()[:12]}.fatbin"
        self.origin, self._module = packed.name, None
        if packed.is_file():
            try:
                self._module = Module(driver, packed.read_bytes())
            except BackendError as error:  # a driver older than CUDA 13, as on JetPack 6, or a GPU older than Turing
                self.origin = f"compiled here, since {packed.name} does not load: {error}"
        else:
            self.origin = f"compiled here, since there is no {packed.name}"
        if self._module is None:
            self._module = Module(driver, driver.compile(source))
        self._function = self._module.function("preprocess")
        self._driver = driver

    def enqueue(
        self, staging: int, batch: int, images: int, *, spec: PreprocessSpec, dtype: type[np.floating], stream: Stream
    ) -> None:
        """Put the launch into a stream.

        Args:
            staging: address on the GPU of what `Staging.write` wrote.
            batch: address on the GPU of `batch_BCHW`, of `dtype`, which is half or float.
            spec: the one that the staging was made for.
        """
        scale_C, bias_C = spec.affine()
        rows = tile_rows(images, spec.size, self._driver.gpu.multiprocessors)
        numbers = (spec.size, int(dtype is np.float16), rows)
        self._driver.launch(
            self._function,
            (-(-spec.size // COLUMNS), -(-spec.size // rows), images),
            (32 * WARPS, 1, 1),
            stream.handle,
            [
                *(ctypes.c_void_p(address) for address in (staging, batch)),
                *(ctypes.c_int(number) for number in numbers),
                *(ctypes.c_float(float(value)) for value in (*scale_C, *bias_C)),
            ],
        )

    def close(self) -> None:
        """Unload the code."""
        if self._module is not None:
            self._module.close()


def tile_rows(images: int, size: int, multiprocessors: int) -> int:
    """Tall tiles where they give each multiprocessor four blocks, else short ones, which are four times as many."""
    blocks = images * -(-size // COLUMNS) * -(-size // TALL)
    return TALL if blocks >= 4 * multiprocessors else SHORT


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
