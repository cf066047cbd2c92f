"""An engine runs only where it fits, only on the model it was built of, and says both places when it does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aivsreal.runtime.bundle.engine_key import (
    Device,
    EngineCard,
    EngineKey,
    EngineKind,
    card_from_json,
    engine_for,
    engines_of,
)
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, OperatingPoint

MODEL_SHA256 = "9b8f1ee8b6ce5e16b2ba0ba4a1c8fc2fc4ad8ea9ba3ab9b4ab8fb3a1a7cbae6f"
SPEC = PreprocessSpec()
MANIFEST = Manifest("levit_192", LABELS, SPEC, 1.0, (OperatingPoint("balanced", 0.5, 0.5),), "balanced")
ORIN = Device(EngineKind.TENSORRT, "10.3.0", "8.7", "linux-aarch64")
KEY = EngineKey(EngineKind.TENSORRT, "10.3.0", ("8.7",), "linux-aarch64", "fp16", 1, 8, 32, MODEL_SHA256)
CARD = EngineCard(KEY, SPEC, "Orin", ("strongly typed",), 600, 590, "0" * 64, {"max_probability": 0.01, "flips": 0})


def _bundle(folder: Path, *cards: EngineCard) -> Bundle:
    model = b"the model"
    digest = hashlib.sha256(model).hexdigest()
    files = {"model.onnx": model}
    for card in cards:
        mine = replace(card, key=replace(card.key, onnx_sha256=digest))
        files |= {mine.file: mine.file.encode(), mine.card_file: json.dumps(mine.to_json()).encode()}
    return write_bundle(folder, files, MANIFEST)


def test_a_card_is_read_back_as_it_was_written() -> None:
    assert card_from_json(json.loads(json.dumps(CARD.to_json()))) == CARD
    assert CARD.file == "fp16-sm_87-tensorrt-10.3.0-linux-aarch64-b32.engine"
    assert CARD.card_file == CARD.file + ".json"


@pytest.mark.parametrize(
    ("device", "fits"),
    [
        (ORIN, True),
        (replace(ORIN, version="10.3.1"), False),
        (replace(ORIN, compute_capability="8.6"), False),
        (replace(ORIN, platform="linux-x86_64"), False),
        (replace(ORIN, kind=EngineKind.TENSORRT_RTX), False),
    ],
)
def test_an_engine_fits_the_place_it_was_built_for_and_no_other(device: Device, fits: bool) -> None:
    assert KEY.fits(device) is fits


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.3.0", "10.16.0", True),
        ("10.3.0", "11.4.0", True),
        ("8.6.1", "10.3.0", True),
        ("8.6.1", "11.4.0", False),
        ("10.3.0", "10.2.0", False),  # forward only
        ("11.4.0", "12.0.0", False),
    ],
)
def test_a_version_compatible_engine_runs_on_later_versions_up_to_the_next_major(
    built: str, here: str, fits: bool
) -> None:
    key = replace(KEY, version=built, version_compatible=True)
    assert key.fits(replace(ORIN, version=here)) is fits
    assert not replace(key, version_compatible=False).fits(replace(ORIN, version=here))


def test_the_best_engine_that_fits_is_taken(tmp_path: Path) -> None:
    compatible = replace(CARD, key=replace(KEY, version="8.6.1", version_compatible=True, max_batch=64))
    on_dla = replace(CARD, key=replace(KEY, dla_core=0, max_batch=64))
    full = replace(CARD, key=replace(KEY, precision="fp32"))
    elsewhere = replace(CARD, key=replace(KEY, compute_capabilities=("9.0",)))
    bundle = _bundle(tmp_path / "bundle", compatible, on_dla, full, elsewhere, CARD)
    assert len(engines_of(bundle)) == 5
    assert engine_for(bundle, ORIN).file == CARD.file
    assert bundle.read(engine_for(bundle, ORIN).file) == CARD.file.encode()
    assert engine_for(bundle, replace(ORIN, version="10.4.0")).file == compatible.file


def test_an_engine_for_another_place_names_both_and_the_command(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", CARD)
    with pytest.raises(BackendError) as error:
        engine_for(bundle, Device(EngineKind.TENSORRT, "11.4.0", "9.0", "linux-x86_64"))
    for words in ("sm_87 with TensorRT 10.3.0", "sm_90 with TensorRT 11.4.0", "run aivsreal-export --fp16"):
        assert words in str(error.value)


def test_a_bundle_without_an_engine_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no engine in the bundle for sm_87 .* aivsreal-export --fp16"):
        engine_for(_bundle(tmp_path / "bundle"), ORIN)


def _values(**key: object) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(CARD.to_json()))
    values["key"].update(key)
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "format None"),
        ({**_values(), "format": 2}, "format 2"),
        ({**_values(), "extra": 1}, "exactly the fields"),
        ({**_values(), "key": []}, "key must be an object"),
        ({**_values(), "spec": None}, "preprocessing must be an object"),
        ({**_values(), "layers": "600"}, "layers must be a whole number"),
        ({**_values(), "flags": ["a", 1]}, "a value of flags must be a text"),
        (_values(version="new"), "version must be like"),
        (_values(kind="openvino"), "openvino"),
        (_values(precision="fp8"), "precision"),
        (_values(max_batch=True), "max_batch must be a whole number"),
        (_values(dla_core=-1), "dla_core must not be negative"),
        ({**_values(), "parity": {"flips": "none"}}, "parity.flips must be a number"),
        (_values(min_batch=9), "min_batch <= opt_batch"),
        (_values(compute_capabilities=[]), "compute capabilities"),
        (_values(onnx_sha256="abc"), "64 hexadecimal"),
    ],
)
def test_a_wrong_card_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        card_from_json(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files, name: files.pop(name + ".json"), "lists no"),
        (lambda files, name: files.update({name + ".json": b"{"}), "cannot be used"),
        (lambda files, name: files.update({"fp16-other.engine": b"", "fp16-other.engine.json": files[name + ".json"]}),
         "it describes"),
        (lambda files, name: files.update({"model.onnx": b"another model"}), "another model than model.onnx"),
        (lambda files, name: files.update({name + ".json": files[name + ".json"].replace(b"0.875", b"0.5")}),
         "another preprocessing"),
    ],
)  # fmt: skip
def test_an_engine_whose_card_does_not_belong_to_it_is_refused(
    tmp_path: Path, change: Callable[[dict[str, bytes], str], object], words: str
) -> None:
    bundle = _bundle(tmp_path / "bundle", CARD)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    change(files, CARD.file)
    with pytest.raises(BundleError, match=words):
        engine_for(write_bundle(tmp_path / "other", files, MANIFEST), ORIN)


def test_an_engine_that_was_changed_is_never_read(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", CARD)
    (tmp_path / "bundle" / CARD.file).write_bytes(b"something else")
    with pytest.raises(BundleError, match="damaged or was changed"):
        bundle.read(engine_for(bundle, ORIN).file)
    with pytest.raises(BundleError, match="damaged or was changed"):
        Bundle.open(tmp_path / "bundle")
