"""The accurate model is made of its encoder and what is shipped, to the bit as it was measured, and found by name."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from pocket_vit import encoder_file
from test_vit import run_of, vit

from aivsreal.export.accurate.keep import keep
from aivsreal.export.accurate.make import (
    GRAPH,
    PARTS,
    SCALES,
    TRAINED,
    accurate_bundle,
    encoder_of,
    model_from_parts,
    trained_from_file,
)
from aivsreal.export.cli import main as export
from aivsreal.export.graphs.half import full_from_onnx
from aivsreal.export.graphs.int8 import int8_from_onnx
from aivsreal.runtime.bundle.folder import HOW_TO_GET_ACCURATE, SHIPPED, Bundle, bundle_folder, write_bundle
from aivsreal.runtime.bundle.manifest import EVALUATION, HALF_SUFFIX, INT8_MODEL, MANIFEST, MODEL, manifest_from_json
from aivsreal.runtime.commands import doctor
from aivsreal.runtime.errors import BundleError, CheckpointError, ExportError
from aivsreal.runtime.fields import object_from_json
from aivsreal.runtime.networks.vit_weights import PREFIX
from aivsreal.train.calibrate.recentre import recentred_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture(scope="module")
def run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(vit(), tmp_path_factory.mktemp("train") / "run", hashlib.sha256(encoder.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def measured(run: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle, as calibration leaves it: with another temperature, and a head whose bias was moved."""
    folder = tmp_path_factory.mktemp("measured") / "bundle"
    arguments = [str(run), "-o", str(folder), "--encoder", str(encoder), "--temperature", "2.5"]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(folder)
    side = bundle.manifest.spec.size
    batch_BCHW = np.random.default_rng(0).normal(size=(16, 3, side, side)).astype(np.float32)
    moved = recentred_model(bundle.read(MODEL), 0.3)
    full = full_from_onnx(onnx.load_from_string(moved)).SerializeToString()
    files = {MODEL: moved, INT8_MODEL: int8_from_onnx(full, [batch_BCHW]), "README.md": bundle.read("README.md")}
    return write_bundle(folder, files, bundle.manifest)


