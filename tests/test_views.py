"""Several views of an image: which parts they are, that the mean of their logits decides, and that rows say so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import write_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aivsreal.benchmarks.studies import views as study
from aivsreal.runtime import ScanOptions
from aivsreal.runtime.backends.onnx import OnnxBackend
from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import FULL_VIEWS, MODEL, FullViews, Manifest, manifest_from_json
from aivsreal.runtime.commands.report import main as report
from aivsreal.runtime.commands.scan import main as scan
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.explain import Explainer
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import PixelsHWC, Scores, square_from_pixels
from aivsreal.runtime.results.row import row_from_line
from aivsreal.runtime.spec import PreprocessSpec, Window, Windows, halvings
from aivsreal.runtime.verdict import LABELS, OperatingPoint
from aivsreal.train.calibrate.command import main as calibrate
from aivsreal.train.calibrate.views import FULL_WINDOWS, recalibrated, with_full_views
from aivsreal.train.evaluate.commands import main as evaluate

SPEC = PreprocessSpec(64)
PARTS = (Window(1.0), Window(0.9, 0.0, 0.0), Window(0.6, 1.0, 0.5, mirrored=True))
SHARES, PLACES = st.floats(0.3, 1.0), st.floats(0.0, 1.0)
FULL_POINTS = (OperatingPoint("balanced-full", 0.6, 0.4, 0.02), OperatingPoint("cautious-full", 0.9, 0.4, 0.01))
FULL = FullViews(PARTS, 2.0, FULL_POINTS, "balanced-full")
MANIFEST = Manifest(
    "levit_128s", LABELS, SPEC, 1.0, (OperatingPoint("balanced", 0.5, 0.5), OperatingPoint("cautious", 0.8, 0.5)),
    "balanced", full_views=FULL,
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "bundle"
    write_bundle(folder, {MODEL: small_model.SerializeToString()}, MANIFEST)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(150, 110), (110, 150), (120, 120), (700, 520), (40, 30)]
    return [
        write_image(folder / f"{index}.png", index, size, smooth=index % 2 == 0) for index, size in enumerate(sizes)
    ]


class WholePixels(OnnxBackend):
    """A backend that resizes by itself, as a kernel does."""

    takes_squares = False

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        spec = self._bundle.manifest.spec
        return super().run([square_from_pixels(pixels_HWC, spec) for pixels_HWC in images], maps)


def expected_logits(bundle: Path, photos: Sequence[Path]) -> list[float]:
    """The mean over windows that are cut by hand, and judged each as an image."""
    means = []
    with Detector.open(bundle, "onnx-cpu") as detector:
        for path in photos:
            pixels_HWC = pixels_from_file(path)
            height, width = pixels_HWC.shape[:2]
            logits = []
            for one in PARTS:
                side = round(min(height, width) * one.share)
                left, top = round((width - side) * one.across), round((height - side) * one.down)
                part_HWC = pixels_HWC[top : top + side, left : left + side]
                logits.append(detector.judge((np.fliplr(part_HWC) if one.mirrored else part_HWC).copy()).logit)
            means.append(float(np.mean(logits)))
    return means


@given(st.integers(16, 40_000), st.integers(16, 40_000), SHARES, PLACES, PLACES)
def test_a_window_lies_in_the_image_and_is_the_same_of_a_picture_decoded_at_a_smaller_scale(
    width: int, height: int, share: float, across: float, down: float
) -> None:
    windows = Windows.of(PreprocessSpec(), (Window(share, across, down),))
    ((left, top, right, bottom),) = windows.boxes(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    step = halvings(min(width, height), windows.least_side)
    assert abs(right - left - min(width, height) * share) <= 2 * step
    divisor = min(8, step)
    (box,) = windows.boxes(-(-width // divisor), -(-height // divisor))
    assert (left, top, right, bottom) == tuple(
        min(edge * divisor, side) for edge, side in zip(box, (width, height) * 2, strict=True)
    )


def test_the_smallest_window_holds_twice_the_input_at_the_scale_that_is_allowed() -> None:
    windows = Windows.of(PreprocessSpec(), (Window(1.0), Window(0.5)))
    side = windows.least_side
    left, _, right, _ = windows.boxes(side, side)[1]
    assert right - left >= PreprocessSpec().least_side - 1
    assert Windows().boxes(30, 20) == [(0, 0, 30, 20)]


def test_a_manifest_with_several_views_survives_json_and_one_without_has_no_such_field() -> None:
    written = json.loads(json.dumps(MANIFEST.to_json()))
    assert manifest_from_json(written) == MANIFEST
    plain = replace(MANIFEST, full_views=None)
    assert FULL_VIEWS not in plain.to_json()
    assert manifest_from_json(json.loads(json.dumps(plain.to_json()))) == plain


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"windows": []}, "full views need windows"),
        ({"windows": [{"share": 1.2, "across": 0, "down": 0, "mirrored": False}]}, "a window has a share in"),
        ({"windows": [{"share": 1.0, "across": 0}]}, "needs exactly the fields"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"default_point": "balanced"}, "operating points need distinct names and the default"),
    ],
)
def test_views_that_cannot_be_are_refused(change: dict[str, object], told: str) -> None:
    written = json.loads(json.dumps(MANIFEST.to_json()))
    written[FULL_VIEWS] |= change
    with pytest.raises(ValueError, match=told):
        manifest_from_json(written)


def test_a_point_says_which_views_are_meant() -> None:
    assert MANIFEST.point().name == "balanced"
    assert MANIFEST.point(full=True) == FULL_POINTS[0]
    assert MANIFEST.point("cautious", full=True) == MANIFEST.point("cautious-full") == FULL_POINTS[1]
    assert MANIFEST.windows(FULL_POINTS[0]).parts == PARTS
    assert MANIFEST.windows(MANIFEST.point()) == Windows((), SPEC.least_side)
    assert (MANIFEST.temperature_at(FULL_POINTS[0]), MANIFEST.temperature_at(MANIFEST.point())) == (2.0, 1.0)
    with pytest.raises(BundleError, match="use one of balanced, cautious, balanced-full, cautious-full"):
        MANIFEST.point("sensitive", full=True)
    with pytest.raises(BundleError, match="one view of an image only: leave --views full out"):
        replace(MANIFEST, full_views=None).point(full=True)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_the_mean_of_the_views_decides(
    bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, whole: bool, isolate: bool
) -> None:
    expected = expected_logits(bundle, photos)
    if whole:
        monkeypatch.setattr(
            "aivsreal.runtime.detector.open_backend", lambda opened, *_: (WholePixels(opened), "for a test")
        )
    with Detector.open(bundle, "onnx-cpu", full_views=True) as detector:
        assert detector.judge_of_rows.operating_point == "balanced-full"
        with detector.decode_pool(ScanOptions(threads=2, isolate=isolate)) as pool:
            rows = list(detector.scan(photos, ScanOptions(batch_size=4, views=True), pool))
        judged = [detector.judge(path) for path in photos]
    for row, verdict, logit in zip(rows, judged, expected, strict=True):
        assert row.verdict is not None
        assert (row.verdict.logit, verdict.logit) == (pytest.approx(logit, abs=1e-4), pytest.approx(logit, abs=1e-4))
        assert row.verdict.p_ai == pytest.approx(1 / (1 + np.exp(-logit / 2.0)), abs=1e-4)
        assert row.verdict.label is FULL_POINTS[0].label(row.verdict.p_ai)
        assert row.verdict.reason.endswith("from the mean of 3 views")
        assert row.frames == ()
        assert row.view is not None
        assert row.view.square_SSC.shape == (64, 64, 3)


def test_frames_and_views_go_together(bundle: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{index}.png", index, (150, 110)) for index in range(2)]
    images = [Image.open(path) for path in paths]
    images[0].save(tmp_path / "two.png", "PNG", save_all=True, append_images=images[1:])
    expected = expected_logits(bundle, paths)
    with Detector.open(bundle, "onnx-cpu", full_views=True) as detector:
        (row,) = detector.scan([tmp_path / "two.png"], ScanOptions(frames=2))
    assert row.verdict is not None
    assert row.verdict.logit == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert row.verdict.reason.endswith("from the mean of 3 views, from the mean of 2 frames")
    assert [p_ai for _, p_ai in row.frames] == [pytest.approx(1 / (1 + np.exp(-one / 2)), abs=1e-4) for one in expected]


@pytest.mark.parametrize("whole", [False, True])
def test_a_second_opinion_sees_the_whole_image(
    bundle: Path, small_model: Any, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    first = tmp_path / "first"  # calls nothing real
    never = FullViews(PARTS, 1.0, (OperatingPoint("balanced-full", 0.0, 0.0),), "balanced-full")
    write_bundle(first, {MODEL: small_model.SerializeToString()}, replace(MANIFEST, full_views=never))
    with Detector.open(bundle, "onnx-cpu") as detector:
        alone = [detector.judge(path).logit for path in photos]
    if whole:
        monkeypatch.setattr(
            "aivsreal.runtime.detector.open_backend", lambda opened, *_: (WholePixels(opened), "for a test")
        )
    with Detector.open(first, "onnx-cpu", second_opinion=bundle, full_views=True) as detector:
        rows = list(detector.scan(photos))
        judged = [detector.judge(path).logit for path in photos]
    assert judged == [pytest.approx(logit, abs=1e-4) for logit in alone]
    assert [row.verdict and row.verdict.logit for row in rows] == judged
    assert all(row.first is not None and "3 views" in row.first.reason for row in rows)


def _scan(*arguments: object) -> Result:
    return CliRunner().invoke(scan, [str(argument) for argument in (*arguments, "--backend", "onnx-cpu")])


def test_rows_say_which_views_and_a_results_file_keeps_to_them(
    bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    output, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    full = ("--bundle", bundle, "--views", "full", "--output", output)
    result = _scan(photos[0], *full)
    assert result.exit_code == 0, result.output
    assert "operating point balanced-full" in result.stderr
    (row,) = map(row_from_line, output.read_bytes().splitlines())
    assert row.judge.operating_point == "balanced-full"
    refused = _scan(*photos, "--bundle", bundle, "--output", output, "--resume")
    assert refused.exit_code == 2
    assert "at point balanced-full" in refused.stderr
    assert _scan(*photos, *full, "--resume").exit_code == 0
    made = CliRunner().invoke(report, [str(output), "--html", str(page), "--bundle", str(bundle)])
    assert made.exit_code == 0, made.output
    assert "3 parts of the image" in page.read_text(encoding="utf-8")


def test_several_views_of_a_bundle_that_has_one_are_refused(
    small_model: Any, photos: list[Path], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "one", {MODEL: small_model.SerializeToString()}, replace(MANIFEST, full_views=None))
    result = _scan(photos[0], "--bundle", tmp_path / "one", "--views", "full")
    assert result.exit_code == 2
    assert "leave --views full out" in result.stderr


def test_grad_cam_is_of_one_view(bundle: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(BundleError, match="a map is of one view"):
        Explainer(bundle, "balanced-full")


def test_several_views_are_calibrated_and_evaluated_beside_the_one(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path
) -> None:
    new, data = tmp_path / "new", str(tiny_data)
    run = ["--bundle", str(tiny_bundle), "--backend", "onnx-cpu", "--split", "train", "--views", "full"]
    result = CliRunner().invoke(calibrate, [data, *run, "-o", str(new)])
    assert result.exit_code == 0, result.output
    before, after = Bundle.open(tiny_bundle).manifest, Bundle.open(new).manifest
    assert after.full_views is not None
    assert after.full_views.windows == FULL_WINDOWS
    assert after.full_views.temperature == json.loads(result.stdout)["temperature"]
    assert {one.name for one in after.full_views.points} == {"balanced-full", "cautious-full", "sensitive-full"}
    assert (after.temperature, after.points) == (before.temperature, before.points)

    run = ["--bundle", str(new), "--backend", "onnx-cpu", "--split", "val_unseen", "--no-baseline", "--record"]
    for views in ("fast", "full"):
        result = CliRunner().invoke(evaluate, [data, *run, "--views", views])
        assert result.exit_code == 0, result.output
    manifest = Bundle.open(new).manifest
    points = [manifest.measured_at(manifest.point(full=full))["evaluation"]["about"] for full in (False, True)]
    assert [one["operating_point"] for one in points] == [manifest.default_point, after.full_views.default_point]
    card = Bundle.open(new).read("README.md").decode()
    assert f"With `--views full` {len(FULL_WINDOWS)} windows of an image are judged" in card
    assert "### Numbers with them" in card
    assert "### Macro average with them" in card


def test_a_logit_that_is_moved_takes_the_other_views_along() -> None:
    manifest = replace(with_full_views(MANIFEST), metrics={"training": {}, FULL_VIEWS: {"calibration": {}}})
    points = [OperatingPoint("balanced", 0.7, 0.3)]
    kept = recalibrated(manifest, 1.5, points, "balanced", {"offset": 0.0}, full=False)
    assert (kept.full_views, kept.temperature) == (FULL, 1.5)
    assert FULL_VIEWS in kept.metrics
    moved = recalibrated(manifest, 1.5, points, "balanced", {"offset": 0.4}, full=False)
    assert moved.full_views is None
    assert FULL_VIEWS not in moved.metrics


def test_the_study_compares_each_candidate_with_the_one_view(
    tiny_bundle: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "DRAWS", 5)
    result = CliRunner().invoke(study.main, [str(tiny_data), "--bundle", str(tiny_bundle), "--backend", "onnx-cpu"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["tier"], row["geometry"]) for row in rows] == [
        (tier, name) for tier in ("clean", "web") for name in study.CANDIDATES
    ]
    assert rows[0]["auc_gain"] == rows[0]["macro_auc_gain"] == [0.0, 0.0, 0.0]
    assert all(0 <= row["auc"] <= 1 for row in rows)


def test_a_gain_is_paired_and_weighs_sources_alike_where_asked() -> None:
    target_B, source_B = np.array([0, 0, 0, 0, 1, 1]), ["a", "b", "b", "b", "c", "c"]
    base_B = np.array([1.0, 0.0, 0.0, 0.0, 0.5, 0.5])
    better_B = np.array([0.2, 0.0, 0.0, 0.0, 0.5, 0.5])
    value, low, high = study.gain(target_B, source_B, base_B, better_B, macro=False)
    assert value == pytest.approx(0.25)
    assert low == pytest.approx(0.25)  # one image of a source is always drawn
    assert high == pytest.approx(0.25)
    assert study.gain(target_B, source_B, base_B, better_B, macro=True)[0] == pytest.approx(0.5)
    assert study.gain(target_B, source_B, base_B, base_B, macro=True) == (0.0, 0.0, 0.0)
