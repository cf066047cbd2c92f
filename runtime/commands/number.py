"""A number as a command takes it."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number above `low` and up to `high`, if there is one; not `inf`, nor `nan`, which click has in every range.

    Without `above` it may be `low` too.
    """

    def __init__(self, low: float, high: float | None = None, above: bool = True) -> None:
        super().__init__(low, high, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, or out of the range.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number
