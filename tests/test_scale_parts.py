"""Object storage, tables, parts and the lease of a scan on a cluster, without a cluster."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import write_image
from hostile import encoded
from object_storage import BUCKET, client, s3_server

pytest.importorskip("ray", reason="the extra ray is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.commands.report import main as report
from aivsreal.runtime.commands.scan import main as scan
from aivsreal.runtime.commands.scan_options import Options
from aivsreal.runtime.errors import BackendError, DataError, Fault, ImageError, ResultsError
from aivsreal.runtime.files.find import Search
from aivsreal.runtime.options import ScanOptions
from aivsreal.runtime.results.row import Row, json_from_row, line_from_row
from aivsreal.runtime.scale import lease as leases
from aivsreal.runtime.scale import output, storage
from aivsreal.runtime.scale.cluster import chosen_pool
from aivsreal.runtime.scale.judging import How, Judging
from aivsreal.runtime.scale.lease import Lease
from aivsreal.runtime.scale.listing import Columns, Listing, entries_from_table, places_from_arguments
from aivsreal.runtime.scale.output import Parts, is_known, key_of, known_keys, rows_from_output, table_from_rows
from aivsreal.runtime.scale.storage import Entry, content_of, images
from aivsreal.runtime.uri import Uri
from aivsreal.runtime.verdict import Evidence, FileStamp, Judge, Label, Origin, Scanned, Verdict

JUDGE = Judge("0123456789ab", "cautious", "onnx-cpu fp32")
KEYS = ("a.jpg", "deep/a//b.JPG", "deep/ü %20#?+&.png", "deep/@eaDir/x.jpg", "deep/notes.txt", "deep/folder.jpg/")


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, str]]:
    with s3_server() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        storage._s3.cache_clear()
        storage._arrow_of.cache_clear()
        yield found
    storage._s3.cache_clear()
    storage._arrow_of.cache_clear()


@pytest.fixture(scope="module")
def bucket(names: dict[str, str]) -> Any:
    s3 = client(names)
    for key in KEYS:
        s3.put_object(Bucket=BUCKET, Key=f"photos/{key}", Body=key.encode())
    return s3


def _row(path: str, label: Label | None = Label.AI, size: int = 7, etag: str | None = None) -> Row:
    stamp = FileStamp(size, 5, etag=etag)
    if label is None:
        failed = Scanned(Uri(path), error="not an image", fault=Fault.NOT_AN_IMAGE, stamp=stamp)
        return Row(failed, JUDGE)
    evidence = (Evidence("png:parameters", Origin.AI, "steps"),)
    verdict = Verdict(label, 0.75, 1.5, "because")
    return Row(Scanned(Uri(path), verdict, evidence=evidence, stamp=stamp, frames=((0, 0.5), (3, 1.0))), JUDGE)


def test_a_prefix_is_listed_as_a_folder_is_and_odd_keys_are_kept(bucket: Any) -> None:
    found = {entry.path: entry for entry in images(f"s3://{BUCKET}/photos", Search(exclude=("ü*",)))}
    assert set(found) == {f"s3://{BUCKET}/photos/{key}" for key in KEYS[:2]}
    entry = found[f"s3://{BUCKET}/photos/deep/a//b.JPG"]
    assert (entry.size, len(entry.etag or ""), content_of(entry)) == (len(KEYS[1]), 32, KEYS[1].encode())
    assert [one.path for one in images(f"s3://{BUCKET}/photos/deep/notes.txt", Search())]  # it was named
    assert list(images(f"s3://{BUCKET}/phot", Search())) == []
    odd = f"s3://{BUCKET}/photos/{KEYS[2]}"
    assert content_of(next(images(odd, Search()))) == KEYS[2].encode()


def test_more_keys_than_a_page_are_all_listed(bucket: Any) -> None:
    for index in range(1050):
        bucket.put_object(Bucket=BUCKET, Key=f"many/{index}.jpg", Body=b"x")
    assert len(list(images(f"s3://{BUCKET}/many/", Search()))) == 1050


def test_an_object_that_is_gone_changed_or_too_large_is_an_error_of_that_file(bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="state/a.jpg", Body=b"before")
    (entry,) = images(f"s3://{BUCKET}/state", Search())

    def fault(entry: Entry) -> Fault:
        with pytest.raises(ImageError, match=entry.path) as caught:
            content_of(entry)
        return caught.value.fault

    bucket.put_object(Bucket=BUCKET, Key="state/a.jpg", Body=b"after!")  # of the same size
    assert fault(entry) is Fault.CHANGED
    bucket.delete_object(Bucket=BUCKET, Key="state/a.jpg")
    assert fault(entry) is Fault.MISSING
    assert fault(Entry(f"s3://{BUCKET}/big.jpg", 1 << 40)) is Fault.TOO_LARGE
    assert fault(Entry(f"s3://{BUCKET}/empty.jpg", 0)) is Fault.EMPTY


def test_a_storage_that_refuses_or_is_unknown_is_one_clear_error(bucket: Any) -> None:
    for place in ("s3://no-such-bucket/x", "ftp://host/x", "https://host/x.jpg"):
        with pytest.raises(DataError, match=place):
            list(images(place, Search()))


@pytest.mark.parametrize("lines", [False, True], ids=["parquet", "jsonl"])
@pytest.mark.parametrize("place", ["folder", f"s3://{BUCKET}/parts"])
def test_rows_come_back_from_parts_as_they_were(lines: bool, place: str, names: dict[str, str], tmp_path: Path) -> None:
    where = str(tmp_path / place) if place == "folder" else f"{place}{lines}"
    rows = [_row("s3://b/1.jpg", etag="abc"), _row("s3://b//2.jpg", None), _row("s3://b/ü.jpg", Label.REAL)]
    early, late = Parts(where, "20260101T000000Z-aaaa", lines), Parts(where, "20260102T000000Z-aaaa", lines)
    late.add(table_from_rows(rows[2:]))
    late.flush()
    early.add(table_from_rows(rows[:2]))
    early.flush()
    assert list(rows_from_output(where)) == rows
    assert [line_from_row(row) for row in rows_from_output(where)] == [line_from_row(row) for row in rows]
    known, errors = known_keys(where, JUDGE.bundle, JUDGE.operating_point, retry_errors=False)
    asked = np.array(
        [
            key_of("s3://b/1.jpg", "abc", 7, 5),
            key_of("s3://b/1.jpg", "changed", 7, 5),
            key_of("s3://b//2.jpg", None, 7, 5),
        ]
    )
    assert (is_known(asked, known).tolist(), errors) == ([True, False, True], 1)
    known, errors = known_keys(where, JUDGE.bundle, JUDGE.operating_point, retry_errors=True)
    assert (is_known(asked, known).tolist(), errors) == ([True, False, False], 0)
    with pytest.raises(ResultsError, match="name another output"):
        known_keys(where, "another", JUDGE.operating_point, False)


def test_a_part_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-x.parquet").write_bytes(b"torn")
    with pytest.raises(ResultsError, match=r"part-x\.parquet"):
        list(rows_from_output(str(tmp_path)))


@pytest.mark.parametrize("line", ["[]", "{}", '{"path": 1}', '{"path": "a", "size": 1}', '{"path": "a", "size": null}'])
def test_a_line_of_a_part_that_is_no_row_is_one_error(line: str, tmp_path: Path) -> None:
    (tmp_path / "part-x.jsonl").write_text(line + "\n")
    with pytest.raises(ResultsError, match=re.escape(str(tmp_path))):
        list(rows_from_output(str(tmp_path)))
    with pytest.raises(ResultsError, match=re.escape(str(tmp_path))):
        known_keys(str(tmp_path), JUDGE.bundle, JUDGE.operating_point, False)


def test_parts_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    parts = Parts(str(tmp_path), "run", False)
    parts.add(table_from_rows([_row("s3://b/1.jpg")]))
    with pytest.raises(ResultsError, match="No space left"):
        parts.flush()
    assert list(rows_from_output(str(tmp_path))) == []


def test_tables_name_files_or_have_them(names: dict[str, str], bucket: Any, tmp_path: Path) -> None:
    picture = encoded("PNG")
    (tmp_path / "local.png").write_bytes(picture)
    uris = [f"s3://{BUCKET}/photos/a.jpg", str(tmp_path / "local.png")]
    pq.write_table(pa.table({"url": uris, "other": [1, 2]}), tmp_path / "1.parquet")
    (tmp_path / "2.jsonl").write_text("".join(json.dumps({"url": uri}) + "\n\n" for uri in uris))
    stream = io.BytesIO()
    pq.write_table(pa.table({"name": ["x", "y"], "jpg": [picture, None]}), stream)
    bucket.put_object(Bucket=BUCKET, Key="tables/3.parquet", Body=stream.getvalue())
    (tmp_path / "4.jsonl").write_text(json.dumps({"jpg": base64.b64encode(picture).decode()}))

    def entries(place: object, columns: Columns, known: Any = ()) -> list[Entry]:
        places = places_from_arguments([str(place)], Search(), columns, [])
        listing = Listing(places, Search(), columns, np.array(known, "S16"))
        return [entry for task in listing.get_read_tasks(1) for table in task() for entry in entries_from_table(table)]

    named = entries(tmp_path / "1.parquet", Columns("url"))
    assert [one.path for one in named] == uris
    assert (named[0].size, named[1].size) == (None, len(picture))
    assert named == entries(tmp_path / "2.jsonl", Columns("url"))
    first, empty = entries(f"s3://{BUCKET}/tables", Columns("name", "jpg"))
    assert (first.path, first.content, empty.content) == ("x", picture, b"")
    (only,) = entries(tmp_path / "4.jsonl", Columns(None, "jpg"))
    assert (only.path, only.content) == (f"{tmp_path}/4.jsonl#0", picture)
    with pytest.raises(DataError, match="is no table with missing"):
        entries(tmp_path / "1.parquet", Columns("missing"))
    (tmp_path / "5.jsonl").write_text('{"url": "http://169.254.169.254/latest"}')
    with pytest.raises(DataError, match="in no storage that is read"):
        entries(tmp_path / "5.jsonl", Columns("url"))


def test_a_row_that_names_a_folder_is_an_error_of_its_own(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("full/a.png", "full/b.png", "c.png"):
        write_image(tmp_path / name, 1)
    rows = [str(tmp_path / name) for name in ("empty", "full", "c.png", "absent.png")]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"url": row}) + "\n" for row in rows))
    (read,) = Listing([str(table)], Search(), Columns("url"), np.empty(0, "S16")).get_read_tasks(1)
    (block,) = read()
    assert [entry.path for entry in entries_from_table(block)] == rows
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(was_current_actor_reconstructed=False))
    judging = Judging(How(str(tiny_bundle), Bundle.open(tiny_bundle).digest, options=ScanOptions(threads=1)))
    judged = judging(block)
    with judging._detector, judging._pool:
        assert judged.column("path").to_pylist() == rows
        assert judged.column("fault").to_pylist() == ["not-a-file", "not-a-file", None, "missing"]


@pytest.mark.parametrize(
    ("machines", "asked", "pool"),
    [
        ([(8, 0)], (None, None, 0), (4, 2)),
        ([(1, 0)], (None, None, 0), (1, 1)),
        ([(3, 0), (3, 0)], (None, None, 0), (2, 2)),
        ([(8, 0)], (None, 8, 0), (1, 8)),
        ([(8, 0)], (None, 16, 0), None),
        ([(8, 0), (8, 0)], (None, 16, 0), None),
        ([(8, 0)], (1, 16, 0), None),
        ([(32, 0), (4, 1)], (None, None, 1), (1, 4)),
        ([(16, 2)], (None, None, 0.5), (4, 4)),
        ([(16, 1), (16, 1)], (None, None, 2), None),
        ([(8, 1)], (None, 16, 1), None),
    ],
)
def test_actors_are_as_many_as_fit_the_machines_and_none_is_waited_for_that_fits_none(
    machines: list[tuple[int, int]], asked: tuple[Any, Any, float], pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": False, "Resources": {}}])
    if pool is None:
        with pytest.raises(BackendError, match="--threads"):
            chosen_pool(*asked, grows=False)
        assert chosen_pool(5, *asked[1:], grows=True).count == 5
    else:
        chosen = chosen_pool(*asked, grows=False)
        assert (chosen.count, chosen.threads) == pool


def test_places_within_others_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.jpg").write_bytes(b"x")
    notes: list[str] = []
    inner, outer = str(tmp_path / "a" / "b"), str(tmp_path / "a")
    assert places_from_arguments([inner, outer, f"{outer}/", str(tmp_path / "no")], Search(), None, notes) == [
        outer, str(tmp_path / "no")
    ]  # fmt: skip
    (tmp_path / "a" / "b" / "x.jpg").unlink()
    assert places_from_arguments([outer], Search(), None, notes) == []
    assert notes == [f"{outer}: no images there"]


def test_one_run_at_a_time_writes_to_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.2)
    monkeypatch.setattr(leases, "GONE_AFTER_S", 1.0)
    monkeypatch.setattr(leases, "SETTLED_S", 0.1)
    place, told = str(tmp_path), list[str]()
    with Lease(place, "first", told.append) as first:
        with pytest.raises(ResultsError, match="in use: run first"), Lease(place, "second", told.append):
            pass
        first.check()
    assert os.listdir(tmp_path) == []

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = {"run": "killed", "host": leases.socket.gethostname(), "pid": ended.pid, "beats": 3}
    for host in (left["host"], "another machine"):  # there it is waited for, until it is sure that nothing beats
        (tmp_path / leases.NAME).write_text(json.dumps(left | {"host": host}))
        with Lease(place, "second", told.append) as second:
            second.check()
    assert ["run first" in told[0], "on another machine" in told[1]] == [True, True]

    with Lease(place, "first", told.append) as first:
        (tmp_path / leases.NAME).write_text(json.dumps(left | {"run": "thief"}))
        first._beating.join(timeout=10)
        with pytest.raises(ResultsError, match="in use: run thief"):
            first.check()
    assert leases.NAME in os.listdir(tmp_path)  # the other one's

    (tmp_path / leases.NAME).write_text('{"run": "of another program"}')
    with pytest.raises(ResultsError, match="none of ours"), Lease(place, "third", told.append):
        pass


def test_a_report_of_an_output_counts_each_file_once(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    judge = Judge(bundle.digest, bundle.manifest.point(None).name, JUDGE.backend)
    place = tmp_path / "out"
    for run, label, count in (("1", None, 3), ("2", Label.AI, 2)):  # two errors were judged again
        parts = Parts(str(place), run, False)
        rows = [Row(_row(f"s3://b/{index}.jpg", label).scanned, judge) for index in range(count)]
        parts.add(
            table_from_rows([*rows, *(Row(_row(f"s3://b/{run}{i}", Label.REAL).scanned, judge) for i in range(50))])
        )
        parts.flush()
    html, table = tmp_path / "r.html", tmp_path / "r.csv"
    command = [str(place), "--html", str(html), "--csv", str(table), "--first", "10", "--bundle", str(tiny_bundle)]
    result = CliRunner().invoke(report, command)
    assert result.exit_code == 0, result.output
    assert "103 files of" in result.stderr
    assert "judged 102: 2 ai, 100 real, 0 unsure; errors 1" in result.stderr
    assert "1 not-an-image, for example s3://b/2.jpg: not an image" in result.stderr
    assert len(table.read_text().splitlines()) == 104
    page = html.read_text()
    assert page.count('"because", null') == 12
    assert "the first 10 of each label" in page
    assert CliRunner().invoke(report, [str(place), "--bundle", str(tiny_bundle)]).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--actors", "2"],
        ["x", "--ray", "local"],
        ["x", "--ray", "local", "--output", "o", "--csv"],
        ["-", "--ray", "local", "--output", "o"],
        ["x", "--ray", "local", "--output", "o", "--watch"],
        ["x", "--ray", "local", "--output", "o", "--resume", "--by-content"],
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(scan, arguments).exit_code == 2


def test_without_the_extra_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aivsreal.runtime.commands.scan_on_ray.find_spec", lambda name: None)
    result = CliRunner().invoke(scan, [str(tmp_path), "--ray", "local", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install 'aivsreal[ray]'" in result.stderr


def test_an_output_that_has_rows_wants_resume(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path / "out"), "run", False)
    parts.add(table_from_rows([_row("s3://b/1.jpg")]))
    parts.flush()
    result = CliRunner().invoke(scan, [str(tmp_path), "--ray", "local", "--output", str(tmp_path / "out")])
    assert (result.exit_code, "--resume" in result.stderr) == (2, True)


def test_a_name_that_is_no_text_is_a_row_too() -> None:
    row = Row(Scanned(Path(os.fsdecode(b"/x/\xff.jpg")), error="e", fault=Fault.EMPTY, stamp=None), JUDGE)
    (path,) = table_from_rows([row]).column("path").to_pylist()
    assert path == "/x/\\udcff.jpg"
    assert key_of(str(row.scanned.path), None, None, None) == key_of(path, None, None, None)
    assert output.SCHEMA.names[0] == next(iter(json_from_row(row)))


def test_a_plain_scan_loads_nothing_of_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    code = (
        "import sys\nfrom aivsreal.runtime.commands.scan import main\n"
        f"try:\n    main([{str(tmp_path)!r}, '--backend', 'onnx'])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'ray', 'pyarrow', 'boto3', 'pandas', 'aivsreal.runtime.scale'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_files_for_clusters_fit_their_schemas() -> None:
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    folder = Path(__file__).resolve().parent.parent / "docs" / "ray"
    cluster = prepare_config(yaml.safe_load((folder / "cluster.yaml").read_text()))
    validate_config(cluster)
    job = yaml.safe_load((folder / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    command, *arguments = job["spec"]["entrypoint"].split()
    assert command == "aivsreal-scan"
    Options(**click.Command.make_context(scan, command, list(arguments)).params).check()
