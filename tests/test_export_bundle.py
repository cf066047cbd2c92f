"""`aivsreal-export` adds to a bundle: half graph, engine, INT8, Triton; what cannot be done here is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from conftest import squares_of, write_image
from fake_cuda import CARD, JETSON, FakeDriver
from fake_gpu import installed_gpu
from google.protobuf import text_format
from onnx import numpy_helper

from aivsreal.export.cli import main
from aivsreal.export.draft import Draft
from aivsreal.export.graphs.half import half_from_onnx
from aivsreal.export.graphs.int8 import Int8Gate
from aivsreal.export.graphs.parity import Tolerance
from aivsreal.export.triton import _tensorrt_name
from aivsreal.runtime import Detector
from aivsreal.runtime.backends.choose import open_backend
from aivsreal.runtime.bundle.engine_key import EngineCard, EngineKey, EngineKind, engines_of
from aivsreal.runtime.bundle.folder import Bundle, extended_folder, write_bundle
from aivsreal.runtime.bundle.manifest import Manifest
from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS, OperatingPoint

MANIFEST = Manifest("levit_128s", LABELS, PreprocessSpec(64), 1.2, (OperatingPoint("balanced", 0.6, 0.4),), "balanced")
GOOD = Int8Gate(885, 0.74, 0.739, 8.0, 4.0, 2.0, True)


@pytest.fixture(scope="module")
def stored(small_model: Any) -> bytes:
    return bytes(small_model.SerializeToString())


@pytest.fixture
def folder(stored: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle to add to, on a machine with neither TensorRT nor a GPU."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("aivsreal.export.draft.COUNT", 24)
    write_bundle(tmp_path / "bundle", {"model.onnx": stored, "README.md": b"# card"}, MANIFEST)
    return tmp_path / "bundle"


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, kernel: Path) -> Callable[[str], None]:
    """Puts a Jetson with the fake TensorRT of a version here."""

    def install(version: str) -> None:
        installed_gpu(monkeypatch, kernel, version, JETSON)

    return install


def _export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_without_tensorrt_the_onnx_part_is_complete_and_the_step_that_is_left_is_named(folder: Path) -> None:
    result = _export(folder, "--fp16", "--json")
    assert result.exit_code == 0, result.output
    assert _names(folder) == {"manifest.json", "model.onnx", "model.fp16.onnx", "README.md", "evaluation.json"}
    printed = json.loads(result.stdout)
    (row,) = printed["comparisons"]
    assert (row["file"], row["against"], row["images"]) == ("model.fp16.onnx", "model.onnx", 24)
    assert row["max_probability"] <= 3e-2
    assert printed["left"][0].endswith(f"run aivsreal-export {folder} --fp16 --engine")
    assert "left to do: the engine (tensorrt is needed to build an engine and is not installed" in result.stderr
    assert Bundle.open(folder).manifest.metrics["half"]["reference_images"] == "synthetic"  # type: ignore[index]
    table = _export(folder, "--fp16", "--no-engine")
    assert "same label" in table.stdout
    assert "24 of 24" in table.stdout
    assert "left to do" not in table.stderr


def test_what_another_export_adds_meanwhile_is_not_lost(
    folder: Path, stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_half(draft: Draft) -> None:
        write_bundle(folder, {"model.onnx": stored, "model.int8.onnx": b"of another export"}, MANIFEST)

    monkeypatch.setattr("aivsreal.export.run.add_half", add_half)
    result = _export(folder, "--fp16", "--no-engine")
    assert result.exit_code == 2
    assert "was changed meanwhile, by another export perhaps: run this one again" in result.stderr
    assert "model.int8.onnx" in _names(folder)


def test_an_engine_that_is_asked_for_and_cannot_be_built_is_an_error(folder: Path) -> None:
    result = _export(folder, "--fp16", "--engine")
    assert result.exit_code == 2
    assert "no engine can be built here: tensorrt is needed" in result.stderr
    assert "nothing was written" in result.stderr
    assert _names(folder) == {"manifest.json", "model.onnx", "README.md"}


def test_neither_torch_nor_onnxruntime_is_needed(folder: Path) -> None:
    blocked = "import sys\nfor name in ('torch', 'timm', 'onnxruntime', 'safetensors'): sys.modules[name] = None\n"
    code = f"{blocked}sys.argv = ['aivsreal-export', {str(folder)!r}, '--fp16', '--json']\n"
    code += "from aivsreal.export.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["comparisons"][0]["images"] == 8
    assert "onnxruntime is not here" in result.stderr
    assert "model.fp16.onnx" in _names(folder)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16", "11.4"])
def test_with_a_gpu_the_bundle_gets_an_engine_that_the_runtime_takes(
    folder: Path, version: str, with_gpu: Callable[[str], None], kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(version)
    result = _export(folder, "--fp16", "--max-batch", 16, "--json")
    assert result.exit_code == 0, result.output
    (card,) = engines_of(Bundle.open(folder))
    assert (card.key.precision, card.key.max_batch, card.key.compute_capabilities) == ("fp16", 16, ("8.7",))
    assert card.parity is not None
    assert card.parity["images"] == 24
    assert card.parity["max_probability"] <= 3e-2
    assert [row["file"] for row in json.loads(result.stdout)["comparisons"]] == ["model.fp16.onnx", card.file]
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    with Detector.open(folder) as detector:
        assert (detector.backend.name, detector.backend.precision) == ("tensorrt", "fp16")
        logit = detector.judge(pixels_HWC).logit
    onnx_backend, _ = open_backend(Bundle.open(folder), "onnx")
    assert abs(logit - float(onnx_backend.run(squares_of(Bundle.open(folder), [pixels_HWC])).logits_B[0])) < 0.05
    verified = _export(folder, "--verify", "--json")
    assert verified.exit_code == 0, verified.output
    assert card.file in {row["file"] for row in json.loads(verified.stdout)["comparisons"]}
    # On another GPU both places and the command are named.
    other = replace(JETSON, capability=(9, 0))
    monkeypatch.setattr("aivsreal.runtime.gpu.backend.open_driver", lambda: FakeDriver(kernel, other))
    with pytest.raises(BackendError, match=r"built for sm_87 with .*; this is sm_90 with .*aivsreal-export --fp16"):
        open_backend(Bundle.open(folder), "tensorrt")


def test_tensorrt_rtx_builds_an_engine_for_another_gpu_and_leaves_its_comparison(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    pytest.importorskip("tensorrt_rtx")

    def no_driver() -> None:
        raise BackendError("there is no GPU")

    monkeypatch.setattr("aivsreal.runtime.gpu.driver.open_driver", no_driver)
    result = _export(folder, "--rtx", "8.6", "--json")
    assert result.exit_code == 0, result.output
    (card,) = engines_of(Bundle.open(folder))
    assert (card.key.kind.value, card.key.compute_capabilities, card.key.precision) == (
        "tensorrt-rtx", ("8.6",), "fp16"
    )  # fmt: skip
    assert (card.parity, card.gpu) == (None, "")
    assert json.loads(result.stdout)["left"] == [f"compare {card.file} on its GPU: aivsreal-export {folder} --verify"]


@pytest.mark.parametrize("refusal", [None, "this GPU is not supported"])
def test_tensorrt_rtx_is_asked_for_a_gpu_that_it_does_not_name_and_parity_decides(
    folder: Path, refusal: str | None, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_gpu(monkeypatch, kernel, "rtx1.7", replace(CARD, name="H100", capability=(9, 0)))
    sys.modules["tensorrt_rtx"].refuse_current = refusal  # type: ignore[attr-defined]
    result = _export(folder, "--fp16", "--engine", "--json")
    assert result.exit_code == 0, result.output
    (card,) = engines_of(Bundle.open(folder))
    assert card.key.compute_capabilities == ("9.0",)
    assert card.flags[2:] == (("portable",) if refusal else ("for 9.0",))
    assert card.parity is not None
    assert ("this GPU is not supported; trying" in result.stderr) == bool(refusal)
    with Detector.open(folder) as detector:
        assert detector.backend.name == "tensorrt-rtx"


def test_an_engine_past_its_tolerance_leaves_the_bundle_as_it_was(
    folder: Path, with_gpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu("10.3.0")
    before = Bundle.open(folder).digest
    monkeypatch.setattr("aivsreal.export.artefacts.HALF", Tolerance(0.0, 0.0, 0.0))
    result = _export(folder, "--fp16")
    assert result.exit_code == 2
    assert "p_ai differs by" in result.stderr
    assert Bundle.open(folder).digest == before


def test_a_half_graph_of_other_weights_does_not_verify(folder: Path, stored: bytes) -> None:
    model = half_from_onnx(onnx.load_from_string(stored))
    for tensor in model.graph.initializer:
        if "stages.2" in tensor.name and tensor.name.endswith("weight"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * np.float16(1.5)).astype(np.float16), tensor.name))
    bundle = Bundle.open(folder)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(folder, {**files, "model.fp16.onnx": model.SerializeToString()}, bundle.manifest)
    result = _export(folder, "--verify")
    assert result.exit_code == 2
    assert "model.fp16.onnx against model.onnx: " in result.stderr


def test_verify_holds_pytorch_against_the_graph_and_changes_nothing(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert _export(folder, "--verify", "-o", folder).exit_code == 2
    result = _export(folder, "--verify", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["comparisons"]
    assert (row["file"], row["against"]) == ("model.onnx", "PyTorch with the same weights")
    assert row["max_probability"] <= 1e-4
    assert Bundle.open(folder).digest == bundle.digest


def test_what_is_added_to_the_shipped_bundle_is_found_by_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("aivsreal.runtime.bundle.folder.SHIPPED", folder)
    assert Bundle.open().path == folder
    result = _export("--fp16")
    assert result.exit_code == 0, result.output
    assert "try: aivsreal-scan IMAGES" in result.stderr
    assert Bundle.open().path == extended_folder()
    assert "model.fp16.onnx" in Bundle.open().manifest.files
    assert _names(folder) == {"manifest.json", "model.onnx", "README.md"}
    bundle = Bundle.open(folder)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(folder, files, replace(bundle.manifest, temperature=1.3))  # an update of aivsreal
    assert Bundle.open().path == folder


@pytest.mark.parametrize("passes", [True, False])
def test_int8_is_in_the_bundle_only_past_its_gate_and_then_preferred(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    for split in ("train", "val_unseen"):
        for label in ("real", "ai"):
            for index in range(3):
                write_image(tmp_path / "data" / split / label / f"{index}.png", index, smooth=label == "ai")
    gate = GOOD if passes else replace(GOOD, auc_int8=0.7)
    monkeypatch.setattr("aivsreal.export.graphs.int8.measure", lambda *arguments: gate)
    assert "--int8 needs --data" in _export(folder, "--int8").stderr
    result = _export(folder, "--int8", "--data", tmp_path / "data")
    assert result.exit_code == (0 if passes else 2), result.output
    assert ("model.int8.onnx" in _names(folder)) is passes
    if not passes:
        assert "INT8 stays out: it loses too much accuracy" in result.stderr
        return
    assert Bundle.open(folder).manifest.metrics["int8"]["speedup"] == 2.0  # type: ignore[index]
    for has, precision in ((True, "int8"), (False, "fp32")):
        monkeypatch.setattr("aivsreal.runtime.backends.protocol.has_int8_products", lambda has=has: has)
        backend, _ = open_backend(Bundle.open(folder), "onnx")
        assert backend.precision == precision


def test_the_triton_repository_is_what_the_schema_allows(
    folder: Path, tmp_path: Path, with_gpu: Callable[[str], None]
) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    with_gpu("10.3.0")
    (tmp_path / "models" / "other" / "1").mkdir(parents=True)
    for _ in range(2):  # the second time it replaces its own
        result = _export(folder, "--fp16", "--triton", tmp_path / "models")
        assert result.exit_code == 0, result.output
    assert _names(tmp_path / "models") == {"aivsreal_onnx", "aivsreal_tensorrt", "other"}
    for name, file, batch, kind in (
        ("aivsreal_onnx", "model.onnx", 64, "TYPE_FP32"), ("aivsreal_tensorrt", "model.plan", 32, "TYPE_FP16")
    ):  # fmt: skip
        place = tmp_path / "models" / name
        config = text_format.Parse((place / "config.pbtxt").read_text(), schema.ModelConfig())
        assert (config.name, config.max_batch_size, config.default_model_filename) == (name, batch, file)
        assert config.backend in ("onnxruntime", "tensorrt")
        (given,) = config.input
        assert (given.name, list(given.dims)) == ("pixels_BCHW", [3, 64, 64])
        assert schema.DataType.Name(given.data_type) == kind
        assert [(value.name, list(value.dims)) for value in config.output] == [("logits", [1]), ("map", [1, 1])]
        assert config.output[0].label_filename == "labels.txt"
        assert (place / "labels.txt").read_text() == "ai\n"
        assert config.dynamic_batching.preferred_batch_size[-1] <= batch
        assert config.instance_group[0].count == 1
        assert json.loads(config.parameters["aivsreal.preprocess"].string_value)["size"] == 64
        assert float(config.parameters["aivsreal.temperature"].string_value) == 1.2
        assert (place / "1" / file).stat().st_size > 0
    assert (tmp_path / "models" / "aivsreal_onnx" / "1" / "model.onnx").read_bytes() == Bundle.open(folder).read(
        "model.onnx"
    )


def test_a_card_follows_what_is_added_and_a_persons_own_stays(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_int8(draft: Any, data: Path) -> None:
        draft.record("int8", Int8Gate(200, 0.9, 0.9, 8.0, 4.0, 2.0, True).to_json())

    monkeypatch.setattr("aivsreal.export.run.add_int8", with_int8)
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert _export(tmp_path / "bundle", "--int8", "--data", tmp_path).exit_code == 0
    assert b"INT8 graph runs in place" in Bundle.open(tmp_path / "bundle").read("README.md")
    opened = Bundle.open(tiny_bundle)
    files = {name: opened.read(name) for name in opened.manifest.files}
    own = write_bundle(tmp_path / "own", {**files, "README.md": b"# Ours"}, opened.manifest)
    assert _export(own.path, "--int8", "--data", tmp_path).exit_code == 0
    assert Bundle.open(own.path).read("README.md") == b"# Ours"


def test_engines_that_differ_in_anything_have_models_of_their_own(folder: Path) -> None:
    bundle = Bundle.open(folder)
    device = {"version": "10.3.0", "compute_capabilities": ("8.7",), "platform": "linux_aarch64"}
    batches = {"min_batch": 1, "opt_batch": 8, "onnx_sha256": bundle.manifest.files["model.onnx"]}
    keys = [
        EngineKey(EngineKind.TENSORRT, precision=precision, max_batch=most, **device, **batches)  # type: ignore[arg-type]
        for precision, most in (("fp16", 32), ("fp16", 64), ("fp32", 32))
    ]
    cards = [EngineCard(key, bundle.manifest.spec, "Orin", (), 3, 3, "0" * 64) for key in keys]
    assert len({_tensorrt_name(card, len(cards)) for card in cards}) == 3
    assert _tensorrt_name(cards[0], 1) == "aivsreal_tensorrt"


def test_a_triton_model_of_somebody_else_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "models" / "aivsreal_onnx"
    mine.mkdir(parents=True)
    (mine / "config.pbtxt").write_text('name: "aivsreal_onnx"')
    result = _export(folder, "--triton", tmp_path / "models")
    assert result.exit_code == 2
    assert "is not a model of aivsreal-export" in result.stderr
    assert (mine / "config.pbtxt").read_text() == 'name: "aivsreal_onnx"'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "is a bundle already: say what to add"),
        (["--fp16", "--temperature", "2"], "--temperature is for a checkpoint"),
        (["--fp16", "--opset", "20"], "--opset is for a checkpoint"),
        (["--verify", "--fp16"], "--verify changes nothing"),
        (["--verify", "--temperature", "2"], "--verify changes nothing"),
        (["--accurate", "clip.whl", "--fp16"], "--accurate makes a bundle as it was measured"),
        (["--fp16", "--max-batch", "0"], "max-batch"),
        (["--triton", "models", "--max-batch", "8", "--dla", "0"], "--dla, --max-batch is for an engine, and none is"),
        (["--fp16", "--no-engine", "--workspace", "64"], "--workspace is for an engine"),
        (["--rtx", "8.6", "--no-engine"], "--rtx is for an engine"),
        (["--fp16", "--no-engine", "--data", "data"], "--data is for --int8"),
        (["--rtx", "8.6"], "tensorrt-rtx is not installed"),
    ],
)
def test_wrong_use_is_one_clear_error(folder: Path, arguments: list[str], words: str) -> None:
    before = Bundle.open(folder).digest
    extra = ["--engine"] if arguments == ["--rtx", "8.6"] else []
    result = _export(folder, *arguments, *extra)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert Bundle.open(folder).digest == before


@pytest.mark.parametrize("damage", ["model.onnx", "manifest.json"])
def test_a_damaged_bundle_is_one_clear_error(folder: Path, damage: str) -> None:
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[: len(content) // 2])
    result = _export(folder, "--fp16")
    assert result.exit_code == 2
    assert str(folder) in result.stderr
    assert "Traceback" not in result.output


def test_a_bundle_whose_model_is_no_onnx_is_one_clear_error(folder: Path) -> None:
    write_bundle(folder, {"model.onnx": b"\x80\x04pickle"}, MANIFEST)
    result = _export(folder, "--fp16")
    assert result.exit_code == 2
    assert "the ONNX graph cannot be run" in result.stderr
    assert "Traceback" not in result.output
