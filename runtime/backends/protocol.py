"""What a backend is: a loaded network that takes decoded pixels.

Legend: B image in a batch; H, W image height and width; C channel (3, RGB); S input size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aivsreal.runtime.bundle.folder import Bundle, no_maps
from aivsreal.runtime.bundle.manifest import INT8_MODEL, LOGITS, MAP, MODEL
from aivsreal.runtime.errors import CLOSED, BackendError
from aivsreal.runtime.machine import has_int8_products
from aivsreal.runtime.preprocess import BatchBCHW, PixelsHWC, Scores, batch_from_squares


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


def cpu_model(bundle: Bundle, int8: bool | None = None) -> str:
    """Name of the graph that a CPU runs: INT8 where the bundle has it and this CPU gains by it, or as `int8` says.

    It is in a bundle only if it passed its gate; without the instructions that it was timed with it is slow.
    """
    wanted = has_int8_products() if int8 is None else int8
    return INT8_MODEL if wanted and INT8_MODEL in bundle.manifest.files else MODEL


def opened(session: Any) -> Any:
    """What a backend runs.

    Raises:
        BackendError: it was closed.
    """
    if session is None:
        raise BackendError(CLOSED)
    return session


def scores_from_graph(
    run: Callable[[BatchBCHW, list[str]], list[npt.NDArray[np.float32]]],
    bundle: Bundle,
    has_maps: bool,
    squares: Sequence[PixelsHWC],
    maps: bool,
) -> Scores:
    """Scores of `square_SSC` by what runs a bundle's graph: it takes a batch and names of outputs, and gives those.

    Raises:
        BackendError: maps are asked for and there are none; a logit is missing; or what `run` raises.
    """
    if maps and not has_maps:
        raise no_maps(bundle)
    if not squares:
        return Scores(np.empty(0, np.float32), np.empty((0, 0, 0), np.float32) if maps else None)
    batch_BCHW = batch_from_squares(squares, bundle.manifest.spec)
    logits_B1, *rest = run(batch_BCHW, [LOGITS, MAP] if maps else [LOGITS])
    if logits_B1.size != len(squares):
        raise BackendError(f"the network gave {logits_B1.size} logits for {len(squares)} images: export it again")
    return Scores(logits_B1.reshape(-1), rest[0] if maps else None)
