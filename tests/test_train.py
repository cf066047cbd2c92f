"""`aivsreal-train`: what it writes, that it goes on exactly, and how it fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from aivsreal.export.checkpoint import checkpoint_from_path, network_from_checkpoint
from aivsreal.runtime.backends.torch import network_from_bundle
from aivsreal.runtime.bundle.card import TrainingCard
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.model_card import _origin
from aivsreal.runtime.errors import CheckpointError, DataError
from aivsreal.runtime.spec import PreprocessSpec, spec_from_json
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.batches.cache import FilePixels
from aivsreal.train.batches.data import Data, TrainBatches
from aivsreal.train.batches.machine import Machine, Ranks
from aivsreal.train.cli import main
from aivsreal.train.config import PRESETS, TrainConfig
from aivsreal.train.fit.loop import fit
from aivsreal.train.fit.optimise import learning_rate
from aivsreal.train.run import _record
from aivsreal.train.samples import Sample, in_split, samples_from_data
from aivsreal.train.start.network import Start, network_to_train

SMALL = "--arch levit_128s --size 64 --batch-size 8 --workers 0 --device cpu --no-amp".split()
ALL_ON = replace(
    PRESETS["noise-consistency"], arch="levit_128s", spec=PreprocessSpec(64), batch_size=8, epochs=3, cutmix_p=0.5
)  # fmt: skip


def _train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments] + SMALL)


def _data(data: Path, **vals: list[Sample]) -> Data:
    samples = samples_from_data(data)
    vals = vals or {"val_unseen": in_split(samples, "val_unseen")}
    return Data(in_split(samples, "train"), vals, list(vals), FilePixels(ALL_ON.view_side))


def _card(config: TrainConfig) -> TrainingCard:
    return TrainingCard(
        config.arch, LABELS, config.spec, config.to_json(), chosen_on="val_unseen", data_digest="-", data_counts={},
        data_licences={}, versions={}, epoch=0, metrics={}, weights="", weights_sha256="",
    )  # fmt: skip


def _fit(
    data: Path,
    run: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    stop_after: int = 99,
    workers: int = 0,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    images = _data(data)
    network, config, _ = network_to_train(config, Start(), images.train, FilePixels(config.view_side))
    rows: list[dict[str, Any]] = []

    def on_epoch(done: Sequence[dict[str, Any]]) -> None:
        rows.append(done[-1])
        if rows[-1]["epoch"] == stop_after:
            raise KeyboardInterrupt

    run.mkdir(exist_ok=True)
    try:
        fit(
            config, Machine(workers=workers, compiled=compiled), network, images, run, card=_card(config),
            resume=resume, on_step=lambda *_: None, on_epoch=on_epoch,
        )  # fmt: skip
    except KeyboardInterrupt:
        assert rows[-1]["epoch"] == stop_after
    return rows


def test_a_run_leaves_metrics_curves_and_checkpoints(tiny_run: Path) -> None:
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["train"].keys() == {"loss", "accuracy"}
        assert row["val_unseen"].keys() == {"loss", "accuracy", "auc", "macro_auc"}
    with Image.open(tiny_run / "curves.png") as curves:
        assert curves.format == "PNG"
        assert min(curves.size) > 300
    for name in ("best", "last"):
        card = json.loads((tiny_run / f"{name}.json").read_text())
        weights = (tiny_run / f"{name}.safetensors").read_bytes()
        assert card["weights_sha256"] == hashlib.sha256(weights).hexdigest()
        assert (card["arch"], card["labels"]) == ("levit_128s", ["real", "ai"])
        config = replace(PRESETS["labels"], spec=PreprocessSpec(64), arch="levit_128s", epochs=2, batch_size=8)
        assert card["config"] == json.loads(json.dumps(config.to_json()))
        assert spec_from_json(card["spec"]) == config.spec
        assert card["data_counts"]["train/real"] == {"real": 16}
        assert card["metrics"] in rows
    best = max(rows, key=lambda row: row["val_unseen"]["auc"] + row["val_unseen"]["macro_auc"])
    assert json.loads((tiny_run / "best.json").read_text())["metrics"] == best


def test_the_network_learns(tiny_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(arch="levit_128s", spec=PreprocessSpec(64), batch_size=8, epochs=6)
    rows = _fit(tiny_data, tmp_path / "run", config)
    assert rows[-1]["train"]["loss"] < 0.7 * rows[0]["train"]["loss"]
    assert rows[-1]["train"]["accuracy"] > 0.75


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_exactly(tiny_data: Path, tmp_path: Path, workers: int) -> None:
    straight = _fit(tiny_data, tmp_path / "straight", ALL_ON)
    first = _fit(tiny_data, tmp_path / "stopped", ALL_ON, stop_after=1, workers=workers)
    rest = _fit(tiny_data, tmp_path / "stopped", ALL_ON, resume=True, workers=workers)
    assert first + rest == straight
    for name in ("best", "last"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("straight", "stopped"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_another_seed_is_another_run(tiny_data: Path, tmp_path: Path) -> None:
    config = replace(ALL_ON, epochs=1)
    first = _fit(tiny_data, tmp_path / "first", config)
    assert _fit(tiny_data, tmp_path / "again", config) == first
    assert _fit(tiny_data, tmp_path / "other", replace(config, seed=1)) != first


def test_resuming_with_another_configuration_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    _fit(tiny_data, tmp_path / "run", ALL_ON, stop_after=1)
    with pytest.raises(CheckpointError, match="another configuration"):
        _fit(tiny_data, tmp_path / "run", replace(ALL_ON, lr=1e-2), resume=True)


def test_resuming_with_other_sources_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(tiny_data.rglob("*.png"))]
    for name in ("one", "other"):
        lines = [f"{row},{name}{index % 3 if name == 'other' else 0}" for index, row in enumerate(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,split,source", *lines]))
    run = tmp_path / "run"
    assert _train(tmp_path / "one.csv", "-o", run, "--epochs", "1").exit_code == 0
    result = _train(tmp_path / "other.csv", "-o", run, "--epochs", "1", "--resume")
    assert (result.exit_code, "another configuration or data list" in result.stderr) == (2, True)
    assert _train(tmp_path / "one.csv", "-o", run, "--epochs", "1", "--resume").exit_code == 0


def test_a_damaged_state_is_one_clear_error(tiny_data: Path, tmp_path: Path) -> None:
    _fit(tiny_data, tmp_path / "run", ALL_ON, stop_after=1)
    (tmp_path / "run" / "last.state.pt").write_bytes(b"words")
    with pytest.raises(CheckpointError, match="damaged or not ours"):
        _fit(tiny_data, tmp_path / "run", ALL_ON, resume=True)


def test_a_run_is_never_overwritten_by_accident(tiny_data: Path, tiny_run: Path) -> None:
    result = _train(tiny_data, "-o", tiny_run)
    assert result.exit_code == 2
    assert "--resume" in result.stderr


def test_resuming_nothing_says_what_to_type(tiny_data: Path, tmp_path: Path) -> None:
    result = _train(tiny_data, "-o", tmp_path / "run", "--resume")
    assert result.exit_code == 2
    assert "without --resume" in result.stderr


def test_broken_images_are_told_and_skipped(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "train" / "ai" / "broken.png").write_bytes(b"words")
    result = _train(tmp_path / "data", "-o", tmp_path / "run", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "broken.png: not an image" in result.stderr
    assert "32 images, 1 skipped" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--choose-on", "val_other"], "there are val_unseen"),
        (["--arch", "resnet50"], "resnet50"),
        (["--epochs", "-1"], "--epochs"),
        (["--preset", "best"], "--preset"),
    ],
)
def test_wrong_options_are_one_message(tiny_data: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, [str(tiny_data), "-o", str(tmp_path / "run"), *SMALL, *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_training_says_how_to_go_on(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "aivsreal.train.cli", str(tiny_data), "-o", str(run), "--epochs", "500", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            # Not before the first plot: an interrupt within matplotlib's import, where namedtuples are made by exec of
            # text, ends CPython with the signal although it was handled.
            if (run / "curves.png").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "where an epoch was finished" in errors  # before that --resume has nothing to go on from
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert (run / "last.state.pt").exists()


def test_a_training_that_diverged_is_one_message(tiny_data: Path, tmp_path: Path) -> None:
    result = _train(tiny_data, "-o", tmp_path / "run", "--epochs", "1", "--lr", "1e30")
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "lower --lr" in result.stderr
    assert not (tmp_path / "run" / "last.state.pt").exists()


def test_the_best_epoch_has_the_highest_mean_of_auc_and_macro_auc(
    monkeypatch: pytest.MonkeyPatch, tiny_data: Path, tmp_path: Path
) -> None:
    # AUC and macro AUC of val_unseen and val_seen in three epochs; the means are .7, .8, .75, of AUC alone .7, .75, .9.
    areas = iter([(0.5, 0.5), (0.9, 0.9), (0.8, 0.9), (0.7, 0.8), (0.9, 0.5), (0.9, 0.7)])

    def validated(*_: object) -> dict[str, float]:
        auc, macro_auc = next(areas)
        return {"loss": 0.0, "accuracy": 0.0, "auc": auc, "macro_auc": macro_auc}

    monkeypatch.setattr("aivsreal.train.fit.loop.validate", validated)
    few = in_split(samples_from_data(tiny_data), "val_unseen")
    images = _data(tiny_data, val_unseen=few, val_seen=few)
    config = replace(ALL_ON, consistency=0.0)
    network, config, _ = network_to_train(config, Start(), images.train, FilePixels(config.view_side))
    best = fit(
        config, Machine(workers=0), network, images, tmp_path, card=_card(config), resume=False,
        on_step=lambda *_: None, on_epoch=lambda _: None,
    )  # fmt: skip
    assert best["epoch"] == 2
    assert json.loads((tmp_path / "best.json").read_text())["epoch"] == 2


def test_several_processes_make_one_run(tiny_data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "aivsreal.train.cli", str(tiny_data), "-o", str(tmp_path / "run"), "--epochs", "2",
        "--cache", str(tmp_path / "cache"), *SMALL,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # the first process alone talks
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert json.loads((tmp_path / "run" / "last.json").read_text())["versions"]["processes"] == 2


def test_too_few_images_for_the_processes_is_one_clear_error(tiny_data: Path) -> None:
    train = in_split(samples_from_data(tiny_data), "train")
    config = replace(ALL_ON, batch_size=64)
    with pytest.raises(DataError, match=r"32 training images are too few.*--batch-size"):
        TrainBatches(train, config, FilePixels(config.view_side), Machine(ranks=Ranks(0, 2)))


def test_an_encoder_that_nothing_needs_is_refused(tiny_data: Path) -> None:
    images = _data(tiny_data)
    with pytest.raises(DataError, match=r"levit_\w+ has no encoder"):
        network_to_train(ALL_ON, Start({}, "clip.onnx", "-"), images.train, FilePixels(ALL_ON.view_side))


def test_a_run_that_goes_on_is_chosen_as_it_was(tiny_data: Path, tmp_path: Path) -> None:
    _fit(tiny_data, tmp_path / "run", ALL_ON, stop_after=1)
    state = torch.load(tmp_path / "run" / "last.state.pt", weights_only=True)
    torch.save({**state, "chosen_on": "val_seen"}, tmp_path / "run" / "last.state.pt")
    with pytest.raises(CheckpointError, match="chosen on val_seen"):
        _fit(tiny_data, tmp_path / "run", ALL_ON, resume=True)


def test_an_epoch_that_was_not_recorded_before_a_kill_is_recorded_with_the_next(tmp_path: Path) -> None:
    rows = [{"epoch": number, "lr": 0.1, "train": {"loss": 1.0, "accuracy": 0.5}} for number in (1, 2, 3)]
    _record(tmp_path, rows[:1])
    _record(tmp_path, rows)  # the second epoch's checkpoint was written, its row was not
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_ranks_share_the_batches_of_a_run_alone(tiny_data: Path) -> None:
    train = in_split(samples_from_data(tiny_data), "train")
    pixels_of = FilePixels(ALL_ON.view_side)
    alone, *shares = (
        TrainBatches(train, ALL_ON, pixels_of, Machine(ranks=ranks)).order(0).tolist()
        for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 2))
    )
    assert sorted(shares[0] + shares[1]) == sorted(alone)
    for batch in range(4):
        mine = [draw for share in shares for draw in share[4 * batch : 4 * batch + 4]]
        assert sorted(mine) == sorted(alone[8 * batch : 8 * batch + 8])


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_data: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    result = _train(tiny_data)
    assert result.exit_code == 2
    assert "3 processes cannot share it" in result.stderr


def test_a_run_starts_from_the_weights_of_another(tiny_data: Path, tiny_run: Path, tmp_path: Path) -> None:
    result = _train(tiny_data, "-o", tmp_path / "run", "--init", tiny_run, "--epochs", 1, "--lr", 1e-9)
    assert result.exit_code == 0, result.output
    before = json.loads((tiny_run / "best.json").read_text())
    card = json.loads((tmp_path / "run" / "best.json").read_text())
    assert card["config"]["init"] == card["started_from"]["weights_sha256"] == before["weights_sha256"]
    one, other = load_file(tiny_run / "best.safetensors"), load_file(tmp_path / "run" / "best.safetensors")
    for name, value in one.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(value, other[name], atol=1e-6), name


def test_a_run_starts_from_a_bundle(tiny_data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    result = _train(tiny_data, "-o", tmp_path / "run", "--init", tiny_bundle, "--epochs", 1, "--lr", 1e-9)
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "run" / "best.json").read_text())
    bundle = Bundle.open(tiny_bundle)
    assert card["started_from"]["bundle"] == bundle.digest
    assert card["config"]["init"] == card["started_from"]["weights_sha256"] == bundle.manifest.files["model.onnx"]
    before, after = network_from_bundle(bundle), network_from_checkpoint(checkpoint_from_path(tmp_path / "run"))
    size = bundle.manifest.spec.size
    batch_BCHW = torch.rand(4, 3, size, size) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(before(batch_BCHW), after(batch_BCHW), atol=0.02 * float(before(batch_BCHW).abs().max()))
    assert f"on from the bundle `{bundle.digest}`" in _origin(card)


def test_a_bundle_of_another_arch_is_no_start(tiny_data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_data), "-o", str(tmp_path / "run"), "--init", str(tiny_bundle)])
    assert result.exit_code == 2
    assert "give --arch" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["missing", "damaged", "other"])
def test_a_start_that_does_not_fit_is_one_message(tiny_data: Path, tiny_run: Path, tmp_path: Path, what: str) -> None:
    start = tmp_path / "start"
    if what != "missing":
        shutil.copytree(tiny_run, start)
    if what == "damaged":
        with (start / "best.safetensors").open("ab") as file:
            file.write(b"words")
    more = ["--arch", "levit_128"] if what == "other" else []
    result = CliRunner().invoke(
        main, [str(tiny_data), "-o", str(tmp_path / "run"), "--init", str(start), *SMALL, *more]
    )
    assert result.exit_code == 2, result.output
    assert {"missing": "No such file", "damaged": "copy both files", "other": "give --arch"}[what] in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_compiled_step_learns_the_same(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the C++ compiler that inductor needs: what is tested is that compiling changes no weight's name or value.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = _fit(tiny_data, tmp_path / "plain", replace(ALL_ON, epochs=1))
    compiled = _fit(tiny_data, tmp_path / "compiled", replace(ALL_ON, epochs=1), compiled=True)
    assert compiled[0]["train"]["loss"] == pytest.approx(plain[0]["train"]["loss"], abs=1e-3)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("plain", "compiled"))
    assert one.keys() == other.keys()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = replace(ALL_ON, epochs=10, warmup_epochs=2, lr=1.0)
    rates = [learning_rate(step, 10, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[20] == pytest.approx(1.0)
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] < 0.01
    constant = replace(config, schedule="constant", warmup_epochs=0)
    assert {learning_rate(step, 10, constant) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-o", "/proc/runs"), "/proc/runs cannot be written"),
        (("-o", "{file}/runs"), "cannot be written"),
        (("-o", "{out}", "--size", "100"), "multiples of 16: 96 or 112"),
        (("-o", "{out}", "--lr", "nan"), "nan is not in the range"),
        (("-o", "{out}", "--device", "gpu"), "give cpu, cuda or cuda:N"),
        (("-o", "{out}", "--device", "cpu:0"), "give cpu, cuda or cuda:N"),
        (("-o", "{out}", "--device", "cuda:99"), "leave --device out"),
    ],
)
def test_what_cannot_be_trained_is_one_message(
    tiny_data: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    (tmp_path / "file").touch()
    filled = [option.format(file=tmp_path / "file", out=tmp_path / "run") for option in options]
    result = CliRunner().invoke(main, [str(tiny_data), *SMALL, *filled])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert words in result.output
    assert not (tmp_path / "run").exists()
