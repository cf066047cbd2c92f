"""Temperature and operating points on logits whose answer is known, and the command with a stand-in detector."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.detector import Detector
from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.results.facts import Ran, model_facts
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, Label, OperatingPoint, Verdict, p_ai_from_logit, verdict_from_logit
from aivsreal.train.calibrate.command import main
from aivsreal.train.calibrate.points import (
    default_point_of,
    doubts_of,
    measured_point,
    nll,
    offset_from_logits,
    points_from_logits,
    temperature_from_logits,
    weights_alike,
)
from aivsreal.train.calibrate.recentre import recentred_model
from aivsreal.train.evaluate.metrics import value_of

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Targets = np.ndarray[tuple[int], np.dtype[np.int64]]


def _alike(target_B: Targets) -> Floats:
    """Weights of images of one source a class."""
    return weights_alike(target_B, ["-"] * len(target_B))


def _honest(images: int, seed: int = 0) -> tuple[Targets, Floats]:
    """Logits that mean what they say: the target is drawn with their sigmoid."""
    rng = np.random.default_rng(seed)
    logit_B = rng.normal(0, 2, images)
    return (rng.random(images) < 1 / (1 + np.exp(-logit_B))).astype(np.int64), logit_B


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_logits_that_are_too_large_or_too_small(factor: float) -> None:
    target_B, logit_B = _honest(20_000)
    assert temperature_from_logits(target_B, factor * logit_B, _alike(target_B)) == pytest.approx(factor, rel=0.05)


def test_no_other_temperature_has_a_lower_nll() -> None:
    target_B, logit_B = _honest(500)
    weight_B = _alike(target_B)
    best = temperature_from_logits(target_B, logit_B, weight_B)
    least = nll(target_B, logit_B, weight_B, best)
    assert all(least <= nll(target_B, logit_B, weight_B, other) for other in np.geomspace(0.05, 20, 400))


def test_classes_that_are_separated_stop_at_the_coldest_temperature() -> None:
    target_B = np.array([0, 1])
    found = temperature_from_logits(target_B, np.array([-1.0, 1.0]), _alike(target_B))
    assert found == pytest.approx(0.05, rel=1e-3)


def test_the_cautious_point_accuses_at_most_one_real_image_in_a_hundred() -> None:
    target_B, logit_B = _honest(3000)
    measured = points_from_logits(target_B, logit_B, _alike(target_B), 1.3)["cautious"]
    p_ai_B = 1 / (1 + np.exp(-logit_B / 1.3))
    accused = np.mean([measured.point.label(p) is Label.AI for p in p_ai_B[target_B == 0]])
    assert measured.point.false_alarm_rate == pytest.approx(accused)
    assert 0.005 < accused <= 0.01


def test_the_sensitive_point_clears_at_most_five_ai_images_in_a_hundred() -> None:
    target_B, logit_B = _honest(3000)
    measured = points_from_logits(target_B, logit_B, _alike(target_B), 1.0)["sensitive"]
    p_ai_B = 1 / (1 + np.exp(-logit_B))
    cleared = np.mean([measured.point.label(p) is Label.REAL for p in p_ai_B[target_B == 1]])
    assert measured.miss_rate == pytest.approx(cleared)
    assert 0.03 < cleared <= 0.05


def test_the_balanced_point_lies_where_both_classes_are_told_apart_best() -> None:
    rng = np.random.default_rng(0)
    target_B = np.arange(4000) % 2
    logit_B = rng.normal(np.where(target_B == 1, 3.0, -1.0), 1.0)  # equal spreads: the best cut lies at 1
    point = points_from_logits(target_B, logit_B, _alike(target_B), 1.0)["balanced"].point
    logits = [np.log(p / (1 - p)) for p in (point.real_below, point.ai_at_or_above)]
    assert sum(logits) / 2 == pytest.approx(1.0, abs=0.3)


def test_a_band_halves_the_error_or_leaves_half_of_the_images_an_answer() -> None:
    target_B, logit_B = _honest(3000)
    for measured in points_from_logits(target_B, logit_B, _alike(target_B), 1.0).values():
        assert measured.coverage >= 0.5
        assert measured.error <= measured.error_without_band
        assert measured.error <= 0.5 * measured.error_without_band or measured.coverage < 0.52
        again = measured_point(
            "again",
            (measured.point.real_below, measured.point.ai_at_or_above),
            target_B,
            0.5 * (1 + np.tanh(logit_B / 2)),
            _alike(target_B),
        )
        assert (again.coverage, again.error) == pytest.approx((measured.coverage, measured.error), abs=1e-3)


def test_classes_that_are_separated_need_no_band() -> None:
    target_B = np.array([0, 0, 1, 1])
    for measured in points_from_logits(target_B, np.array([-3.0, -2.0, 2.0, 3.0]), _alike(target_B), 1.0).values():
        assert measured.error == 0.0
        assert measured.coverage == 1.0
        assert measured.point.real_below == measured.point.ai_at_or_above


def test_sure_classes_that_are_separated_keep_the_promise_of_each_point() -> None:
    target_B = np.arange(600) % 2
    logit_B = np.random.default_rng(0).normal(np.where(target_B == 1, 5.0, -5.0), 0.5)
    temperature = temperature_from_logits(target_B, logit_B, _alike(target_B))
    assert logit_B.min() / temperature < -100  # where 1 - p_ai is 1
    measured = points_from_logits(target_B, logit_B, _alike(target_B), temperature)
    p_ai = [p_ai_from_logit(logit, temperature) for logit in logit_B.tolist()]
    for point, called, label, most in (
        (measured["cautious"], Label.AI, 0, 0.01),
        (measured["sensitive"], Label.REAL, 1, 0.05),
    ):
        wrong = np.mean(
            [point.point.label(p) is called for p, target in zip(p_ai, target_B, strict=True) if target == label]
        )
        assert wrong <= most
    assert measured["cautious"].point.false_alarm_rate <= 0.01


def test_scores_that_say_nothing_still_give_points() -> None:
    points = points_from_logits(np.array([0, 1, 0, 1]), np.zeros(4), np.full(4, 0.25), 1.0)
    assert points["cautious"].point.false_alarm_rate == 0.0
    assert points["sensitive"].miss_rate == 0.0


@pytest.mark.parametrize(("target", "logit"), [([1, 1], [0.0, 1.0]), ([0, 1], [0.0, float("inf")])])
def test_what_cannot_be_calibrated_is_refused(target: list[int], logit: list[float]) -> None:
    with pytest.raises(ValueError, match=r"both classes|finite"):
        temperature_from_logits(np.array(target), np.array(logit), np.full(2, 0.5))


def test_each_source_of_a_class_weighs_alike_and_both_classes_do() -> None:
    target_B = np.array([0, 0, 0, 0, 1, 1])
    weight_B = weights_alike(target_B, ["a", "a", "a", "b", "a", "a"])
    np.testing.assert_allclose(weight_B, [1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 4])


def test_a_large_source_does_not_hide_the_false_alarms_of_a_small_one() -> None:
    target_B = np.array([0] * 990 + [0] * 10 + [1] * 500)
    sources = ["large"] * 990 + ["small"] * 10 + ["made"] * 500
    rng = np.random.default_rng(0)
    logit_B = np.concatenate([rng.normal(-4, 1, 990), rng.normal(3, 1, 10), rng.normal(4, 2, 500)])
    alike = points_from_logits(target_B, logit_B, weights_alike(target_B, sources), 1.0)["cautious"]
    pooled = points_from_logits(target_B, logit_B, _alike(target_B), 1.0)["cautious"]
    small_B = 1 / (1 + np.exp(-logit_B[990:1000]))
    assert (small_B >= pooled.point.ai_at_or_above).mean() > 0.5, "1 % of all real images, and most of the small source"
    assert (small_B >= alike.point.ai_at_or_above).mean() <= 0.02
    assert alike.point.false_alarm_rate is not None
    assert alike.point.false_alarm_rate <= 0.01


def test_many_copies_of_a_source_change_no_calibration() -> None:
    target_B, logit_B = _honest(600)
    sources = [f"{index % 7}" for index in range(600)]
    again = [index for index in range(600) if sources[index] == "3"] * 5
    at = np.array([*range(600), *again])
    more = [sources[index] for index in at]
    weights = weights_alike(target_B, sources), weights_alike(target_B[at], more)
    one, other = (
        (temperature_from_logits(target, logit, weight), offset_from_logits(target, logit, weight))
        for target, logit, weight in zip((target_B, target_B[at]), (logit_B, logit_B[at]), weights, strict=True)
    )
    assert one == pytest.approx(other, rel=1e-5)
    p_ai_B = 1 / (1 + np.exp(-logit_B))
    whole, doubled = (
        value_of("ece", target_B, p_ai_B, weights[0]),
        value_of("ece", target_B[at], p_ai_B[at], weights[1]),
    )
    assert whole == pytest.approx(doubled)
    assert value_of("ece", target_B, p_ai_B, np.ones(600)) == pytest.approx(value_of("ece", target_B, p_ai_B))


@pytest.mark.parametrize(("alarms", "name"), [(0.0, "balanced"), (0.05, "balanced"), (0.051, "cautious")])
def test_balanced_is_the_default_where_it_accuses_at_most_one_real_image_in_twenty(alarms: float, name: str) -> None:
    target_B, logit_B = _honest(300)
    measured = points_from_logits(target_B, logit_B, _alike(target_B), 1.0)
    balanced = measured["balanced"]
    point = OperatingPoint("balanced", balanced.point.ai_at_or_above, balanced.point.real_below, alarms)
    assert default_point_of({**measured, "balanced": replace(balanced, point=point)}) == name


@dataclass
class StandInDetector:
    """Stands in for runtime.detector.Detector: its logit is the mean brightness of the image."""

    bundle: Bundle
    why: str = "a stand-in for a test"

    @property
    def backend(self) -> SimpleNamespace:
        return SimpleNamespace(name="stand-in", precision="fp32")

    @property
    def point(self) -> OperatingPoint:
        return self.bundle.manifest.point()

    def __enter__(self) -> StandInDetector:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge_many(self, images: Iterable[Floats], batch_size: int = 16) -> Iterator[Verdict]:
        for image in images:
            yield verdict_from_logit(float(image.mean()) / 16 - 8, 1.0, self.bundle.manifest.point())


def _calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, *options: str
) -> tuple[Path, Result]:  # fmt: skip
    """The new bundle and the command's result, with so many images of each class."""
    rng = np.random.default_rng(0)
    for label, brightness in (("real", 110), ("ai", 150)):
        folder = tmp_path / "data" / "val" / label
        folder.mkdir(parents=True)
        for index in range(count):
            grey = int(np.clip(rng.normal(brightness, 25), 0, 255))
            image = Image.new("L", (20, 20), grey)
            image.putpixel((0, 0), (grey + 128) % 256)  # a flat one would not be judged
            image.save(folder / f"{index}.png")
    manifest = Manifest(
        "stand_in", LABELS, PreprocessSpec(size=32), 1.0, (OperatingPoint("half", 0.5, 0.5),), "half",
        metrics={"training": {}, "evaluation": "made with the old bounds"},
        provenance={
            "config": {"preset": "none", "seed": 0, "epochs": 1}, "epoch": 1, "chosen_on": "val",
            "data_counts": {}, "data_licences": {}, "data_digest": "-",
        },
    )  # fmt: skip
    old = write_bundle(tmp_path / "old", {"model.onnx": b"weights"}, manifest)
    monkeypatch.setattr("aivsreal.runtime.detector.Detector.open", lambda *_, **__: StandInDetector(old))
    new = tmp_path / "new"
    return new, CliRunner().invoke(main, [str(tmp_path / "data"), "-o", str(new), *options])


