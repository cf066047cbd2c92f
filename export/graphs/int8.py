"""The INT8 graph for CPUs, `model.onnx` with its convolutions quantised statically, and whether it is good enough.

Its gate: accuracy on unseen sources, and speed, against FP32.
Legend: B image in a batch; C channel; H, W input height and width.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aivsreal.export.graphs.session import cpu_session
from aivsreal.runtime.bundle.manifest import INPUT, LOGITS
from aivsreal.runtime.errors import DataError, ExportError, MissingExtra
from aivsreal.runtime.files.find import image_paths
from aivsreal.runtime.machine import has_int8_products
from aivsreal.runtime.pixels.images import pixels_from_file
from aivsreal.runtime.preprocess import BatchBCHW, batch_from_squares, square_from_pixels
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.runtime.verdict import LABELS

MAX_AUC_DROP = 0.005
MIN_SPEEDUP = 1.6
PAIRS = 60
_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Int8Gate:
    """What was measured, FP32 and INT8 on the same images and, in turns, on the same core."""

    images: int
    auc_full: float
    auc_int8: float
    ms_full: float
    """Median of one image on one thread."""
    ms_int8: float
    speedup: float
    """Median of the pairs' ratios."""
    cpu_has_int8_products: bool

    @property
    def auc_drop(self) -> float:
        """How much AUC INT8 costs."""
        return self.auc_full - self.auc_int8

    def __str__(self) -> str:
        return (
            f"AUC {self.auc_int8:.4f} against {self.auc_full:.4f} in FP32 on {self.images} images (drop "
            f"{self.auc_drop:.4f}, at most {MAX_AUC_DROP:g}); {self.ms_int8:.1f} ms against {self.ms_full:.1f} ms an "
            f"image, {self.speedup:.2f} times as fast (at least {MIN_SPEEDUP:g})"
        )

    def to_json(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {**asdict(self), "auc_drop": self.auc_drop}


def check_gate(gate: Int8Gate) -> None:
    """Refuse INT8 that is worse than allowed.

    Raises:
        ExportError: it says by how much.
    """
    failed = []
    if not gate.auc_drop <= MAX_AUC_DROP:
        failed.append("it loses too much accuracy")
    if not gate.speedup >= MIN_SPEEDUP:
        slow = "" if gate.cpu_has_int8_products else ", and this CPU has no instructions for INT8 products"
        failed.append(f"it is not fast enough{slow}")
    if failed:
        raise ExportError(f"INT8 stays out: {' and '.join(failed)}: {gate}; nothing was written: leave --int8 out")


def measure(full: bytes, int8: bytes, split: Path, spec: PreprocessSpec) -> Int8Gate:
    """Judge all images of a split with both graphs, then time them in turns on one thread.

    Raises:
        DataError: the split lacks a class.
    """
    sessions = [cpu_session(content) for content in (full, int8)]
    logits: list[list[npt.NDArray[np.float32]]] = [[], []]
    truths: list[int] = []
    for truth, label in enumerate(LABELS):
        for batch_BCHW in _batches(_paths(split, label), spec):
            truths += [truth] * len(batch_BCHW)
            for session, found in zip(sessions, logits, strict=True):
                found.append(session.run([LOGITS], {INPUT: batch_BCHW})[0].ravel())
    truth_B = np.array(truths)
    full_auc, int8_auc = (auc(np.concatenate(found), truth_B) for found in logits)
    times = np.array(list(_pairs([cpu_session(content, threads=1) for content in (full, int8)], spec)))
    full_ms, int8_ms = (float(value) for value in np.median(times, axis=0))
    speedup = float(np.median(times[:, 0] / times[:, 1]))
    return Int8Gate(len(truth_B), full_auc, int8_auc, full_ms, int8_ms, speedup, has_int8_products())


def auc(logits_B: npt.NDArray[np.float32], truth_B: npt.NDArray[np.int_]) -> float:
    """Share of the pairs of an AI and a real image in which the AI image scores higher; a tie counts half."""
    _, inverse_B, counts = np.unique(logits_B, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts + (counts + 1) / 2  # the mean rank of each value
    positives = int(truth_B.sum())
    ranks = below[inverse_B][truth_B == 1].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * (len(truth_B) - positives)))


