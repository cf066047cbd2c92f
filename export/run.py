"""What `aivsreal-export` does, top to bottom: source, graphs, engine, bundle, Triton."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aivsreal.export.artefacts import add_engine, add_half, add_int8
from aivsreal.export.draft import Draft, Making, Tell, draft_from_bundle, draft_from_checkpoint, read_card
from aivsreal.export.engine import BuildOptions
from aivsreal.runtime.bundle.folder import Bundle, bundle_folder, extended_folder, write_bundle
from aivsreal.runtime.bundle.manifest import MANIFEST
from aivsreal.runtime.errors import ExportError
from aivsreal.runtime.text import typed

CARD = "README.md"


@dataclass(slots=True)
class Wish:
    """What was typed."""

    source: Path | None
    target: Path | None
    reference: Path | None
    half: bool
    int8_data: Path | None
    engine: bool | None
    """True insists, False builds none, None builds where it can be."""
    build: BuildOptions
    triton: Path | None
    verify: bool
    making: Making
    card: Path | None
    of_a_checkpoint: list[str]
    """Options that were given and mean nothing for a bundle, whose values they would contradict."""


def run(wish: Wish, tell: Tell) -> Draft:
    """Export, or verify. `wish.target` is then the folder that was written.

    Raises:
        AivsrealError: something was refused, and nothing was written.
    """
    bundle = _bundle(wish)
    if wish.verify:
        from aivsreal.export.verify import verify

        if bundle is None:
            raise ExportError(f"{wish.source} is no bundle: --verify takes a folder that aivsreal-export wrote")
        return verify(bundle, wish.reference, tell)
    if bundle is None:
        assert wish.source is not None
        if wish.target is None:
            raise ExportError("name the bundle to write with -o")
        draft = draft_from_checkpoint(wish.source, wish.reference, wish.making, tell)
    else:
        draft = _from_bundle(wish, bundle, tell)
    assert wish.target is not None
    draft.name = "" if wish.source is None and wish.target == extended_folder() else f"{typed(wish.target)} "
    if wish.half:
        add_half(draft)
    if wish.int8_data is not None:
        add_int8(draft, wish.int8_data)
    if wish.engine or (wish.half and wish.engine is None):
        add_engine(draft, wish.build, bool(wish.engine), bool(wish.build.compute_capabilities))
    if bundle is None or wish.card is not None:
        draft.files[CARD] = read_card(wish.card, draft.manifest)
    if wish.triton is not None:
        from aivsreal.export.triton import check_repository

        check_repository(wish.triton)  # before anything is written
    written = write_bundle(wish.target, draft.files, draft.manifest)
    named = f"--bundle {draft.name}" if draft.name else ""
    tell(f"bundle {written.digest} written to {wish.target}; try: aivsreal-scan {named}IMAGES")
    if wish.triton is not None:
        from aivsreal.export.triton import write_repository

        for name in write_repository(wish.triton, written):
            tell(f"Triton model {name} written to {wish.triton}")
    return draft


def _bundle(wish: Wish) -> Bundle | None:
    """The bundle to start from, or None for a checkpoint."""
    if wish.source is None:
        return Bundle.open()
    folder = bundle_folder(wish.source)
    return Bundle.open(folder) if os.path.isfile(folder / MANIFEST) else None


def _from_bundle(wish: Wish, bundle: Bundle, tell: Tell) -> Draft:
    if wish.of_a_checkpoint:
        raise ExportError(f"{', '.join(wish.of_a_checkpoint)} is for a checkpoint: {bundle.path} is a bundle already")
    if not (wish.half or wish.int8_data or wish.engine or wish.triton or wish.card):
        raise ExportError(
            f"{bundle.path} is a bundle already: say what to add with --fp16, --int8 or --triton, or give a checkpoint "
            "that aivsreal-train wrote"
        )
    if wish.target is None:
        wish.target = extended_folder() if wish.source is None else bundle.path
        if wish.target is None:
            raise ExportError("there is no home folder to keep the extended bundle in: name a folder with -o")
    return draft_from_bundle(bundle, wish.reference, tell)
