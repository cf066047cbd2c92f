"""What a bundle may hold beside `model.onnx`: half graph, INT8 graph, engine. Each is made and proved."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aivsreal.export.draft import Draft
from aivsreal.export.engine import BuildOptions, EngineBuilder, Gpu
from aivsreal.export.graphs.half import full_from_onnx, half_from_onnx
from aivsreal.export.graphs.parity import FULL_ENGINE, HALF, Parity
from aivsreal.export.graphs.session import engine_logits, onnx_logits
from aivsreal.runtime.bundle.engine_key import EngineCard, EngineKind
from aivsreal.runtime.bundle.manifest import HALF_MODEL, INT8_MODEL, MODEL
from aivsreal.runtime.errors import BackendError, ExportError, MissingExtra


def add_half(draft: Draft) -> None:
    """Make the half graph and hold it against FP32.

    Raises:
        ExportError: a weight does not fit FP16, or the difference is past its tolerance.
    """
    content: bytes = half_from_onnx(_model(draft)).SerializeToString(deterministic=True)
    measured = draft.compare(HALF_MODEL, onnx_logits(content, draft.batch_BCHW), HALF)
    draft.files[HALF_MODEL] = content
    draft.record("half", {"parity": measured.to_json(), "reference_images": draft.reference.kind})


def add_int8(draft: Draft, data: Path) -> None:
    """Quantise for the CPU; it goes into the bundle only if it passes its gate on `data`.

    Raises:
        ExportError: it lost too much accuracy, or is not fast enough; the message says by how much.
        DataError: `data` lacks a split.
    """
    from aivsreal.export.graphs.int8 import check_gate, int8_from_onnx, labelled_batches, measure

    spec = draft.manifest.spec
    full: bytes = full_from_onnx(_model(draft)).SerializeToString()
    started = time.monotonic()
    content = int8_from_onnx(full, labelled_batches(data / "train", spec, 256))
    draft.tell(f"quantised on images of {data / 'train'} in {time.monotonic() - started:.0f} s; measuring")
    draft.compare(INT8_MODEL, onnx_logits(content, draft.batch_BCHW), None)
    gate = measure(full, content, data / "val_unseen", spec)
    draft.tell(f"INT8: {gate}")
    check_gate(gate)
    draft.files[INT8_MODEL] = content
    draft.record("int8", gate.to_json())


def add_engine(draft: Draft, options: BuildOptions, required: bool) -> None:
    """Build an engine where there is a library and a GPU for it, load it, and hold it against FP32.

    Args:
        options: what is asked of the builder.
        required: whether it is an error that nothing can be built here.

    Raises:
        ExportError: nothing can be built and it is required, the build failed, or the engine is past its tolerance.
    """
    try:
        kind, trt = _library(rtx=bool(options.compute_capabilities))
    except BackendError as error:
        _leave(draft, str(error), required)
        return
    with _gpu() as found:
        gpu = found if isinstance(found, Gpu) else None
    if gpu is None and not options.compute_capabilities:
        _leave(draft, str(found), required)
        return
    attempts = [options]
    if kind is EngineKind.TENSORRT_RTX and gpu is not None and not options.compute_capabilities:
        # It names the GPUs that it was tested on, and may run on others: only trying tells, and parity is the judge.
        attempts.append(replace(options, portable=True))
    for attempt in attempts:
        compared = len(draft.comparisons)
        try:
            draft.files = _with_engine(draft, kind, trt, gpu, attempt)
            return
        except (ExportError, BackendError) as error:
            if attempt is attempts[-1]:
                raise
            del draft.comparisons[compared:]
            draft.tell(f"{error}; trying an engine that is not for this GPU alone")


def _with_engine(draft: Draft, kind: EngineKind, trt: Any, gpu: Gpu | None, options: BuildOptions) -> dict[str, bytes]:
    """The draft's files with an engine that was built, and held against FP32 where its GPU is here.

    Raises:
        ExportError: the build failed, or the engine is past its tolerance.
        BackendError: it does not run.
    """
    targets = ", ".join(options.compute_capabilities)
    place = f"for {targets}" if targets else f"on {gpu and gpu.name}"
    draft.tell(f"building with {kind.product} {trt.__version__} {place}; this may take minutes")
    graph = draft.files[HALF_MODEL] if options.half else full_from_onnx(_model(draft)).SerializeToString()
    digest = hashlib.sha256(draft.files[MODEL]).hexdigest()
    started = time.monotonic()
    with _gpu():
        builder = EngineBuilder(trt, kind, options, gpu)
        engine = builder.engine_from_onnx(graph, draft.manifest.spec, digest)
    card = engine.card
    draft.tell(
        f"{card.file}: {len(engine.plan) / 1e6:.1f} MB in {time.monotonic() - started:.0f} s, "
        f"{card.half_layers} of {card.layers} layers are half; {', '.join(card.flags)}"
    )
    files = {**draft.files, card.file: engine.plan, card.card_file: json.dumps(card.to_json(), indent=2).encode()}
    if gpu is None or gpu.capability not in card.key.compute_capabilities:
        draft.left.append(f"compare {card.file} on its GPU: aivsreal-export {draft.name}--verify")
        return files
    measured = compare_engine(draft, files, card)
    files[card.card_file] = json.dumps(replace(card, parity=measured.to_json()).to_json(), indent=2).encode()
    return files


def compare_engine(draft: Draft, files: Mapping[str, bytes], card: EngineCard) -> Parity:
    """Run an engine that fits the GPU, and hold it against FP32.

    Raises:
        ExportError: it is past its tolerance.
        BackendError: it does not run.
    """
    # Alone: the backend would else be free to take another that fits as well.
    alone = {name: files[name] for name in (MODEL, card.file, card.card_file)}
    logits_B = engine_logits(alone, draft.manifest, draft.reference)
    return draft.compare(card.file, logits_B, HALF if card.key.precision == "fp16" else FULL_ENGINE)


def _leave(draft: Draft, missing: str, required: bool) -> None:
    if required:
        raise ExportError(f"no engine can be built here: {missing}; nothing was written")
    draft.left.append(
        f"the engine ({missing}); with TensorRT and a GPU, run aivsreal-export {draft.name}--fp16 --engine"
    )


def _library(rtx: bool) -> tuple[EngineKind, Any]:
    from aivsreal.runtime.gpu.engine import installed_libraries

    libraries = installed_libraries()
    if rtx and EngineKind.TENSORRT_RTX not in libraries:
        raise BackendError("tensorrt-rtx is not installed (pip install tensorrt-rtx)")
    if not libraries:
        raise MissingExtra("tensorrt", "tensorrt", "build an engine")
    kind = EngineKind.TENSORRT_RTX if rtx else next(iter(libraries))
    return kind, libraries[kind]


@contextmanager
def _gpu() -> Iterator[Gpu | BackendError]:
    """The GPU, current for this thread, or why there is none."""
    from aivsreal.runtime.gpu.driver import open_driver

    try:
        driver = open_driver()
    except BackendError as error:
        yield error
        return
    try:
        with driver.current():
            yield Gpu(driver.gpu.name, "{}.{}".format(*driver.gpu.capability))
    finally:
        driver.close()


def _model(draft: Draft) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnx", "make another graph of model.onnx") from None
    try:
        return onnx.load_from_string(draft.files[MODEL])
    except Exception as error:  # protobuf's DecodeError, whose class differs between its versions
        raise ExportError(f"{MODEL} is no ONNX model ({type(error).__name__}); make the bundle again") from None
