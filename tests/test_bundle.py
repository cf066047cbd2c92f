"""A bundle that is whole opens; any other gives one clear error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aivsreal.runtime.bundle.folder import Bundle, extended_folder, write_bundle
from aivsreal.runtime.bundle.manifest import Manifest, manifest_from_json
from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, OperatingPoint

MANIFEST = Manifest(
    "levit_192", LABELS, PreprocessSpec(), 1.5, (OperatingPoint("balanced", 0.6, 0.4, 0.05),), "balanced"
)
FILES = {"model.onnx": b"weights", "README.md": b"# card"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", FILES, MANIFEST)
    return tmp_path / "bundle"


def _edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_what_was_written_is_read_back(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES
    assert replace(bundle.manifest, files={}) == MANIFEST
    assert manifest_from_json(json.loads(json.dumps(bundle.manifest.to_json()))) == bundle.manifest


TOLD = replace(MANIFEST, metrics={"training": {"val": {"auc": 0.9}}}, provenance={"epoch": 3})


def test_what_is_told_lies_beside_the_manifest_and_is_listed_in_it(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", FILES, TOLD)
    values = json.loads((bundle.path / "manifest.json").read_bytes())
    assert "metrics" not in values
    assert set(values["files"]) == {"evaluation.json", *FILES}
    opened = Bundle.open(bundle.path)
    assert (opened.manifest.metrics, opened.manifest.provenance) == (TOLD.metrics, TOLD.provenance)
    # Written on: what is told is the manifest's, and not an older file.
    files = {name: opened.read(name) for name in opened.manifest.files}
    again = write_bundle(tmp_path / "again", files, replace(opened.manifest, metrics={"evaluation": {}}))
    assert again.manifest.metrics == Bundle.open(again.path).manifest.metrics == {"evaluation": {}}
    (bundle.path / "evaluation.json").write_text('{"metrics": {}, "provenance": {}}')
    with pytest.raises(BundleError, match=r"evaluation\.json is damaged or was changed"):
        Bundle.open(bundle.path)


def test_a_bundle_of_before_that_told_all_in_its_manifest_opens(folder: Path) -> None:
    _edit(folder, lambda values: values.update(format=1, **TOLD.told_to_json()))
    assert replace(Bundle.open(folder).manifest, files={}) == TOLD


@pytest.mark.parametrize("told", ["[]", '{"metrics": {}}', '{"metrics": 1, "provenance": {}}', "{"])
def test_a_wrong_evaluation_is_one_clear_error(folder: Path, told: str) -> None:
    (folder / "evaluation.json").write_text(told)
    digest = hashlib.sha256(told.encode()).hexdigest()
    _edit(folder, lambda values: values["files"].update({"evaluation.json": digest}))  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match=r"evaluation\.json cannot be used"):
        Bundle.open(folder)


def test_the_digest_changes_with_any_file(folder: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", {**FILES, "README.md": b"# other card"}, MANIFEST)
    assert len(other.digest) == 12
    assert other.digest != Bundle.open(folder).digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(format=3), "format 3"),
        (lambda values: values.pop("labels"), "exactly the fields"),
        (lambda values: values.update(extra=1), "exactly the fields"),
        (lambda values: values.update(labels=["ai", "real"]), "labels must be"),
        (lambda values: values.update(temperature=0), "temperature must be positive"),
        (lambda values: values.update(temperature="1"), "temperature must be a number"),
        (lambda values: values.update(default_operating_point="absent"), "absent"),
        (lambda values: values["operating_points"][0].update(real_below=0.9), "real_below"),
        (lambda values: values["preprocess"].update(antialias=False), "antialias"),
        (lambda values: values["preprocess"].update(geometry="stretch"), "stretch"),
        (lambda values: values["files"].update({"../model.onnx": "0" * 64}), "plain file name"),
        (lambda values: values["files"].update({"model.onnx": "0" * 63}), "64 hexadecimal"),
        (lambda values: values["files"].update({"absent.onnx": "0" * 64}), "absent.onnx"),
    ],
)
def test_a_wrong_manifest_is_one_clear_error(
    folder: Path, change: Callable[[dict[str, object]], object], words: str
) -> None:
    _edit(folder, change)
    with pytest.raises(BundleError, match=words) as error:
        Bundle.open(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_no_json_object_is_one_clear_error(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(folder)


def test_a_changed_byte_is_found(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(folder)


def test_a_file_that_changes_after_opening_is_not_used(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.read("model.onnx")


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="aivsreal-export"):
        Bundle.open(tmp_path / name)


def test_a_point_that_is_not_there_names_those_that_are() -> None:
    assert MANIFEST.point() is MANIFEST.points[0]
    with pytest.raises(BundleError, match="use one of balanced"):
        MANIFEST.point("absent")


def test_a_bundle_replaces_a_bundle(folder: Path) -> None:
    write_bundle(folder, {"model.onnx": b"better"}, MANIFEST)
    assert Bundle.open(folder).read("model.onnx") == b"better"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_folder_whose_manifest_lists_its_files_is_replaced_only_if_it_is_a_bundle(tmp_path: Path) -> None:
    photo = tmp_path / "site" / "a.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photograph")
    (tmp_path / "site" / "manifest.json").write_text('{"files": ["a.jpg"]}')
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(tmp_path / "site", FILES, MANIFEST)
    assert photo.read_bytes() == b"a photograph"


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "web", FILES, MANIFEST)
    assert (tmp_path / "web" / "manifest.json").read_text() == '{"name": "a web page"}'


def test_a_bundle_with_a_stranger_in_it_is_never_replaced(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        write_bundle(folder, FILES, MANIFEST)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("failing", range(1, 3))
def test_when_the_move_fails_the_old_bundle_stays(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    real_rename, calls = os.rename, 0

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BundleError, match="No space left"):
        write_bundle(folder, {"model.onnx": b"better"}, MANIFEST)
    assert Bundle.open(folder).read("model.onnx") == b"weights"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("stopped", "left"), [(1, b"weights"), (2, b"better")])
def test_a_stop_while_it_is_moved_leaves_a_whole_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stopped: int, left: bytes
) -> None:
    real_rename, calls = os.rename, 0

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        real_rename(source, target)
        if calls == stopped:
            signal.raise_signal(signal.SIGINT)  # Python raises it when the call is over

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, {"model.onnx": b"better"}, MANIFEST)
    assert Bundle.open(folder).read("model.onnx") == left
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_what_helps_is_said_of_the_bundle_that_is_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    shipped = Bundle.open()
    extended = extended_folder()
    assert extended is not None
    files = {name: shipped.read(name) for name in shipped.manifest.files}
    write_bundle(extended, {**files, "model.fp16.onnx": b"half"}, shipped.manifest)
    for place, advice in ((extended, f"run rm -r {extended}"), (folder, "make it again with aivsreal-export")):
        for file in place.glob("model*.onnx"):
            file.write_bytes(b"damaged")
        with pytest.raises(BundleError, match=f"its SHA-256 is not the manifest's; .*{re.escape(advice)}"):
            Bundle.open(None if place == extended else place)
    shutil.rmtree(extended)
    assert Bundle.open() == shipped


def test_a_bundle_that_is_being_written_does_not_open(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    (half / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read"):
        Bundle.open(half)


def test_a_value_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(tmp_path / "bundle", FILES, replace(MANIFEST, metrics={"auc": float("nan")}))
    assert not list(tmp_path.iterdir())
