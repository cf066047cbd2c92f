"""Object storage and folders: list files as a stream, read one, write one whole.

S3 is listed and read by boto3: page by page, whatever a key looks like, and each object in the very state that was
listed (its ETag). Google's and Azure's storage, the parts of an output and tables go through pyarrow's filesystems.
Credentials are taken from where both look for them: the environment, profiles, the machine's role.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from aivsreal.runtime.errors import DataError, Fault, ImageError, ResultsError
from aivsreal.runtime.files.find import Search, has_image_name
from aivsreal.runtime.pixels.read import check_content, stamp_of
from aivsreal.runtime.uri import is_uri

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_TRIES = 10  # of one request, with growing pauses: a storage that is asked too fast says so
_AT_ONCE = 64  # connections of a process


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to judge, as it was listed."""

    path: str
    size: int | None = None
    """None where it was only named, as in a table of URIs."""
    mtime_ns: int | None = None
    etag: str | None = None
    content: bytes | None = None
    """Of a row of a table that has the bytes themselves."""


def images(place: str, search: Search) -> Iterator[Entry]:
    """The file that `place` names, or the images under it as `search` tells them; nothing where none is.

    Raises:
        DataError: the storage does not answer, refuses, or is of no kind that is known here.
    """
    if not is_uri(place):
        yield from map(entry_from_path, search.paths(Path(place)) if os.path.isdir(place) else [Path(place)])
        return
    folder = joined(place, "")
    for entry in _objects(place):
        if entry.path == place or _takes(search, entry.path.removeprefix(folder)):
            yield entry


