"""The card of a checkpoint, the JSON beside its weights: what training writes and export reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aivsreal.runtime.fields import from_json
from aivsreal.runtime.spec import PreprocessSpec, spec_from_json
from aivsreal.runtime.verdict import LABELS

FORMAT = 1


@dataclass(frozen=True, slots=True)
class TrainingCard:
    """All that can rebuild a checkpoint's network, and where its weights come from.

    Raises:
        ValueError: the labels are not those of a bundle.
    """

    arch: str
    labels: tuple[str, ...]
    """In the order of the network's targets."""
    spec: PreprocessSpec
    config: dict[str, object]
    """The recipe, as `TrainConfig.to_json` writes it."""
    chosen_on: str
    """Splits that chose the epoch, with + between them; empty where none did."""
    data_digest: str
    """SHA-256 of the list of images."""
    data_counts: dict[str, dict[str, int]]
    """Images by split and label, and by source."""
    data_licences: dict[str, object]
    """Of each source, as it states it."""
    versions: dict[str, object]
    epoch: int
    metrics: dict[str, object]
    """Of that epoch, by split."""
    weights: str
    """Name of the file beside the card."""
    weights_sha256: str
    started_from: dict[str, object] | None = None
    """What the card said of the run or bundle whose weights this run began with; None where it began from scratch."""

    def __post_init__(self) -> None:
        if self.labels != LABELS:
            raise ValueError(f"labels {list(self.labels)}, and a bundle has {list(LABELS)}")

    def to_json(self) -> dict[str, object]:
        """The card as JSON values; `training_card_from_json` is its inverse."""
        values = {**asdict(self), "labels": list(self.labels), "spec": self.spec.to_json()}
        if self.started_from is None:
            del values["started_from"]
        return {"format": FORMAT, **values}

    def told(self) -> dict[str, object]:
        """What a bundle tells of where it comes from."""
        names = ("config", "chosen_on", "epoch", "data_digest", "data_counts", "data_licences", "started_from")
        values = {name: getattr(self, name) for name in names}
        if self.started_from is None:
            del values["started_from"]
        return {**values, "checkpoint_sha256": self.weights_sha256}


def training_card_from_json(values: dict[str, object]) -> TrainingCard:
    """Read what `TrainingCard.to_json` wrote; fields that a later version added are passed over.

    Raises:
        ValueError: the format is another one, or a field is missing or of the wrong kind.
    """
    if values.get("format") != FORMAT:
        raise ValueError(f"format {values.get('format')!r}, and this version reads {FORMAT}")
    return from_json(
        TrainingCard, {**values, "spec": spec_from_json(values.get("spec"))}, "a checkpoint's card", lenient=True
    )
