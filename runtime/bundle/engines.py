"""The engines in a bundle: their cards, and which one fits a device. A start without an engine loads none of this."""

from __future__ import annotations

from aivsreal.runtime.bundle.engine_key import Device, EngineCard, card_from_json
from aivsreal.runtime.bundle.folder import Bundle
from aivsreal.runtime.bundle.manifest import CARD_SUFFIX, ENGINE_SUFFIX, MODEL
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.fields import object_from_json


def engines_of(bundle: Bundle) -> tuple[EngineCard, ...]:
    """Cards of the engines in the bundle, in the order of their names. The bytes are `read(card.file)`.

    Raises:
        BundleError: a card is damaged, missing, or for another model or preprocessing than the bundle's.
    """
    cards = []
    for name in sorted(name for name in bundle.manifest.files if name.endswith(ENGINE_SUFFIX)):
        file = name.removesuffix(ENGINE_SUFFIX) + CARD_SUFFIX
        content = bundle.read(file)
        try:
            card = card_from_json(object_from_json(content))
            if card.file != name:
                raise ValueError(f"it describes {card.file}")
            if card.spec != bundle.manifest.spec:
                raise ValueError("it was built for another preprocessing than the manifest's")
            if card.key.onnx_sha256 != bundle.manifest.files.get(MODEL):
                raise ValueError(f"it was built of another model than {MODEL}")
        except ValueError as error:
            raise BundleError(
                f"{bundle.path / file} cannot be used: {error}; build the engine again with aivsreal-export --fp16"
            ) from None
        cards.append(card)
    return tuple(cards)


def engine_for(bundle: Bundle, device: Device) -> EngineCard:
    """The card of the best engine that fits: of that very version before a compatible one, GPU before DLA, fp16.

    Raises:
        BackendError: there is none; the message names what the engines are for, and what this device is.
        BundleError: a card is damaged.
    """
    cards = engines_of(bundle)
    fitting = [card for card in cards if card.key.fits(device)]
    if fitting:
        return max(fitting, key=lambda card: _rank(card, device))
    if not cards:
        raise BackendError(f"no engine in the bundle for {device}: run aivsreal-export --fp16")
    built = "; ".join(f"{card.file} was built for {card.key}" for card in cards)
    raise BackendError(f"{built}; this is {device}: run aivsreal-export --fp16")


def _rank(card: EngineCard, device: Device) -> tuple[bool, bool, bool, int]:
    key = card.key
    return (key.version == device.version, key.dla_core is None, key.precision == "fp16", key.max_batch)
