"""What is kept for this machine: who may have written it, whether it is whole, and that it changes nothing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aivsreal.runtime.backends.choose import probe_squares
from aivsreal.runtime.backends.onnx import OnnxBackend
from aivsreal.runtime.backends.optimised import OptimisedModel
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.cache import remember, remembered, usable_cache_folder, write_whole
from aivsreal.runtime.machine import cpu_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "aivsreal"


def test_a_folder_that_others_can_write_to_is_not_used(cache: Path) -> None:
    folder = usable_cache_folder("things")
    assert folder == cache / "things"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert usable_cache_folder("things") is None


def test_where_nothing_can_be_kept_there_is_no_folder(cache: Path) -> None:
    cache.parent.joinpath("aivsreal").write_text("a file")
    assert usable_cache_folder("things") is None


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"one")
    write_whole(tmp_path / "file", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"two")]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_last_entries_are_remembered_and_damage_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "entries.json"
    for index in range(5):
        remember(file, str(index), {"value": index}, most=3)
    assert list(remembered(file)) == ["2", "3", "4"]
    file.write_text("[1")
    assert remembered(file) == {}


def test_processors_with_other_instructions_differ(tmp_path: Path) -> None:
    digests = set()
    for flags in ("avx2", "avx2 avx512_vnni"):
        (tmp_path / "cpuinfo").write_text(f"model name : x\nflags : {flags}\ncpu MHz : 1\n")
        digests.add(cpu_digest(tmp_path / "cpuinfo"))
    assert len(digests) == 2
    assert len(cpu_digest(tmp_path / "none")) == 12


def _logits(bundle: Bundle) -> np.ndarray:
    backend = OnnxBackend(bundle, 1, "cpu")
    logits_B = backend.run(probe_squares(bundle.manifest.spec.size, 3)).logits_B
    backend.close()
    return logits_B


def test_a_session_of_the_kept_network_says_the_same(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open()
    first_B = _logits(bundle)
    (network,) = (cache / "onnx-cpu").glob("*/network.onnx")
    weights = network.with_name("weights.bin")
    assert weights.stat().st_size > 20 * network.stat().st_size, "the weights can be mapped"
    monkeypatch.setattr(Bundle, "read", lambda *_: pytest.fail("the network was read again"))
    assert (_logits(bundle) == first_B).all()
    assert not list((cache / "onnx-cpu").glob("*.part"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    # Another size or time than it was kept with: it is made anew, of the network that the manifest signs.
    for kept in (network, weights):
        content = kept.read_bytes()
        for damaged in (content[: len(content) // 2], bytes(len(content))):
            kept.write_bytes(damaged)
            assert (_logits(bundle) == first_B).all()
            assert kept.stat().st_size == len(content)
        kept.unlink()
        assert (_logits(bundle) == first_B).all()
    assert [path.name for path in (cache / "onnx-cpu").iterdir() if path.is_dir()] == [network.parent.name]
    content, status = network.read_bytes(), network.stat()
    network.write_bytes(bytes(len(content)))
    os.utime(network, ns=(status.st_atime_ns, status.st_mtime_ns))  # looks whole and is not
    assert (_logits(bundle) == first_B).all()


def test_old_networks_go_and_files_of_older_versions_with_them(cache: Path) -> None:
    folder = usable_cache_folder("onnx-cpu")
    assert folder
    (folder / "old.onnx").write_bytes(b"x")
    os.utime(folder / "old.onnx", (1, 1))
    for index in range(4):
        (folder / f"older-{index}").mkdir()
        os.utime(folder / f"older-{index}", (2 + index, 2 + index))
    _logits(Bundle.open())
    assert sorted(path.name for path in folder.glob("old*")) == ["older-1", "older-2", "older-3"]


def test_threads_that_start_at_once_leave_a_whole_one(cache: Path) -> None:
    place = OptimisedModel.of("0" * 64, "1.0")
    assert place is not None

    def write() -> None:
        place.part.mkdir(exist_ok=True)
        (place.part / "network.onnx").write_bytes(b"network")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()
        write()
        pool.submit(place.keep).result()
        place.keep()
    assert place.is_whole
    assert not list((cache / "onnx-cpu").glob("*.part"))
