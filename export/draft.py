"""A bundle in the making: its files, its manifest, and how each file compares with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from aivsreal.export.graphs.parity import SAME_WEIGHTS, STORED_WEIGHTS, Parity, Tolerance, check, parity, thresholds
from aivsreal.export.graphs.reference import COUNT, Reference
from aivsreal.export.graphs.session import SLOW_COUNT, has_onnxruntime, onnx_logits, torch_logits
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import MODEL, Manifest
from aivsreal.runtime.errors import MissingExtra
from aivsreal.runtime.preprocess import BatchBCHW, LogitsB
from aivsreal.runtime.verdict import OperatingPoint

if TYPE_CHECKING:
    from aivsreal.runtime.networks.mapped import MappedNetwork

Tell = Callable[[str], None]
BALANCED = OperatingPoint("balanced", 0.5, 0.5)
OPSET = 17  # the highest that TensorRT 8 reads
_LARGE, LARGE_COUNT = 100_000_000, 64  # bytes of a ViT, which takes a third of a second for an image in FP32


@dataclass(frozen=True, slots=True)
class Comparison:
    """One artefact against another."""

    file: str
    against: str
    parity: Parity


@dataclass(slots=True)
class Draft:
    """What is written at the end, or not at all."""

    manifest: Manifest
    files: dict[str, bytes]
    reference: Reference
    batch_BCHW: BatchBCHW
    full_B: LogitsB
    """Logits of `model.onnx` on the reference images: what all that is made of it is held against."""
    tell: Tell
    comparisons: list[Comparison] = field(default_factory=list)
    target: Path | None = None
    """Folder to write; None where a bundle is only compared."""
    name: str = ""
    """How the next command names the bundle: a folder and a space, or nothing for the shipped one."""
    left: list[str] = field(default_factory=list)
    """Steps that only another machine can do."""

    def compare(self, file: str, other_B: LogitsB, allowed: Tolerance | None) -> Parity:
        """Hold an artefact against `model.onnx`; `allowed` is None where something other than parity decides.

        Raises:
            ExportError: past the tolerance.
        """
        return self._compared(file, MODEL, (self.full_B, other_B), allowed)

    def compare_full(self, against: str, other_B: LogitsB, allowed: Tolerance) -> Parity:
        """Hold `model.onnx` against PyTorch.

        Raises:
            ExportError: past the tolerance.
        """
        return self._compared(MODEL, against, (other_B, self.full_B), allowed)

    def _compared(self, file: str, against: str, logits: tuple[LogitsB, LogitsB], allowed: Tolerance | None) -> Parity:
        measured = parity(*logits, self.manifest.temperature, thresholds(self.manifest))
        self.comparisons.append(Comparison(file, against, measured))
        self.tell(
            f"{file} against {against}: {measured.images} {self.reference.kind} images, logit differs by at most "
            f"{measured.max_logit:.2g}, p_ai by {measured.max_probability:.2g} (mean {measured.mean_probability:.2g}), "
            f"{measured.flips} labels flip"
        )
        if allowed is not None:
            check(f"{file} against {against}", measured, allowed)
        return measured

    def record(self, name: str, values: object) -> None:
        """Put a measurement into the manifest's `metrics`."""
        self.manifest = replace(self.manifest, metrics={**self.manifest.metrics, name: values})


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What of a bundle its checkpoint leaves open; None was not asked for."""

    opset: int | None = None
    """17 unless it is said."""
    crop_fraction: float | None = None
    """What was seen in training unless it is said."""
    temperature: float | None = None
    """1 unless it is said."""
    points: tuple[OperatingPoint, ...] | None = None
    """The first is the default; `BALANCED` unless they are said."""
    gradcam: str | None = None
    """Stage of the Grad-CAM graph, where one is wanted."""
    encoder: str | None = None
    """File of a ViT's encoder, as of `encoder_from_file`."""

    @property
    def asked(self) -> list[str]:
        """Options that were given."""
        given = [item.name for item in fields(self) if getattr(self, item.name) is not None]
        return ["--point" if name == "points" else f"--{name.replace('_', '-')}" for name in given]


