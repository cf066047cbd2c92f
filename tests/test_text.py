"""Measured numbers are written in one style, wherever they stand."""

from __future__ import annotations

from aivsreal.runtime.text import NOT_MEASURED, interval, share, share_interval


def test_an_interval_is_its_value_and_its_ends() -> None:
    assert interval(0.8521, 0.83, 0.8724) == "0.852 [0.830, 0.872]"
    assert interval(0.01, -0.002, 0.022, form="+.3f") == "+0.010 [-0.002, +0.022]"
    assert interval(**{"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]", "as evaluations record it"


def test_a_share_is_in_percent() -> None:
    assert share(0.0512) == "5.1 %"
    assert share_interval(0.0512, 0.04, 0.0629) == "5.1 % [4.0, 6.3]"


def test_what_was_not_measured_is_said_to_be() -> None:
    assert interval() == share(None) == NOT_MEASURED
