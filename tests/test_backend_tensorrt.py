"""The TensorRT backend over a fake GPU: true logits, nothing leaked, nothing touched too early or too late."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import squares_of, write_image
from fake_cuda import CARD, JETSON, FakeDriver
from fake_gpu import bundle_with_engine, installed_gpu, small_bundle
from fake_tensorrt import VERSIONS

from aivsreal.runtime import Detector, ScanOptions
from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.backends.onnx import OnnxBackend
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.errors import BackendError, BundleError, GpuMemoryError, MissingExtra
from aivsreal.runtime.gpu.backend import TensorrtBackend
from aivsreal.runtime.preprocess import PixelsHWC

Install = Callable[..., FakeDriver]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, kernel: Path) -> Install:
    return lambda *arguments, **named: installed_gpu(monkeypatch, kernel, *arguments, **named)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture(scope="module")
def with_engine(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_with_engine(tmp_path_factory.mktemp("engine") / "bundle", plain)


def _images(count: int, seed: int = 0) -> list[PixelsHWC]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 200, (count, 2))
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gives_the_logits_of_the_onnx_graph(
    install: Install, plain: Bundle, tmp_path: Path, version: str
) -> None:
    half = version in ("10.7.0", "11.4", "rtx1.7")
    bundle = bundle_with_engine(tmp_path / "bundle", plain, version, half=half)
    driver = install(version)
    backend, why = open_backend(bundle)
    assert backend.name == ("tensorrt-rtx" if version == "rtx1.7" else "tensorrt")
    assert backend.precision == ("fp16" if half else "fp32")
    assert why.startswith("auto; engine fp")
    for count in (1, 3, 3, 3, 9, 40):
        wanted = OnnxBackend(plain).run(squares_of(plain, _images(count, count))).logits_B
        assert backend.run(_images(count, count)).logits_B == pytest.approx(wanted, abs=0.02 if half else 1e-5)
    backend.close()
    backend.close()
    driver.check_empty()


def test_what_tensorrt_rtx_compiled_serves_the_next_start(
    install: Install, plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = bundle_with_engine(tmp_path / "bundle", plain, "rtx1.7")
    install("rtx1.7")
    for damaged, counts, sizes in ((False, (2,), [1, 2]), (False, (3,), [1, 2, 3]), (True, (4,), [1, 4])):
        kept = list((tmp_path / "cache").rglob("*.kernels"))
        if damaged:
            kept[0].write_bytes(b"of another version")
        backend = TensorrtBackend(bundle)
        for count in counts:
            backend.run(_images(count))
        backend.close()
        (file,) = (tmp_path / "cache").rglob("*.kernels")
        assert json.loads(file.read_bytes().partition(b":")[2]) == sizes


def test_the_map_comes_with_the_logits_and_has_them_for_its_mean(install: Install, with_engine: Bundle) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    scores = backend.run(_images(5), maps=True)
    logits_B, map_BHW = scores.logits_B, scores.maps_Bhw
    assert map_BHW is not None
    assert map_BHW.shape[0] == 5
    assert map_BHW.ndim == 3
    assert map_BHW.mean(axis=(1, 2)) == pytest.approx(logits_B, abs=1e-4)
    assert backend.run([]).logits_B.shape == (0,)
    backend.close()
    driver.check_empty()


def test_a_batch_is_one_upload_one_graph_and_a_small_download(install: Install, with_engine: Bundle) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    for _ in range(2):  # the first run of a size allocates, the second records
        backend.run(_images(4))
    driver.calls.clear()
    backend.run(_images(4))
    assert driver.calls == ["upload", "launch_graph", "synchronize"]
    driver.calls.clear()
    backend.run(_images(4)[::-1][:2] * 2)  # other sizes and tables in another order, and the same graph
    assert driver.calls == ["upload", "launch_graph", "synchronize"]
    backend.close()


def test_a_larger_batch_goes_in_halves_that_overlap(install: Install, with_engine: Bundle) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    for _ in range(3):
        backend.run(_images(16))
    driver.calls.clear()
    backend.run(_images(16))
    # The second half is on its way before the first is waited for.
    assert driver.calls == ["upload", "launch_graph", "upload", "launch_graph", "synchronize", "synchronize"]
    backend.close()


def test_a_jetson_copies_nothing(install: Install, plain: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engine(tmp_path / "bundle", plain, gpu=JETSON)
    driver = install(gpu=JETSON)
    backend = TensorrtBackend(bundle)
    for count in (1, 3, 3, 3, 12):
        wanted = OnnxBackend(plain).run(squares_of(plain, _images(count))).logits_B
        assert backend.run(_images(count)).logits_B == pytest.approx(wanted, abs=1e-5)
    assert driver.count("upload") == driver.count("download") == 0
    assert driver.count("launch_graph") > 0
    backend.close()
    driver.check_empty()


def test_without_graphs_the_parts_are_launched_and_it_is_said(install: Install, with_engine: Bundle) -> None:
    driver = install(has_graphs=False)
    backend, why = open_backend(with_engine, "tensorrt")
    assert "no CUDA graphs: fake has none" in why
    wanted = OnnxBackend(with_engine).run(squares_of(with_engine, _images(5))).logits_B
    for _ in range(3):
        assert backend.run(_images(5)).logits_B == pytest.approx(wanted, abs=1e-5)
    backend.close()
    driver.check_empty()


def test_a_recording_that_fails_is_given_up_and_said(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = install()

    def fails(stream: int) -> int:
        del driver._capturing[stream]
        raise BackendError("cuStreamEndCapture failed with CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    monkeypatch.setattr(driver, "end_capture", fails)
    with caplog.at_level(logging.WARNING):
        backend = TensorrtBackend(with_engine)
    assert "CAPTURE_UNSUPPORTED" in caplog.text
    assert "CAPTURE_UNSUPPORTED" in backend.detail
    wanted = OnnxBackend(with_engine).run(squares_of(with_engine, _images(3))).logits_B
    assert backend.run(_images(3)).logits_B == pytest.approx(wanted, abs=1e-5)
    backend.close()
    driver.check_empty()


def test_threads_share_a_backend(install: Install, with_engine: Bundle) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    batches = [_images(1 + seed % 11, seed) for seed in range(24)]
    reference = OnnxBackend(with_engine)
    wanted = [reference.run(squares_of(with_engine, batch)).logits_B for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for scores, expected in zip(pool.map(backend.run, batches), wanted, strict=True):
            assert scores.logits_B == pytest.approx(expected, abs=1e-5)
    backend.close()
    driver.check_empty()


def test_a_backend_that_is_closed_while_threads_use_it_ends_their_next_batch(
    install: Install, with_engine: Bundle
) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    begun = threading.Barrier(4)

    def judge() -> None:
        begun.wait(30)
        while True:
            backend.run(_images(12))

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(judge) for _ in range(3)]
        begun.wait(30)
        time.sleep(0.05)
        backend.close()
        for end in ends:
            with pytest.raises(BackendError, match="the detector is closed"):
                end.result(30)
    driver.check_empty()


def test_a_full_memory_halves_the_batch_and_says_so(
    install: Install, with_engine: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    driver = install(memory_bytes=900_000)
    backend = TensorrtBackend(with_engine)
    with caplog.at_level(logging.WARNING):
        got = backend.run(_images(32)).logits_B
    assert got == pytest.approx(OnnxBackend(with_engine).run(squares_of(with_engine, _images(32))).logits_B, abs=1e-5)
    assert "at most" in caplog.text or "no longer overlap" in caplog.text
    halved = len(caplog.records)
    caplog.clear()
    backend.run(_images(32))
    assert len(caplog.records) < halved  # it is remembered
    backend.close()
    driver.check_empty()


def test_memory_for_not_even_one_image_is_an_error_and_leaks_nothing(install: Install, with_engine: Bundle) -> None:
    driver = install(memory_bytes=2_000)
    with pytest.raises(GpuMemoryError, match="single image"):
        TensorrtBackend(with_engine)
    driver.check_empty()


def test_an_engine_for_fixed_batches_is_filled_up(install: Install, plain: Bundle, tmp_path: Path) -> None:
    bundle = bundle_with_engine(tmp_path / "bundle", plain, batches=(4, 4, 4))
    driver = install()
    backend = TensorrtBackend(bundle)
    for count in (1, 5):
        wanted = OnnxBackend(plain).run(squares_of(plain, _images(count))).logits_B
        assert backend.run(_images(count)).logits_B == pytest.approx(wanted, abs=1e-5)
    backend.close()
    driver.check_empty()


def test_more_batch_sizes_than_are_kept_come_and_go(install: Install, with_engine: Bundle) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    for count in (1, 2, 3, 4, 5, 1, 2, 5, 5, 1):
        backend.run(_images(count))
    backend.close()
    assert driver.count("end_capture") == driver.count("destroy_graph")
    driver.check_empty()


def test_no_engine_is_passed_over_by_auto_and_an_error_where_asked_for(
    install: Install, plain: Bundle, with_engine: Bundle
) -> None:
    install()
    backend, why = open_backend(plain)
    assert backend.name.startswith("onnx")
    assert "tensorrt passed over: no engine in the bundle" in why
    with pytest.raises(BackendError, match="run aivsreal-export --fp16"):
        open_backend(plain, "tensorrt")
    install(gpu=replace(CARD, capability=(9, 0)))
    with pytest.raises(BackendError, match=r"was built for sm_86 .* this is sm_90"):
        open_backend(with_engine, "tensorrt")
    install(gpu=replace(CARD, capability=(9, 0)))
    _, why = open_backend(with_engine)
    assert "this is sm_90" in why


def test_what_is_not_installed_is_named(with_engine: Bundle, monkeypatch: pytest.MonkeyPatch, kernel: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'aivsreal\[tensorrt\]'"):
        open_backend(with_engine, "tensorrt")
    _, why = open_backend(with_engine)
    assert "tensorrt passed over: tensorrt is needed" in why


def test_an_engine_that_does_not_load_leaks_nothing(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install()
    monkeypatch.setattr(sys.modules["tensorrt"].Runtime, "deserialize_cuda_engine", lambda *_: None)
    with pytest.raises(BackendError, match="cannot be loaded by TensorRT"):
        TensorrtBackend(with_engine)
    driver.check_empty()


def test_an_engine_without_the_logits_is_refused(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install()
    engine = sys.modules["tensorrt"].ICudaEngine
    monkeypatch.setattr(engine, "get_tensor_name", lambda self, index: ("pixels_BCHW", "x", "y")[index])
    monkeypatch.setattr(engine, "_tensor", lambda self, name: self._inputs[0])
    with pytest.raises(BundleError, match="has no logits"):
        TensorrtBackend(with_engine)
    driver.check_empty()


def test_a_failing_run_is_an_error_and_the_backend_goes_on(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["tensorrt"].IExecutionContext, "execute_async_v3", lambda *_: False)
        with pytest.raises(BackendError, match="cannot run the engine"):
            backend.run(_images(6))
    wanted = OnnxBackend(with_engine).run(squares_of(with_engine, _images(6))).logits_B
    assert backend.run(_images(6)).logits_B == pytest.approx(wanted, abs=1e-5)
    backend.close()
    driver.check_empty()


def test_a_kernel_that_the_driver_does_not_know_is_compiled_here(install: Install, with_engine: Bundle) -> None:
    driver = install()
    driver.refuses_images.append(b"\x50\xed\x55\xba")  # how a fatbin begins
    backend = TensorrtBackend(with_engine)
    assert "compiled here" in backend.detail
    assert driver.count("compile") == 1
    backend.close()
    driver.check_empty()


def test_an_exported_network_gives_the_same_logits_and_maps(
    install: Install, tiny_bundle: Path, tmp_path: Path
) -> None:
    exported = Bundle.open(tiny_bundle)
    bundle = bundle_with_engine(tmp_path / "bundle", exported)
    driver = install()
    backend = TensorrtBackend(bundle)
    found = backend.run(_images(5), maps=True)
    wanted = OnnxBackend(exported, provider="cpu").run(squares_of(exported, _images(5)), maps=True)
    assert found.logits_B == pytest.approx(wanted.logits_B, abs=1e-4)
    np.testing.assert_allclose(found.maps_Bhw, wanted.maps_Bhw, atol=1e-4)
    backend.close()
    driver.check_empty()


def test_a_detector_scans_with_it(install: Install, with_engine: Bundle, tmp_path: Path) -> None:
    driver = install()
    files = [write_image(tmp_path / f"{index}.png", index) for index in range(9)]
    with Detector.open(with_engine.path, "tensorrt") as detector:
        got = [scanned.verdict.p_ai for scanned in detector.scan(files, ScanOptions(4)) if scanned.verdict]
    with Detector.open(with_engine.path, "onnx") as detector:
        wanted = [scanned.verdict.p_ai for scanned in detector.scan(files, ScanOptions(4)) if scanned.verdict]
    assert got == pytest.approx(wanted, abs=1e-5)
    driver.check_empty()


# The fake itself: each of these is what it is there to find.


def test_the_fake_finds_a_leak(install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install()
    backend = TensorrtBackend(with_engine)
    with monkeypatch.context() as patch:
        patch.setattr("aivsreal.runtime.gpu.driver.DeviceBuffer.close", lambda self: None)
        backend.close()
    with pytest.raises(AssertionError, match="not given back"):
        driver.check_empty()


def test_the_fake_finds_a_use_after_free(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    backend = TensorrtBackend(with_engine)
    # The graphs of a buffer that was replaced by a larger one are launched again.
    monkeypatch.setattr("aivsreal.runtime.gpu.executor._Program.forget", lambda self: None)
    backend.run(_images(4))
    with pytest.raises(AssertionError, match=r"not allocated|was changed"):
        backend.run(_images(1))


def test_the_fake_finds_a_read_before_the_work_is_done(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    backend = TensorrtBackend(with_engine)
    monkeypatch.setattr("aivsreal.runtime.gpu.driver.Stream.synchronize", lambda self: None)
    assert np.isnan(backend.run(_images(3)).logits_B).all()


def test_the_fake_finds_a_staging_buffer_that_is_written_too_early(
    install: Install, with_engine: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    backend = TensorrtBackend(with_engine)
    slot = backend._taken(wait=True)
    assert slot is not None
    with backend._driver.current():
        slot.start(_images(1, seed=1))
        assert slot._staging is not None
        slot._staging.view()[:] = 0
        with pytest.raises(AssertionError, match="before the upload was done"):
            slot.finish()