@pytest.fixture(scope="module")
def parts(run: Path, measured: Bundle, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    sizes = keep(run, measured, str(encoder), folder)
    assert set(sizes) == {GRAPH, TRAINED, SCALES, MANIFEST, EVALUATION}
    assert sizes[SCALES] < 0.1 * len(measured.read(INT8_MODEL))
    assert sizes[GRAPH] < 0.3 * len(measured.read(MODEL))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_parts_and_the_encoder_make_the_model_that_was_measured(
    parts: Path, measured: Bundle, encoder: Path, home: Path
) -> None:
    made = accurate_bundle(str(encoder), parts=parts)
    assert made.path == home / "aivsreal" / "accurate"
    assert made.read(MODEL) == measured.read(MODEL)
    assert made.read(INT8_MODEL) == measured.read(INT8_MODEL)
    assert made.manifest.temperature == 2.5
    assert made.manifest.points == measured.manifest.points
    assert Bundle.open("accurate").digest == made.digest


def test_what_is_shipped_fits_together_and_is_small() -> None:
    values, told = (object_from_json((PARTS / name).read_bytes()) for name in (MANIFEST, EVALUATION))
    manifest = manifest_from_json(values, told)
    assert len(encoder_of(manifest)) == 64
    assert "evaluation" in manifest.metrics
    assert sum(file.stat().st_size for file in PARTS.iterdir() if file.is_file()) < 20e6
    graph, trained = (PARTS / GRAPH).read_bytes(), trained_from_file(PARTS / TRAINED)
    empty = [tensor for tensor in onnx.load_from_string(graph).graph.initializer if not tensor.raw_data]
    encoder = {
        name.removeprefix(PREFIX): np.zeros(tuple(tensor.dims), np.float32)
        for tensor in empty
        if (name := tensor.name.removesuffix(HALF_SUFFIX)).startswith(PREFIX)
    }
    encoder["cls_token"] = np.zeros((1, 1, encoder["pos_embed"].shape[-1]), np.float32)
    model = onnx.load_from_string(model_from_parts(graph, trained, encoder, "zeros"))
    onnx.checker.check_model(model)
    assert all(tensor.raw_data for tensor in model.graph.initializer)


def test_the_list_of_added_sources_is_of_the_models_that_are_shipped() -> None:
    models = {"accurate": PARTS / EVALUATION, "levit192": SHIPPED / EVALUATION}
    counts = {name: object_from_json(file.read_bytes())["provenance"]["data_counts"] for name, file in models.items()}
    with (Path(__file__).parents[1] / "docs" / "sources.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["source"] for row in rows}) > 100
    for row in rows:
        for model in row["models"].split():
            assert counts[model][f"train/{row['label']}"][row["source"]] == int(row["images"])
        assert int(row["images"]) == len(row["sha256"].split())
        assert row["repositories"]
        assert row["licence"]


def test_another_encoder_or_another_result_is_refused_and_nothing_is_written(
    parts: Path, encoder: Path, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="another encoder"):
        accurate_bundle(str(encoder_file(tmp_path / "other.safetensors", seed=1)), parts=parts)
    damaged = tmp_path / "parts"
    damaged.mkdir()
    for file in parts.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    values = json.loads((damaged / MANIFEST).read_text())
    values["files"][MODEL] = "0" * 64
    (damaged / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ExportError, match="not the one that was measured"):
        accurate_bundle(str(encoder), parts=damaged)
    with pytest.raises(ExportError, match="carries no accurate model"):
        accurate_bundle(str(encoder), parts=tmp_path)
    assert not home.exists()


def test_a_run_of_something_else_is_not_kept(measured: Bundle, encoder: Path, tmp_path: Path) -> None:
    other = run_of(vit(seed=1), tmp_path / "run", hashlib.sha256(encoder.read_bytes()).hexdigest())
    (tmp_path / "parts").mkdir()
    with pytest.raises(ExportError, match="export the run again"):
        keep(other, measured, str(encoder), tmp_path / "parts")
    assert not list((tmp_path / "parts").iterdir())


def test_it_is_made_without_torch(parts: Path, encoder: Path, home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aivsreal.export.accurate.make import accurate_bundle\n"
        "accurate_bundle(sys.argv[1], parts=Path(sys.argv[2]))\n"
        "assert not {'torch', 'timm'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code, str(encoder), str(parts)], check=True)
    assert (home / "aivsreal" / "accurate" / MANIFEST).is_file()


def test_one_that_is_missing_is_one_error_with_the_commands(home: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open("accurate")
    assert all(command in str(caught.value) for command in HOW_TO_GET_ACCURATE)
    with pytest.raises(BundleError, match="no folder"):
        Bundle.open("another")


def test_the_doctor_says_whether_it_is_there_and_how_to_get_it(parts: Path, encoder: Path, home: Path) -> None:
    missing = doctor._accurate()
    assert (missing.state, missing.mend) == ("missing", " && ".join(HOW_TO_GET_ACCURATE))
    bundle = accurate_bundle(str(encoder), parts=parts)
    there = doctor._accurate()
    assert there.state == "ok"
    assert bundle.digest in there.detail
    (bundle.path / MODEL).write_bytes(b"damaged")
    assert doctor._accurate().state == "broken"


def test_a_name_is_never_the_folder_that_a_scan_is_started_in(
    parts: Path, encoder: Path, home: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "accurate")
    with pytest.raises(BundleError, match=r"not here yet.*\./accurate"):
        Bundle.open("accurate")
    named = accurate_bundle(str(encoder), parts=parts)
    assert Bundle.open("accurate").path == named.path
    for local in ("./accurate", "accurate/", Path("accurate"), tmp_path / "accurate"):
        assert Bundle.open(local).path.resolve() == tmp_path / "accurate"
    named.path.rename(named.path.with_name("mine"))
    shutil.copytree(tiny_bundle, tmp_path / "mine")
    assert Bundle.open("mine").path == named.path.with_name("mine")
    shutil.copytree(tiny_bundle, tmp_path / "other")
    assert bundle_folder("other") == Path("other")  # the user's data folder has none of that name


def test_an_export_takes_a_name_as_a_scan_does(
    home: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "accurate")
    named = CliRunner().invoke(export, ["accurate", "--verify"])
    assert (named.exit_code, f"{home / 'aivsreal' / 'accurate'} is no bundle" in named.stderr) == (2, True)
    assert CliRunner().invoke(export, ["./accurate", "--verify"]).exit_code == 0


def test_the_command_takes_the_encoder_that_was_measured_and_no_other(encoder: Path, home: Path) -> None:
    other = CliRunner().invoke(export, ["--accurate", str(encoder)])
    assert other.exit_code == 2
    assert "SHA-256" in other.stderr
    assert not home.exists()
    both = CliRunner().invoke(export, ["--accurate", str(encoder), "run"])
    assert (both.exit_code, "leave the CHECKPOINT out" in both.stderr) == (2, True)