def test_the_command_writes_a_new_bundle_with_what_it_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, result = _calibrated(tmp_path, monkeypatch, 20, "--default-point", "cautious")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    written = Bundle.open(new)
    assert written.read("model.onnx") == b"weights"
    assert written.manifest.temperature == printed["temperature"]
    assert written.manifest.default_point == "cautious"
    assert "evaluation" not in written.manifest.metrics
    assert "| cautious (default) |" in written.read("README.md").decode()
    assert [point.name for point in written.manifest.points] == ["balanced", "cautious", "sensitive"]
    assert (written.manifest.point().false_alarm_rate or 0) <= 0.01
    assert printed["nll"] <= printed["nll_before"]
    assert printed["sources"] == {"real": 1, "ai": 1}
    assert "default point cautious: " in result.stderr
    assert "of 1 and 1 sources, each weighing alike" in written.read("README.md").decode()


def test_a_default_point_is_chosen_and_the_unseen_sources_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, result = _calibrated(tmp_path, monkeypatch, 20)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    balanced = next(row["point"] for row in printed["operating_points"] if row["point"]["name"] == "balanced")
    wanted = "balanced" if balanced["false_alarm_rate"] <= 0.05 else "cautious"
    assert printed["default_operating_point"] == Bundle.open(new).manifest.default_point == wanted
    (tmp_path / "data" / "val").rename(tmp_path / "data" / "val_unseen")
    shutil.copytree(tmp_path / "data" / "val_unseen", tmp_path / "data" / "val_wild")
    result = CliRunner().invoke(main, [str(tmp_path / "data")])
    assert json.loads(result.stdout)["split"] == "val_unseen"
    rows = [f"{path},{path.parent.name},val_unseen" for path in (tmp_path / "data" / "val_unseen").rglob("*.png")]
    table = tmp_path / "twice.csv"
    table.write_text("\n".join(["path,label,split", *rows, rows[0]]))
    assert CliRunner().invoke(main, [str(table)]).exit_code == 0, "an image that stands there twice was read"