def labelled_batches(split: Path, spec: PreprocessSpec, count: int) -> Iterator[BatchBCHW]:
    """Batches of `count` images of a split, spread evenly over both classes' files: what INT8 is calibrated on.

    Raises:
        DataError: the split lacks a class.
    """
    chosen = []
    for label in LABELS:
        paths = _paths(split, label)
        picks = np.unique(np.linspace(0, len(paths) - 1, min(count // 2, len(paths))).astype(int))
        chosen.append([paths[index] for index in picks])
    yield from _batches([path for both in zip(*chosen, strict=False) for path in both], spec)


def _paths(split: Path, label: str) -> list[Path]:
    folder = split / label
    paths = list(image_paths(folder)) if os.path.isdir(folder) else []
    if not paths:
        raise DataError(f"{folder}: no images; --int8 needs --data with train/ and val_unseen/, each of real/ and ai/")
    return paths


def _batches(paths: list[Path], spec: PreprocessSpec) -> Iterator[BatchBCHW]:
    for start in range(0, len(paths), _CHUNK):
        squares = [square_from_pixels(pixels_from_file(path), spec) for path in paths[start : start + _CHUNK]]
        yield batch_from_squares(squares, spec)


def _pairs(sessions: list[Any], spec: PreprocessSpec) -> Iterator[list[float]]:
    """Milliseconds of one image in both, one after the other, so that what slows the machine slows both."""
    image = {INPUT: np.random.default_rng(0).standard_normal((1, 3, spec.size, spec.size)).astype(np.float32)}
    for turn in range(PAIRS + 5):
        pair = []
        for session in sessions:
            start = time.perf_counter()
            session.run([LOGITS], image)
            pair.append((time.perf_counter() - start) * 1000)
        if turn >= 5:  # the first ones warm up
            yield pair


# In the convolution form all linear layers are 1x1 convolutions. Attention's products stay in float, and so does the
# head, which is a MatMul of 384 numbers.
QUANTISED = ("Conv",)


def int8_from_onnx(full: bytes, batches: Iterable[BatchBCHW]) -> bytes:
    """Quantise the FP32 graph per channel, with the ranges that its activations take on `batches`.

    Of a ViT linear layers, of which an eighth of the images is enough: see `int8_linear`.

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnxruntime", "quantise the network") from None
    import onnx

    from aivsreal.export.graphs.int8_linear import has_linear_layers, scales_from_images

    model = onnx.load_from_string(full)
    if has_linear_layers(model):
        images = np.concatenate(list(batches))
        return int8_from_scales(model, scales_from_images(model, [images[::8]]))

    class Reader:
        """What `quantize_static` calls a CalibrationDataReader."""

        def __init__(self) -> None:
            self.batches: Iterator[BatchBCHW] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch_BCHW = next(self.batches, None)
            return None if batch_BCHW is None else {INPUT: batch_BCHW}

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger().addFilter(_silent)
        source, target = Path(scratch, "full.onnx"), Path(scratch, "int8.onnx")
        source.write_bytes(full)
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(QUANTISED),
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        logging.getLogger().removeFilter(_silent)
        model = onnx.load(target)
    return _with_precision(model)


def int8_from_scales(model: Any, scales: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The INT8 graph of a ViT in FP32, which is changed, with what `int8_linear` knows of its activations."""
    from aivsreal.export.graphs.int8_linear import quantised

    return _with_precision(quantised(model, scales))


def _with_precision(model: Any) -> bytes:
    entry = model.metadata_props.add()
    entry.key, entry.value = "precision", "int8"  # the runtime reads it back from the loaded session
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _silent(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()
