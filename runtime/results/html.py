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
from contextlib import suppress
from datetime import datetime, timezone
from heapq import nlargest
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

from PIL import Image

from aivsreal.runtime.errors import OutputError
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.results.facts import Ran, accuracy, bounds_of, meaning_of_point, model_facts, sources
from aivsreal.runtime.results.output import ASSET, REPORT, SOFTWARE, assets_folder, check_replaceable, replacing
from aivsreal.runtime.text import escaped
from aivsreal.runtime.uri import Uri
from aivsreal.runtime.verdict import Label, Scanned

SIDES = (192, 128, 96, 64)  # of an embedded picture in pixels: the largest with which all fit into the budget
BUDGET = 11_000_000  # characters for embedded pictures: with its rows, a report of 10,000 files stays under 15 MB
_TOO_MANY = "The {:,} files with the highest p_ai have a picture: more do not fit in. With --assets all have one."
_STORED_SIDE, _QUALITY = 224, 80
_P_AI = 3  # where it stands in a row
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
        self.wanted = True
        """To be set to False while an end shall write nothing, and a report that is there stay."""
        self._target, self._ran = target, ran
        self._assets = assets_folder(target) if assets else None
        self._run = token_hex(4)  # begins the names of its pictures: a report that is there keeps its own until it goes
        self._pictures = 0
        self._shown: int | None = None
        self._begun = datetime.now(timezone.utc)
        check_replaceable(target, REPORT, inputs, overwrite)
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
        except OSError as error:
            raise OutputError(f"{self._target}: cannot be written: {error.strerror}; free some space") from None

    @property
    def told(self) -> str:
        """How many pictures it has, for people: once it is closed."""
        of = "the" if self._shown is None else f"{self._shown:,} of the"
        return f"{of} {self._pictures:,} pictures"

    def close(self) -> None:
        """Write the report of what was kept.

        Raises:
            OutputError: it cannot be written.
        """
        written = False
        try:
            if self.wanted:
                self._finish()
                written = True
        finally:
            self._spool.close()
            self._errors.close()
            self._remove_pictures(of_before=written)

    def _finish(self) -> None:
        template = (_HERE / "report.html").read_text(encoding="utf-8")
        script = (_HERE / "report.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        head, tail = template.replace("%SCRIPT_SHA256%", digest).split("%DATA%")
        with replacing(self._target) as stream:
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
        name = f"{self._run}-{self._pictures:06}.jpg"
        (self._assets / name).write_bytes(_jpeg(Image.fromarray(square_SSC), 2 * _STORED_SIDE, SOFTWARE.encode()))
        return name.encode()

    def _remove_pictures(self, of_before: bool) -> None:
        """Those that no report shows: of the reports before this one, or its own where it was not written."""
        for place in () if self._assets is None else list(self._assets.iterdir()):
            own = place.name.startswith(f"{self._run}-")
            with suppress(OSError):
                if own != of_before and (own or self._is_of_before(place)):
                    place.unlink()

    def _is_of_before(self, place: Path) -> bool:
        if not place.is_file() or place.stat().st_mtime >= self._begun.timestamp():  # of a run beside this one
            return False
        with place.open("rb") as file:
            return ASSET.recognises(file.read(1 << 12))  # the comment is at its beginning

    def _data(self) -> Iterator[str]:
        side, shown = self._embedded()
        self._shown = None if shown is None else len(shown)
        manifest, seconds = self._ran.bundle.manifest, (datetime.now(timezone.utc) - self._begun).total_seconds()
        when = f"{self._begun:%-d %B %Y, %H:%M} UTC"
        made = f"Made by aivsreal {version('aivsreal')}, {when}, in {seconds:.0f} s. It loads nothing from anywhere."
        about = {
            "complete": self.complete,
            "subtitle": f"{', '.join(escaped(name) for name in self._ran.arguments)} · {when}",
            "made": made,
            "assets": None if self._assets is None else quote(os.fsencode(self._assets.name)) + "/",
            "pictures": None if shown is None else _TOO_MANY.format(len(shown)),
            "point": {"name": self._ran.point.name, "meaning": meaning_of_point(self._ran)},
            "bounds": [bounds_of(self._ran.point), bounds_of(self._ran.second_point)],
            "model": model_facts(self._ran),
            "accuracy": accuracy(self._ran),
            "sources": sources(manifest),
        }
        yield json.dumps(about)[:-1]
        yield ', "rows": ['
        yield from _joined(self._finished_rows(side, shown))
        yield '], "errors": ['
        yield from _joined(self._lines(self._errors))
        yield "]}"

    def _finished_rows(self, side: int | None, shown: set[int] | None) -> Iterator[str]:
        for at, row, picture in self._kept():
            drawn = picture if shown is None or at in shown else ""
            yield f'{row[:-1]}, "{_shrunk(drawn, side) if drawn and side else drawn}"]'

    def _embedded(self) -> tuple[int | None, set[int] | None]:
        """The side of the embedded pictures, and where even the smallest are too many, the rows that have one.

        It is the largest of `SIDES` with which all fit into the budget, judged by a few dozen of them; too many of the
        smallest are those with the highest `p_ai`, which the page shows first.
        """
        if self._assets is not None or not self._pictures:
            return None, None
        pictures = (picture for _, _, picture in self._kept() if picture)
        sample = list(islice(pictures, 0, None, max(1, self._pictures // 48)))
        for side in SIDES:
            mean = sum(len(_shrunk(picture, side)) for picture in sample) / len(sample)
            if mean * self._pictures <= BUDGET:
                return side, None
        ranked = ((json.loads(row)[_P_AI], -at) for at, row, picture in self._kept() if picture)
        return side, {-at for _, at in nlargest(int(BUDGET / mean), ranked)}

    def _kept(self) -> Iterator[tuple[int, str, str]]:
        for at, line in enumerate(self._lines(self._spool)):
            row, picture = line.split("\t")
            yield at, row, picture

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
