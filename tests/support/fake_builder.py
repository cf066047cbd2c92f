"""What the fake TensorRT builds: an engine is the ONNX graph behind a header that says what was asked for.

A network, a configuration and a builder are refused what TensorRT of that version refuses.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from typing import Any

MAGIC = b"FAKE-TENSORRT\0"
_ONNX_TYPES = {1: "FLOAT", 3: "INT8", 6: "INT32", 7: "INT64", 10: "HALF"}


class Bound:
    """What all classes of the fake share: no attribute that the class does not have can be set, as with pybind11."""

    public = ""
    trt: Any

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} of TensorRT {self.trt.__version__} has no {name}")
        object.__setattr__(self, name, value)


class HostMemory:
    """`IHostMemory`: `bytes(memory)` and `memory.nbytes`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.nbytes = len(content)

    def __bytes__(self) -> bytes:
        return self._content

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._content)


class Logger:
    public = "Logger"
    Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self, min_severity: Any = None) -> None:
        self._told: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self._told.append((severity, message))


class Tensor(Bound):
    public = "ITensor"
    name = shape = dtype = allowed_formats = None

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class Layer(Bound):
    public = "ILayer"
    name = precision = None

    def get_output(self, index: int) -> Any:
        return self._output


class Network(Bound):
    public = "INetworkDefinition"
    name = ""

    def __init__(self, flags: int) -> None:
        kinds = self.trt.NetworkDefinitionCreationFlag
        known = {flag.name for flag in kinds if flags >> int(flag) & 1}
        self._explicit = "EXPLICIT_BATCH" in known or not hasattr(kinds, "EXPLICIT_BATCH") or self._major() >= 10
        self._strong = "STRONGLY_TYPED" in known or self._major() >= 11
        self._content = b""
        self._graph: Any = None

    def _major(self) -> int:
        return 11 if self.trt.__name__ == "tensorrt_rtx" else int(self.trt.__version__.split(".")[0])

    def _tensors(self, values: Any) -> list[Any]:
        tensors = []
        for value in values:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            dtype = getattr(self.trt.DataType, _ONNX_TYPES[kind.elem_type])
            tensors.append(self.trt.ITensor(value.name, shape, dtype))
        return tensors

    @property
    def num_inputs(self) -> int:
        return len(self._graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._graph.output)

    @property
    def num_layers(self) -> int:
        return len(self._graph.node)

    def get_layer(self, index: int) -> Any:
        """All are as half as the weights: the fake infers no types."""
        half = _large_weights(self._graph) == {10}
        kind = getattr(self.trt.DataType, "HALF" if half else "FLOAT")
        layer = self.trt.ILayer()
        layer._output = self.trt.ITensor(self._graph.node[index].output[0], (), kind)
        return layer

    def get_input(self, index: int) -> Any:
        return self._tensors(self._graph.input)[index]

    def get_output(self, index: int) -> Any:
        return self._tensors(self._graph.output)[index]


class _ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class Parser(Bound):
    public = "OnnxParser"

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[_ParserError] = []

    def parse(self, content: bytes, path: str | None = None) -> bool:
        import onnx

        try:
            model = onnx.load_from_string(bytes(content))
            onnx.checker.check_model(model)
        except Exception as error:
            self._errors.append(_ParserError(f"cannot parse: {error}"))
            return False
        if not self._network._explicit:
            self._errors.append(_ParserError("the network must have an explicit batch dimension"))
            return False
        opset = model.opset_import[0].version
        if self._network._major() == 8 and opset > 17:
            self._errors.append(_ParserError(f"opset {opset} is past 17"))
            return False
        self._network._content, self._network._graph = bytes(content), model.graph
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]


class _Profile:
    """`IOptimizationProfile`."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002  TensorRT's names
        self.shapes[name] = (tuple(min), tuple(opt), tuple(max))


class _TimingCache:
    """`ITimingCache`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> HostMemory:
        return HostMemory(self._content)


class Config(Bound):
    public = "IBuilderConfig"
    max_workspace_size = num_compute_capabilities = DLA_core = builder_optimization_level = 0
    default_device_type = profiling_verbosity = hardware_compatibility_level = None

    def __init__(self) -> None:
        self._flags: set[Any] = set()
        self._profiles: list[_Profile] = []
        self._pools: dict[Any, int] = {}
        self._cache: _TimingCache | None = None
        self._capabilities: dict[int, Any] = {}

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        if not profile.shapes or any(not a <= b <= c for a, b, c in profile.shapes.values()):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> _TimingCache | None:
        if content and not bytes(content).startswith(b"timings"):
            return None
        return _TimingCache(bytes(content))

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return self._cache

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self._capabilities[index] = capability
        return index < self.num_compute_capabilities


class Builder(Bound):
    public = "Builder"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return int(self.trt.dla_cores)

    def create_network(self, flags: int = 0) -> Any:
        return self.trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: Any) -> HostMemory | None:
        refusal = self.trt.refuse_build or self._refusal(network, config)
        if refusal:
            self._logger.log(self._logger.ERROR, refusal)
            return None
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        asked = {flag.name for flag in config._flags}
        half_graph = any(tensor.dtype.name == "HALF" for tensor in inputs) or _large_weights(network._graph) == {10}
        half = half_graph if network._strong else "FP16" in asked
        verbosity = config.profiling_verbosity
        header = {
            "version": self.trt.__version__, "module": self.trt.__name__, "capability": self.trt.capability,
            "version_compatible": "VERSION_COMPATIBLE" in asked, "half": half,
            "detailed": verbosity is not None and verbosity.name == "DETAILED",
            "shapes": config._profiles[0].shapes, "sha256": hashlib.sha256(network._content).hexdigest(),
            "capabilities": [kind.name for kind in config._capabilities.values()],
        }  # fmt: skip
        if config._cache is not None:
            config._cache._content += b"timings\0"
        text = json.dumps(header).encode()
        return HostMemory(MAGIC + len(text).to_bytes(4, "little") + text + network._content)

    def _refusal(self, network: Any, config: Any) -> str:
        if self.trt.refuse_current and any(kind.name == "CURRENT" for kind in config._capabilities.values()):
            return str(self.trt.refuse_current)
        if network._graph is None:
            return "the network is empty"
        if not config._profiles and any(-1 in network.get_input(index).shape for index in range(network.num_inputs)):
            return "a dynamic input needs an optimization profile"
        asked = {flag.name for flag in config._flags}
        if network._strong and asked & {"FP16", "INT8", "BF16"}:
            return "precision flags are not allowed in a strongly typed network"
        if getattr(config.default_device_type, "name", "GPU") == "DLA" and "GPU_FALLBACK" not in asked:
            return "a layer does not run on DLA and GPU fallback is off"
        return ""


def _large_weights(graph: Any) -> set[int]:
    return {tensor.data_type for tensor in graph.initializer if math.prod(tensor.dims) >= 1024}
