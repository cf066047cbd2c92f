"""What a backend is: a loaded network that takes decoded pixels.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size; h, w cells
of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from aivsreal.runtime.preprocess import LogitsB, MapsBhw, PixelsHWC


class Backend(Protocol):
    """A loaded network that takes decoded pixels; the preprocessing is inside, from the bundle's spec."""

    name: str
    precision: str
    """As read from the loaded artefact, never from what was asked for."""

    def logits(self, pixels: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of `pixels_HWC` of any sizes."""

    def close(self) -> None:
        """Give back what it holds; it is not used after that."""


@runtime_checkable
class SquareBackend(Protocol):
    """A backend that also takes images already reduced to the input's size.

    A scan then crops and resizes in its decoding threads and keeps 150 kB an image instead of tens of megabytes.
    A backend that resizes in its own kernel leaves this out and is given the full pixels.
    """

    def logits_from_squares(self, squares: Sequence[PixelsHWC]) -> LogitsB:
        """`logits_B`, float32, of `square_SSC` made by `preprocess.square_from_pixels`."""


@runtime_checkable
class MapBackend(Protocol):
    """A backend whose network also says what each part of an image did to its logit, in the same run."""

    has_maps: bool
    """Whether the loaded network gives maps; bundles from before the output `map` do not."""

    def logits_and_maps(self, pixels: Sequence[PixelsHWC]) -> tuple[LogitsB, MapsBhw]:
        """`logits_B` of `pixels_HWC` of any sizes, and `maps_Bhw`, float32: a logit is the mean of its map.

        Raises:
            BackendError: the network gives no maps; or it failed.
        """


@runtime_checkable
class SquareMapBackend(MapBackend, Protocol):
    """A `MapBackend` that also takes images already reduced to the input's size, as `SquareBackend`."""

    def logits_and_maps_from_squares(self, squares: Sequence[PixelsHWC]) -> tuple[LogitsB, MapsBhw]:
        """As `logits_and_maps`, of `square_SSC` made by `preprocess.square_from_pixels`."""
