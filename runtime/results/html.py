"""The HTML report of a scan: one file that opens offline, made of a template and of data that is never markup.

Results are kept on disk while the scan goes on, so memory does not grow with them. The picture of a row is the square
that the network saw, with its EXIF turn: the map lies exactly over it, and no file is decoded twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.results.facts import Ran, accuracy, bounds_of, meaning_of_point, model_facts, sources
from aivsreal.runtime.results.output import ASSET, REPORT, SOFTWARE, check_replaceable, replacing
from aivsreal.runtime.text import escaped
from aivsreal.runtime.uri import Uri
from aivsreal.runtime.verdict import Label, Scanned

SIDES = (192, 128, 96, 64)  # of an embedded picture in pixels: the largest with which all fit into the budget
BUDGET = 11_000_000  # characters for embedded pictures: with the rest, a report stays under 15 MB
_STORED_SIDE, _QUALITY = 224, 80
_CODES = {Label.REAL: 0, Label.UNSURE: 1, Label.AI: 2}
_HERE = Path(__file__).resolve().parent


class HtmlReport:
    """Collects results and writes `target` when it is closed, whole or not at all.

    Args:
        assets: put the pictures into the folder `<name>_files` beside the report and not into it.
        inputs: files that are read, which are never replaced.
        overwrite: replace a file that is no report too.

    Raises:
        OutputError: the report cannot be written there; known before the first image is judged.
    """

    def __init__(
        self, target: Path, ran: Ran, assets: bool = False, inputs: Iterable[Path] = (), overwrite: bool = False
    ) -> None:
        self.complete = True
        """To be set to False where the scan is stopped before its end; the report says so."""
        self._target, self._ran = target, ran
        self._assets = target.with_name(f"{target.stem}_files") if assets else None
        self._rows = self._pictures = 0
        self._begun = datetime.now(timezone.utc)
        check_replaceable(target, REPORT, inputs, overwrite)
        self._overwrite = overwrite
        try:
            if self._assets is not None:
                self._assets.mkdir(parents=True, exist_ok=True)
            # Beside the report, so that a full or read-only disk is known now and not after hours of judging.
            self._spool = tempfile.TemporaryFile(dir=target.parent)  # noqa: SIM115  closed in close()
            self._errors = tempfile.TemporaryFile(dir=target.parent)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}; name another file") from None

    def __enter__(self) -> HtmlReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.complete = self.complete and kind is None
        self.close()

    def write(self, scanned: Scanned) -> None:
        """Keep one result.

        Raises:
            OutputError: the disk is full.
        """
        try:
            if scanned.verdict is None:
                line = json.dumps([escaped(scanned.path), escaped(scanned.error or "")])
                self._errors.write(line.encode() + b"\n")
                return
            row, picture = self._row(scanned)
            self._spool.write(json.dumps(row).encode() + b"\t" + picture + b"\n")
            self._rows += 1
        except OSError as error:
            raise OutputError(f"{self._target}: cannot be written: {error.strerror}; free some space") from None

    def close(self) -> None:
        """Write the report of what was kept.

        Raises:
            OutputError: it cannot be written.
        """
        template = (_HERE / "report.html").read_text(encoding="utf-8")
        script = (_HERE / "report.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        head, tail = template.replace("%SCRIPT_SHA256%", digest).split("%DATA%")
        with self._spool, self._errors, replacing(self._target) as stream:
            stream.write(head.encode("ascii", "xmlcharrefreplace"))
            for part in self._data():
                stream.write(part.replace("<", "\\u003c").encode("ascii"))
            stream.write(tail.replace("%SCRIPT%", script).encode("ascii"))

    def _row(self, scanned: Scanned) -> tuple[list[object], bytes]:
        verdict, view = scanned.verdict, scanned.view
        assert verdict is not None
        values: list[float] | None = None
        picture = b""
        if view is not None:
            picture = self._picture(view.square_SSC)
            if view.map_hw is not None:
                values = [round(float(value), 3) for value in view.map_hw.ravel()]
        # A relative link, its bytes quoted: no name can become another scheme or leave the attribute.
        path = scanned.path
        link = "" if isinstance(path, Uri) else quote(os.fsencode(os.path.relpath(path, self._target.parent)))
        code, p_ai = _CODES[verdict.label], round(verdict.p_ai, 6)
        says = [[one.source, one.origin.value, escaped(one.detail)] for one in scanned.evidence]
        first = None if scanned.first is None else [_CODES[scanned.first.label], round(scanned.first.p_ai, 6)]
        said = [code, p_ai, round(verdict.logit, 4), escaped(verdict.reason)]
        return [escaped(scanned.path), link, *said, values, says, first], picture

    def _picture(self, square_SSC: PixelsHWC) -> bytes:
        self._pictures += 1
        if self._assets is None:
            return base64.b64encode(_jpeg(Image.fromarray(square_SSC), _STORED_SIDE))
        name = f"{self._pictures:06}.jpg"
        check_replaceable(self._assets / name, ASSET, overwrite=self._overwrite)
        (self._assets / name).write_bytes(_jpeg(Image.fromarray(square_SSC), 2 * _STORED_SIDE, SOFTWARE.encode()))
        return name.encode()

    def _data(self) -> Iterator[str]:
        manifest, seconds = self._ran.bundle.manifest, (datetime.now(timezone.utc) - self._begun).total_seconds()
        when = f"{self._begun:%-d %B %Y, %H:%M} UTC"
        made = f"Made by aivsreal {version('aivsreal')}, {when}, in {seconds:.0f} s. It loads nothing from anywhere."
        about = {
            "complete": self.complete,
            "subtitle": f"{', '.join(escaped(name) for name in self._ran.arguments)} · {when}",
            "made": made,
            "assets": None if self._assets is None else quote(os.fsencode(self._assets.name)) + "/",
            "point": {"name": self._ran.point.name, "meaning": meaning_of_point(self._ran)},
            "bounds": [bounds_of(self._ran.point), bounds_of(self._ran.second_point)],
            "model": model_facts(self._ran),
            "accuracy": accuracy(self._ran),
            "sources": sources(manifest),
        }
        yield json.dumps(about)[:-1]
        yield ', "rows": ['
        yield from _joined(self._finished_rows())
        yield '], "errors": ['
        yield from _joined(self._lines(self._errors))
        yield "]}"

    def _finished_rows(self) -> Iterator[str]:
        side = None if self._assets else self._embedded_side()
        for line in self._lines(self._spool):
            row, picture = line.split("\t")
            shown = _shrunk(picture, side) if picture and side else picture
            yield f'{row[:-1]}, "{shown}"]'

    def _embedded_side(self) -> int:
        """The largest of `SIDES` with which the pictures fit into the budget, judged by a few dozen of them."""
        step = max(1, self._rows // 48)
        sample = [
            line.split("\t")[1] for index, line in enumerate(self._lines(self._spool)) if index % step == 0
        ]  # fmt: skip
        for side in SIDES:
            mean = sum(len(_shrunk(picture, side)) for picture in sample if picture) / max(1, len(sample))
            if mean * self._rows <= BUDGET:
                return side
        return SIDES[-1]

    @staticmethod
    def _lines(stream: io.BufferedRandom) -> Iterator[str]:
        stream.seek(0)
        for line in stream:
            yield line.rstrip(b"\n").decode("ascii")


def _jpeg(image: Image.Image, side: int, comment: bytes = b"") -> bytes:
    small = image if max(image.size) <= side else image.resize((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY, comment=comment)
    return stream.getvalue()


def _shrunk(picture: str, side: int) -> str:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return base64.b64encode(_jpeg(image, side)).decode()


def _joined(parts: Iterator[str]) -> Iterator[str]:
    for index, part in enumerate(parts):
        yield part if index == 0 else f",\n{part}"
