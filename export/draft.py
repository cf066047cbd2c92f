"""A bundle in the making: its files, its manifest, and how each file compares with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from aivsreal.export.graphs.parity import SAME_WEIGHTS, STORED_WEIGHTS, Parity, Tolerance, check, parity, thresholds
from aivsreal.export.graphs.reference import COUNT, Reference
from aivsreal.export.graphs.session import SLOW_COUNT, has_onnxruntime, onnx_logits, torch_logits
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import MODEL, Manifest
from aivsreal.runtime.errors import ExportError, MissingExtra
from aivsreal.runtime.preprocess import BatchBCHW, LogitsB
from aivsreal.runtime.verdict import OperatingPoint

Tell = Callable[[str], None]
BALANCED = OperatingPoint("balanced", 0.5, 0.5)
_LARGE, LARGE_COUNT = 100_000_000, 64  # bytes of a ViT, which takes a third of a second for an image in FP32


@dataclass(frozen=True, slots=True)
class Comparison:
    """One artefact against another."""

    file: str
    against: str
    parity: Parity
    allowed: Tolerance | None = None
    """None where something other than parity decides, as for INT8."""


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
    name: str = ""
    """How the next command names the bundle: a folder and a space, or nothing for the shipped one."""
    left: list[str] = field(default_factory=list)
    """Steps that only another machine can do."""

    def compare(self, file: str, other_B: LogitsB, allowed: Tolerance | None) -> Parity:
        """Hold an artefact against `model.onnx`.

        Raises:
            ExportError: past the tolerance.
        """
        return self._compare(file, MODEL, parity(self.full_B, other_B, *self._scale()), allowed)

    def compare_full(self, against: str, other_B: LogitsB, allowed: Tolerance) -> Parity:
        """Hold `model.onnx` against PyTorch.

        Raises:
            ExportError: past the tolerance.
        """
        return self._compare(MODEL, against, parity(other_B, self.full_B, *self._scale()), allowed)

    def _compare(self, file: str, against: str, measured: Parity, allowed: Tolerance | None) -> Parity:
        self.comparisons.append(Comparison(file, against, measured, allowed))
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

    def _scale(self) -> tuple[float, tuple[float, ...]]:
        return self.manifest.temperature, thresholds(self.manifest)


@dataclass(frozen=True, slots=True)
class Making:
    """What of a bundle its checkpoint leaves open."""

    opset: int = 17
    crop_fraction: float | None = None
    """None sees what was seen in training."""
    temperature: float = 1.0
    points: tuple[OperatingPoint, ...] = (BALANCED,)
    """The first is the default."""
    gradcam: str | None = None
    """Stage of the Grad-CAM graph, where one is wanted."""
    encoder: str | None = None
    """File of a ViT's encoder, as of `encoder_from_file`."""


def reference_of(folder: Path | None, content: bytes) -> Reference:
    """The reference images: fewer of a large network, and where only onnx's own slow evaluator is there."""
    count = COUNT if len(content) < _LARGE else LARGE_COUNT
    return Reference(folder, count if has_onnxruntime() else SLOW_COUNT)


def draft_from_bundle(bundle: Bundle, folder: Path | None, tell: Tell) -> Draft:
    """Start from a bundle's `model.onnx`: needs neither torch nor a checkpoint.

    Raises:
        BundleError: a file of the bundle is damaged.
    """
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    reference = reference_of(folder, files[MODEL])
    batch_BCHW = reference.batch(bundle.manifest.spec)
    tell(f"read {bundle.path / MODEL}: {bundle.manifest.arch}, bundle {bundle.digest}")
    if not has_onnxruntime():
        tell(f"onnxruntime is not here: onnx computes the reference, slowly, on {reference.count} images")
    return Draft(bundle.manifest, files, reference, batch_BCHW, onnx_logits(files[MODEL], batch_BCHW), tell)


def draft_from_checkpoint(path: Path, folder: Path | None, making: Making, tell: Tell) -> Draft:
    """Start from what `aivsreal-train` wrote: fuse it, write it as ONNX and hold that against PyTorch.

    Raises:
        CheckpointError: the checkpoint is missing, foreign or damaged.
        ExportError: ONNX and PyTorch differ too much.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import safetensors  # noqa: F401
        import timm
        import torch
    except ImportError as error:
        raise MissingExtra("export", error.name or "onnx", "export") from None
    from aivsreal.export.checkpoint import checkpoint_from_path, network_from_checkpoint
    from aivsreal.export.graphs.full import onnx_from_network, with_half_weights
    from aivsreal.runtime.networks.arch import fused_network
    from aivsreal.runtime.networks.mapped import round_to_half

    source = checkpoint_from_path(path)
    network, card = network_from_checkpoint(source, making.encoder), source.card
    tell(f"loaded {source.weights}: {card.arch}, epoch {card.epoch}")
    spec = card.spec if making.crop_fraction is None else replace(card.spec, crop_fraction=making.crop_fraction)
    fused = fused_network(network, card.arch, card.spec.size)
    model = with_half_weights(onnx_from_network(fused, spec, making.opset))
    content: bytes = model.SerializeToString(deterministic=True)
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    tell(
        f"fused to ONNX: {len(model.graph.node) - casts} nodes and {casts} casts of stored half weights, "
        f"{len(content) / 1e6:.1f} MB, opset {making.opset}"
    )
    reference = reference_of(folder, content)
    batch_BCHW = reference.batch(spec)
    manifest = Manifest(
        arch=card.arch,
        labels=card.labels,
        spec=spec,
        temperature=making.temperature,
        points=making.points,
        default_point=making.points[0].name,
        metrics={"training": card.metrics},
    )
    draft = Draft(manifest, {MODEL: content}, reference, batch_BCHW, onnx_logits(content, batch_BCHW), tell)
    same = draft.compare_full(
        "PyTorch with the same weights", torch_logits(round_to_half(fused), batch_BCHW), SAME_WEIGHTS
    )
    rounding = draft.compare_full("PyTorch as trained", torch_logits(network, batch_BCHW), STORED_WEIGHTS)
    provenance: dict[str, object] = {
        **card.told(),
        "versions": {
            **card.versions, "export_torch": torch.__version__, "timm": timm.__version__,
            "onnx": onnx.__version__, "aivsreal": version("aivsreal"),
        },
        "reference_images": reference.kind,
        "parity_onnx_torch": same.to_json(),
        "parity_half_trained": rounding.to_json(),
    }  # fmt: skip
    if making.gradcam is not None:
        from aivsreal.export.gradcam import REFERENCES, gradcam_from_network

        graph, worst = gradcam_from_network(fused, spec, making.gradcam, making.opset, batch_BCHW[:REFERENCES])
        draft.files["gradcam.onnx"], provenance["gradcam"] = graph, {"layer": making.gradcam, "parity": worst}
        tell(f"gradcam.onnx: Grad-CAM of {making.gradcam}, map differs from PyTorch by {worst:.2g} at most")
    draft.manifest = replace(draft.manifest, provenance=provenance)
    return draft


def read_card(card: Path | None, manifest: Manifest) -> bytes:
    """The model card that a person gives, or the one that follows from the manifest.

    Raises:
        ExportError: the file cannot be read.
    """
    from aivsreal.runtime.bundle.model_card import model_card

    try:
        return model_card(manifest).encode() if card is None else card.read_bytes()
    except OSError as error:
        raise ExportError(f"{card}: cannot be read: {error.strerror}; nothing was written") from None
