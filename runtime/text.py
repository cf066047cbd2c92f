"""Text for people: names that cannot steer a terminal, Markdown tables, and measured numbers in one style."""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path

NOT_MEASURED = "not measured"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A heading and rows as a Markdown table, without a newline at its end."""
    titles = list(header)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def interval(value: float = math.nan, low: float = math.nan, high: float = math.nan, *, form: str = ".3f") -> str:
    """`0.852 [0.831, 0.872]`, a measured value and what it may lie between; without one `not measured`.

    Args:
        value: what was measured.
        low: the lower end of its interval.
        high: the upper end.
        form: of each number; `+.3f` suits differences, `.2f` ratios.
    """
    if math.isnan(value):
        return NOT_MEASURED
    middle, *ends = (format(number, form) for number in (value, low, high))
    return f"{middle} [{', '.join(ends)}]"


def share(value: float | None) -> str:
    """`5.1 %` of 0.051; `not measured` of None."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def share_interval(value: float, low: float, high: float) -> str:
    """`5.1 % [4.0, 6.3]`: a share and what it may lie between."""
    return f"{share(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def escaped(text: Path | str) -> str:
    r"""Text that stays in one cell and cannot steer a terminal: `\n`, `\t`, `\\`, `\xff` for a byte that is no UTF-8.

    Other invisible characters (controls, direction marks, line separators) become `\x1b`, `\u202e` and so on.
    """
    plain = str(text)
    if plain.isprintable() and "\\" not in plain:
        return plain
    return "".join(_escaped_character(character) for character in plain)


def shown(message: str) -> str:
    """A message that cannot steer a terminal, whatever a name in it holds; its lines and backslashes stay."""
    return "".join(
        character if character.isprintable() or character in "\n\\" else _escaped_character(character)
        for character in message
    )


def first_line(error: Exception) -> str:
    """What another library's error says, without its pages of detail."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(said: str) -> str:
    """What a program or another library said at last, where it says the cause; empty where it said nothing."""
    return (said.strip().splitlines() or [""])[-1].strip()


def typed(*words: Path | str) -> str:
    """Words of a command as a person can type them into a shell: quoted where that is needed, and safe to show."""
    return escaped(shlex.join(str(word) for word in words))


def _escaped_character(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return f"\\x{code:02x}" if code < 0x80 else (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
