"""The library's front door."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from aivsreal.runtime import Bundle, Detector, ScanOptions
from aivsreal.runtime.errors import BackendError, BundleError, Fault, ImageError
from aivsreal.runtime.preprocess import PixelsHWC, Scores
from aivsreal.runtime.verdict import Label
from aivsreal.train.evaluate.metrics import auc


class FakeBackend:
    """A fake: its logit is the median of an image, and not finite for a black one. It takes full pixels only."""

    name, precision = "fake", "fp32"
    takes_squares = has_maps = False

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        self.batches.append(len(images))
        medians = [float(np.median(values)) for values in images]
        return Scores(np.array([median - 128 if median else np.nan for median in medians], dtype=np.float32))

    def close(self) -> None:
        pass


@pytest.fixture
def fake(tiny_bundle: Path) -> Detector:
    bundle = Bundle.open(tiny_bundle)
    return Detector(bundle, FakeBackend(), "a fake", bundle.manifest.point())


def _grey(value: int) -> PixelsHWC:
    pixels_HWC = np.full((20, 20, 3), value, np.uint8)
    pixels_HWC[0, 0] ^= 128  # nothing could be seen in a flat one
    return pixels_HWC


def test_a_path_an_open_image_and_an_array_get_the_same_verdict(tiny_bundle: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", 1)
    with Detector.open(tiny_bundle) as detector, Image.open(path) as image:
        verdicts = [detector.judge(form) for form in (path, str(path), image, np.asarray(image))]
    assert verdicts == verdicts[:1] * 4


class Upload:
    """As web frameworks give one: a file of bytes behind a wrapper, without a name."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_judge_takes_paths_bytes_and_binary_files(fake: Detector, tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", 1)
    content = path.read_bytes()
    with path.open("rb") as file, os.scandir(tmp_path) as entries:
        forms = [path, str(path), next(entries), content, bytearray(content), memoryview(content), io.BytesIO(content)]
        verdicts = [fake.judge(form) for form in (*forms, file, Upload(content))]  # type: ignore[arg-type]
        assert verdicts == verdicts[:1] * 9
    assert list(fake.judge_many(forms[:6])) == verdicts[:6]


@pytest.mark.parametrize("image", [None, 7, ["a.jpg"], object(), {"path": "a.jpg"}])
def test_what_judge_does_not_take_is_a_type_error(fake: Detector, image: Any) -> None:
    for call in (lambda: fake.judge(image), lambda: list(fake.judge_many([image]))):
        with pytest.raises(TypeError, match="a path, the bytes of an image file, a file opened in binary mode"):
            call()