@pytest.mark.parametrize(
    ("real", "ai", "temperature", "words"),
    [
        (100, 20, 1.5, []),
        (99, 20, 1.5, ["99 real images"]),
        (100, 19, 1.5, ["19 AI images"]),
        (2, 2, 12.7, ["2 real images", "2 AI images"]),
        (100, 100, 20.0, ["stands at its bound"]),
        (100, 100, 0.05, ["stands at its bound"]),
    ],
)
def test_what_too_few_images_cannot_claim_is_said(real: int, ai: int, temperature: float, words: list[str]) -> None:
    doubts = doubts_of(real, ai, temperature)
    assert len(doubts) == len(words)
    assert all(word in doubt for word, doubt in zip(words, doubts, strict=True))


@pytest.mark.parametrize("count", [2, 100])
def test_a_rate_is_stated_from_a_hundred_real_images_on_and_the_count_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    new, result = _calibrated(tmp_path, monkeypatch, count, "--tier", "clean", "--tier", "web")
    assert result.exit_code == 0, result.output
    written = Bundle.open(new)
    stated = {point.false_alarm_rate is not None for point in written.manifest.points}
    assert stated == {count >= 100}
    assert ("warning: 2 real images are too few" in result.stderr) == (count < 100)
    card = written.read("README.md").decode()
    assert f"{count} real and {count} AI images" in card
    assert ("2 real images are too few" in card) == (count < 100)
    ran = Ran(written, written.manifest.point(), "stand-in", "fp32", "a test", [])
    assert f"on {count} real and {count} AI images" in dict(model_facts(ran))["Calibration"]


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (2.0, 3.0), (-1.5, 0.5)])
def test_the_offset_is_what_was_added_to_honest_logits(offset: float, scale: float) -> None:
    target_B, logit_B = _honest(20_000)
    assert offset_from_logits(target_B, scale * logit_B + offset, _alike(target_B)) == pytest.approx(
        offset, abs=0.08 * scale
    )


