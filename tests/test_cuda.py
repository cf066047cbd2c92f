"""CUDA's bindings are called as they want it, which a libcuda without a GPU checks; what is missing is said."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FLAGS, KERNELS, SHIM

from aivsreal.runtime.errors import BackendError, GpuMemoryError, MissingExtra
from aivsreal.runtime.gpu.calls import Driver
from aivsreal.runtime.gpu.driver import DeviceBuffer, Graph, Module, Owned, PinnedBuffer, Stream, open_driver
from aivsreal.runtime.gpu.executor import Floats
from aivsreal.runtime.gpu.kernel import PreprocessKernel, staging_from_pixels, tile_rows
from aivsreal.runtime.preprocess import PixelsHWC, batch_from_pixels
from aivsreal.runtime.spec import PreprocessSpec


def _drive_batch(driver: Driver, pixels: list[PixelsHWC], spec: PreprocessSpec, dtype: Floats) -> None:
    plan = staging_from_pixels(pixels, spec)
    wanted = batch_from_pixels(pixels, spec).astype(dtype)
    with (
        driver.current(),
        Stream(driver) as stream,
        PinnedBuffer(driver, plan.size) as staging,
        DeviceBuffer(driver, plan.size) as staged,
        DeviceBuffer(driver, wanted.nbytes) as batch,
        PinnedBuffer(driver, wanted.nbytes) as result,
    ):
        kernel = PreprocessKernel(driver)
        assert kernel.origin.endswith(".fatbin")
        plan.write(staging.view())

        def work() -> None:
            driver.upload(staged.handle, staging.handle, plan.size, stream.handle)
            kernel.enqueue(staged.handle, batch.handle, len(pixels), spec=spec, dtype=dtype, stream=stream)
            driver.download(result.handle, batch.handle, wanted.nbytes, stream.handle)

        work()
        stream.synchronize()
        assert (result.view(dtype).reshape(wanted.shape) == wanted).all()
        result.view()[:] = 0
        with Graph(driver, stream, work) as graph:
            assert not result.view().any()
            graph.launch(stream)
            stream.synchronize()
        assert (result.view(dtype).reshape(wanted.shape) == wanted).all()
        with pytest.raises(ZeroDivisionError):
            Graph(driver, stream, lambda: 1 // 0)
        with pytest.raises(GpuMemoryError, match="memory is full"):
            DeviceBuffer(driver, 1 << 40)
        with pytest.raises(BackendError, match="CUDA_ERROR_INVALID_IMAGE"):
            Module(driver, b"no code at all")
        (packed,) = KERNELS.glob("preprocess-*.fatbin")
        with Module(driver, packed.read_bytes()) as module, pytest.raises(BackendError, match="CUDA_ERROR_NOT_FOUND"):
            module.function("another")
        kernel.close()


def drive(driver: Driver) -> None:
    """Everything that the runtime asks of a driver, once; run in a process of its own by the test below."""
    assert (driver.gpu.name, driver.gpu.capability, driver.gpu.multiprocessors) == ("Fake GPU", (8, 7), 4)
    assert (driver.gpu.cuda, driver.gpu.memory_bytes, driver.gpu.shares_memory) == ((13, 1), 8 << 30, True)
    with pytest.raises(BackendError, match=r"cuMemAlloc failed with CUDA_ERROR_INVALID_CONTEXT"):
        driver.allocate(16)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((50, 70, 3), (31, 16, 3))]
    for spec, dtype in ((PreprocessSpec(20), np.float32), (PreprocessSpec(33, mean=(0.4, 0.5, 0.6)), np.float16)):
        _drive_batch(driver, pixels, spec, dtype)
    driver.close()
    assert not {"torch", "timm", "onnx", "onnxruntime", "numba", "cupy"} & set(sys.modules)
    with pytest.raises(BackendError, match="there is no GPU 1: the driver finds 1"):
        open_driver(1)


def test_cuda_bindings_are_called_as_they_want_it(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    sources = [f"-I{KERNELS}", f"-I{SHIM}", str(SHIM / "fake_libcuda.cpp"), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(["g++", *FLAGS, "-O1", "-fPIC", "-shared", *sources, "-ldl"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    environment["PYTHONPATH"] = str(SHIM.parent)
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "driven\n"


def test_without_nvidias_driver_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(BackendError, match="NVIDIA's driver is not installed"):
            open_driver()
    else:
        pytest.skip("needs a machine without NVIDIA's driver")


def test_without_a_binding_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("bindings", "pycuda"):
        monkeypatch.delitem(sys.modules, f"aivsreal.runtime.gpu.{name}", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'aivsreal\[tensorrt\]'"):
        open_driver()


@pytest.mark.parametrize("capability", [(7, 5), (8, 7), (12, 1)])
def test_nvrtc_compiles_the_kernel_without_a_gpu(capability: tuple[int, int]) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    from aivsreal.runtime.gpu.bindings import code_from_source

    try:
        code = code_from_source((KERNELS / "preprocess.cu").read_bytes(), capability)
    except BackendError as error:
        if "NVRTC is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert code.startswith(b"\x7fELF")
    with pytest.raises(BackendError, match="cannot compile"):
        code_from_source(b"no C++", capability)


def test_a_handle_is_given_back_once() -> None:
    given_back: list[int] = []
    with Owned(7, given_back.append) as owned:
        owned.close()
    assert given_back == [7]


def test_tiles_are_short_where_few_images_must_fill_the_gpu() -> None:
    assert tile_rows(1, 224, 132) == 8
    assert tile_rows(64, 224, 132) == 32
    assert tile_rows(2, 224, 16) == 32


if __name__ == "__main__":
    drive(open_driver())
    print("driven")
