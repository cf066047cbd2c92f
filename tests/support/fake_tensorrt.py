"""A fake `tensorrt` of a chosen version for tests: nothing is built for a GPU, but what a version lacks is lacking.

Which names a version has was asked of the real bindings (`data/tensorrt_api_surface.json`). A name that it lacks raises
AttributeError, as there; one that it has and that the fake does not play raises NotImplementedError when it is used.
An engine is the ONNX graph with a header, and a context runs it with ONNX Runtime on addresses in host memory, so that
the code around it computes true logits.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SURFACE: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "tensorrt_api_surface.json").read_text(encoding="utf-8")
)
VERSIONS = ("8.6.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16", "11.4", "rtx1.7")
_MAGIC = b"FAKE-TENSORRT\0"
_ONNX_TYPES = {1: "FLOAT", 3: "INT8", 6: "INT32", 7: "INT64", 10: "HALF"}
_NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}
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
    for kind in (_Logger, _Builder, _Config, _Network, _Tensor, _Layer, _Parser, _Runtime, _Engine, _Context):
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
    module.ILogger = _Logger
    module.nptype = lambda kind: _NUMPY_TYPES[kind.name]
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


class _Bound:
    """What all classes of the fake share: no attribute that the class does not have can be set, as with pybind11."""

    public = ""
    trt: Any

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} of TensorRT {self.trt.__version__} has no {name}")
        object.__setattr__(self, name, value)


class _HostMemory:
    """`IHostMemory`: `bytes(memory)` and `memory.nbytes`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.nbytes = len(content)

    def __bytes__(self) -> bytes:
        return self._content

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._content)


class _Logger:
    public = "Logger"
    Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self, min_severity: Any = None) -> None:
        self._told: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self._told.append((severity, message))


class _Tensor(_Bound):
    public = "ITensor"
    name = shape = dtype = allowed_formats = None

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class _Layer(_Bound):
    public = "ILayer"
    name = precision = None

    def get_output(self, index: int) -> Any:
        return self._output


class _Network(_Bound):
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


class _Parser(_Bound):
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

    def serialize(self) -> _HostMemory:
        return _HostMemory(self._content)


class _Config(_Bound):
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

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

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


class _Builder(_Bound):
    public = "Builder"

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def platform_has_fast_fp16(self) -> bool:
        return True

    @property
    def num_DLA_cores(self) -> int:
        return int(self.trt.dla_cores)

    def create_network(self, flags: int = 0) -> Any:
        return self.trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: Any) -> _HostMemory | None:
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
            config._cache._content += b"timings"
        text = json.dumps(header).encode()
        return _HostMemory(_MAGIC + len(text).to_bytes(4, "little") + text + network._content)

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


class _Runtime(_Bound):
    public = "Runtime"
    engine_host_code_allowed = False
    DLA_core = 0

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        content = bytes(content)
        if not content.startswith(_MAGIC):
            return self._refused("magic tag does not match")
        size = int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 4], "little")
        start = len(_MAGIC) + 4
        header = json.loads(content[start : start + size])
        graph = content[start + size :]
        if hashlib.sha256(graph).hexdigest() != header["sha256"]:
            return self._refused("engine deserialization failed: truncated")
        here = (self.trt.__name__, self.trt.capability)
        exact = header["version"] == self.trt.__version__ or header["version_compatible"]
        if (header["module"], header["capability"]) != here and not header["capabilities"]:
            return self._refused("engine was built for another device")
        if not exact:
            return self._refused(f"version tag does not match: {header['version']} and {self.trt.__version__}")
        if header["version_compatible"] and not self.engine_host_code_allowed:
            return self._refused("engine host code is not allowed")
        return self.trt.ICudaEngine(header, graph)

    def _refused(self, message: str) -> None:
        self._logger.log(self._logger.ERROR, message)


