"""The name of a file in object storage, where a path is expected: spelled as it was given, s3://bucket/folder//a.jpg."""

from __future__ import annotations

import re
from pathlib import Path, PosixPath

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")


class Uri(PosixPath):
    """A path that stays as it was spelled: `Path` makes `s3:/bucket/folder/a.jpg` of it, and that is another name.

    It is only a name: to the system there is no such file.
    """

    def __new__(cls, uri: str) -> Uri:
        made = super().__new__(cls, uri)
        made._uri = uri
        return made

    _uri: str

    def __str__(self) -> str:
        return self._uri

    def __repr__(self) -> str:
        return f"Uri({self._uri!r})"

    def __fspath__(self) -> str:
        return self._uri

    def __eq__(self, other: object) -> bool:
        return self._uri == other._uri if isinstance(other, Uri) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._uri)

    def __reduce__(self) -> tuple[type[Uri], tuple[str]]:
        return Uri, (self._uri,)


def is_uri(text: str) -> bool:
    """Whether it begins as a URI does: `s3://` and so on."""
    return _SCHEME.match(text) is not None


def path_from_text(text: str) -> Path:
    """A `Uri` of what begins as one, else a path of the system's."""
    return Uri(text) if is_uri(text) else Path(text)
