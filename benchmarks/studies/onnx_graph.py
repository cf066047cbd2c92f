"""Our ONNX graph against a plain export of timm's model, timm's linear form, and OpenVINO on the same file.

Run `python -m aivsreal.benchmarks.studies.onnx_graph` on a quiet machine; it prints one JSON line and exits with 1
where a bound does not hold. It needs the extra `export` and OpenVINO.

Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import INPUT, INT8_MODEL, LOGITS, MODEL
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import MissingExtra

PLAIN_RATIO = 1.0  # our time over that of a plain export, at most
OPENVINO_RATIO = 1.1  # our time over OpenVINO's in FP32, at most
PACKAGES = ("aivsreal", "numpy", "onnx", "onnxruntime", "openvino", "torch", "timm")
Floats = npt.NDArray[np.float64]
Contender = Callable[[npt.NDArray[np.float32]], object]


def contenders(bundle: Bundle, threads: int, scratch: Path) -> tuple[dict[str, Contender], dict[str, int]]:
    """What takes turns, each a call with one batch, and the nodes of each graph as it is stored.

    Speed does not depend on the weights, so those of the exports that are made here are fresh ones.
    """
    import onnx

    arch, size = bundle.manifest.arch, bundle.manifest.spec.size
    graphs = {"ours": bundle.read(MODEL)}
    for name, form in (("plain", arch), ("plain_conv", arch.replace("levit_", "levit_conv_")), ("linear_fused", arch)):
        graphs[name] = _plain_export(form, size, scratch / f"{name}.onnx", fuse=name == "linear_fused")
    if INT8_MODEL in bundle.manifest.files:
        graphs["int8"] = bundle.read(INT8_MODEL)
    nodes = {name: len(onnx.load_from_string(content).graph.node) for name, content in graphs.items()}
    runs = {name: _onnxruntime(content, threads) for name, content in graphs.items()}
    return {**runs, "openvino": _openvino(graphs["ours"], threads)}, nodes


def _plain_export(arch: str, size: int, file: Path, fuse: bool) -> bytes:
    """timm's model through `torch.onnx.export`, as anyone would write it, or with timm's own `fuse()` first."""
    import torch

    from aivsreal.runtime.networks.arch import network_from_arch

    network: Any = network_from_arch(arch, size).eval()
    if fuse:
        _fuse(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(2, 3, size, size),), file, dynamo=False, opset_version=17,
            input_names=[INPUT], output_names=[LOGITS], dynamic_axes={INPUT: {0: "batch"}, LOGITS: {0: "batch"}},
        )  # fmt: skip
    return file.read_bytes()


def _fuse(module: Any) -> None:
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())
        else:
            _fuse(child)


def _onnxruntime(content: bytes, threads: int) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda batch_BCHW: session.run([LOGITS], {INPUT: batch_BCHW})


def _openvino(content: bytes, threads: int) -> Contender:
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(content), "CPU", hints).create_infer_request()
    return lambda batch_BCHW: request.infer({INPUT: batch_BCHW})


def timed(
    runs: dict[str, Contender], batch_BCHW: npt.NDArray[np.float32], warmup_s: float, seconds: float
) -> dict[str, Floats]:
    """Milliseconds of each call: all take turns until the time is up, so what slows the machine slows them alike."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.monotonic()
    turn = 0
    while (elapsed := time.monotonic() - start) < warmup_s + seconds:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = time.perf_counter()
            runs[name](batch_BCHW)
            if elapsed >= warmup_s:
                times[name].append((time.perf_counter() - before) * 1000)
        turn += 1
    return {name: np.array(values) for name, values in times.items()}


def ratio(ours: Floats, other: Floats, rounds: int = 1000) -> dict[str, float]:
    """Median of the pairs' ratios with a 95 % bootstrap interval."""
    pairs = ours / other
    rng = np.random.default_rng(0)
    medians = np.median(pairs[rng.integers(0, len(pairs), (rounds, len(pairs)))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"value": float(np.median(pairs)), "low": float(low), "high": float(high)}


def judged(times: dict[str, Floats]) -> dict[str, object]:
    """Percentiles, drift, our time over each other's, and whether both bounds hold."""
    ratios = {name: ratio(times["ours"], values) for name, values in times.items() if name != "ours"}
    plain = max(values["value"] for name, values in ratios.items() if name.startswith("plain"))
    return {
        "ms": {name: _percentiles(values) for name, values in times.items()},
        "ours_over": ratios,
        "plain_ratio_bound": PLAIN_RATIO,
        "openvino_ratio_bound": OPENVINO_RATIO,
        "holds": plain <= PLAIN_RATIO and ratios["openvino"]["value"] <= OPENVINO_RATIO,
    }


def _percentiles(values: Floats) -> dict[str, float]:
    ends = min(100, len(values) // 2)
    drift = np.median(values[-ends:]) / np.median(values[:ends])
    figures = {f"p{share}": float(np.quantile(values, share / 100)) for share in (50, 90, 99)}
    return {
        **{name: round(value, 3) for name, value in figures.items()},
        "drift": round(float(drift), 3),
        "count": len(values),
    }


def rtx_layers(bundle: Bundle, scratch: Path) -> dict[str, int]:
    """Layers that TensorRT's parser makes of the convolution form and of timm's linear form, where it is installed."""
    try:
        import tensorrt_rtx as trt
    except ImportError:
        return {}
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    counts = {}
    linear = _plain_export(bundle.manifest.arch, bundle.manifest.spec.size, scratch / "linear.onnx", fuse=True)
    for name, content in (("ours", bundle.read(MODEL)), ("linear_fused", linear)):
        network = trt.Builder(logger).create_network(0)
        if trt.OnnxParser(network, logger).parse(content):
            counts[name] = int(network.num_layers)
    return counts


@command("onnx_graph")
@click.option("--bundle", "folder", type=click.Path(path_type=Path), help="[default: the shipped one]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--warmup", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
def main(folder: Path | None, threads: int, batch_size: int, warmup: float, seconds: float) -> int:
    """Time our graph, plain exports and OpenVINO in turns, and compare them with their bounds."""
    try:
        bundle = Bundle.open(folder)
        with tempfile.TemporaryDirectory() as scratch:
            runs, nodes = contenders(bundle, threads, Path(scratch))
            layers = rtx_layers(bundle, Path(scratch))
    except ImportError as error:
        raise MissingExtra("export,openvino", error.name or "onnx", "compare graphs") from None
    side = bundle.manifest.spec.size
    batch_BCHW = np.random.default_rng(0).standard_normal((batch_size, 3, side, side)).astype(np.float32)
    result = judged(timed(runs, batch_BCHW, warmup, seconds))
    facts: dict[str, object] = {
        "benchmark": "onnx_graph", "bundle": bundle.digest, "arch": bundle.manifest.arch, "batch_size": batch_size,
        "threads": threads, "nodes": nodes, "tensorrt_layers": layers, **result, "machine": machine_facts(PACKAGES),
    }  # fmt: skip
    click.echo(json.dumps(facts))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    main()
