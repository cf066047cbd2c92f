"""An ONNX graph becomes a TensorRT or TensorRT-RTX engine, and the engine is asked what it is.

One builder for 8.6 to 11: what a version lacks is found with `hasattr`, never by its number. TensorRT 11 has no flag
for FP16, so precision stands in the graph, and networks are strongly typed wherever TensorRT has that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aivsreal.runtime.bundle.engine_key import EngineCard, EngineKey, EngineKind, this_platform
from aivsreal.runtime.bundle.manifest import INPUT
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.pixels.kinds import HEAD, kind_of
from aivsreal.runtime.spec import PreprocessSpec

# A builder that ignores the wish for half leaves no half tensor at all, and one that heeds it leaves few layers without
# one; the share of a good engine was never measured, so the bound is half way.
MIN_HALF_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a person may ask of the builder.

    Raises:
        ValueError: a number is out of range.
    """

    half: bool = True
    """Whether the graph is the half one, and the engine must turn out to be."""
    max_batch: int = 32
    workspace_mib: int | None = None
    """Memory that a layer may use while it runs; None leaves it to TensorRT."""
    version_compatible: bool = False
    timing_cache: Path | None = None
    """File with the timings of earlier builds; it is read if it is there, and written."""
    dla_core: int | None = None
    """Run what can on this deep-learning accelerator of a Jetson, the rest on the GPU."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, of which none need be here; TensorRT-RTX alone can do that."""
    portable: bool = False
    """Leave it to TensorRT-RTX for which GPUs the engine is; else it is for those, or for the one that is here."""

    def __post_init__(self) -> None:
        if self.max_batch < 1 or (self.workspace_mib is not None and self.workspace_mib < 1):
            raise ValueError("max_batch and workspace_mib must be positive")

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, most frequent and largest batch of the engine's profile."""
        return (1, min(8, self.max_batch), self.max_batch)


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that is here: its name, and its compute capability like 8.7."""

    name: str
    capability: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialised engine with its card."""

    plan: bytes
    card: EngineCard


class EngineBuilder:
    """Builds engines with one TensorRT as one person asks.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        kind: which of them it is.
        options: what is asked for.
        gpu: the one that is here, or None, for TensorRT-RTX that builds for `options.compute_capabilities`.
    """

    def __init__(self, trt: Any, kind: EngineKind, options: BuildOptions, gpu: Gpu | None) -> None:
        self._trt, self._kind, self._options, self._gpu = trt, kind, options, gpu
        self._capabilities = options.compute_capabilities or ((gpu.capability,) if gpu else ())
        self._product = f"{kind.product} {trt.__version__}"
        self._logger = _logger(trt)
        self._flags: list[str] = []

    def engine_from_onnx(self, graph: bytes, spec: PreprocessSpec, model_sha256: str) -> Engine:
        """Build an engine, load it and read back what it is.

        Args:
            graph: the half graph, or the FP32 one where `options.half` is off.
            spec: gives the input's size.
            model_sha256: of the bundle's `model.onnx`.

        Raises:
            ExportError: the graph is not accepted, the build failed, or the engine is not half.
        """
        options, self._flags = self._options, [self._product]
        plan, network = self._built(graph, spec.size)
        # TensorRT-RTX compiles its kernels when the engine is first run, so there its network says what it will be.
        layers, half = self._inspected(plan) if self._kind is EngineKind.TENSORRT else layers_from_network(network)
        if options.half and half < MIN_HALF_SHARE * layers:
            raise ExportError(
                f"{self._product} built an engine of which {half} of {layers} layers are half: it is not an FP16 "
                "engine, and nothing was written; update TensorRT, or export with --no-engine"
            )
        precision = "fp16" if half >= MIN_HALF_SHARE * layers else "fp32"
        key = EngineKey(
            self._kind, str(self._trt.__version__), self._capabilities, this_platform(), precision, *options.batches,
            model_sha256, options.version_compatible, options.dla_core,
        )  # fmt: skip
        name = self._gpu.name if self._gpu is not None and self._gpu.capability in self._capabilities else ""
        made_of = hashlib.sha256(graph).hexdigest()
        return Engine(plan, EngineCard(key, spec, name, tuple(self._flags), layers, half, made_of))

    def _built(self, graph: bytes, size: int) -> tuple[bytes, Any]:
        """The serialised engine, and the network that it was built of."""
        builder = self._trt.Builder(self._logger)
        network = builder.create_network(self._creation_flags())
        parser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse(graph):
            found = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
            raise ExportError(f"{self._product} does not accept the graph: {found or 'it gives no reason'}")
        config = builder.create_builder_config()
        self._configure(builder, config)
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((batch, 3, size, size) for batch in self._options.batches))
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{self._product} refuses batches of {self._options.batches}: try another --max-batch")
        cache = _timing_cache(config, self._options.timing_cache)
        serialised = builder.build_serialized_network(network, config)
        if serialised is None:
            why = "; ".join(self._logger.errors) or "it gives no reason"
            raise ExportError(f"{self._product} could not build the engine: {why}")
        if cache is not None:
            _write_cache(config, cache)
        return bytes(serialised), network

    def _creation_flags(self) -> int:
        known = self._trt.NetworkDefinitionCreationFlag
        bits = 0
        if hasattr(known, "EXPLICIT_BATCH"):  # 8 needs it, 10 takes it for granted, 11 has it no more
            bits |= 1 << int(known.EXPLICIT_BATCH)
        # Where there still is a flag for FP16, DLA takes its precision from there.
        from_flag = self._options.dla_core is not None and hasattr(self._trt.BuilderFlag, "FP16")
        if hasattr(known, "STRONGLY_TYPED") and not from_flag:
            bits |= 1 << int(known.STRONGLY_TYPED)
            self._flags.append("strongly typed")
        return bits

    def _configure(self, builder: Any, config: Any) -> None:
        trt, options, flags = self._trt, self._options, self._flags
        if options.half and "strongly typed" not in flags and hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
            flags.append("FP16 flag")
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector gives names, no precision
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
            flags.append(f"workspace {options.workspace_mib} MiB")
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            flags.append("version compatible")
        if options.dla_core is not None:
            if options.dla_core >= builder.num_DLA_cores:
                raise ExportError(
                    f"there is no DLA core {options.dla_core}: {builder.num_DLA_cores} are here; leave --dla out"
                )
            config.default_device_type, config.DLA_core = trt.DeviceType.DLA, options.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
            flags.append(f"DLA core {options.dla_core} with GPU fallback")
        if self._kind is EngineKind.TENSORRT_RTX:
            self._set_targets(config)
        elif options.compute_capabilities:
            raise ExportError(
                f"{self._kind.product} builds only for the GPU that is here: leave --rtx out, or use TensorRT-RTX"
            )

    def _set_targets(self, config: Any) -> None:
        """Those GPUs, or the one that is here, which TensorRT-RTX need not know by its number: it is asked itself."""
        if self._options.portable:
            self._flags.append("portable")
            return
        kinds = self._trt.ComputeCapability
        known = {item[2:]: getattr(kinds, item) for item in dir(kinds) if item[:2] == "SM"}
        config.num_compute_capabilities = len(self._capabilities)
        for index, capability in enumerate(self._capabilities):
            number = capability.replace(".", "")
            if number not in known and self._options.compute_capabilities:
                raise ExportError(
                    f"{self._product} cannot build for compute capability {capability}: one of "
                    f"{', '.join(f'{item[:-1]}.{item[-1]}' for item in sorted(known))}"
                )
            config.set_compute_capability(known.get(number, kinds.CURRENT), index)
        self._flags.append(f"for {', '.join(self._capabilities)}")

    def _inspected(self, plan: bytes) -> tuple[int, int]:
        """Layers of floating point and those of them that touch half, as the loaded engine's inspector says."""
        runtime = self._trt.Runtime(self._logger)
        if self._options.version_compatible:
            runtime.engine_host_code_allowed = True
        if self._options.dla_core is not None:
            runtime.DLA_core = self._options.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(
                f"the engine does not load where it was built: {'; '.join(self._logger.errors)}; nothing was written"
            )
        kind = self._trt.LayerInformationFormat.JSON
        return layers_from_inspection(engine.create_engine_inspector().get_engine_information(kind))


