"""A second model judges again what the first does not call real, in one scan; rows keep what the first one said."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import write_image
from PIL import Image

from aivsreal.runtime import ScanOptions
from aivsreal.runtime.backends.onnx import OnnxBackend
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import MODEL, Manifest
from aivsreal.runtime.commands.report import main as report
from aivsreal.runtime.commands.scan import main as scan
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.files import decode
from aivsreal.runtime.preprocess import PixelsHWC, Scores, square_from_pixels
from aivsreal.runtime.results.heatmap import path_for
from aivsreal.runtime.results.row import row_from_line
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, Label, OperatingPoint

FIRST = PreprocessSpec(64)
SECOND = PreprocessSpec(64, crop_fraction=1.0, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [
        write_image(folder / f"{index:02}.png", index, (90 + index, 70), smooth=index % 2 == 0) for index in range(12)
    ]


def bundle_of(folder: Path, model: Any, spec: PreprocessSpec, low: float, high: float) -> Path:
    points = (OperatingPoint("balanced", high, low),)
    manifest = Manifest("levit_128s", LABELS, spec, 1.0, points, "balanced")
    write_bundle(folder, {MODEL: model.SerializeToString()}, manifest)
    return folder


def alone(bundle: Path, photos: Sequence[Path]) -> list[Any]:
    with Detector.open(bundle, "onnx-cpu") as detector:
        return [detector.judge(path) for path in photos]


@pytest.fixture(scope="module")
def first(small_model: Any, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of twelve each."""
    folder = tmp_path_factory.mktemp("first")
    p_ai = sorted(one.p_ai for one in alone(bundle_of(folder / "any", small_model, FIRST, 0.5, 0.5), photos))
    low, high = (p_ai[3] + p_ai[4]) / 2, (p_ai[7] + p_ai[8]) / 2
    return bundle_of(folder / "bundle", small_model, FIRST, low, high)


