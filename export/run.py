"""What `aivsreal-export` does, top to bottom: source, graphs, engine, bundle, Triton."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aivsreal.export.artefacts import add_engine, add_half, add_int8
from aivsreal.export.draft import Draft, Making, Tell, draft_from_bundle, draft_from_checkpoint
from aivsreal.export.engine import BuildOptions
from aivsreal.runtime.bundle.folder import Bundle, extended_folder, write_bundle
from aivsreal.runtime.bundle.manifest import MANIFEST, Manifest
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.text import typed

CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was typed."""

    source: Path | None
    """A checkpoint or a bundle; None is the shipped bundle."""
    out: Path | None
    """None is where the bundle is or, of the shipped one, the user's data folder."""
    reference: Path | None
    """Folder of the images for parity; None makes some."""
    half: bool
    int8_data: Path | None
    engine: bool | None
    """True insists, False builds none, None builds where it can be."""
    build: BuildOptions
    triton: Path | None
    making: Making
    card: Path | None

    @property
    def target(self) -> Path | None:
        """Folder to write; None where there is no home folder for it."""
        return self.out or self.source or extended_folder()


def run(wish: Wish, tell: Tell) -> Draft:
    """Export; what is written to `target` of the result.

    Raises:
        AivsrealError: something was refused, and nothing was written.
    """
    before = _manifest_in(wish.target)
    bundle = _bundle(wish.source)
    draft = _from_checkpoint(wish, tell) if bundle is None else _from_bundle(wish, bundle, tell)
    assert draft.target is not None
    draft.name = "" if wish.source is None and draft.target == extended_folder() else f"{typed(draft.target)} "
    if wish.half:
        add_half(draft)
    if wish.int8_data is not None:
        add_int8(draft, wish.int8_data)
    if wish.engine or (wish.half and wish.engine is None):
        add_engine(draft, wish.build, bool(wish.engine))
    if bundle is None or wish.card is not None or _is_rendered(draft.files.get(CARD), bundle.manifest):
        draft.files[CARD] = _card(wish.card, draft.manifest)
    if wish.triton is not None:
        from aivsreal.export.triton import check_repository

        check_repository(wish.triton)  # before anything is written

    def last_look() -> None:
        if _manifest_in(draft.target) != before:
            raise ExportError(f"{draft.target} was changed meanwhile, by another export perhaps: run this one again")

    written = write_bundle(draft.target, draft.files, draft.manifest, last_look)
    named = f"--bundle {draft.name}" if draft.name else ""
    tell(f"bundle {written.digest} written to {draft.target}; try: aivsreal-scan {named}IMAGES")
    if wish.triton is not None:
        from aivsreal.export.triton import write_repository

        for name in write_repository(wish.triton, written):
            tell(f"Triton model {name} written to {wish.triton}")
    return draft


def verified(source: Path | None, reference: Path | None, tell: Tell) -> Draft:
    """All that a bundle holds, held against its `model.onnx`.

    Raises:
        AivsrealError: it is no bundle, or something in it differs too much.
    """
    from aivsreal.export.verify import verify

    bundle = _bundle(source)
    if bundle is None:
        raise ExportError(f"{source} is no bundle: --verify takes a folder that aivsreal-export wrote")
    return verify(bundle, reference, tell)


def _bundle(source: Path | None) -> Bundle | None:
    """The bundle to start from, or None for a checkpoint."""
    if source is None:
        return Bundle.open()
    return Bundle.open(source) if os.path.isfile(source / MANIFEST) else None


def _from_checkpoint(wish: Wish, tell: Tell) -> Draft:
    assert wish.source is not None
    if wish.out is None:
        raise ExportError("name the bundle to write with -o")
    draft = draft_from_checkpoint(wish.source, wish.reference, wish.making, tell)
    draft.target = wish.out
    return draft


def _from_bundle(wish: Wish, bundle: Bundle, tell: Tell) -> Draft:
    if wish.making.asked:
        raise ExportError(f"{', '.join(wish.making.asked)} is for a checkpoint: {bundle.path} is a bundle already")
    if not (wish.half or wish.int8_data or wish.engine or wish.triton or wish.card):
        raise ExportError(
            f"{bundle.path} is a bundle already: say what to add with --fp16, --int8 or --triton, or give a checkpoint "
            "that aivsreal-train wrote"
        )
    if wish.target is None:
        raise ExportError("there is no home folder to keep the extended bundle in: name a folder with -o")
    draft = draft_from_bundle(bundle, wish.reference, tell)
    draft.target = wish.target
    return draft


def _manifest_in(folder: Path | None) -> bytes | None:
    try:
        return None if folder is None else (folder / MANIFEST).read_bytes()
    except OSError:
        return None


def _is_rendered(card: bytes | None, manifest: Manifest) -> bool:
    """Whether a bundle's card follows from its manifest, and so must follow what is added; a person's own stays."""
    return card is not None and "config" in manifest.provenance and card == _card(None, manifest)


def _card(card: Path | None, manifest: Manifest) -> bytes:
    """The model card that a person gives, or the one that follows from the manifest."""
    from aivsreal.runtime.bundle.model_card import model_card

    try:
        return model_card(manifest).encode() if card is None else card.read_bytes()
    except OSError as error:
        raise ExportError(f"{card}: cannot be read: {error.strerror}; nothing was written") from None
