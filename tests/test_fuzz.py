"""The fuzzer for a bounded time, over every case that it found before, and hypothesis over the same targets."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import TARGETS, damaged, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
SECONDS = os.environ.get("AIVSREAL_FUZZ_SECONDS", "8")
CASES = sorted((HERE / "data" / "fuzz").iterdir())  # a folder that is gone is no folder without finds


def test_the_fuzzer_finds_nothing_in_its_time(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "support" / "fuzz.py"), "--seconds", SECONDS, "--keep", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()  # and the decoders said nothing of their own
    assert int(line.split()[0]) > 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_was_found_once_stays_mended(case: Path, tmp_path: Path) -> None:
    TARGETS[case.name.split("-")[0]](case.read_bytes(), tmp_path)


@pytest.mark.parametrize("target", ["manifest", "row"])
def test_any_bytes_at_all_are_refused_in_order(target: str, tmp_path: Path) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.floats() | st.text(), _nested).map(_json)))
    def check(content: bytes) -> None:
        TARGETS[target](content, tmp_path)

    check()


def _nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.sampled_from(["path", "label", "format", "labels", "files", "preprocess", "size", "evidence"])
    return st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=4), inner, max_size=6)


def _json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


def test_the_fuzzer_does_damage() -> None:
    rng = random.Random(0)
    whole = seeds()["image"][0]
    assert sum(damaged(whole, rng) != whole for _ in range(50)) > 40


def test_a_defect_would_be_found_and_kept(tmp_path: Path) -> None:
    """A fake defect: a decoder that fails on every third input."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE / 'support')!r}); import fuzz\n"
        "def broken(content, folder):\n"
        "    if len(content) % 3 == 0:\n"
        "        raise LookupError('a defect')\n"
        "fuzz.TARGETS['image'] = broken\n"
        "fuzz.main()\n"
    )
    command = [sys.executable, "-c", code, "--seconds", "1", "--keep", str(tmp_path / "kept")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "a defect" in result.stdout
    assert len(list((tmp_path / "kept").iterdir())) == 1
