"""Where generators of pictures write what they did, one table, and the terms of IPTC for where a picture is from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aivsreal.runtime.verdict import Evidence, Origin

Json = Mapping[str, object]
Reader = Callable[[str, Json], "str | None"]
"""What a text says, given with the JSON object that it holds (empty where it is none); None where it says nothing."""

SHOWN = 200  # characters of a statement that are kept
# AUTOMATIC1111 and its kin: the last lines of the text are "Steps: 20, Sampler: Euler a, CFG scale: 7, ...".
_SETTINGS = re.compile(r"^Steps: \d+, (?:[\w ]+: )", re.MULTILINE)
_DREAM = re.compile(r"(?:^|\s)-s ?\d+(?:\s|$)")
_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
# The whole field, or its beginning up to a space: "Stable Diffusion XL 1.0" is one, "Stable Diffusionist" is not, and
# Imagen AI is a program that edits photographs.
_NAMES = re.compile(
    r"(stable[ -]diffusion|comfyui|swarmui|invokeai|novelai|fooocus|draw things|easy diffusion|sd\.next|midjourney|"
    r"niji ?journey|dall[-·. ]?e|adobe firefly|(?:google )?imagen(?! ai)|ideogram|leonardo[. ]?ai|stability ai|"
    r"black forest labs|bing image creator|ai[ -]generated)(?:[\s/,;(].*)?",
    re.IGNORECASE | re.DOTALL,
)
_KEYED = re.compile(r"(?:prompt|workflow):\s*(?=\{)", re.IGNORECASE)  # ComfyUI's way to put two texts into EXIF
_PARAMETERS = frozenset(
    "negative_prompt sampler sampler_name scheduler steps num_inference_steps seed cfg cfg_scale guidance_scale "
    "model base_model use_stable_diffusion_model".split()
)
_VOCABULARY = re.compile(r"(?:https?://cv\.iptc\.org/newscodes/digitalsourcetype/)?(\w+)")
_ORIGINS = {
    "trainedAlgorithmicMedia": Origin.AI,
    "compositeWithTrainedAlgorithmicMedia": Origin.AI_PARTS,
    "digitalCapture": Origin.CAPTURE,
    "computationalCapture": Origin.CAPTURE,
    "negativeFilm": Origin.CAPTURE,
    "positiveFilm": Origin.CAPTURE,
    "print": Origin.CAPTURE,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One kind of statement of one generator."""

    generator: str
    """Put before what it says; "" where that names the generator itself."""
    places: tuple[str, ...]
    read: Reader
    origin: Origin = Origin.AI


def statements_of(place: str, text: str) -> Iterator[Evidence]:
    """What the text in a place of a file's metadata says of a generator."""
    rows = [row for row in STATEMENTS if place in row.places]
    if not rows:
        return
    values = _object(_KEYED.sub("", text, count=1) if _KEYED.match(text) else text)
    for row in rows:
        said = row.read(text, values)
        if said is not None:
            yield Evidence(place, row.origin, shortened(f"{row.generator}: {said}" if row.generator else said))


def shortened(text: str) -> str:
    """On one line, and cut to `SHOWN` characters."""
    plain = " ".join(text.strip("\0 ").split())
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 1] + "…"


def origin_from_source_type(value: str) -> Origin:
    """Origin of an IPTC `DigitalSourceType`, given as its URI or its bare name."""
    match = _VOCABULARY.fullmatch(value.strip())
    return _ORIGINS.get(match.group(1), Origin.UNSTATED) if match else Origin.UNSTATED


def _settings(text: str, values: Json) -> str | None:
    return text if _SETTINGS.search(text) else None


def _prompt(text: str, values: Json) -> str | None:
    for graph in (values, _inner(values, "prompt")):
        nodes = [
            node for node in graph.values() if isinstance(node, dict) and isinstance(node.get("class_type"), str)
        ]  # fmt: skip
        if nodes:
            return f"a prompt of {len(nodes)} nodes"
    return None


def _workflow(text: str, values: Json) -> str | None:
    for graph in (values, _inner(values, "workflow")):
        nodes = graph.get("nodes")
        if isinstance(nodes, list) and nodes and all(isinstance(node, dict) and "type" in node for node in nodes):
            return f"a workflow of {len(nodes)} nodes"
    return None


def _parameters(text: str, values: Json) -> str | None:
    """A prompt beside at least two settings of a sampler: Fooocus, Easy Diffusion, NovelAI and others."""
    names = {name.lower().replace(" ", "_").replace("-", "_") for name in values}
    return text if "prompt" in names and len(names & _PARAMETERS) >= 2 else None


def _swarm(text: str, values: Json) -> str | None:
    return text if isinstance(values.get("sui_image_params"), dict) else None


def _any_object(text: str, values: Json) -> str | None:
    return text if values else None


def _any_text(text: str, values: Json) -> str | None:
    return text if text.strip("\0 ") else None


def _name(text: str, values: Json) -> str | None:
    return text if _NAMES.fullmatch(text.strip("\0 ")) else None


def _whole(*words: str) -> Reader:
    return lambda text, values: text if text.strip("\0 ").lower() in words else None


def _found(pattern: re.Pattern[str]) -> Reader:
    return lambda text, values: text if pattern.search(text) else None


def _inner(values: Json, name: str) -> Json:
    value = values.get(name)
    if isinstance(value, str):
        return _object(value)
    return value if isinstance(value, dict) else {}


def _object(text: str) -> Json:
    if not text.lstrip("\0 \t\r\n").startswith("{"):
        return {}
    try:
        value = json.loads(text.strip("\0 \t\r\n"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


_COMMENTS = ("exif:UserComment", "xmp:UserComment", "jpeg:comment", "gif:comment")
# ComfyUI puts "prompt:{...}" into Model and what else it has into the tags before it: Make, ImageDescription and so on.
_COMFY_EXIF = ("exif:Model", "exif:Make", "exif:ImageDescription", "exif:DocumentName")
_JSON_PNG = ("png:parameters", "png:parameters-json", "png:Comment", "png:generation_data")
STATEMENTS = (
    Statement("Stable Diffusion", ("png:parameters", *_COMMENTS), _settings),
    Statement("ComfyUI", ("png:prompt", *_COMFY_EXIF, *_COMMENTS), _prompt),
    Statement("ComfyUI", ("png:workflow", *_COMFY_EXIF, *_COMMENTS), _workflow),
    Statement("SwarmUI", (*_JSON_PNG, *_COMMENTS), _swarm),
    Statement("parameters", (*_JSON_PNG, *_COMMENTS), _parameters),
    Statement("Fooocus", ("png:fooocus_scheme", "exif:MakerNote"), _whole("fooocus", "a1111")),
    Statement("InvokeAI", ("png:invokeai_metadata", "png:invokeai_graph", "png:sd-metadata"), _any_object),
    Statement("InvokeAI", ("png:Dream", "png:dream"), _found(_DREAM)),
    Statement("Easy Diffusion", ("png:use_stable_diffusion_model",), _any_text),
    Statement("Midjourney", ("png:Description", "xmp:description", "exif:ImageDescription"), _found(_MIDJOURNEY)),
    Statement("FLUX", ("exif:Make",), _whole("black forest labs")),
    Statement("", ("png:Software", "exif:Software", "xmp:CreatorTool"), _name),
    Statement("", ("xmp:Credit",), _whole("made with google ai")),
    Statement("", ("xmp:Credit",), _whole("edited with google ai"), Origin.AI_PARTS),
)
