"""The network as ONNX Runtime optimised it for this processor, kept so that the next start need not do it again.

Making a session of `model.onnx` took 125 ms of processor time, of the kept file 24 ms. Hashing its 43 MB costs more
than that, so the file is known by size and time instead: it lies where only its user can write, and whoever can write
there can change the installed code as well.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from aivsreal.runtime.cache import cpu_digest, remember, remembered, usable_cache_folder

_KEPT = 4  # files of 43 MB; the oldest go


@dataclass(frozen=True, slots=True)
class OptimisedModel:
    """Where the optimised form of one network is kept for one version of ONNX Runtime and one processor."""

    file: Path

    @staticmethod
    def of(model_sha256: str, version: str) -> OptimisedModel | None:
        """Its place, or None where nothing can be kept."""
        folder = usable_cache_folder("onnx-cpu")
        if folder is None:
            return None
        return OptimisedModel(folder / f"{model_sha256[:16]}-{version}-{cpu_digest()}.onnx")

    @property
    def is_whole(self) -> bool:
        """Whether it is there, as it was when it was kept."""
        entry = remembered(self.file.parent / "kept.json").get(self.file.name)
        try:
            status = os.stat(self.file, follow_symlinks=False)
        except OSError:
            return False
        return status.st_uid == os.geteuid() and entry == {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    @property
    def part(self) -> Path:
        """Where ONNX Runtime is to write it."""
        return self.file.with_name(f".{self.file.name}.{os.getpid()}.part")

    def keep(self) -> None:
        """Move what was written to `part` into its place. A disk that is full is no error."""
        with contextlib.suppress(OSError):
            os.replace(self.part, self.file)
            status = self.file.stat()
            entry = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
            remember(self.file.parent / "kept.json", self.file.name, entry)
            others = sorted(self.file.parent.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for old in others[_KEPT:]:
                old.unlink()

    def drop(self) -> None:
        """Remove it, and what was half written."""
        for path in (self.part, self.file):
            with contextlib.suppress(OSError):
                path.unlink()