@pytest.fixture(scope="module")
def second(small_model: Any, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    p_ai = sorted(one.p_ai for one in alone(bundle_of(folder / "any", small_model, SECOND, 0.5, 0.5), photos))
    middle = (p_ai[5] + p_ai[6]) / 2
    return bundle_of(folder / "bundle", small_model, SECOND, middle, middle)


def _scan(*arguments: object) -> Result:
    return CliRunner().invoke(scan, [str(argument) for argument in (*arguments, "--backend", "onnx-cpu")])


@pytest.mark.parametrize("isolate", [False, True])
def test_each_row_is_the_second_models_where_the_first_does_not_say_real(
    first: Path, second: Path, photos: list[Path], isolate: bool
) -> None:
    ones, others = alone(first, photos), alone(second, photos)
    assert {one.label for one in ones} == set(Label)
    assert {other.label for one, other in zip(ones, others, strict=True) if one.label is not Label.REAL} == {
        Label.AI, Label.REAL,
    }  # fmt: skip
    with Detector.open(first, "onnx-cpu", second_opinion=second) as detector:
        with detector.decode_pool(ScanOptions(threads=2, isolate=isolate)) as pool:
            scanned = list(detector.scan(photos, ScanOptions(batch_size=5, views=True), pool))
        judged = list(detector.judge_many(photos, batch_size=5))
        assert judged == [detector.judge(path) for path in photos]
    for one, other, row, verdict in zip(ones, others, scanned, judged, strict=True):
        final = one if one.label is Label.REAL else other
        assert row.verdict is not None
        assert (row.verdict.label, verdict.label) == (final.label, final.label)
        assert row.verdict.p_ai == pytest.approx(final.p_ai, abs=1e-5)
        assert row.view is not None
        assert row.view.map_hw is not None
        assert row.view.map_hw.mean() == pytest.approx(final.logit, abs=1e-3)
        if one.label is Label.REAL:
            assert row.first is None
        else:
            assert row.first is not None
            assert row.first.label is one.label
            assert row.first.p_ai == pytest.approx(one.p_ai, abs=1e-5)
            assert f"the first model said {one.label.value}" in row.verdict.reason
            assert Bundle.open(second).digest in row.verdict.reason


def test_a_file_is_decoded_once_and_a_second_square_is_made_only_where_it_is_another(
    first: Path, second: Path, small_model: Any, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = bundle_of(tmp_path / "same", small_model, PreprocessSpec(64, mean=SECOND.mean, std=SECOND.std), 0.5, 0.5)
    opened: list[Path] = []
    squares: list[PreprocessSpec] = []
    open_picture, make_square = decode.opened, decode.square_from_image
    monkeypatch.setattr(
        decode, "opened", lambda snapshot, most: opened.append(snapshot.path) or open_picture(snapshot, most)
    )
    monkeypatch.setattr(
        decode, "square_from_image", lambda image, spec: squares.append(spec) or make_square(image, spec)
    )
    for other, specs in ((second, [FIRST, SECOND]), (same, [FIRST])):
        opened.clear()
        squares.clear()
        with Detector.open(first, "onnx-cpu", second_opinion=other) as detector:
            assert len(list(detector.scan(photos, ScanOptions(threads=1)))) == len(photos)
        assert sorted(opened) == photos
        assert squares == specs * len(photos)


class WholePixels(OnnxBackend):
    """A backend that resizes by itself, as a kernel does."""

    takes_squares = False

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        spec = self._bundle.manifest.spec
        return super().run([square_from_pixels(pixels_HWC, spec) for pixels_HWC in images], maps)


@pytest.mark.parametrize("whole", [(True, False), (False, True), (True, True)])
def test_models_that_take_whole_pixels_and_squares_go_together(
    first: Path, second: Path, photos: list[Path], whole: tuple[bool, bool]
) -> None:
    with Detector.open(first, "onnx-cpu", second_opinion=second) as expected:
        rows = list(expected.scan(photos))
    detectors: list[Detector] = []
    for path, takes_whole in zip((second, first), whole[::-1], strict=True):
        bundle = Bundle.open(path)
        backend = (WholePixels if takes_whole else OnnxBackend)(bundle, provider="cpu")
        other = detectors[0] if detectors else None
        detectors.append(Detector(bundle, backend, "asked for", bundle.manifest.point(), other))
    with detectors[1] as detector:
        found = list(detector.scan(photos, ScanOptions(views=True)))
        assert [one.label for one in detector.judge_many(photos)] == [row.verdict and row.verdict.label for row in rows]
    for row, same in zip(rows, found, strict=True):
        assert row.verdict is not None
        assert same.verdict is not None
        assert (row.verdict.label, row.first is None) == (same.verdict.label, same.first is None)
        assert same.verdict.p_ai == pytest.approx(row.verdict.p_ai, abs=1e-4)
        assert same.view is not None
        assert same.view.square_SSC.shape == (64, 64, 3)


def test_a_heat_map_names_the_model_that_it_is_of(
    first: Path, second: Path, photos: list[Path], tmp_path: Path
) -> None:
    result = _scan(*photos, "--bundle", first, "--second-opinion", second, "--jsonl", "--heatmaps", tmp_path)
    named = [
        (Bundle.open(second if "first" in json.loads(line) else first).name, path_for(tmp_path, Path(photo)))
        for line in result.stdout.splitlines()
        for photo in [json.loads(line)["path"]]
    ]
    assert len({name for name, _ in named}) == 2
    for name, stem in named:
        with Image.open(stem.with_name(f"{stem.name}.png")) as picture:
            assert picture.text["Software"].endswith(f"bundle {name}")  # type: ignore[attr-defined]


def test_rows_say_who_judged_and_are_read_back(first: Path, second: Path, photos: list[Path]) -> None:
    result = _scan(*photos, "--bundle", first, "--second-opinion", second, "--jsonl")
    assert result.exit_code == 0, result.output
    assert "second opinion: backend onnx-cpu" in result.stderr
    assert "8 of them a second opinion" in result.stderr
    one, other = Bundle.open(first).digest, Bundle.open(second).digest
    lines = result.stdout.splitlines()
    for line, values in zip(lines, map(json.loads, lines), strict=True):
        assert (values["bundle"], values["second_opinion"]["bundle"]) == (one, other)
        assert ("first" in values) == (other in values["reason"])
        row = row_from_line(line)
        assert row.judge.second is not None
        assert row.judge.second.bundle == other
        assert (row.scanned.first is not None) == ("first" in values)
    assert sum("first" in json.loads(line) for line in lines) == 8


def test_a_results_file_goes_on_with_the_same_two_models_alone(
    first: Path, second: Path, photos: list[Path], tmp_path: Path
) -> None:
    results = tmp_path / "results.jsonl"
    both = ("--bundle", first, "--second-opinion", second, "--output", results)
    assert _scan(*photos[:7], *both).exit_code == 0
    for others in (("--bundle", first), ("--bundle", first, "--second-opinion", first.parent / "any")):
        refused = _scan(*photos, *others, "--output", results, "--resume")
        assert refused.exit_code == 2
        assert "second opinion" in refused.stderr
    gone_on = _scan(*photos, *both, "--resume")
    assert gone_on.exit_code == 0, gone_on.output
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [Path(row["path"]) for row in rows] == photos
    made = CliRunner().invoke(
        report,
        [str(results), "--html", str(tmp_path / "r.html"), "--csv", str(tmp_path / "r.csv"), "--bundle", str(first)],
    )
    assert made.exit_code == 0, made.output
    page = (tmp_path / "r.html").read_text()
    assert "Second opinion" in page
    assert Bundle.open(second).digest in page
    with (tmp_path / "r.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["first_label"] for cell in cells] == [row.get("first", {}).get("label", "") for row in rows]
    assert all(0 <= float(cell["first_p_ai"]) <= 1 for cell in cells if cell["first_label"])


def test_metadata_that_are_trusted_come_after_both(
    first: Path, second: Path, photos: list[Path], tmp_path: Path
) -> None:
    from PIL import Image, PngImagePlugin

    declared = []
    for path in photos:
        about = PngImagePlugin.PngInfo()
        about.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: x")
        declared.append(tmp_path / path.name)
        with Image.open(path) as image:
            image.save(declared[-1], pnginfo=about)
    with Detector.open(first, "onnx-cpu", second_opinion=second) as detector:
        rows = list(detector.scan(declared, ScanOptions(trust_metadata=True)))
    assert {row.verdict and row.verdict.label for row in rows} == {Label.AI}
    assert sum(row.first is not None for row in rows) == 8, "the picture alone decides who is asked"


def test_a_second_model_that_is_missing_or_the_first_itself_is_refused_at_once(first: Path, photos: list[Path]) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Detector.open(first, "onnx-cpu", second_opinion="nowhere")
    same = _scan(photos[0], "--bundle", first, "--second-opinion", first)
    assert same.exit_code == 2
    assert "another model" in same.stderr


def test_closing_closes_both_and_nonsense_of_the_second_is_an_error_of_that_row(
    first: Path, second: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.open(first, "onnx-cpu", second_opinion=second)
    assert detector.second is not None
    monkeypatch.setattr(
        detector.second.backend, "run", lambda images, maps=False: Scores(np.full(len(images), np.nan, np.float32))
    )
    rows = list(detector.scan(photos))
    assert sum(row.verdict is None for row in rows) == 8
    assert all(row.error is None or "nan" in row.error for row in rows)
    detector.close()
    with pytest.raises(BackendError, match="closed"):
        detector.second.judge(photos[0])
