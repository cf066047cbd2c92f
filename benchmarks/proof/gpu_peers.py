"""What the engine is measured against: PyTorch, ONNX Runtime, and what the GPU could do at best.

Legend: B image in a batch; S input size; C channel (3, RGB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from aivsreal.benchmarks.proof.gpu import NotHere, Row, timed_step
from aivsreal.benchmarks.timing import rate
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import LOGITS
from aivsreal.runtime.errors import BackendError

TORCH = ("torch eager", "torch.compile")
ONNX = ("ONNX Runtime CUDA",)
ROOFLINE = ("roofline",)
COMPILE_MODES = ("max-autotune", "reduce-overhead")
_COPIED = 1 << 30  # bytes: far more than any cache holds
_SIDE = 8192  # of the matrices whose product tells the rate


def torch_rows(bundle: Bundle, batches: Sequence[int], seconds: float, mode: str = COMPILE_MODES[0]) -> Iterator[Row]:
    """The fused network in half, eager and compiled with CUDA graphs, on a batch that lies on the GPU.

    Args:
        bundle: its network is measured.
        batches: sizes.
        seconds: for each measurement.
        mode: how hard `torch.compile` tries; each of `COMPILE_MODES` uses CUDA graphs.

    Raises:
        NotHere: PyTorch finds no GPU, or lacks what reads the network.
    """
    with _opening():
        torch = _torch_with_gpu()
        from aivsreal.runtime.backends.torch import network_from_bundle

        network = network_from_bundle(bundle).half().cuda().eval()
    networks = {"torch eager": network, "torch.compile": torch.compile(network, mode=mode, dynamic=False)}
    side = bundle.manifest.spec.size
    for what, run in networks.items():
        for batch in batches:
            batch_BCSS = torch.randn(batch, 3, side, side, device="cuda", dtype=torch.half)
            with torch.inference_mode():
                step = _bound(run, batch_BCSS)
                for _ in range(3):  # compiles, then records its graph
                    step()
                timing = timed_step(step, torch.cuda.synchronize, batch, seconds)
                facts = {"gpu": torch.cuda.get_device_name(), "precision": "fp16"}
                row = {"what": what, "batch": batch, **facts, **timing}
                yield {**row, "mode": mode} if what == TORCH[1] else row


def onnx_rows(bundle: Bundle, batches: Sequence[int], seconds: float) -> Iterator[Row]:
    """`model.onnx` with ONNX Runtime's CUDA provider, from and to memory of the GPU.

    Raises:
        NotHere: it does not run on CUDA.
    """
    from aivsreal.runtime.backends.onnx import OnnxBackend

    side = bundle.manifest.spec.size
    with _opening():
        opened = OnnxBackend(bundle, provider="cuda")
    with closing(opened) as backend:
        import onnxruntime

        session = backend._session
        for batch in batches:
            values = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
            binding = session.io_binding()
            value = onnxruntime.OrtValue.ortvalue_from_numpy(values.astype(backend._dtype), "cuda", 0)
            binding.bind_ortvalue_input(backend._input, value)
            binding.bind_output(LOGITS, "cuda")

            def step(binding: Any = binding) -> None:
                session.run_with_iobinding(binding)

            timing = timed_step(step, binding.synchronize_outputs, batch, seconds)
            yield {"what": ONNX[0], "batch": batch, **timing, "precision": backend.precision}


def roofline_rows(bundle: Bundle, batches: Sequence[int]) -> Iterator[Row]:
    """The time below which no network of these operations and weights can be, from measured copying and multiplying.

    Raises:
        NotHere: PyTorch finds no GPU, or lacks what reads the network.
    """
    with _opening():
        torch = _torch_with_gpu()
        operations, weights = operations_and_weights(bundle)
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    matrix = torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.half)
    wait = torch.cuda.synchronize
    bytes_per_s = 2 * _COPIED * rate(lambda: target.copy_(source), wait, 2)
    operations_per_s = 2 * _SIDE**3 * rate(lambda: matrix @ matrix, wait, 2)
    side = bundle.manifest.spec.size
    for batch in batches:
        moved = 2 * weights + batch * 3 * side * side * 2  # half: each weight and each input once
        bound_s = max(moved / bytes_per_s, batch * operations / operations_per_s)
        yield {
            "what": "roofline", "batch": batch, "gpu": torch.cuda.get_device_name(), "precision": "fp16",
            "p50_ms": round(bound_s * 1000, 4), "images_per_s": round(batch / bound_s, 1),
            "copy_gb_per_s": round(bytes_per_s / 1e9, 1), "matmul_tflops": round(operations_per_s / 1e12, 1),
        }  # fmt: skip


def operations_and_weights(bundle: Bundle) -> tuple[int, int]:
    """Floating-point operations for one image, counted by PyTorch as it runs, and the number of weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from aivsreal.runtime.backends.torch import network_from_bundle

    network, side = network_from_bundle(bundle), bundle.manifest.spec.size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    return counter.get_total_flops(), sum(weight.numel() for weight in network.parameters())


def _bound(run: Callable[[Any], object], batch_BCSS: Any) -> Callable[[], object]:
    return lambda: run(batch_BCSS)


@contextmanager
def _opening() -> Iterator[None]:
    """What cannot be opened here is not measured against; what fails later is a failure."""
    try:
        yield
    except BackendError as error:
        raise NotHere(str(error)) from None


def _torch_with_gpu() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise BackendError("torch is not installed: run pip install 'aivsreal[torch]'") from None
    if not torch.cuda.is_available():
        raise BackendError(f"torch {torch.__version__} finds no GPU")
    return torch
