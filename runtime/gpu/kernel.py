"""The fused preprocessing kernel on a GPU: compiled code, and its launch for a batch that lies in a staging buffer."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import numpy as np

from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import Module, Stream
from aivsreal.runtime.spec import PreprocessSpec

KERNELS = Path(__file__).resolve().parent
COLUMNS, WARPS = 32, 8  # as in preprocess.cu
SHORT, TALL = 8, 32  # output rows of a tile


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
        self, staging: int, batch: int, images: int, spec: PreprocessSpec, dtype: type[np.floating], stream: Stream
    ) -> None:
        """Put the launch into a stream.

        Args:
            staging: address on the GPU of what `Staging.write` wrote.
            batch: address on the GPU of `batch_BCHW`, of `dtype`, which is half or float.
            images: how many there are in both.
            spec: the one that the staging was made for.
            dtype: `np.float16` or `np.float32`.
            stream: where it is put.
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
