"""What a TensorRT engine is for: its key, the card that lies beside it in a bundle, and which one fits a GPU."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import CARD_SUFFIX, ENGINE_SUFFIX, MODEL
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.fields import from_json, object_from_json
from aivsreal.runtime.spec import PreprocessSpec, spec_from_json

FORMAT = 1
_MAJORS = (8, 10, 11)  # there is no TensorRT 9 outside of NVIDIA's language-model tools
_VERSION = re.compile(r"\d+(\.\d+)+")
_CAPABILITY = re.compile(r"\d+\.\d")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class EngineKind(str, Enum):
    """The library that built an engine and must run it: their engines are not interchangeable."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"

    @property
    def product(self) -> str:
        """As people write it."""
        return {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[self.value]


def this_platform() -> str:
    """Operating system and processor, for example `linux-aarch64`: engines cross neither."""
    return f"{platform.system()}-{platform.machine()}".lower()


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU with the library that would run an engine on it."""

    kind: EngineKind
    version: str
    """Of the library, as its `__version__` says."""
    compute_capability: str
    """Of the GPU, for example "8.7"."""
    platform: str

    def __str__(self) -> str:
        return f"{_sm(self.compute_capability)} with {self.kind.product} {self.version} on {self.platform}"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that decides whether an engine may run: where it was built, for which GPU, and of which model.

    Raises:
        ValueError: a field is out of range.
    """

    kind: EngineKind
    version: str
    compute_capabilities: tuple[str, ...]
    """TensorRT builds for the one GPU that is there; TensorRT-RTX for those that it is told."""
    platform: str
    precision: str
    """As read back from the engine: "fp16", "fp32", "int8"."""
    min_batch: int
    opt_batch: int
    max_batch: int
    onnx_sha256: str
    """Of the bundle's `model.onnx` that it was made of."""
    version_compatible: bool = False
    """Whether later versions may run it; the runtime must then allow the engine's host code."""
    dla_core: int | None = None
    """The DLA core that the runtime must be set to before it loads the engine; None for an engine of the GPU alone."""

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise ValueError(f"version must be like 10.3.0, not {self.version!r}")
        if not self.compute_capabilities or not all(_CAPABILITY.fullmatch(item) for item in self.compute_capabilities):
            raise ValueError(f"compute capabilities must be like 8.7, not {list(self.compute_capabilities)}")
        if not self.platform or self.precision not in ("fp16", "fp32", "int8"):
            raise ValueError(f"platform and precision must be named, not {self.platform!r} and {self.precision!r}")
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"needs 1 <= min_batch <= opt_batch <= max_batch, not {self.min_batch}, {self.opt_batch}, "
                f"{self.max_batch}"
            )
        if self.dla_core is not None and self.dla_core < 0:
            raise ValueError(f"dla_core must not be negative, but is {self.dla_core}")
        if not _SHA256.fullmatch(self.onnx_sha256):
            raise ValueError("the SHA-256 of the model is not 64 hexadecimal digits")

    @property
    def file_name(self) -> str:
        """Name of the engine in its bundle; engines for different places have different names."""
        targets = "-".join(_sm(item) for item in self.compute_capabilities)
        version = f"{self.version}{'-compatible' if self.version_compatible else ''}"
        dla = "" if self.dla_core is None else f"-dla{self.dla_core}"
        return f"{self.precision}-{targets}{dla}-{self.kind.value}-{version}-{self.platform}-b{self.max_batch}.engine"

    def fits(self, device: Device) -> bool:
        """Whether that GPU with that library can run it."""
        return (
            self.kind is device.kind
            and self.platform == device.platform
            and device.compute_capability in self.compute_capabilities
            and self._runs_on(device.version)
        )

    def _runs_on(self, version: str) -> bool:
        if version == self.version:
            return True
        built, here = _numbers(self.version), _numbers(version)
        if not self.version_compatible or here < built or {built[0], here[0]} - set(_MAJORS):
            return False
        return _MAJORS.index(here[0]) - _MAJORS.index(built[0]) <= 1  # NVIDIA promises one major version ahead

    def __str__(self) -> str:
        targets = " and ".join(_sm(item) for item in self.compute_capabilities)
        return f"{targets} with {self.kind.product} {self.version} on {self.platform}"