class _Inspector:
    """`IEngineInspector`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, layout: Any) -> str:
        engine = self._engine
        if layout.name != "JSON":
            raise NotImplementedError("the fake prints JSON only")
        if not engine._header["detailed"]:
            return json.dumps({"Layers": [node.name for node in engine._graph.node], "Bindings": []})
        words = ("Row major linear FP16 format", "Row major linear FP32") if engine._old() else ("Half", "Float")
        word = words[0] if engine._header["half"] else words[1]
        layers = [
            {
                "Name": node.name, "LayerType": node.op_type, "TacticName": "fake",
                "Inputs": [{"Name": name, "Format/Datatype": word} for name in node.input],
                "Outputs": [{"Name": name, "Format/Datatype": word} for name in node.output],
            }
            for node in engine._graph.node
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": []})


class _RuntimeConfig:
    """`IRuntimeConfig`."""


class _RtxRuntimeConfig(_RuntimeConfig):
    def __init__(self) -> None:
        kinds = enum.Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
        self.dynamic_shapes_kernel_specialization_strategy = kinds["LAZY"]
        self.cache: _RuntimeCache | None = None

    def create_runtime_cache(self) -> _RuntimeCache:
        return _RuntimeCache()

    def set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        self.cache = cache
        return True


class _RuntimeCache:
    """`IRuntimeCache`: batch sizes that were compiled for, after a mark of the version."""

    def __init__(self) -> None:
        self.sizes: set[int] = set()

    def serialize(self) -> _HostMemory:
        return _HostMemory(b"rtx1.7:" + json.dumps(sorted(self.sizes)).encode())

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"rtx1.7:"):
            return False
        self.sizes = set(json.loads(content[7:]))
        return True


class _Engine(_Bound):
    public = "ICudaEngine"
    name = ""

    def __init__(self, header: dict[str, Any], content: bytes) -> None:
        import onnx

        self._header, self._content = header, content
        self._graph = onnx.load_from_string(content).graph
        self._network = self.trt.INetworkDefinition(0)
        self._network._graph = self._graph
        count = self._network.num_inputs
        self._inputs = [self._network.get_input(index) for index in range(count)]
        self._outputs = [self._network.get_output(index) for index in range(self._network.num_outputs)]

    def _old(self) -> bool:
        return bool(self._network._major() == 8)

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._graph.node)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in (*self._inputs, *self._outputs) if tensor.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str((*self._inputs, *self._outputs)[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in {tensor.name for tensor in self._inputs} else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensor(name).dtype

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(shape) for shape in self._header["shapes"][name])

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RtxRuntimeConfig() if self.trt.__name__ == "tensorrt_rtx" else _RuntimeConfig()

    def create_execution_context(self, config: _RuntimeConfig | None = None) -> Any:
        return self.trt.IExecutionContext(self, config)

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self)


class _Context(_Bound):
    public = "IExecutionContext"

    def __init__(self, engine: Any, config: _RuntimeConfig | None = None) -> None:
        import onnxruntime

        if engine.trt.__name__ == "tensorrt_rtx":
            assert isinstance(config, _RtxRuntimeConfig)
            strategy = config.dynamic_shapes_kernel_specialization_strategy.name
            assert strategy == "EAGER", "a graph would be recorded of kernels that are soon replaced"
        self._cache = getattr(config, "cache", None)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._engine = engine
        self._session = onnxruntime.InferenceSession(engine._content, options, providers=["CPUExecutionProvider"])
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        if not all(a <= value <= b for a, value, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        if self._cache is not None:
            self._cache.sizes.add(int(shape[0]))
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batch = next((shape[0] for shape in self._shapes.values()), -1)
        return tuple(batch if size == -1 else size for size in self._engine.get_tensor_shape(name))

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._engine._inputs if tensor.name not in self._shapes]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._engine._tensor(name)
        self._addresses[name] = int(address)
        return True

    def _array(self, name: str) -> Any:
        kind = _NUMPY_TYPES[self._engine.get_tensor_dtype(name).name]
        shape = self.get_tensor_shape(name)
        size = math.prod(shape) * np.dtype(kind).itemsize
        memory = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype=kind).reshape(shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        tensors = (*self._engine._inputs, *self._engine._outputs)
        if self.infer_shapes() or any(not self._addresses.get(tensor.name) for tensor in tensors):
            return False
        names = [tensor.name for tensor in self._engine._outputs]
        given = {tensor.name: self._array(tensor.name) for tensor in self._engine._inputs}
        for name, values in zip(names, self._session.run(names, given), strict=True):
            self._array(name)[...] = values
        return True
