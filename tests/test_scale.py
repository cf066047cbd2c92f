"""The scan on a real local Ray, from a real S3 server over loopback: each file has one row, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_image
from object_storage import BUCKET, actors_of, client, s3_server, started, upload

pytest.importorskip("ray", reason="the extra ray is not installed")
FILES = int(os.environ.get("AIVSREAL_SCALE_FILES", "120"))
BROKEN = max(3, FILES // 100)
FOLDERS = 7
OPTIONS = ("--backend", "onnx", "--threads", "2")
PLACE, OUTPUT = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/results"
IN_TIME_S = 300 + FILES / 4  # a machine that does much else starts Ray in minutes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, some of them broken, in folders, under names that are awkward in object storage."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(FILES - BROKEN):
        write_image(folder / f"{index % FOLDERS}" / f"ü {index}%20#?.jpg", index, size=(200, 150))
    whole = next(folder.rglob("*.jpg")).read_bytes()
    for index in range(BROKEN):
        (folder / f"{index % FOLDERS}" / f"broken{index}.jpg").write_bytes(
            (whole[: len(whole) // 2], b"no picture", b"")[index % 3]
        )
    return folder


@pytest.fixture(scope="module")
def storage(photos: Path) -> Iterator[dict[str, str]]:
    with s3_server() as names:
        upload(names, photos, "photos")
        yield names


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows of a plain scan by the file's name in the bucket."""
    output = tmp_path_factory.mktemp("plain") / "rows.jsonl"
    command = [sys.executable, "-m", "aivsreal.runtime.commands.scan", str(photos), "--output", str(output), *OPTIONS]
    assert subprocess.run(command, capture_output=True, timeout=IN_TIME_S).returncode == 1
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return {f"{PLACE}/{Path(row['path']).relative_to(photos)}": row for row in rows}


def _check(rows: list[dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert {path: count for path, count in Counter(row["path"] for row in rows).items() if count > 1} == {}
    assert {row["path"] for row in rows} == set(expected)
    for row in rows:
        plain = expected[row["path"]]
        assert row.keys() - {"etag"} == plain.keys()
        for name in plain.keys() - {"path", "mtime_ns", "p_ai", "logit", "reason"}:
            assert row[name] == plain[name], (row, plain)
        for name in row.keys() & {"p_ai", "logit"}:
            assert row[name] == pytest.approx(plain[name], abs=1e-4)
        assert row["mtime_ns"] > 0
        assert len(row["etag"]) == 32


def _rows(names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    from aivsreal.runtime.results.row import json_from_row
    from aivsreal.runtime.scale.output import rows_from_output

    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return [json_from_row(row) for row in rows_from_output(OUTPUT)]


def _keys(names: dict[str, str]) -> list[str]:
    listing = client(names).list_objects_v2(Bucket=BUCKET, Prefix="results/")
    return [one["Key"] for one in listing.get("Contents", ())]


def _parts(names: dict[str, str]) -> list[str]:
    return sorted(key for key in _keys(names) if key.startswith("results/part-"))


def _until(driver: subprocess.Popen[str], happened: Any) -> None:
    until_s = time.monotonic() + IN_TIME_S
    while not happened():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < until_s, "nothing happened in time"
        time.sleep(0.1)


def _ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
    told = driver.communicate(timeout=IN_TIME_S)[1]
    return driver.returncode, told


def test_each_file_has_one_row_though_driver_and_actor_are_killed(
    storage: dict[str, str], expected: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [f"{PLACE}/{index}" for index in range(FOLDERS)]
    arguments = (*places, "--ray", "local", "--output", OUTPUT, *OPTIONS)
    rows = FILES // 10
    driver = started(storage, *arguments, rows_a_part=rows)
    _until(driver, lambda: _parts(storage))
    driver.kill()
    driver.communicate()
    if FILES < 500:  # all may be judged before anybody can kill: as if it had been after the first part
        for part in _parts(storage)[1:]:
            client(storage).delete_object(Bucket=BUCKET, Key=part)
    before = len(_parts(storage))
    some = _rows(storage, monkeypatch)
    assert 0 < len(some) < len(expected)

    resumed = started(storage, *arguments, "--resume", rows_a_part=rows)
    _until(resumed, lambda: actors_of(resumed.pid) and (FILES < 500 or len(_parts(storage)) > before))
    for actor in actors_of(resumed.pid):
        os.kill(actor, 9)
    code, told = _ended(resumed)
    assert code == 1, told
    assert f"in {OUTPUT} already: {len(some)} files" in told
    assert "Traceback" not in told
    _check(_rows(storage, monkeypatch), expected)
    assert "results/_running.json" not in _keys(storage)


@pytest.mark.skipif(FILES < 2000, reason="50,000 files take minutes: make soak")
def test_memory_does_not_grow_with_the_files(tmp_path: Path, tiny_bundle: Path) -> None:
    from aivsreal.benchmarks.cpu.on_ray import MEMORY_BOUND, memory_row

    sources = [write_image(tmp_path / f"{index}.jpg", index) for index in range(50)]
    row = memory_row(sources, 25 * FILES, 5 * FILES // 2, "onnx-cpu", str(tiny_bundle))
    assert row["holds"], row
    assert max(row["ratios"].values()) <= MEMORY_BOUND
    assert min(row["driver_mib"], row["actor_mib"]) > 50