@dataclass(frozen=True, slots=True)
class EngineCard:
    """The sidecar of an engine: its key, how it was built, and what its inspector says of it."""

    key: EngineKey
    spec: PreprocessSpec
    gpu: str
    """Name of the GPU it was built on; empty where TensorRT-RTX built it without one."""
    flags: tuple[str, ...]
    """What the builder was asked for, in words."""
    layers: int
    half_layers: int
    """Of the layers with a floating-point output, those whose output is half."""
    graph_sha256: str
    """Of the ONNX graph that the builder parsed: the half one for an fp16 engine."""
    parity: dict[str, float] | None = None
    """How it differs from `model.onnx` on reference images; None where it was built without its GPU."""

    @property
    def file(self) -> str:
        """Name of the engine in its bundle."""
        return self.key.file_name

    @property
    def card_file(self) -> str:
        """Name of this card in its bundle."""
        return self.file.removesuffix(ENGINE_SUFFIX) + CARD_SUFFIX

    def to_json(self) -> dict[str, object]:
        """The card as JSON values; `card_from_json` is its inverse."""
        return {
            "format": FORMAT,
            **asdict(self),
            "key": {**asdict(self.key), "kind": self.key.kind.value},
            "spec": self.spec.to_json(),
        }


def card_from_json(values: Mapping[str, Any]) -> EngineCard:
    """Read what `EngineCard.to_json` wrote.

    Raises:
        ValueError: the format is another one, or a field is missing, unknown or of the wrong kind.
    """
    if values.get("format") != FORMAT:
        raise ValueError(f"format {values.get('format')!r}, and this version reads {FORMAT}")
    found = {name: value for name, value in values.items() if name != "format"}
    return from_json(EngineCard, {**found, "spec": spec_from_json(found.get("spec"))}, "an engine's card")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _sm(compute_capability: str) -> str:
    return f"sm_{compute_capability.replace('.', '')}"


def engines_of(bundle: Bundle) -> tuple[EngineCard, ...]:
    """Cards of the engines in the bundle, in the order of their names. The bytes are `read(card.file)`.

    Raises:
        BundleError: a card is damaged, missing, or for another model or preprocessing than the bundle's.
    """
    cards = []
    for name in sorted(name for name in bundle.manifest.files if name.endswith(ENGINE_SUFFIX)):
        file = name.removesuffix(ENGINE_SUFFIX) + CARD_SUFFIX
        content = bundle.read(file)
        try:
            card = card_from_json(object_from_json(content))
            if card.file != name:
                raise ValueError(f"it describes {card.file}")
            if card.spec != bundle.manifest.spec:
                raise ValueError("it was built for another preprocessing than the manifest's")
            if card.key.onnx_sha256 != bundle.manifest.files.get(MODEL):
                raise ValueError(f"it was built of another model than {MODEL}")
        except ValueError as error:
            raise BundleError(
                f"{bundle.path / file} cannot be used: {error}; build the engine again with aivsreal-export --fp16"
            ) from None
        cards.append(card)
    return tuple(cards)


def engine_for(bundle: Bundle, device: Device) -> EngineCard:
    """The card of the best engine that fits: of that very version before a compatible one, GPU before DLA, fp16.

    Raises:
        BackendError: there is none; the message names what the engines are for, and what this device is.
        BundleError: a card is damaged.
    """
    cards = engines_of(bundle)
    fitting = [card for card in cards if card.key.fits(device)]
    if fitting:
        return max(fitting, key=lambda card: _rank(card, device))
    if not cards:
        raise BackendError(f"no engine in the bundle for {device}: run aivsreal-export --fp16")
    built = "; ".join(f"{card.file} was built for {card.key}" for card in cards)
    raise BackendError(f"{built}; this is {device}: run aivsreal-export --fp16")


def _rank(card: EngineCard, device: Device) -> tuple[bool, bool, bool, int]:
    key = card.key
    return (key.version == device.version, key.dla_core is None, key.precision == "fp16", key.max_batch)