def test_a_file_opened_as_text_is_a_type_error(fake: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with (tmp_path / "a.txt").open() as file, pytest.raises(TypeError, match="'rb'"):
        fake.judge(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", Fault.EMPTY), (b"words", Fault.NOT_AN_IMAGE), (b"\xff\xd8\xff\xe0 and no more", Fault.DAMAGED)],
)
def test_bytes_that_cannot_be_judged_have_a_fault_as_files_do(fake: Detector, content: bytes, fault: Fault) -> None:
    for image in (content, io.BytesIO(content)):
        with pytest.raises(ImageError) as caught:
            fake.judge(image)
        assert caught.value.fault is fault


@pytest.mark.parametrize("one", ["a.jpg", Path("a.jpg"), b"bytes", io.BytesIO(b"bytes")])
def test_a_single_image_where_several_are_wanted_is_a_type_error(fake: Detector, one: Any) -> None:
    for call in (fake.judge_many, fake.scan):
        with pytest.raises(TypeError, match="must be several"):
            list(call(one))


def test_scan_takes_any_path_and_nothing_else(fake: Detector, tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", 1)
    with os.scandir(tmp_path) as entries:
        assert [one.path for one in fake.scan([path, str(path), next(entries)])] == [path] * 3
    with pytest.raises(TypeError, match="not bytes"):
        list(fake.scan([path.read_bytes()]))  # type: ignore[list-item]


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_closing_twice_is_fine_and_use_after_it_says_so(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = write_image(tmp_path / "image.png", 1)
    detector = Detector.open(tiny_bundle, backend)
    begun = detector.judge_many(itertools.repeat(path), batch_size=1)
    next(begun)
    detector.close()
    detector.close()
    detector.backend.close()
    for use in (
        lambda: detector.judge(path),
        lambda: list(detector.judge_many([path])),
        lambda: next(begun),
        lambda: list(detector.scan([path])),
        detector.__enter__,
    ):
        with pytest.raises(BackendError, match="the detector is closed"):
            use()


def test_onnx_and_torch_agree(tiny_bundle: Path, tiny_data: Path) -> None:
    paths = sorted((tiny_data / "val_unseen").rglob("*.png"))
    logits = []
    for backend in ("onnx", "torch"):
        with Detector.open(tiny_bundle, backend) as detector:
            assert detector.why == "asked for"
            logits.append(np.array([verdict.logit for verdict in detector.judge_many(paths)]))
    assert np.ptp(logits[0]) > 1e-3
    assert np.abs(logits[0] - logits[1]).max() < 1e-4


def test_a_batch_says_the_same_as_one_image(tiny_bundle: Path, tiny_data: Path) -> None:
    paths = sorted((tiny_data / "train").rglob("*.png"))[:7]
    with Detector.open(tiny_bundle, "onnx") as detector:
        alone = [detector.judge(path).logit for path in paths]
        together = [verdict.logit for verdict in detector.judge_many(paths, batch_size=3)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_training_export_and_runtime_agree_on_which_class_is_ai(
    tiny_run: Path, tiny_bundle: Path, tiny_data: Path
) -> None:
    # A network of eight steps has hardly learned, but its AUC is no half: with the classes swapped it would be another.
    validated = json.loads((tiny_run / "best.json").read_text())["metrics"]["val_unseen"]["auc"]
    assert abs(validated - 0.5) > 0.05
    logits, targets = [], []
    with Detector.open(tiny_bundle, "onnx") as detector:
        for target, label in enumerate(("real", "ai")):
            paths = sorted((tiny_data / "val_unseen" / label).glob("*.png"))
            logits += [verdict.logit for verdict in detector.judge_many(paths)]
            targets += [target] * len(paths)
    assert auc(np.array(targets), np.array(logits)) == pytest.approx(validated, abs=1 / 36 + 1e-9)  # one pair may tie


def test_judging_raises_what_is_wrong_with_an_image(fake: Detector, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="absent"):
        fake.judge(tmp_path / "absent.png")
    judged = fake.judge_many([_grey(1), _grey(255), tmp_path / "absent.png", _grey(9)], batch_size=8)
    assert [next(judged).label, next(judged).label] == [Label.REAL, Label.AI]
    with pytest.raises(ImageError, match="absent"):
        next(judged)


def test_judging_many_is_lazy(fake: Detector) -> None:
    taken = itertools.count()

    def images() -> Iterator[PixelsHWC]:
        while True:
            next(taken)
            yield _grey(200)

    judged = fake.judge_many(images(), batch_size=4)
    assert [next(judged).label for _ in range(6)] == [Label.AI] * 6
    assert next(taken) <= 12


def test_a_scan_keeps_the_order_and_goes_on_after_what_is_broken(fake: Detector, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for index, path in enumerate(paths):
        if index % 3 == 0:
            path.write_bytes(b"broken")
        elif index == 5:
            Image.fromarray(_grey(0)).save(path)  # the fake's logit of it is not finite
        else:
            Image.fromarray(_grey(20 * index)).save(path)
    scanned = list(fake.scan(paths, ScanOptions(batch_size=4)))
    assert [one.path for one in scanned] == paths
    assert [one.error is not None for one in scanned] == [index % 3 == 0 or index == 5 for index in range(10)]
    assert "not an image" in (scanned[0].error or "")
    assert str(tmp_path) not in (scanned[0].error or "")
    assert "nan" in (scanned[5].error or "")
    assert all(one.verdict.logit == 20 * i - 128 for i, one in enumerate(scanned) if one.verdict)


def test_a_scan_of_an_endless_stream_reads_no_more_than_its_window(fake: Detector, tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", 1)
    taken = itertools.count()
    endless = (path for _ in taken)
    scanned = fake.scan(endless, ScanOptions(batch_size=4))
    for _ in range(9):
        next(scanned)
    scanned.close()  # type: ignore[attr-defined]
    # The ninth result is of a batch that ends with the eleventh; a batch may wait for the network, two are decoded.
    assert next(taken) <= 11 + 3 * 4


def test_nonsense_of_a_backend_is_no_verdict(fake: Detector) -> None:
    with pytest.raises(BackendError, match="nonsense"):
        fake.judge(_grey(0))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one(fake: Detector, batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        list(fake.scan([], ScanOptions(batch_size=batch_size)))


def test_unknown_backends_and_points_are_clear_errors(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        Detector.open(tiny_bundle, "cuda")
    with pytest.raises(BackendError, match="TensorRT"):
        Detector.open(tiny_bundle, "tensorrt")
    with pytest.raises(BundleError, match="no operating point 'strict'"):
        Detector.open(tiny_bundle, operating_point="strict")


def test_a_backend_reads_its_precision_from_the_network(tiny_bundle: Path) -> None:
    with Detector.open(tiny_bundle, "onnx") as detector:
        assert (detector.backend.name, detector.backend.precision) == ("onnx-cpu", "fp32")
        assert detector.backend.run([]).logits_B.shape == (0,)


def test_a_network_for_another_size_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from aivsreal.runtime.bundle.folder import write_bundle
    from aivsreal.runtime.spec import PreprocessSpec

    old = Bundle.open(tiny_bundle)
    files = {"model.onnx": old.read("model.onnx")}
    write_bundle(tmp_path / "odd", files, replace(old.manifest, spec=PreprocessSpec(96)))
    with pytest.raises(BundleError, match="96"):
        Detector.open(tmp_path / "odd", "onnx")
    write_bundle(tmp_path / "junk", {"model.onnx": b"junk"}, old.manifest)
    for backend in ("onnx", "torch"):
        with pytest.raises(BundleError, match=r"model\.onnx"):
            Detector.open(tmp_path / "junk", backend)


def test_what_the_docstring_of_open_names_is_there() -> None:
    names = re.findall(r"`(backends?[.][\w.]+)`", Detector.open.__doc__ or "")
    assert len(names) == 2
    for name in names:
        module, _, inside = f"aivsreal.runtime.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), inside)
