"""What `aivsreal-scan` leaves beside its rows: report, heat maps, CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from conftest import write_image
from PIL import Image

from aivsreal.runtime.bundle.folder import Bundle, write_bundle
from aivsreal.runtime.commands.scan import main
from aivsreal.runtime.errors import Fault
from aivsreal.runtime.results.writers import CsvWriter
from aivsreal.runtime.verdict import Scanned


def _scan(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("=cmd.png", "a/b,c.jpg")):
        write_image(tmp_path / "photos" / name, index, size=(300, 240))
    (tmp_path / "photos" / "broken.png").write_bytes(b"words")
    return Path("photos")


@pytest.fixture(scope="module")
def without_maps(map_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`map_bundle` as it was exported before there were maps."""
    bundle = Bundle.open(map_bundle)
    model = onnx.load_from_string(bundle.read("model.onnx"))
    del model.graph.output[1]
    folder = tmp_path_factory.mktemp("old") / "bundle"
    write_bundle(folder, {"model.onnx": model.SerializeToString()}, replace(bundle.manifest, files={}))
    return folder


def _data(report: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text("ascii"), re.S)
    assert found
    return json.loads(found[1])


def test_a_scan_writes_a_report_and_heat_maps_that_agree_with_its_rows(map_bundle: Path, photos: Path) -> None:
    result = _scan(photos, "--bundle", map_bundle, "--html", "report.html", "--heatmaps", "maps", "--jsonl")
    assert result.exit_code == 1, result.output
    rows = {row["path"]: row for row in map(json.loads, result.stdout.splitlines())}
    data = _data(Path("report.html"))
    assert [row[0] for row in data["rows"]] == [path for path, row in rows.items() if "logit" in row]
    for path, _, _, p_ai, logit, _, values, *_ in data["rows"]:
        assert p_ai == pytest.approx(rows[path]["p_ai"], abs=1e-6)
        assert np.mean(values) == pytest.approx(logit, abs=2e-3)
        map_hw = np.load(f"maps/{path}.npy")
        np.testing.assert_allclose(map_hw.mean(), rows[path]["logit"], atol=1e-5)
        picture = Image.open(f"maps/{path}.png")
        assert picture.size == (448, 448)
        assert "not what was edited" in picture.text["Description"]
    assert data["errors"][0][0] == "photos/broken.png"
    assert "drew 2 heat maps in maps" in result.stderr
    assert "report in report.html" in result.stderr


def test_a_bundle_without_maps_reports_without_them_and_refuses_heat_maps(without_maps: Path, photos: Path) -> None:
    result = _scan(photos, "--bundle", without_maps, "--html", "report.html")
    assert result.exit_code == 1
    assert "without heat maps" in result.stderr
    assert [row[6] for row in _data(Path("report.html"))["rows"]] == [None, None]
    refused = _scan(photos, "--bundle", without_maps, "--heatmaps", "maps")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "aivsreal-export" in refused.stderr
    assert not Path("maps").exists()


@pytest.mark.parametrize("name", ["a;=1+1.jpg", 'a;=1+1, "b".jpg'])
def test_a_name_in_csv_is_one_cell_whatever_separates_cells(name: str) -> None:
    stream = io.StringIO()
    CsvWriter(stream).write(Scanned(Path(name), error="empty file", fault=Fault.EMPTY))
    line = stream.getvalue().splitlines()[1]
    assert next(csv.reader([line])) == [name, "error", "", "", "", "", "empty file", "empty", "", ""]
    assert len(next(csv.reader([line], delimiter=";"))) == 1


def test_csv_has_a_heading_and_no_formulas(map_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    result = _scan("=cmd.png", "a", "broken.png", "--bundle", map_bundle, "--csv")
    heading, *rows = csv.reader(io.StringIO(result.stdout))
    judged = ["path", "label", "p_ai", "logit", "reason", "evidence", "error", "fault"]
    assert heading == [*judged, "first_label", "first_p_ai"]
    assert [row[0] for row in rows] == ["./=cmd.png", "a/b,c.jpg", "broken.png"]
    assert float(rows[0][2]) == pytest.approx(1 / (1 + np.exp(-float(rows[0][3]))), abs=1e-5)
    assert rows[2][1] == "error"
    assert rows[2][7] == "not-an-image"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--csv", "--jsonl"], "choose one"),
        (["--assets"], "--assets is for --html"),
        (["--html", "r.html", "--output", "r.jsonl", "--resume"], "use aivsreal-report"),
        (["--html", "absent/r.html"], "absent/r.html: cannot be written"),
        (["--heatmaps", "photos/=cmd.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_message(map_bundle: Path, photos: Path, arguments: list[str], words: str) -> None:
    result = _scan(photos, "--bundle", map_bundle, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