def files(place: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    """The file that `place` names, or those under it with one of the suffixes.

    Raises:
        DataError: as `images`.
    """
    if is_uri(place):
        found = _objects(place)
    else:
        paths = sorted(Path(place).rglob("*")) if os.path.isdir(place) else [Path(place)]
        found = (entry_from_path(path) for path in paths if path.is_file())
    for entry in found:
        if entry.path == place or os.path.splitext(entry.path)[1] in suffixes:
            yield entry


def entry_from_path(path: Path) -> Entry:
    """What is there by that name, as it is now; a folder too, which then is an error of its own."""
    stamp = stamp_of(path)
    return Entry(str(path)) if stamp is None else Entry(str(path), stamp.size, stamp.mtime_ns)


def content_of(entry: Entry) -> bytes:
    """The bytes of an object.

    Raises:
        ImageError: it is gone, has changed since it was listed, is too large, or cannot be read.
    """
    path = entry.path
    if entry.content is not None:
        check_content(path, len(entry.content))
        return entry.content
    if entry.size is not None:
        check_content(path, entry.size)
    try:
        content = _read_from_s3(entry) if path.startswith("s3://") else _read_by_arrow(path)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise _unread(path, error) from None
    check_content(path, len(content))
    if entry.size not in (None, len(content)):
        raise ImageError(f"{path}: it was written to since it was listed: scan it again", Fault.CHANGED)
    return content


def opened(place: str) -> IO[bytes]:
    """A file to read here and there.

    Raises:
        OSError: it cannot be.
    """
    filesystem, path = _arrow(place)
    file: IO[bytes] = filesystem.open_input_file(path)
    return file


def write(place: str, content: bytes) -> None:
    """Make a file with this content, whole or not at all.

    Raises:
        ResultsError: it cannot be written.
    """
    try:
        filesystem, path = _arrow(place)
        if is_uri(place):  # an object comes into being when its last byte is there
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        scratch = f"{path}.{os.getpid()}.tmp"
        with open(scratch, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise ResultsError(f"{place} cannot be written: {_reason(error)}") from None


def remove(place: str) -> None:
    """Delete a file that is there."""
    filesystem, path = _arrow(place)
    filesystem.delete_file(path)


def joined(place: str, name: str) -> str:
    """The file of that name in a folder."""
    return f"{place.rstrip('/')}/{name}"


def _takes(search: Search, below: str) -> bool:
    """Whether an object is one that a scan of folders would find; `below` is its key below what was named."""
    *folders, name = below.split("/")
    for depth, folder in enumerate(folders, 1):
        if not search.takes_folder(folder, "/".join(folders[:depth])):
            return False
    return has_image_name(name) and not search.is_excluded(name, below)


def _objects(place: str) -> Iterator[Entry]:
    try:
        yield from _in_s3(place) if place.startswith("s3://") else _in_arrow(place)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{place}: cannot be listed: {_reason(error)}") from None


def _in_s3(place: str) -> Iterator[Entry]:
    bucket, key = _bucket_and_key(place)
    client = _s3()

    def entry(key: str, about: dict[str, Any], size: str) -> Entry:
        mtime_ns = int(about["LastModified"].timestamp()) * 1_000_000_000
        return Entry(f"s3://{bucket}/{key}", about[size], mtime_ns, about["ETag"].strip('"'))

    if key and not key.endswith("/"):
        try:
            yield entry(key, client.head_object(Bucket=bucket, Key=key), "ContentLength")
            return
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
            key += "/"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
        for one in page.get("Contents", ()):
            if not one["Key"].endswith("/"):  # consoles mark folders so
                yield entry(one["Key"], one, "Size")


def _in_arrow(place: str) -> Iterator[Entry]:
    filesystem, path = _arrow(place)
    base = place.removesuffix(path.partition("/")[2])
    root = path.removesuffix(path.partition("/")[2])

    def walk(info: Any) -> Iterator[Entry]:
        if info.type == fs.FileType.File:
            yield Entry(base + info.path.removeprefix(root), info.size, info.mtime_ns)
        elif info.type == fs.FileType.Directory:  # one folder in memory at a time
            for below in filesystem.get_file_info(fs.FileSelector(info.path)):
                yield from walk(below)

    yield from walk(filesystem.get_file_info(path.rstrip("/")))


def _read_from_s3(entry: Entry) -> bytes:
    bucket, key = _bucket_and_key(entry.path)
    state = {} if entry.etag is None else {"IfMatch": f'"{entry.etag}"'}
    answer = _s3().get_object(Bucket=bucket, Key=key, **state)
    check_content(entry.path, answer["ContentLength"])
    content: bytes = answer["Body"].read()
    return content


def _read_by_arrow(path: str) -> bytes:
    filesystem, inside = _arrow(path)
    with filesystem.open_input_file(inside) as file:
        check_content(path, file.size())
        content: bytes = file.read()
        return content


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@lru_cache(1)
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    retries = {"total_max_attempts": _TRIES, "mode": "standard"}
    return boto3.client("s3", config=Config(max_pool_connections=_AT_ONCE, retries=retries))


def _arrow(place: str) -> tuple[Any, str]:
    """A filesystem, and the path in it."""
    if not is_uri(place):
        return fs.LocalFileSystem(), place
    scheme, _, rest = place.partition("://")
    if scheme not in SCHEMES:
        raise DataError(f"{place}: no storage that is known here: it may be {', '.join(SCHEMES)}, or a path")
    authority, _, key = rest.partition("/")
    filesystem, root = _arrow_of(f"{scheme}://{authority}")
    return filesystem, f"{root}/{key}"


@lru_cache(64)
def _arrow_of(base: str) -> tuple[Any, str]:
    filesystem, root = fs.FileSystem.from_uri(base)  # it never sees a key, which it would decode as a URI's
    return filesystem, root


def _unread(path: str, error: Exception) -> ImageError:
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey", "NoSuchBucket"):
        return ImageError(f"{path}: no such object", Fault.MISSING)
    if code in ("412", "PreconditionFailed"):
        return ImageError(f"{path}: it was written to since it was listed: scan it again", Fault.CHANGED)
    return ImageError(f"{path}: cannot be read: {_reason(error)}", Fault.UNREADABLE)


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
