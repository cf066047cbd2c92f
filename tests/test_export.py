"""`aivsreal-export`: a checkpoint becomes a bundle, or nothing is written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper

from aivsreal.export.cli import main
from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
from aivsreal.export.graphs.parity import Tolerance
from aivsreal.export.graphs.reference import Reference
from aivsreal.export.graphs.session import onnx_logits
from aivsreal.runtime import Bundle
from aivsreal.runtime.bundle.card import training_card_from_json
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.networks.arch import fused_network, network_from_arch
from aivsreal.runtime.networks.levit import FusedLevit
from aivsreal.runtime.networks.mapped import round_to_half
from aivsreal.runtime.spec import PreprocessSpec

SPEC = PreprocessSpec(64)


def _export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _fused(size: int) -> FusedLevit:
    torch.manual_seed(0)
    network = network_from_arch("levit_128s", size)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return fused_network(network.eval(), "levit_128s", size)


@pytest.fixture(scope="module")
def fused() -> FusedLevit:
    return _fused(64)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("best.json", "best.safetensors"):
        shutil.copy(tiny_run / name, copy)
    return copy


@pytest.mark.parametrize("opset", [17, 20])
def test_the_graph_computes_what_pytorch_does_for_any_batch(fused: FusedLevit, opset: int) -> None:
    content = onnx_from_network(fused, SPEC, opset).SerializeToString()
    assert onnx.load_from_string(content).opset_import[0].version == opset
    for count in (1, 2, 7):
        batch_BCHW = np.random.default_rng(count).standard_normal((count, 3, 64, 64)).astype(np.float32)
        with torch.inference_mode():
            expected_B = fused(torch.from_numpy(batch_BCHW)).flatten().numpy()
        assert np.abs(onnx_logits(content, batch_BCHW) - expected_B).max() < 1e-4


def test_the_map_says_what_each_token_adds_and_its_mean_is_the_logit() -> None:
    fused = _fused(128)
    session = onnxruntime.InferenceSession(onnx_from_network(fused, PreprocessSpec(128)).SerializeToString())
    batch_BCHW = np.random.default_rng(0).standard_normal((3, 3, 128, 128)).astype(np.float32)
    assert [output.shape for output in session.get_outputs()] == [["batch", 1], ["batch", 2, 2]]
    logits_B1, map_BHW = session.run(["logits", "map"], {"pixels_BCHW": batch_BCHW})
    assert (logits_B1.shape, map_BHW.shape) == ((3, 1), (3, 2, 2))
    assert np.abs(map_BHW.mean(axis=(1, 2)) - logits_B1[:, 0]).max() < 1e-6
    assert np.ptp(map_BHW, axis=(1, 2)).min() > 1e-4  # tokens differ: a map that repeats the logit would also pass
    with torch.inference_mode():
        expected_BHW = fused.logits_and_map(torch.from_numpy(batch_BCHW))[1].numpy()
    assert np.abs(map_BHW - expected_BHW).max() < 1e-5


def test_the_graph_is_lean_and_names_its_weights(fused: FusedLevit) -> None:
    graph = onnx_from_network(fused, SPEC).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"BatchNormalization", "Identity", "Constant", "Shape", "Gather", "Cast", "Unsqueeze"}
    assert "Mul" not in kinds  # the attention scale is in the queries' weights
    assert {tensor.name for tensor in graph.initializer} >= set(fused.state_dict())


def test_the_same_weights_give_the_same_bytes(fused: FusedLevit) -> None:
    first, second = (onnx_from_network(fused, SPEC).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_network_that_was_not_fused_is_refused() -> None:
    with pytest.raises(ExportError, match="not fused"):
        onnx_from_network(network_from_arch("levit_128s", 64).eval(), SPEC)


def test_half_storage_halves_the_file_and_computes_with_the_rounded_weights(fused: FusedLevit) -> None:
    full = onnx_from_network(fused, SPEC)
    half = with_half_weights(full)
    assert half.ByteSize() < 0.55 * full.ByteSize()
    batch_BCHW = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        expected_B = round_to_half(fused)(torch.from_numpy(batch_BCHW)).flatten().numpy()
    assert np.abs(onnx_logits(half.SerializeToString(), batch_BCHW) - expected_B).max() < 1e-4


def test_a_weight_past_half_is_refused(fused: FusedLevit) -> None:
    model = onnx_from_network(fused, SPEC)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ExportError, match="past FP16"):
        with_half_weights(model)


def test_synthetic_references_are_always_the_same(tmp_path: Path) -> None:
    first, second = (list(Reference(count=5).pixels()) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert len({values.tobytes() for values in first}) == 5
    with pytest.raises(ExportError, match="no images"):
        next(Reference(tmp_path).pixels())


def test_a_bundle_tells_where_it_comes_from(tiny_bundle: Path, tiny_run: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    card = json.loads((tiny_run / "best.json").read_text())
    assert (manifest.arch, manifest.spec.size) == ("levit_128s", 64)
    assert manifest.provenance["checkpoint_sha256"] == card["weights_sha256"]
    assert manifest.provenance["data_digest"] == card["data_digest"]
    assert manifest.metrics["training"] == card["metrics"]
    text = (tiny_bundle / "README.md").read_text()
    for words in ("levit_128s, 64 px", "research and evaluation", "Not evaluated yet", "| train/real | real | 16 |"):
        assert words in text


def test_another_crop_goes_into_the_spec(run: Path, tmp_path: Path) -> None:
    result = _export(run, "-o", tmp_path / "bundle", "--crop-fraction", 0.5)
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "bundle").manifest.spec.crop_fraction == 0.5
    assert _export(run, "-o", tmp_path / "other", "--crop-fraction", 0).exit_code == 2


def test_the_result_is_one_json_object_on_request(run: Path, tmp_path: Path) -> None:
    result = _export(
        run, "-o", tmp_path / "bundle", "--json", "--point", "strict:0.9:0.4:0.01", "--point", "soft:.5:.5"
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [row["against"] for row in printed["comparisons"]] == [
        "PyTorch with the same weights", "PyTorch as trained"
    ]  # fmt: skip
    for row in printed["comparisons"]:
        assert (row["file"], row["images"], row["flips"]) == ("model.onnx", 256, 0)
    assert printed["comparisons"][0]["max_probability"] <= 1e-4
    assert printed["reference_images"] == "synthetic"
    assert (printed["bundle"], printed["left"]) == (str(tmp_path / "bundle"), [])
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.point().name, manifest.point().false_alarm_rate) == ("strict", 0.01)
    assert [point.name for point in manifest.points] == ["strict", "soft"]


def _change_card(run: Path, **changes: object) -> None:
    card = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps({**card, **changes}))


def _pickle(run: Path) -> None:
    content = pickle.dumps({"weights": [1.0]})
    (run / "best.safetensors").write_bytes(content)
    _match_digest(run, content)


def _cut(run: Path) -> None:
    content = (run / "best.safetensors").read_bytes()[:-100]
    (run / "best.safetensors").write_bytes(content)
    _match_digest(run, content)


def _match_digest(run: Path, content: bytes) -> None:
    import hashlib

    _change_card(run, weights_sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "best.json").unlink(), "best.json: no such file"),
        (lambda run: (run / "best.safetensors").unlink(), "best.safetensors: no such file"),
        (lambda run: (run / "best.json").write_text("{"), "not a card"),
        (lambda run: _change_card(run, format=9), "format 9"),
        (lambda run: _change_card(run, labels=["ai", "real"]), "labels"),
        (lambda run: _change_card(run, arch="resnet50"), "unknown arch"),
        (lambda run: _change_card(run, arch="levit_128"), "does not fit levit_128"),
        (lambda run: (run / "best.safetensors").write_bytes(b"other"), "damaged"),
        (_pickle, "does not fit"),
        (_cut, "does not fit"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error_and_leaves_nothing(
    run: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(run)
    result = _export(run, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_refused_export_keeps_the_bundle_that_is_there(
    run: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.setattr("aivsreal.export.draft.SAME_WEIGHTS", Tolerance(0.0, 0.0, 0.0, 0.0))
    result = _export(run, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "model.onnx against PyTorch with the same weights: logit differs by" in result.stderr
    assert Bundle.open(tmp_path / "bundle").digest == Bundle.open(tiny_bundle).digest


@pytest.mark.parametrize("point", ["strict", "strict:0.5", ":0.5:0.5", "strict:0.2:0.8", "strict:a:b"])
def test_a_wrong_point_is_wrong_use(run: Path, tmp_path: Path, point: str) -> None:
    result = _export(run, "-o", tmp_path / "bundle", "--point", point)
    assert result.exit_code == 2
    assert point in result.stderr


def test_a_folder_of_something_else_is_never_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    result = _export(run, "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "is not a bundle" in result.stderr
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_card_that_training_wrote_comes_back_whole(tiny_run: Path) -> None:
    values = json.loads((tiny_run / "best.json").read_text())
    card = training_card_from_json(values)
    assert json.loads(json.dumps(card.to_json())) == values
    started = {"weights_sha256": "0" * 64, "epoch": 3}
    assert training_card_from_json({**values, "started_from": started, "later": 1}).told()["started_from"] == started
