"""The network as ONNX Runtime optimised it for this processor, kept so that the next start need not do it again.

Its weights lie in a file of their own, which ONNX Runtime maps into memory: making a session took 9 ms so, 66 ms with
the weights inside the network's file, and 180 ms of `model.onnx`. Hashing 43 MB would cost more than that, so the files
are known by size and time instead: they lie where only their user can write, and whoever can write there can change the
installed code as well.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aivsreal.runtime.cache import remember, remembered, remove, remove_oldest, usable_cache_folder
from aivsreal.runtime.machine import cpu_digest

NETWORK, WEIGHTS = "network.onnx", "weights.bin"
_KEPT = 4  # folders of 43 MB
_ENTRIES = "kept.json"


@dataclass(frozen=True, slots=True)
class OptimisedModel:
    """Where the optimised form of one network is kept for one version of ONNX Runtime and one processor."""

    folder: Path

    @staticmethod
    def of(model_sha256: str, version: str) -> OptimisedModel | None:
        """Its place, or None where nothing can be kept."""
        folder = usable_cache_folder("onnx-cpu")
        if folder is None:
            return None
        return OptimisedModel(folder / f"{model_sha256[:16]}-{version}-{cpu_digest()}")

    @property
    def file(self) -> Path:
        """What ONNX Runtime loads."""
        return self.folder / NETWORK

    @property
    def is_whole(self) -> bool:
        """Whether it is there, as it was when it was kept."""
        entry = remembered(self.folder.parent / _ENTRIES).get(self.folder.name)
        try:
            return entry is not None and entry == _facts(self.folder)
        except OSError:
            return False

    def ask_for(self, options: Any) -> None:
        """Set the session options so that the session that is made next writes it to `part`."""
        self.part.mkdir(mode=0o700, exist_ok=True)
        options.optimized_model_filepath = str(self.part / NETWORK)
        for name, value in (("file_name", WEIGHTS), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)

    @property
    def part(self) -> Path:
        """The folder that ONNX Runtime is to write it to: the network names its weights' file beside it."""
        return self.folder.with_name(f".{self.folder.name}.{os.getpid()}-{threading.get_ident()}.part")

    def keep(self) -> None:
        """Move what was written to `part` into its place. A disk that is full is no error."""
        with contextlib.suppress(OSError):
            # Removed and never written over: another process may have these weights mapped into its memory.
            remove(self.folder)
            os.rename(self.part, self.folder)
            remember(self.folder.parent / _ENTRIES, self.folder.name, _facts(self.folder))
            others = [path for path in self.folder.parent.iterdir() if path.name != _ENTRIES and path.name[0] != "."]
            remove_oldest(others, _KEPT)
        remove(self.part)

    def drop(self) -> None:
        """Remove it, and what was half written."""
        remove(self.part)
        remove(self.folder)


def _facts(folder: Path) -> dict[str, Any]:
    """What tells that nothing in it was changed: whose each file is, its size and time.

    Raises:
        OSError: it is not there.
    """
    facts: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        status = os.stat(file, follow_symlinks=False)
        mine = status.st_uid == os.geteuid()
        facts[file.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "mine": mine}
    return facts