def test_the_offset_does_not_depend_on_how_many_images_a_class_has() -> None:
    target_B, logit_B = _honest(20_000)
    few_ai_B = (target_B == 0) | (np.arange(len(target_B)) % 5 == 0)
    weight_B = _alike(target_B[few_ai_B])
    assert offset_from_logits(target_B[few_ai_B], logit_B[few_ai_B] + 1, weight_B) == pytest.approx(1.0, abs=0.15)


def test_logits_the_wrong_way_round_are_refused() -> None:
    target_B, logit_B = _honest(500)
    with pytest.raises(ValueError, match="do not mean ai"):
        offset_from_logits(target_B, -logit_B, _alike(target_B))


def test_a_recentred_bundle_gives_its_logits_less_the_offset(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    result = CliRunner().invoke(main, [str(tiny_data), "--bundle", str(tiny_bundle), "--recentre", "-o", str(new)])
    assert result.exit_code == 0, result.output
    offset = json.loads(result.stdout)["offset"]
    assert offset != 0.0
    images = sorted((tiny_data / "val_unseen").rglob("*.png"))
    with Detector.open(tiny_bundle, "onnx") as before, Detector.open(new, "onnx") as after:
        for old, moved in zip(before.judge_many(images), after.judge_many(images), strict=True):
            assert moved.logit == pytest.approx(old.logit - offset, abs=1e-4)
    assert f"{offset:.3f} was taken from" in (new / "README.md").read_text()


def test_a_model_without_a_head_cannot_be_moved() -> None:
    with pytest.raises(BundleError, match="leave --recentre out"):
        recentred_model(b"no model", 1.0)


def test_balanced_calls_at_most_five_percent_of_the_real_images_ai_however_the_scores_overlap() -> None:
    rng = np.random.default_rng(3)
    target_B = np.repeat([0, 1], 500)
    logit_B = rng.normal(0, 1, 1000) + target_B  # at the threshold of the best balanced accuracy, 31 % are called ai
    measured = points_from_logits(target_B, logit_B, np.ones(1000), 1.0)
    alarms = measured["balanced"].point.false_alarm_rate
    assert alarms is not None
    assert 0.03 < alarms <= 0.05
    assert default_point_of(measured) == "balanced"
