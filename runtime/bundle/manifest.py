"""What a bundle says of itself, and the names of the files in it.

`manifest.json` has what is needed to run the network; `evaluation.json`, listed there with its SHA-256 as any file, has
what is told of it: where it comes from and how well it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aivsreal.runtime.errors import BundleError
from aivsreal.runtime.fields import check_fields, from_json
from aivsreal.runtime.spec import PreprocessSpec, Window, Windows, spec_from_json
from aivsreal.runtime.verdict import LABELS, OperatingPoint

FORMAT = 2
_ONE_FILE = 1  # the format before, which had all of it in manifest.json
MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
INPUT = "pixels_BCHW"  # names in a bundle's graphs and engines
LOGITS = "logits"  # [B, 1]: what a verdict comes from
MAP = "map"  # [B, H, W]: what each token of the last stage says, its mean is the logit; bundles before it lack it
HALF_FROM_ELEMENTS = 1024  # smaller tensors (biases) stay FP32 in model.onnx: they are 1 % of the bytes
HALF_SUFFIX = ".half"  # of the name of a weight that model.onnx stores as FP16; its Cast has the plain name

MODEL = "model.onnx"  # FP32 arithmetic; each bundle has it, and everything else is made of it
HALF_MODEL = "model.fp16.onnx"  # half arithmetic, what an fp16 engine is built of
INT8_MODEL = "model.int8.onnx"  # quantised, for CPUs with VNNI
ENGINE_SUFFIX = ".engine"
CARD_SUFFIX = ".engine.json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
FIELDS = frozenset("format arch labels preprocess temperature operating_points default_operating_point files".split())
FULL_VIEWS = "full_views"  # a field that a bundle of one view lacks
FULL = "-full"  # ends the names of operating points of several views
_TOLD = frozenset({"metrics", "provenance"})


@dataclass(frozen=True, slots=True)
class FullViews:
    """Several windows of an image that are judged each; the mean of their logits has a calibration of its own.

    Raises:
        ValueError: there are no windows, or temperature and points are none of a `Manifest`, or a name lacks `FULL`.
    """

    windows: tuple[Window, ...]
    temperature: float
    points: tuple[OperatingPoint, ...]
    default_point: str

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError("full views need windows")
        _check_calibration(self.temperature, self.points, self.default_point)
        if not all(point.name.endswith(FULL) for point in self.points):
            raise ValueError(f"names of operating points of full views end in {FULL}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself: all that is needed to use its network, and where it comes from.

    Raises:
        ValueError: a field is out of range, or two of them contradict each other.
    """

    arch: str
    labels: tuple[str, ...]
    """In the order of the network's targets."""
    spec: PreprocessSpec
    temperature: float
    points: tuple[OperatingPoint, ...]
    default_point: str
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file by its name."""
    metrics: dict[str, object] = field(default_factory=dict)
    """What was measured, by the command that did: `training`, `calibration`, `evaluation`, `int8`, `full_views`."""
    provenance: dict[str, object] = field(default_factory=dict)
    """Of which checkpoint it was made, and that of which data."""
    full_views: FullViews | None = None
    """What else it can look at, where that was measured."""

    def __post_init__(self) -> None:
        if self.labels != LABELS:
            raise ValueError(f"labels must be {list(LABELS)}, not {list(self.labels)}")
        _check_calibration(self.temperature, self.points, self.default_point)
        for name, digest in self.files.items():
            if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"{name!r} is not a plain file name: a bundle has no folders")
            if not _SHA256.fullmatch(digest):
                raise ValueError(f"the SHA-256 of {name} is not 64 hexadecimal digits")

    def point(self, name: str | None = None, full: bool = False) -> OperatingPoint:
        """The operating point of that name, or the default one.

        Args:
            name: of one; the name of a point of several views says by itself that they are meant.
            full: of several views, also where `name` does not say so.

        Raises:
            BundleError: there is none of that name; or the bundle knows one view only.
        """
        views = self.full_views
        if full and views is None:
            raise BundleError("the bundle has one view of an image only: leave --views full out")
        if views is not None and full:
            wanted = views.default_point if name is None else f"{name.removesuffix(FULL)}{FULL}"
        else:
            wanted = self.default_point if name is None else name
        points = (*self.points, *(views.points if views is not None else ()))
        for point in points:
            if point.name == wanted:
                return point
        known = ", ".join(point.name for point in points)
        raise BundleError(f"the bundle has no operating point {wanted!r}: use one of {known}")

    def windows(self, point: OperatingPoint) -> Windows:
        """What is looked at where a point decides."""
        views = self._views(point)
        return Windows.of(self.spec, () if views is None else views.windows)

    def temperature_at(self, point: OperatingPoint) -> float:
        """By which the logit is divided where a point decides."""
        views = self._views(point)
        return self.temperature if views is None else views.temperature

    def measured_at(self, point: OperatingPoint) -> Mapping[str, Any]:
        """Of `metrics` the `calibration` and `evaluation` that are of a point: several views have their own."""
        measured: Any = self.metrics if self._views(point) is None else self.metrics.get(FULL_VIEWS, {})
        return measured if isinstance(measured, Mapping) else {}

    def with_evaluation(self, point: OperatingPoint, evaluation: Mapping[str, object]) -> Manifest:
        """The manifest with what was measured at a point."""
        measured = {**self.measured_at(point), "evaluation": evaluation}
        return replace(self, metrics=measured if self._views(point) is None else {**self.metrics, FULL_VIEWS: measured})

    def _views(self, point: OperatingPoint) -> FullViews | None:
        views = self.full_views
        return views if views is not None and point in views.points else None

    def to_json(self) -> dict[str, object]:
        """What `manifest.json` holds; with `told_to_json` it is the inverse of `manifest_from_json`."""
        return {
            "format": FORMAT,
            "arch": self.arch,
            "labels": list(self.labels),
            "preprocess": self.spec.to_json(),
            "temperature": self.temperature,
            "operating_points": [asdict(point) for point in self.points],
            "default_operating_point": self.default_point,
            "files": dict(sorted(self.files.items())),
            **({} if self.full_views is None else {FULL_VIEWS: asdict(self.full_views)}),
        }

    def told_to_json(self) -> dict[str, object]:
        """What `evaluation.json` holds."""
        return {"metrics": self.metrics, "provenance": self.provenance}


def manifest_from_json(values: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> Manifest:
    """Read what `Manifest.to_json` and `Manifest.told_to_json` wrote; the latter may be missing.

    Raises:
        ValueError: the format is another one, or a field is missing, unknown or of the wrong kind.
    """
    if values.get("format") == _ONE_FILE:
        check_fields(values, FIELDS | _TOLD, "the manifest")
        told = {name: values[name] for name in _TOLD}
    elif values.get("format") != FORMAT:
        raise ValueError(
            f"format {values.get('format')!r}, and this version reads {FORMAT}: update with pip install -U"
        )
    else:
        check_fields(values, FIELDS | ({FULL_VIEWS} & values.keys()), "the manifest")
    if told is None:
        told = {name: {} for name in _TOLD}
    check_fields(told, _TOLD, EVALUATION)
    shared = {name: values[name] for name in ("arch", "labels", "temperature", "files")}
    return from_json(
        Manifest,
        {
            **shared,
            "spec": spec_from_json(values["preprocess"]),
            "points": values["operating_points"],
            "default_point": values["default_operating_point"],
            FULL_VIEWS: values.get(FULL_VIEWS),
            **told,
        },
        "the manifest",
    )


def _check_calibration(temperature: float, points: tuple[OperatingPoint, ...], default_point: str) -> None:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be positive, not {temperature}")
    names = [point.name for point in points]
    if len(set(names)) != len(names) or default_point not in names:
        raise ValueError(f"operating points need distinct names and the default {default_point!r}: {names}")
