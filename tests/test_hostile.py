"""A scan of broken, odd and hostile files: each ends in its verdict or in its named error."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile import bad_files, encoded, good_files, picture, special_files

from aivsreal.runtime.errors import Fault
from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file

SCAN = [sys.executable, "-m", "aivsreal.runtime.commands.scan"]
GOOD, BAD = dict(good_files()), {name: (content, fault) for name, content, fault in bad_files()}


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_what_is_odd_and_whole_is_decoded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    decoded = decoded_from_file(tmp_path / name, DecodePlan())
    assert decoded.error is None
    (pixels_HWC,) = decoded.pixels
    assert pixels_HWC.dtype == np.uint8
    assert decoded.stamp is not None
    assert decoded.stamp.size == len(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_broken_ends_in_its_error(tmp_path: Path, name: str) -> None:
    content, fault = BAD[name]
    (tmp_path / name).write_bytes(content)
    decoded = decoded_from_file(tmp_path / name, DecodePlan())
    assert (decoded.fault, decoded.pixels) == (fault, ())
    assert decoded.error
    assert str(tmp_path) not in decoded.error
    assert decoded.stamp is not None


def test_what_is_no_file_ends_in_its_error(tmp_path: Path) -> None:
    expected = dict(special_files(tmp_path))
    assert {name: decoded_from_file(tmp_path / name, DecodePlan()).fault for name in expected} == expected
    missing = decoded_from_file(tmp_path / "gone.jpg", DecodePlan())
    assert (missing.fault, missing.stamp) == (Fault.MISSING, None)
    assert decoded_from_file(tmp_path / ("n" * 256), DecodePlan()).fault is Fault.UNREADABLE
    assert decoded_from_file(Path("nul\0byte.jpg"), DecodePlan()).fault is Fault.UNREADABLE


def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encoded("JPEG"))
    secret.chmod(0)
    before: list[str] = []
    if os.geteuid() == 0:  # root reads everything, but for files of others without this
        os.chown(secret, 12345, 12345)
        before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        if shutil.which(before[0]) is None:
            pytest.skip("root reads everything, and there is no setpriv")
    code = (
        "import sys; from pathlib import Path\n"
        "from aivsreal.runtime.files.decode import DecodePlan, decoded_from_file\n"
        "found = decoded_from_file(Path(sys.argv[1]), DecodePlan()); print(found.fault.name, found.error)"
    )
    done = subprocess.run([*before, sys.executable, "-c", code, str(secret)], capture_output=True, text=True)
    assert done.stdout == "UNREADABLE cannot be read: Permission denied\n", done.stderr


def test_a_jpeg_cut_anywhere_and_ended_is_never_taken_for_whole(tmp_path: Path) -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}):
        whole = encoded("JPEG", **options)
        full_HWC = _pixels(tmp_path, whole)
        scan = whole.index(b"\xff\xda")
        silent = []
        for cut in range(scan, len(whole) - 2, 37):
            pixels_HWC = _pixels(tmp_path, whole[:cut] + b"\xff\xd9")
            if pixels_HWC is not None:
                assert full_HWC is not None
                silent.append(float((pixels_HWC != full_HWC).any(axis=2).mean()))
        # A cut inside the last block leaves nothing to notice; one inside the last scan of a progressive JPEG only
        # lacks the last bits of some coefficients, and the file does not say how many there were.
        lost = len(range(scan, len(whole) - 2, 37))
        assert len(silent) <= (lost // 2 if options.get("progressive") else 1), options


def _pixels(folder: Path, content: bytes) -> np.ndarray | None:
    (folder / "cut.jpg").write_bytes(content)
    decoded = decoded_from_file(folder / "cut.jpg", DecodePlan())
    return decoded.pixels[0] if decoded.pixels else None


def test_a_png_whose_end_was_never_written_is_partial_wherever_it_ends(tmp_path: Path) -> None:
    whole = encoded("PNG", picture(0, (300, 200)))
    for share in range(1, 40):
        cut = len(whole) * share // 40
        (tmp_path / "cut.png").write_bytes(whole[:cut] + bytes(len(whole) - cut))
        assert decoded_from_file(tmp_path / "cut.png", DecodePlan()).error


def test_the_limit_of_pixels_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encoded("PNG"))
    assert decoded_from_file(tmp_path / "image.png", DecodePlan(max_pixels=96 * 72)).error is None
    small = decoded_from_file(tmp_path / "image.png", DecodePlan(max_pixels=96 * 72 - 1))
    assert small.fault is Fault.TOO_LARGE
    assert "--max-pixels" in (small.error or "")
    with pytest.raises(ValueError, match="positive"):
        DecodePlan(max_pixels=0)


def _shared_values() -> bytes:
    """A TIFF of twelve whole pages that each have 1,000 tags more, all of the same kilobyte."""
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8 + 1024 + 3 * 96 * 72) + bytes(1024) + picture().tobytes())
    size = {256: 96, 257: 72, 258: 8, 259: 1, 262: 1, 273: 8 + 1024, 277: 1, 279: 96 * 72}
    for page in range(12):
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in size.items()]
        entries += [struct.pack("<HHII", tag, 4, 256, 8) for tag in range(1000, 2000)]
        behind = len(content) + 2 + 12 * len(entries) + 4
        content += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", behind if page < 11 else 0)
    return bytes(content)


def test_tags_of_a_tiff_that_share_their_values_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "image.tiff").write_bytes(_shared_values())
    tracemalloc.start()
    try:
        decoded = decoded_from_file(tmp_path / "image.tiff", DecodePlan())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded.error is None
    assert peak < 8_000_000  # of a file of 170 kB, of which Pillow keeps the tags of a page too


def _overlapping_pages() -> bytes:
    """A TIFF of 512 pages of 65,535 tags each, in the same bytes."""
    behind = struct.pack("<512I", *range(12, 12 + 4 * 512, 4))
    return struct.pack("<2sHI", b"II", 42, 8) + b"\xff" * 786_422 + behind


def _overlapping_directories() -> bytes:
    """A TIFF of 64 pages, beside which lie 4,096 directories of 65,535 tags each, in the same bytes."""
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8 + 800_000) + b"\xff" * 800_000)
    for page in range(64):
        at = len(content)
        content += struct.pack("<HHHIII", 1, 330, 4, 64, at + 18, at + 18 + 256)
        content += struct.pack("<64I", *range(8 + 256 * page, 8 + 256 * (page + 1), 4))
    return bytes(content)


@pytest.mark.parametrize("content", [_overlapping_pages(), _overlapping_directories()], ids=["pages", "beside pages"])
def test_directories_of_a_tiff_that_overlap_take_no_time(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.tiff").write_bytes(content)
    begun_s = time.process_time()
    assert decoded_from_file(tmp_path / "image.tiff", DecodePlan()).fault is Fault.DAMAGED
    assert time.process_time() - begun_s < 5  # 0.3 of a core; they were minutes


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp", "animated.png", "pages.tiff"])
def test_frames_are_taken_evenly_where_they_are_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name])
    all_three = decoded_from_file(tmp_path / name, DecodePlan(frames=9))
    assert all_three.frames == (0, 1, 2)
    assert decoded_from_file(tmp_path / name, DecodePlan(frames=2)).frames == (0, 2)
    first, *_, last = all_three.pixels
    alone = decoded_from_file(tmp_path / name, DecodePlan()).pixels
    assert (alone[0] == first).all()
    assert (first != last).any()


def _fill(folder: Path) -> tuple[dict[str, Fault], set[str]]:
    """200 hostile files and 200 good ones; the names of both."""
    bad = dict(special_files(folder))
    for name, (content, fault) in BAD.items():
        (folder / name).write_bytes(content)
        bad[name] = fault
    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF")
    while len(bad) < 200:
        index = len(bad)
        whole = encoded(kinds[index % 5], picture(index))
        name = f"cut{index}.{kinds[index % 5].lower()}"
        (folder / name).write_bytes(whole[: len(whole) * (35 + index % 60) // 100])
        bad[name] = Fault.PARTIAL
    good = set(GOOD)
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    while len(good) < 200:
        name = f"good{len(good)}.{kinds[len(good) % 5].lower()}"
        (folder / name).write_bytes(encoded(kinds[len(good) % 5], picture(len(good))))
        good.add(name)
    noisy = encoded("TIFF", compression="jpeg")  # libtiff would write to stderr
    (folder / "cut199.gif").unlink(missing_ok=True)
    (folder / "noisy.tiff").write_bytes(noisy[:60] + bytes(len(noisy) - 60))
    bad.pop(next(reversed(bad)))
    bad["noisy.tiff"] = Fault.DAMAGED
    return bad, good


def test_what_libtiff_says_reaches_no_terminal_from_a_report(tmp_path: Path) -> None:
    image, results, whole = tmp_path / "a.tiff", tmp_path / "r.jsonl", encoded("TIFF", compression="tiff_lzw")
    image.write_bytes(whole)
    subprocess.run([*SCAN, str(image), "--output", str(results)], check=True, capture_output=True)
    half = len(whole) // 2
    image.write_bytes(whole[:half] + 40 * b"\xff" + whole[half + 40 :])
    command = [*SCAN[:2], "aivsreal.runtime.commands.report", str(results), "--html", str(tmp_path / "r.html")]
    told = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    assert [line.split()[0] for line in told] == ["1", "report"]


@pytest.mark.parametrize("isolate", [[], ["--isolate"]], ids=["threads", "processes"])
def test_200_hostile_and_200_good_files(tmp_path: Path, isolate: list[str]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    bad, good = _fill(folder)
    present = {name for name in os.listdir(folder) if not (folder / name).is_dir()}
    for stray in present - set(bad) - good:
        (folder / stray).unlink()
    assert (len(bad), len(good)) == (200, 200)
    result = subprocess.run([*SCAN, str(folder), "--jsonl", "--threads", "2", *isolate], capture_output=True, text=True)
    rows = {os.path.basename(row["path"]): row for row in map(json.loads, result.stdout.splitlines())}
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == len(rows) == 400
    assert {name for name, row in rows.items() if "label" in row} == good
    assert {name: Fault(row["fault"]) for name, row in rows.items() if "error" in row} == bad
    described, passed_over, summary = result.stderr.splitlines()  # and no warning, and no traceback
    assert described.startswith("backend ")
    assert passed_over == "not looked at: 1 linked folder"
    assert summary.startswith("judged 200: ")


def test_memory_does_not_grow_with_hostile_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    _fill(folder)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from aivsreal.runtime.files.pool import DecodePool\n"
        "from aivsreal.runtime.files.decode import DecodePlan\n"
        "from aivsreal.runtime.files.own_process import set_up_pillow\n"
        "from aivsreal.runtime.files.find import image_paths\n"
        "from aivsreal.runtime.spec import PreprocessSpec\n"
        "set_up_pillow(1)\n"
        "with DecodePool(DecodePlan(PreprocessSpec()), 2) as pool:\n"
        "    for round in range(4):\n"
        "        for path in image_paths(Path(sys.argv[1])):\n"
        "            pool.result(pool.submit(path))\n"
        "        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    first, *_, last = (int(line) for line in result.stdout.split())
    assert last - first < 8_000  # kB, of peaks: 1,200 files later