def draft_from_bundle(bundle: Bundle, folder: Path | None, tell: Tell) -> Draft:
    """Start from a bundle's `model.onnx`: needs neither torch nor a checkpoint.

    Raises:
        BundleError: a file of the bundle is damaged.
    """
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    tell(f"read {bundle.path / MODEL}: {bundle.manifest.arch}, bundle {bundle.digest}")
    if not has_onnxruntime():
        tell(f"onnxruntime is not here: onnx computes the reference, slowly, on {SLOW_COUNT} images")
    return _begun(bundle.manifest, files, folder, tell)


def draft_from_checkpoint(path: Path, folder: Path | None, making: Making, tell: Tell) -> Draft:
    """Start from what `aivsreal-train` wrote: fuse it, write it as ONNX and hold that against PyTorch.

    Raises:
        CheckpointError: the checkpoint is missing, foreign or damaged.
        ExportError: ONNX and PyTorch differ too much.
    """
    versions = _versions()
    from aivsreal.export.checkpoint import checkpoint_from_path, network_from_checkpoint
    from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
    from aivsreal.runtime.networks.arch import fused_network
    from aivsreal.runtime.networks.mapped import round_to_half

    source = checkpoint_from_path(path)
    network, card = network_from_checkpoint(source, making.encoder), source.card
    tell(f"loaded {source.weights}: {card.arch}, epoch {card.epoch}")
    spec = card.spec if making.crop_fraction is None else replace(card.spec, crop_fraction=making.crop_fraction)
    fused, opset = fused_network(network, card.arch, card.spec.size), making.opset or OPSET
    model = with_half_weights(onnx_from_network(fused, spec, opset))
    content: bytes = model.SerializeToString(deterministic=True)
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    tell(
        f"fused to ONNX: {len(model.graph.node) - casts} nodes and {casts} casts of stored half weights, "
        f"{len(content) / 1e6:.1f} MB, opset {opset}"
    )
    points = making.points or (BALANCED,)
    manifest = Manifest(
        card.arch, card.labels, spec, making.temperature or 1.0, points, points[0].name,
        metrics={"training": card.metrics},
    )  # fmt: skip
    draft = _begun(manifest, {MODEL: content}, folder, tell)
    same_B, trained_B = (torch_logits(one, draft.batch_BCHW) for one in (round_to_half(fused), network))
    same = draft.compare_full("PyTorch with the same weights", same_B, SAME_WEIGHTS)
    rounding = draft.compare_full("PyTorch as trained", trained_B, STORED_WEIGHTS)
    provenance: dict[str, object] = {
        **card.told(),
        "versions": {**card.versions, **versions},
        "reference_images": draft.reference.kind,
        "parity_onnx_torch": same.to_json(),
        "parity_half_trained": rounding.to_json(),
    }
    if making.gradcam is not None:
        provenance["gradcam"] = _add_gradcam(draft, fused, making.gradcam, opset)
    draft.manifest = replace(draft.manifest, provenance=provenance)
    return draft


def _versions() -> dict[str, str]:
    """Of what makes a bundle; all that an export needs is there then."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import safetensors  # noqa: F401
        import timm
        import torch
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnx", "export") from None
    return {
        "export_torch": torch.__version__, "timm": timm.__version__, "onnx": onnx.__version__,
        "aivsreal": version("aivsreal"),
    }  # fmt: skip


def _begun(manifest: Manifest, files: dict[str, bytes], folder: Path | None, tell: Tell) -> Draft:
    """With the reference images: fewer of a large network, and where only onnx's own slow evaluator is there."""
    content = files[MODEL]
    count = COUNT if len(content) < _LARGE else LARGE_COUNT
    reference = Reference(folder, count if has_onnxruntime() else SLOW_COUNT)
    batch_BCHW = reference.batch(manifest.spec)
    return Draft(manifest, files, reference, batch_BCHW, onnx_logits(content, batch_BCHW), tell)


def _add_gradcam(draft: Draft, fused: MappedNetwork, stage: str, opset: int) -> dict[str, object]:
    from aivsreal.export.gradcam import REFERENCES, gradcam_from_network

    few_BCHW = draft.batch_BCHW[:REFERENCES]
    draft.files["gradcam.onnx"], worst = gradcam_from_network(fused, draft.manifest.spec, stage, opset, few_BCHW)
    draft.tell(f"gradcam.onnx: Grad-CAM of {stage}, map differs from PyTorch by {worst:.2g} at most")
    return {"layer": stage, "parity": worst}
