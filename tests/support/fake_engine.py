"""What the fake TensorRT does with an engine: it says of it what TensorRT would, and a context computes it.

A context runs the engine's ONNX graph with ONNX Runtime on addresses in host memory, so that the code around it
computes true logits.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import math
from typing import Any

import numpy as np
from fake_builder import MAGIC, Bound, HostMemory

NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}


class Runtime(Bound):
    public = "Runtime"
    engine_host_code_allowed = False
    DLA_core = 0

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        content = bytes(content)
        if not content.startswith(MAGIC):
            return self._refused("magic tag does not match")
        size = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "little")
        start = len(MAGIC) + 4
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

    def serialize(self) -> HostMemory:
        return HostMemory(b"rtx1.7:" + json.dumps(sorted(self.sizes)).encode())

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"rtx1.7:"):
            return False
        self.sizes = set(json.loads(content[7:]))
        return True


class Engine(Bound):
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


class Context(Bound):
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
        kind = NUMPY_TYPES[self._engine.get_tensor_dtype(name).name]
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
