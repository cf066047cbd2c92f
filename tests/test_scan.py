"""`aivsreal-scan` as people and programs use it."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from conftest import write_image
from PIL import Image

from aivsreal.runtime.commands.scan import main
from aivsreal.runtime.commands.scan_options import Options
from aivsreal.runtime.text import escaped, typed

SCAN = [sys.executable, "-m", "aivsreal.runtime.commands.scan"]


def _scan(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, name in enumerate(("b.png", "a/z.jpg", "a/c.webp")):
        write_image(tmp_path / "photos" / name, index)
    return tmp_path / "photos"


def test_rows_are_path_label_and_probability_in_order(tiny_bundle: Path, photos: Path) -> None:
    result = _scan(photos, "--bundle", tiny_bundle)
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(photos / name) for name in ("a/c.webp", "a/z.jpg", "b.png")]
    for _, label, p_ai, evidence in rows:
        assert not evidence
        assert label == ("ai" if float(p_ai) >= 0.5 else "real")
        assert len(p_ai) == 8


def test_json_lines_hold_what_the_format_promises(tiny_bundle: Path, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"words")
    result = _scan(photos, "--bundle", tiny_bundle, "--jsonl")
    assert result.exit_code == 1
    rows = {Path(row["path"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    both = {"path", "size", "mtime_ns", "bundle", "operating_point", "backend"}
    assert rows.pop("broken.jpg").keys() == both | {"error", "fault"}
    assert len(rows) == 3
    for row in rows.values():
        assert row.keys() == both | {"label", "p_ai", "logit", "reason", "evidence"}
        assert 0 <= row["p_ai"] <= 1


def test_stderr_names_backend_precision_bundle_reason_and_sums_up(tiny_bundle: Path, photos: Path) -> None:
    first, *_, last = _scan(photos, "--bundle", tiny_bundle).stderr.splitlines()
    assert re.match(r"backend (onnx-cpu, (fp32|int8)|openvino-cpu, \w+) \(auto; tensorrt passed over", first), first
    for words in ("levit_128s", str(tiny_bundle), "point balanced"):
        assert words in first
    assert last.startswith("judged 3: ")
    assert "errors 0" in last


def test_a_file_that_cannot_be_judged_is_a_row_and_the_scan_goes_on(tiny_bundle: Path, photos: Path) -> None:
    (photos / "a" / "empty.png").touch()
    result = _scan(photos / "absent.png", photos, "--bundle", tiny_bundle)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[1] == "error" for row in rows] == [True, False, True, False, False]
    assert (result.exit_code, rows[0][2]) == (1, "no such file")
    assert "errors 2" in result.stderr


def test_a_list_comes_from_standard_input(tiny_bundle: Path, photos: Path) -> None:
    names = b"".join(os.fsencode(photos / name) + b"\n" for name in ("b.png", "a"))
    result = _scan("-", "--bundle", tiny_bundle, stdin=names)
    assert [Path(line.split("\t")[0]).name for line in result.stdout.splitlines()] == ["b.png", "c.webp", "z.jpg"]


def test_what_a_folder_has_beside_is_counted_and_taken_when_asked(tiny_bundle: Path, photos: Path) -> None:
    (photos / "a" / "z.jpg").rename(photos / "a" / "z")
    (photos / "linked").symlink_to("a")
    for options, names, told in (
        ([], ["c.webp", "b.png"], "not looked at: 1 file with other names, 1 linked folder"),
        (["--all-files"], ["c.webp", "z", "b.png"], "not looked at: 1 linked folder"),
        (["--all-files", "--exclude", "a"], ["b.png"], "not looked at: 1 linked folder, 1 exclusion by --exclude"),
    ):
        result = _scan(photos, *options, "--bundle", tiny_bundle)
        assert result.exit_code == 0, result.output
        assert [Path(line.split("\t")[0]).name for line in result.stdout.splitlines()] == names
        assert told in result.stderr.splitlines()


def test_what_yields_nothing_is_noted(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = _scan(tmp_path / "empty", "--bundle", tiny_bundle)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no images in this folder" in result.stderr
    assert "no paths" in _scan("-", "--bundle", tiny_bundle, stdin=b"\n").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["x.jpg", "--fast"], "No such option"),
        (["x.jpg", "--batch-size", "0"], "--batch-size"),
        (["x.jpg", "--bundle", "absent"], "absent"),
        (["x.jpg", "--operating-point", "strict", "--bundle", "BUNDLE"], "use one of balanced"),
        (["x.jpg", "--backend", "tensorrt", "--bundle", "BUNDLE"], "--backend onnx"),
    ],
)
def test_wrong_use_is_one_message_and_exit_status_2(tiny_bundle: Path, arguments: list[str], words: str) -> None:
    result = _scan(*(str(tiny_bundle) if argument == "BUNDLE" else argument for argument in arguments))
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_odd_names_cannot_break_a_row_or_steer_a_terminal(tiny_bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\tb\n\x1b[2J\xff\\.png")
    write_image(tmp_path / "plain.png", 1).rename(tmp_path / name)
    (row,) = _scan(tmp_path, "--bundle", tiny_bundle).stdout.splitlines()
    assert row.split("\t")[0] == rf"{tmp_path}/a\tb\n\x1b[2J\xff\\.png"
    (line,) = _scan(tmp_path, "--bundle", tiny_bundle, "--jsonl").stdout.splitlines()
    assert json.loads(line)["path"] == f"{tmp_path}/{name}"


@pytest.mark.parametrize(
    ("text", "shown"), [("plain ü 写.jpg", "plain ü 写.jpg"), ("\u202egpj", r"\u202egpj"), ("a\rb", r"a\rb")]
)
def test_names_are_shown_as_they_are_where_that_is_safe(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_command_is_shown_as_it_can_be_typed() -> None:
    shown = typed("aivsreal-export", Path("my bundles/it's one"), "--fp16")
    assert shlex.split(shown) == ["aivsreal-export", "my bundles/it's one", "--fp16"]
    assert "\u202e" not in typed("\u202egpj")


def test_all_originals_are_judged(tiny_bundle: Path, originals: Path) -> None:
    result = _scan(originals, "--bundle", tiny_bundle)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == sum(path.is_file() for path in originals.iterdir())


def test_a_terminal_gets_a_table(tiny_bundle: Path, photos: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*SCAN, str(photos), "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # Linux: the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"label" in shown
    assert b"\t" not in shown
    assert b"evidence" in shown
    assert b"b.png" in shown
    assert b"judged 3" in shown
    count, summary = shown.rindex(b" files "), shown.index(b"judged 3")
    assert b"\x1b[2K" in shown[count:summary]  # the running count is gone before the summary


def test_a_reader_that_goes_away_ends_the_scan_quietly(tiny_bundle: Path, photos: Path) -> None:
    names = b"\n".join([os.fsencode(photos / "b.png")] * 600)  # less than a pipe holds, so that writing never waits
    command = [*SCAN, "-", "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(names)
        process.stdin.close()
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors.count(b"standard output was closed") == 1
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


@pytest.mark.parametrize("blocks", [True, False])
def test_each_name_on_a_list_that_stays_open_is_answered_at_once(tiny_bundle: Path, photos: Path, blocks: bool) -> None:
    """As from a camera that writes a name for each picture: no answer waits for a later name."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, blocks)
    command = [*SCAN, "-", "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        os.close(ours)
        assert process.stdout
        name = os.fsencode(photos / "b.png")
        for count in (1, 1, 5, 2, 40):
            os.write(theirs, (name + b"\n") * count)
            assert [process.stdout.readline().split(b"\t")[0] for _ in range(count)] == [name] * count
        os.write(theirs, name)  # a last line without an end
        os.close(theirs)
        assert process.stdout.read().count(b"\n") == 1
    assert process.returncode == 0


def test_a_standard_input_that_is_closed_is_an_empty_list(tiny_bundle: Path) -> None:
    command = [*SCAN, "-", "--bundle", str(tiny_bundle)]
    result = subprocess.run(command, preexec_fn=lambda: os.close(0), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert "standard input: no paths" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_scan_keeps_whole_rows_and_says_so(tiny_bundle: Path, photos: Path) -> None:
    command = [*SCAN, "-", "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"\n".join([os.fsencode(photos / "b.png")] * 200) + b"\n")  # and the list stays open
        process.stdin.flush()
        first = process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert all(line.count(b"\t") == 3 for line in (first + rest).splitlines())
    assert rest.endswith(b"\n") or not rest
    assert b"stopped by SIGINT after" in errors
    assert b"judged" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "resuming"),
    [
        ("photos --output r --overwrite", "photos --output r --resume"),
        ("--html=h photos --output=r", "photos --output=r --resume"),
        ("photos --assets --html h --output r --heatmaps m", "photos --output r --heatmaps m --resume"),
        ("--exclude --html photos --output r", "--exclude --html photos --output r --resume"),
        ("--output r -- -a.jpg --html", "--output r --resume -- -a.jpg --html"),
        ("photos --output r --resume --retry-errors", "photos --output r --resume --retry-errors"),
        ("photos --output r --by-content", "photos --output r --by-content --resume"),
        ("photos --output r --by-content --ray local", "photos --output r --ray local --resume"),
    ],
)
def test_what_is_said_to_go_on_is_taken_and_resumes(
    words: str, resuming: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def read(typed: list[str]) -> Options:
        monkeypatch.setattr("sys.argv", ["aivsreal-scan", *typed])
        with click.Command.make_context(main, "aivsreal-scan", list(typed)) as context:
            options = Options(**context.params)
            options.check()
            told.append(options.how_to_go_on())
        return options

    told = list[str]()
    before = read(words.split())
    going_on = shlex.split(told[0].removeprefix("go on with: aivsreal-scan ").partition(";")[0])
    assert going_on == resuming.split()
    after = read(going_on)
    assert (after.resume, after.paths, after.output) == (True, before.paths, before.output)
    assert ("aivsreal-report r --html h" in told[0]) == (before.html is not None)


def test_memory_stays_flat_over_thousands_of_files(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write_image(tmp_path / "source.png", 1, size=(24, 24))
    for index in range(3000):
        folder = tmp_path / "many" / str(index // 1000)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(source, folder / f"{index:05}.png")
    code = (
        "import resource, sys\n"
        "from aivsreal.runtime import Detector\n"
        "from aivsreal.runtime.files.find import image_paths\n"
        "from pathlib import Path\n"
        "with Detector.open(sys.argv[1]) as detector:\n"
        "    for count, scanned in enumerate(detector.scan(image_paths(Path(sys.argv[2])))):\n"
        "        assert scanned.verdict, scanned.error\n"
        "        if count in (1000, 2999):\n"
        "            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle), str(tmp_path / "many")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    early, late = (int(line) for line in result.stdout.split())
    assert late - early < 5_000  # kB; 2,000 squares of 64 px would be 24,000


def test_a_large_image_leaves_no_more_than_its_square(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((3000, 3000)).convert("RGB").save(tmp_path / "large.jpg")
    names = os.fsencode(tmp_path / "large.jpg") + b"\n"
    result = _scan("-", "--bundle", tiny_bundle, "--batch-size", 8, stdin=names * 20)
    assert result.exit_code == 0
    assert len(set(result.stdout.splitlines())) == 1
