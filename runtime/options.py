"""How a scan reads and judges files: what the library's `Detector.scan` and the command share."""

from __future__ import annotations

from dataclasses import dataclass

from aivsreal.runtime.files.pool import MAX_TIME_LIMIT_S, TIME_LIMIT_S
from aivsreal.runtime.pixels.images import MAX_PIXELS


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """How files are read and judged; `aivsreal-scan` has an option for each but `views`.

    Raises:
        ValueError: one is out of range.
    """

    batch_size: int = 16
    """Images that the network sees at once."""
    threads: int | None = None
    """That decode; None takes one a core."""
    isolate: bool = False
    """Decode in processes of their own: one that crashes costs one file."""
    time_limit_s: float = TIME_LIMIT_S
    """Seconds that one file may take to decode."""
    max_pixels: int = MAX_PIXELS
    """Largest image to decode."""
    frames: int = 1
    """At most so many frames of an animation or pages of a TIFF, spread evenly; their mean is judged."""
    by_content: bool = False
    """Put the SHA-256 of the content into a result's stamp."""
    trust_metadata: bool = False
    """Let what a file declares of its origin decide its label; p_ai stays."""
    views: bool = False
    """Put into each result what the network saw, with its map where the network gives one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_pixels", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be positive, not {self.threads}")
        if not 0 < self.time_limit_s <= MAX_TIME_LIMIT_S:  # nor is it nan
            raise ValueError(f"time_limit_s must be above 0 and at most {MAX_TIME_LIMIT_S:g}, not {self.time_limit_s}")
