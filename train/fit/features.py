"""What an encoder says of images, kept in a file that grows with them: it is asked once of each.

Legend: B image in a batch; N image; M row of a file; F feature.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.locks import wait_for_lock
from aivsreal.runtime.networks.vit import ProbedVit
from aivsreal.runtime.networks.vit_weights import LOW_RANK
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.batches.augment import PLAIN, augmented, batch_from_levels
from aivsreal.train.batches.cache import FEATURES, name_of, save_json
from aivsreal.train.batches.data import Ints, TrainBatches
from aivsreal.train.batches.machine import Machine
from aivsreal.train.fit.tokens import TokenBasis, taught_tokens

Image = tuple[str, int]  # name, and size in bytes


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Rows of images, of a file that may hold those of others too."""

    rows_MF: npt.NDArray[np.float16]
    at_N: Ints
    """The row of each image."""

    def __len__(self) -> int:
        return len(self.at_N)

    def of(self, which: slice | Ints, columns: slice = slice(None)) -> npt.NDArray[np.float16]:
        """Of some of the images, all features or some of them."""
        return self.rows_MF[self.at_N[which], columns]


def plain_features(
    network: ProbedVit, spec: PreprocessSpec, batches: TrainBatches, machine: Machine, folder: Path, *,
    digest: str, tell: Callable[[str], None], basis: TokenBasis | None = None,
) -> Features:  # fmt: skip
    """Raw features of every image's plain view by a ViT as it is; those that the folder has are not made anew.

    Args:
        network: the ViT.
        spec: how it wants its pixels.
        batches: of the images.
        machine: where it is computed.
        folder: keeps the file.
        digest: as of `features_digest`, which reads all weights.
        tell: takes a line a minute.
        basis: what it keeps of the patch tokens follows the features in a row.
    """
    file = folder / f"{FEATURES}{digest}.bin"
    if basis is not None:
        components = basis.basis_2CK.cpu().numpy()
        told = hashlib.sha256(digest.encode() + components.tobytes()).hexdigest()[:16]
        file = folder / f"{FEATURES}{told}-tokens{components.shape[2]}.bin"
    images = [(name_of(sample), sample.path.stat().st_size) for sample in batches.samples]

    def batches_of(index_N: Ints) -> Iterator[torch.Tensor]:
        for crops, *_ in batches.plain(spec, index_N):
            yield batch_from_levels(augmented(crops, spec.size, PLAIN, (0,), machine.device), spec)

    def rows_of(batch_BCHW: torch.Tensor) -> torch.Tensor:
        features_BF, tokens = network.raw_features(batch_BCHW)
        return features_BF if basis is None else torch.cat([features_BF, basis.kept(taught_tokens(tokens))], dim=1)

    network.eval()
    with machine.ranks.first_before_others(), machine.autocast():
        return kept_features(rows_of, batches_of, images, file, tell)


def features_digest(network: ProbedVit, spec: PreprocessSpec, view_side: int) -> str:
    """Of what features depend on beside the image.

    Low-rank changes are left out: there are none yet when a head is begun with.
    """
    sha = hashlib.sha256(json.dumps([spec.to_json(), view_side]).encode())
    for name, value in sorted(network.encoder.state_dict().items()):
        if not name.endswith(LOW_RANK):
            sha.update(value.cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def kept_features(
    rows_of: Callable[[torch.Tensor], torch.Tensor],
    batches_of: Callable[[Ints], Iterable[torch.Tensor]],
    images: Sequence[Image],
    file: Path,
    tell: Callable[[str], None],
) -> Features:
    """Rows of images; a run that is stopped keeps what it has.

    Args:
        rows_of: `[B, F]` of a normalised batch.
        batches_of: normalised batches of the images with these indices, in order.
        images: whose rows; two with the same name and size are one.
        file: named after all that a row depends on beside its image. Which row is whose stands in a `.json` beside it.
        tell: takes a line a minute.

    Raises:
        DataError: the file beside it is not one that this version wrote.
    """
    kept = _kept_beside(file)
    if not kept.row_of.keys() >= set(images):
        with open(file, "ab") as out:
            wait_for_lock(out.fileno(), lambda: tell(f"{file}: another training adds to it; waiting"))
            kept = _kept_beside(file)
            missing = {image: index for index, image in enumerate(images) if image not in kept.row_of}
            out.truncate(2 * kept.width * len(kept.row_of))  # what lies behind was added by one that was killed
            if missing:
                tell(f"the encoder is shown {len(missing)} images; what it says is kept in {file}")
                with torch.inference_mode():
                    batches = batches_of(np.array(list(missing.values()), dtype=np.int64))
                    _add(out, kept, list(missing), (rows_of(batch_BCHW) for batch_BCHW in batches), tell)
    rows_MF = np.memmap(file, np.float16, "r", shape=(len(kept.row_of), kept.width))
    return Features(rows_MF, np.array([kept.row_of[image] for image in images]))


@dataclass(slots=True)
class _Kept:
    file: Path
    width: int
    row_of: dict[Image, int]

    def save(self) -> None:
        save_json(self.file, {"width": self.width, "images": list(self.row_of)})


def _add(
    out: IO[bytes], kept: _Kept, images: Sequence[Image], made: Iterable[torch.Tensor], tell: Callable[[str], None]
) -> None:
    done, last = 0, time.monotonic()
    try:
        for rows_BF in made:
            out.write(rows_BF.half().cpu().numpy().tobytes())
            kept.width = rows_BF.shape[1]
            for image in images[done : done + len(rows_BF)]:
                kept.row_of[image] = len(kept.row_of)
            done += len(rows_BF)
            if time.monotonic() - last > 60:
                last = time.monotonic()
                out.flush()
                kept.save()
                tell(f"the encoder has seen {done} of {len(images)} images")
    finally:
        out.flush()
        kept.save()


def _kept_beside(file: Path) -> _Kept:
    index = file.with_suffix(".json")
    if not index.is_file():
        return _Kept(index, 0, {})
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
        images = [(str(name), int(size)) for name, size in values["images"]]
        width = int(values["width"])
        # Fewer rows than images are in a copy that is not whole.
        there = file.stat().st_size // (2 * width) if images and file.is_file() else 0
        return _Kept(index, width, {image: row for row, image in enumerate(images[:there])})
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        raise DataError(f"{index}: not what this version wrote; remove it") from None
