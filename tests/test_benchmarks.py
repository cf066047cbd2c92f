"""What the benchmarks report; how fast this machine is is not tested."""

from __future__ import annotations

import json
import platform
import subprocess

import numpy
import pytest
from click.testing import CliRunner

from aivsreal.benchmarks import imports
from aivsreal.benchmarks.machine import machine_facts


def test_the_machine_is_described_without_its_name() -> None:
    facts = machine_facts()
    assert facts["cpu"]
    assert isinstance(facts["cores"], int)
    assert isinstance(facts["packages"], dict)
    assert facts["packages"]["numpy"] == numpy.__version__
    # A host may be called what any text holds, so only a name of some length proves anything.
    if len(platform.node()) > 6:
        assert platform.node() not in json.dumps(facts)


def test_a_package_that_is_not_installed_is_left_out() -> None:
    assert machine_facts(("numpy", "no-such-package"))["packages"] == {"numpy": numpy.__version__}


def test_each_command_runs_in_a_fresh_interpreter() -> None:
    best = imports.best_ms({"one": ("-c", "pass"), "two": ("-c", "pass")}, rounds=1)
    assert set(best) == {"one", "two"}
    assert all(0 < value < 60_000 for value in best.values())


def test_a_command_that_fails_is_not_timed() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        imports.best_ms({"broken": ("-c", "raise SystemExit(3)")}, rounds=1)


@pytest.mark.parametrize(
    ("runtime", "detector", "scan_help", "holds"),
    [
        (150.0, 150.0, 130.0, True),
        (151.0, 150.0, 130.0, False),
        (50.0, 151.0, 130.0, False),
        (50.0, 120.0, 131.0, False),
    ],
)
def test_the_exit_code_says_whether_the_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, runtime: float, detector: float, scan_help: float, holds: bool
) -> None:
    best = {"dependencies": 100.0, "runtime": runtime, "detector": detector, "click": 30.0, "scan_help": scan_help}
    monkeypatch.setattr(imports, "best_ms", lambda *_: best)
    result = CliRunner().invoke(imports.main, [])
    line = json.loads(result.stdout)
    assert line["holds"] is holds
    assert result.exit_code == (0 if holds else 1)
    assert line["machine"]["python"] == platform.python_version()
