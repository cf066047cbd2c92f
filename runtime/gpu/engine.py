"""TensorRT and TensorRT-RTX, the only file that names them: a bundle's engine for this GPU.

The same calls serve 8.6 to 11: nothing here or in `executor.py` asks for the version.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from aivsreal.runtime.bundle.engine_key import Device, EngineCard, EngineKind, engine_for, this_platform
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS, MAP
from aivsreal.runtime.cache import usable_cache_folder
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.gpu.calls import Gpu
from aivsreal.runtime.gpu.executor import EngineTensors, Floats

_MODULES = {EngineKind.TENSORRT: "tensorrt", EngineKind.TENSORRT_RTX: "tensorrt_rtx"}
_DTYPES: dict[str, Floats] = {"FLOAT": np.float32, "HALF": np.float16}


def installed_libraries() -> dict[EngineKind, Any]:
    """The TensorRT modules that load here.

    Raises:
        BackendError: one is installed and does not load.
    """
    found = {}
    for kind, name in _MODULES.items():
        try:
            found[kind] = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BackendError(f"{name} is installed but does not load: {error}") from None
        except (ImportError, OSError) as error:
            raise BackendError(f"{name} is installed but does not load: {error}") from None
    return found


def fitting_engine(bundle: Bundle, libraries: dict[EngineKind, Any], gpu: Gpu) -> tuple[EngineKind, EngineCard]:
    """The engine that one of these libraries can run on that GPU, TensorRT before TensorRT-RTX.

    Raises:
        BackendError: there is none; it says what the engines are for and what is here.
    """
    refusals = []
    for kind, trt in libraries.items():
        device = Device(kind, trt.__version__, "{}.{}".format(*gpu.capability), this_platform())
        try:
            return kind, engine_for(bundle, device)
        except BackendError as error:
            refusals.append(str(error))
    raise BackendError("; ".join(refusals))


def loaded_engine(bundle: Bundle, card: EngineCard, trt: Any) -> tuple[Any, Any]:
    """The engine of that card, and the runtime that must outlive it; inside `with driver.current()`.

    Raises:
        BackendError: TensorRT refuses it.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if card.key.version_compatible:
        runtime.engine_host_code_allowed = True  # the engine brings a runtime; the manifest vouches for its bytes
    if card.key.dla_core is not None:
        runtime.DLA_core = card.key.dla_core
    engine = runtime.deserialize_cuda_engine(bundle.read(card.file))
    if engine is None:
        raise BackendError(
            f"{bundle.path / card.file} cannot be loaded by {card.key.kind.product} {trt.__version__}: its message "
            "stands above; build the engine again with aivsreal-export --fp16"
        )
    return engine, runtime


def kept_kernels(card: EngineCard) -> Path | None:
    """Where what TensorRT-RTX compiles for that engine is kept, or None where nothing can be kept."""
    folder = usable_cache_folder("tensorrt-rtx") if card.key.kind is EngineKind.TENSORRT_RTX else None
    return None if folder is None else folder / f"{card.graph_sha256[:16]}-{card.file}.kernels"


def tensors_from_engine(engine: Any, bundle: Bundle, card: EngineCard) -> EngineTensors:
    """What the engine takes and gives.

    Raises:
        BundleError: it is not an engine for the manifest's preprocessing.
    """
    spec, file = bundle.manifest.spec, bundle.path / card.file
    shapes = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shapes[name] = (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))[1:])
    outputs = {name: shapes[name] for name in (LOGITS, MAP) if name in shapes}
    wanted = {INPUT, LOGITS} - set(shapes)
    if wanted or shapes[INPUT][1] != (3, spec.size, spec.size):
        what = f"no {', '.join(sorted(wanted))}" if wanted else f"the input {list(shapes[INPUT][1])}"
        raise BundleError(f"{file} has {what}: build it again with aivsreal-export --fp16")
    unknown = {dtype for dtype, _ in (shapes[INPUT], *outputs.values())} - set(_DTYPES)
    if unknown:
        raise BundleError(f"{file} takes or gives {', '.join(sorted(unknown))}: build it again with aivsreal-export")
    low, _, high = engine.get_tensor_profile_shape(INPUT, 0)
    return EngineTensors(
        spec,
        _DTYPES[shapes[INPUT][0]],
        {name: (_DTYPES[dtype], shape) for name, (dtype, shape) in outputs.items()},
        int(low[0]),
        int(high[0]),
    )
