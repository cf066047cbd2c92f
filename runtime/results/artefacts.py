"""What a scan leaves beside its rows: the HTML report and the heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from aivsreal.runtime.bundle.folder import no_maps
from aivsreal.runtime.preprocess import PixelsHWC
from aivsreal.runtime.text import escaped
from aivsreal.runtime.verdict import Scanned, View

if TYPE_CHECKING:
    from aivsreal.runtime.detector import Detector
    from aivsreal.runtime.results.html import HtmlReport

SHOWN_SIDE = 448  # of a heat map in pixels: twice the usual input, so that its picture can be looked at


class Artefacts:
    """Writes the report and the heat maps that were asked for; a context manager.

    Args:
        detector: what judges.
        arguments: what is scanned, as it was typed.
        html: file of the report, or None.
        assets: put its pictures beside it.
        heatmaps: folder of the heat maps, or None.
        overwrite: replace files that are not ours too, but for pictures.

    Raises:
        OutputError: the report cannot be written there.
        BackendError: heat maps are asked for, and the network gives none.
    """

    def __init__(
        self, detector: Detector, arguments: Sequence[str], html: str | None, assets: bool, heatmaps: str | None,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.complete = True
        """To be set to False where the scan is stopped before its end."""
        self._folder = None if heatmaps is None else Path(heatmaps)
        self._about = f"bundle {detector.bundle.manifest.arch} {detector.bundle.digest}"
        self._lacks_maps = not detector.backend.has_maps
        self._drawn = 0
        self._html, self._overwrite = html, overwrite
        if self._folder is not None and self._lacks_maps:
            raise no_maps(detector.bundle)
        self._report: HtmlReport | None = None
        if html is not None:
            from aivsreal.runtime.results.facts import Ran
            from aivsreal.runtime.results.html import HtmlReport

            backend = detector.backend
            ran = Ran(detector.bundle, detector.point, backend.name, backend.precision, detector.why, arguments)
            ran = replace(ran, second=detector.judge_of_rows.second)
            self._report = HtmlReport(Path(html), ran, assets, [Path(name) for name in arguments], overwrite)

    def __enter__(self) -> Artefacts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._report is not None:
            self._report.close(self.complete and kind is None)

    def write(self, scanned: Scanned) -> None:
        """Keep one result.

        Raises:
            OutputError: the disk is full, or a file cannot be written.
        """
        if self._report is not None:
            self._report.write(scanned)
        if self._folder is not None and scanned.view is not None and scanned.view.map_hw is not None:
            self._draw(self._folder, scanned, scanned.view)

    def told(self) -> list[str]:
        """Lines for the end of a scan, once all is written."""
        lines = []
        if self._folder is not None:
            lines.append(
                f"drew {self._drawn} heat maps in {escaped(self._folder)}: what moved the score, not what was edited"
            )
        if self._html is not None:
            without = "; without heat maps, which this bundle's network does not give" if self._lacks_maps else ""
            lines.append(f"report in {escaped(self._html)}{without}")
        return lines

    def _draw(self, folder: Path, scanned: Scanned, view: View) -> None:
        from aivsreal.runtime.results.heatmap import FLAT, overlay, write_map
        from aivsreal.runtime.results.output import SOFTWARE

        verdict, map_hw = scanned.verdict, view.map_hw
        assert verdict is not None
        assert map_hw is not None
        picture = overlay(_enlarged(view.square_SSC), map_hw, floor=FLAT)
        about = {
            "Software": f"{SOFTWARE}, {self._about}",
            "Title": f"What moved the score of {scanned.path.name}",
            "Description": "Orange towards ai, blue towards real; the mean of the values is the logit. "
            "What moved the score, not what was edited.",
            "Comment": f"{verdict.label.value}: {verdict.reason}",
        }
        write_map(folder, scanned.path, picture, map_hw, about, overwrite=self._overwrite)
        self._drawn += 1


def _enlarged(square_SSC: PixelsHWC) -> PixelsHWC:
    side = max(SHOWN_SIDE, len(square_SSC))
    return np.asarray(Image.fromarray(square_SSC).resize((side, side), Image.Resampling.BICUBIC))
