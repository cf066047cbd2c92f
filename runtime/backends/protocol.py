"""What a backend is: a loaded network that takes decoded pixels.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aivsreal.runtime.preprocess import PixelsHWC, Scores


class Backend(Protocol):
    """A loaded network; what of the preprocessing it does itself comes from the bundle's spec."""

    name: str
    precision: str
    """As read from the loaded artefact, never from what was asked for."""
    takes_squares: bool
    """Whether it is given `square_SSC` of `preprocess.square_from_pixels`, and not `pixels_HWC` of any sizes.

    A scan then crops and resizes in its decoding threads and keeps 150 kB an image instead of tens of megabytes. A
    backend that resizes in its own kernel is given the full pixels.
    """
    has_maps: bool
    """Whether the loaded network says what each part of an image did to its logit; old bundles' networks do not."""

    def run(self, images: Sequence[PixelsHWC], maps: bool = False) -> Scores:
        """Scores of any number of images, in their order, with their maps where those are asked for.

        Raises:
            BackendError: it failed; or maps are asked for and the network gives none.
        """

    def close(self) -> None:
        """Give back what it holds; it is not used after that."""
