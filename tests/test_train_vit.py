"""`aivsreal-train` with a ViT over an encoder's file, and with such a run as the teacher of a LeViT."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_image
from pocket_vit import NAME, SIZE, encoder_file
from safetensors.torch import load_file

from aivsreal.runtime.networks.vit import ProbedVit, load_encoder, low_rank
from aivsreal.runtime.networks.vit_weights import LOW_RANK
from aivsreal.train.cli import main
from aivsreal.train.config import DistilConfig
from aivsreal.train.fit.probe import HeadConfig
from aivsreal.train.start.network import start_from_names, teacher_from_path

FAST = "--batch-size 8 --workers 1 --device cpu --no-amp --seed 1".split()
VIT = ["--preset", "low-rank", "--arch", NAME, "--size", str(SIZE), "--rank", "2", "--freeze", "1", *FAST]
HEAD = {"hidden.weight", "hidden.bias", "whole.weight", "head.weight", "head.bias", "shift", "scale"}
STUDENT = ["--arch", "levit_128s", "--size", "64", "--epochs", "1", "--passes", "1", *FAST]


@pytest.fixture(scope="module", autouse=True)
def _short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aivsreal.train.fit.probe.HeadConfig", partial(HeadConfig, steps=40))
        yield


def _train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture(scope="module")
def vit_run(tiny_data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vit") / "run"
    result = _train(tiny_data, "-o", run, "--init", encoder, "--epochs", 2, *VIT)
    assert result.exit_code == 0, result.output
    assert "the encoder is shown 32 images" in result.stderr
    return run


class Stop(Exception):
    """What stops a run in the middle."""


def _stopping_after(epochs: int) -> Callable[[Path, Path], None]:
    def draw(metrics: Path, _: Path) -> None:
        if len(metrics.read_text().splitlines()) == epochs:
            raise Stop

    return draw


def _rows(run: Path) -> list[dict[str, dict[str, float]]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_holds_what_was_trained_and_names_its_encoder(vit_run: Path, encoder: Path) -> None:
    card = json.loads((vit_run / "best.json").read_text())
    digest = hashlib.sha256(encoder.read_bytes()).hexdigest()
    assert card["config"]["encoder"] == digest
    assert card["started_from"] == {"encoder": {"name": encoder.name, "sha256": digest}}
    assert card["spec"]["size"] == SIZE
    for name in ("best", "last"):
        values = load_file(vit_run / f"{name}.safetensors")
        changes = {key for key in values if key.endswith(LOW_RANK)}
        assert values.keys() - changes == HEAD
        assert {int(key.split(".")[2]) for key in changes} == {1, 2}, "the first block is frozen"
        assert {value.shape[0] for key, value in values.items() if key.endswith(".down")} == {2}
    assert any(values[key].abs().max() > 0 for key in changes if key.endswith(".up")), "the change was trained"


def test_the_head_alone_is_the_epoch_before_the_first(vit_run: Path) -> None:
    rows = _rows(vit_run)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["val_unseen"].keys() == {"loss", "accuracy", "auc", "macro_auc"}
    assert "train" not in rows[0]


@torch.no_grad()
def test_a_teacher_computes_what_was_trained(vit_run: Path, encoder: Path) -> None:
    start = start_from_names([str(encoder)])
    teacher, digest = teacher_from_path(vit_run, start, DistilConfig(components=4))
    assert digest == json.loads((vit_run / "best.json").read_text())["weights_sha256"]
    assert start.encoder is not None
    network = ProbedVit(NAME, SIZE).eval()
    load_encoder(network, start.encoder, encoder.name)
    low_rank(network, 2, 1)
    network.load_state_dict({**network.state_dict(), **load_file(vit_run / "best.safetensors")})
    batch_BCHW = torch.randn(4, 3, SIZE, SIZE)
    soft_B = (network(batch_BCHW)[:, 0] / 2).sigmoid()
    torch.testing.assert_close(teacher(batch_BCHW).soft_B, soft_B, atol=1e-4, rtol=1e-4)


def test_resuming_a_vit_goes_on_exactly(tiny_data: Path, vit_run: Path, encoder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert _train(tiny_data, "-o", run, "--init", encoder, "--epochs", 2, *VIT).exit_code == 0
    assert _rows(run) == _rows(vit_run), "the same command, the same run"
    stopped = tmp_path / "stopped"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aivsreal.train.plot.draw_curves", _stopping_after(2))
        result = _train(tiny_data, "-o", stopped, "--init", encoder, "--epochs", 2, *VIT)
        assert isinstance(result.exception, Stop)
    result = _train(tiny_data, "-o", stopped, "--init", encoder, "--epochs", 2, "--resume", *VIT)
    assert result.exit_code == 0, result.output
    assert _rows(stopped) == _rows(vit_run)
    one, other = (load_file(path / "last.safetensors") for path in (vit_run, stopped))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_accurate_model_is_a_head_and_its_features_are_kept_beside_the_views(
    tiny_data: Path, encoder: Path, tmp_path: Path
) -> None:
    accurate = ["--preset", "accurate", "--arch", NAME, "--size", str(SIZE), "--cache", str(tmp_path / "cache"), *FAST]
    for name in ("one", "two"):
        result = _train(tiny_data, "-o", tmp_path / name, "--init", encoder, *accurate)
        assert result.exit_code == 0, result.output
        assert ("the encoder is shown 32 images" in result.stderr) == (name == "one")
    assert len(list((tmp_path / "cache").glob("features-*.bin"))) == 1
    (row,) = _rows(tmp_path / "one")
    assert (row["epoch"], row["lr"]) == (0, 0.0)
    one, other = (load_file(tmp_path / name / "best.safetensors") for name in ("one", "two"))
    assert one.keys() == HEAD
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_taught_run_goes_on_exactly(tiny_data: Path, vit_run: Path, encoder: Path, tmp_path: Path) -> None:
    taught = ["--preset", "student", "--teacher", vit_run, "--init", encoder, *STUDENT, "--epochs", 2]
    assert _train(tiny_data, "-o", tmp_path / "straight", *taught).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aivsreal.train.plot.draw_curves", _stopping_after(1))
        assert isinstance(_train(tiny_data, "-o", tmp_path / "run", *taught).exception, Stop)
    assert _train(tiny_data, "-o", tmp_path / "run", "--resume", *taught).exit_code == 0
    assert _rows(tmp_path / "run") == _rows(tmp_path / "straight")


@pytest.mark.parametrize("arguments", [[], ["--preset", "student-logits"], ["--preset", "student-once"]])
def test_a_student_is_taught_with_unlabelled_images_too(
    tiny_data: Path, vit_run: Path, encoder: Path, tmp_path: Path, arguments: list[str]
) -> None:
    for index in range(5):
        write_image(tmp_path / "more" / f"{index}.png", 100 + index)
    run = tmp_path / "run"
    result = _train(
        tiny_data, "-o", run, "--preset", "student", "--teacher", vit_run, "--init", encoder, "--unlabelled",
        tmp_path / "more", *STUDENT, *arguments,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    card = json.loads((run / "best.json").read_text())
    digest = json.loads((vit_run / "best.json").read_text())["weights_sha256"]
    assert card["config"]["teacher"] == card["started_from"]["teacher"] == digest
    assert card["data_counts"]["train/unlabelled"] == {"more": 5}
    assert card["data_counts"]["train/real"] == {"real": 16}
    assert len(list(run.glob("features-*.bin"))) == bool(arguments)
    (row,) = _rows(run)
    assert 0 < row["train"]["loss"] < 20
    assert 0 < row["train"]["accuracy"] <= 1
    assert not any(name.startswith("to_") for name in load_file(run / "best.safetensors")), "the student alone is kept"


def test_a_bundle_or_run_of_another_kind_is_no_teacher(
    tiny_data: Path, tiny_run: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    for teacher in (tiny_run, tiny_bundle):
        result = _train(tiny_data, "-o", tmp_path / "run", "--preset", "student", "--teacher", teacher, *STUDENT)
        assert result.exit_code == 2, result.output
        assert "a teacher is a ViT" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "student", *STUDENT], "needs a --teacher"),
        (["--preset", "labels", "--teacher", "RUN", "--init", "ENCODER", *STUDENT], "has no teacher"),
        (["--preset", "labels", "--unlabelled", "RUN", *STUDENT], "are for a --teacher"),
        (["--preset", "student", "--teacher", "RUN", *STUDENT], "name the file of its encoder with --init"),
        (["--preset", "labels", "--epochs", "0", *STUDENT[:4], *FAST], "at least one epoch is needed"),
        (VIT, "starts from an encoder: name its file with --init"),
        ([*VIT, "--init", "ENCODER", "--init", "ENCODER"], "one encoder is enough"),
        ([*VIT, "--init", "absent.safetensors"], "absent.safetensors: No such file"),
        ([*VIT, "--init", "ENCODER", "--arch", "vit_tiny_patch16_224"], "no encoder for this arch"),
    ],
)
def test_what_does_not_fit_is_one_message(
    tiny_data: Path, vit_run: Path, encoder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"RUN": vit_run, "ENCODER": encoder}
    result = _train(tiny_data, "-o", tmp_path / "run", *(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("aivsreal-train: ") == 1
    assert not (tmp_path / "run").exists()


def test_features_that_cannot_be_written_are_one_message(tiny_data: Path, encoder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = ["--preset", "accurate", "--arch", NAME, "--size", SIZE, "--init", encoder, "--cache", cache, *FAST]
    assert _train(tiny_data, "-o", tmp_path / "one", *options).exit_code == 0
    (features,) = cache.glob("features-*.bin")
    features.unlink()
    features.mkdir()  # as where a folder is read-only, for a user who may write everywhere
    result = _train(tiny_data, "-o", tmp_path / "two", *options)
    assert (result.exit_code, f"{features} cannot be written" in result.stderr) == (2, True)
