"""A fake `tensorrt` of a chosen version for tests: nothing is built for a GPU, but what a version lacks is lacking.

Which names a version has was asked of the real bindings (`data/tensorrt_api_surface.json`). A name that it lacks raises
AttributeError, as there; one that it has and that the fake does not play raises NotImplementedError when it is used.
"""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

from fake_builder import Builder, Config, Layer, Logger, Network, Parser, Tensor
from fake_engine import NUMPY_TYPES, Context, Engine, Runtime

SURFACE: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "tensorrt_api_surface.json").read_text(encoding="utf-8")
)
VERSIONS = ("8.6.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16", "11.4", "rtx1.7")
_ENUMS: dict[str, tuple[str, ...]] = {
    # Those of all versions that no one asked the bindings about.
    "BuilderFlag": (), "NetworkDefinitionCreationFlag": (), "OnnxParserFlag": (), "TacticSource": (),
    "HardwareCompatibilityLevel": (), "RuntimePlatform": ("SAME_AS_BUILD",), "ComputeCapability": (),
    "EngineCapability": ("STANDARD", "SAFETY"), "DeviceType": ("GPU",), "EngineValidity": (),
    "DataType": ("FLOAT", "INT8", "INT32", "BOOL"), "MemoryPoolType": ("TACTIC_DRAM", "DLA_MANAGED_SRAM"),
    "TensorIOMode": ("NONE", "INPUT", "OUTPUT"), "LayerInformationFormat": ("ONELINE", "JSON"),
    "ProfilingVerbosity": ("LAYER_NAMES_ONLY", "NONE", "DETAILED"),
}  # fmt: skip


def fake_tensorrt(version: str, compute_capability: str = "8.7", dla_cores: int = 0) -> Any:
    """A module that stands for `tensorrt` (or `tensorrt_rtx`) of one of `VERSIONS` on a GPU of that capability.

    Its `refuse_build` may be set to a message: the next build then fails with it, as TensorRT's builder does. So may
    `refuse_current`, for the builds of TensorRT-RTX that are for the GPU that is here.
    """
    if version not in VERSIONS:
        raise ValueError(f"the surface of {version} is not known: one of {VERSIONS}")
    module: Any = ModuleType("tensorrt_rtx" if version.startswith("rtx") else "tensorrt", __doc__)
    module.__version__ = version.removeprefix("rtx") + (".0" if version.count(".") == 1 else "")
    module.capability = compute_capability
    module.dla_cores = dla_cores
    module.refuse_build = module.refuse_current = None
    module.has = lambda name: version in SURFACE[name] if name in SURFACE else True
    for name, members in _ENUMS.items():
        asked = [key.partition(".")[2] for key in SURFACE if key.startswith(f"{name}.") and module.has(key)]
        if name not in SURFACE or module.has(name):
            listed = [*members, *(member for member in asked if member not in members)]
            if name == "ComputeCapability":
                listed = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"]
            setattr(module, name, enum.IntEnum(name, listed, start=0))
    for kind in (Logger, Builder, Config, Network, Tensor, Layer, Parser, Runtime, Engine, Context):
        bound = type(kind.public, (kind,), {"trt": module, "__module__": module.__name__})
        for key in SURFACE:
            owner, _, member = key.partition(".")
            if owner != kind.public or not member:
                continue
            if not module.has(key):
                setattr(bound, member, _Lacking(key, version))
            elif not hasattr(kind, member):
                setattr(bound, member, _NotPlayed(key))
        setattr(module, kind.public, bound)
    for key in SURFACE:
        if "." not in key and module.has(key) and not hasattr(module, key):
            setattr(module, key, _NotPlayed(key))
    module.ILogger = Logger
    module.nptype = lambda kind: NUMPY_TYPES[kind.name]
    module.volume = math.prod
    module.init_libnvinfer_plugins = lambda logger, namespace: True
    return module


class _Lacking:
    """An attribute that this version does not have."""

    def __init__(self, name: str, version: str) -> None:
        self.message = f"TensorRT {version} has no {name}"

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(self.message)

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(self.message)


class _NotPlayed:
    """Something that this version has and the fake does not do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: object, **named: object) -> Any:
        raise NotImplementedError(f"the fake does not play {self.name}")
