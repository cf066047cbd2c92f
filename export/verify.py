"""`aivsreal-export --verify`: hold everything that a bundle has against its `model.onnx`, wherever it is."""

from __future__ import annotations

from pathlib import Path

from aivsreal.export.artefacts import compare_engine
from aivsreal.export.draft import Draft, Tell, draft_from_bundle
from aivsreal.export.graphs.parity import HALF, SAME_WEIGHTS
from aivsreal.export.graphs.session import onnx_logits, torch_logits
from aivsreal.runtime.bundle.engine_key import engines_of
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import HALF_MODEL, INT8_MODEL
from aivsreal.runtime.errors import BackendError, ExportError, MissingExtra


def verify(bundle: Bundle, folder: Path | None, tell: Tell) -> Draft:
    """Compare PyTorch, the half graph, the INT8 graph and the engine that fits with `model.onnx`.

    What cannot run here is named in the draft's `left`; the bundle is not changed.

    Raises:
        BundleError: a file is damaged, or an engine's card does not belong to it.
        ExportError: a difference is past its tolerance, or INT8 is there without having passed its gate.
    """
    cards = engines_of(bundle)
    draft = draft_from_bundle(bundle, folder, tell)
    files = bundle.manifest.files
    try:
        from aivsreal.runtime.backends.torch import network_from_bundle

        logits_B = torch_logits(network_from_bundle(bundle), draft.batch_BCHW)
        draft.compare_full("PyTorch with the same weights", logits_B, SAME_WEIGHTS)
    except MissingExtra as error:
        draft.left.append(f"PyTorch: {error}")
    if HALF_MODEL in files:
        draft.compare(HALF_MODEL, onnx_logits(draft.files[HALF_MODEL], draft.batch_BCHW), HALF)
    if INT8_MODEL in files:
        draft.compare(INT8_MODEL, onnx_logits(draft.files[INT8_MODEL], draft.batch_BCHW), None)
        if "int8" not in bundle.manifest.metrics:
            raise ExportError(f"{bundle.path / INT8_MODEL} has no record of its gate: export again with --int8 --data")
    if cards:
        _verify_engine(draft, bundle)
    return draft


def _verify_engine(draft: Draft, bundle: Bundle) -> None:
    from aivsreal.runtime.gpu.driver import open_driver
    from aivsreal.runtime.gpu.engine import fitting_engine, installed_libraries

    try:
        libraries = installed_libraries()
        if not libraries:
            raise MissingExtra("tensorrt", "tensorrt", "run the engines")
        driver = open_driver()
        try:
            _, card = fitting_engine(bundle, libraries, driver.gpu)
        finally:
            driver.close()
    except BackendError as error:
        draft.left.append(f"engines: {error}")
        return
    compare_engine(draft, draft.files, card)