def _timing_cache(config: Any, file: Path | None) -> Path | None:
    if file is None:
        return None
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise ExportError(f"{file}: the timing cache cannot be read: {error.strerror}") from None
    found = kind_of(content[:HEAD])
    what = found.name if found is not None else "a text" if content and b"\0" not in content else ""
    if what:  # TensorRT-RTX takes anything, and keeps nothing of it
        raise ExportError(f"{file} is {what}, not a timing cache, and would be replaced: name another file")
    # A cache of another version or GPU, or a damaged one, is not an error: its timings are only taken anew.
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return file
    return None


def _write_cache(config: Any, file: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.new")
        fresh.write_bytes(bytes(cache.serialize()))
        fresh.replace(file)
    except OSError as error:
        raise ExportError(
            f"{file}: the timing cache cannot be written: {error.strerror}; nothing was written"
        ) from None


def _logger(trt: Any) -> Any:
    """A logger of TensorRT that keeps its errors for our message instead of printing them."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known when TensorRT is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Logger()


_HALF, _FULL = ("half", "fp16"), ("float", "fp32")


def layers_from_inspection(text: str) -> tuple[int, int]:
    """Count layers that compute in floating point, and those of them that read or write half.

    A layer that fuses the whole transformer into one shows only its inputs and its FP32 outputs, so both count.

    Raises:
        ExportError: the inspector gave no details.
    """
    try:
        listed = json.loads(text)["Layers"]
        formats = [
            [str(tensor["Format/Datatype"]).lower() for tensor in (*layer["Inputs"], *layer["Outputs"])]
            for layer in listed
        ]
    except (ValueError, KeyError, TypeError):
        raise ExportError(
            "TensorRT's inspector does not say what precision the layers have: the engine is not trusted, and nothing "
            "was written"
        ) from None
    half = [any(word in kind for kind in kinds for word in _HALF) for kinds in formats]
    floating = [
        found or any(word in kind for kind in kinds for word in _FULL)
        for found, kinds in zip(half, formats, strict=True)
    ]
    return sum(floating), sum(half)


def layers_from_network(network: Any) -> tuple[int, int]:
    """The same counts of a strongly typed network's layers, whose outputs have the types that they will have."""
    kinds = [network.get_layer(index).get_output(0).dtype.name for index in range(network.num_layers)]
    return sum(kind in ("HALF", "FLOAT") for kind in kinds), kinds.count("HALF")
