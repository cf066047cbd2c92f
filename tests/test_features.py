"""What an encoder says of images is kept: it is asked once of each, and a run that is stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from pocket_vit import SIZE, pocket_vit

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.fit.features import Features, features_digest, kept_features

IMAGES = [(f"/photos/{number}.png", 1000 + number) for number in range(12)]


class Encoder:
    """Says its number of each image, and remembers what it was asked."""

    def __init__(self, stop_after: int = 99) -> None:
        self.asked: list[int] = []
        self.told: list[str] = []
        self.tell: Callable[[str], None] = self.told.append
        self.stop_after = stop_after

    def features(self, file: Path, images: list[tuple[str, int]]) -> Features:
        numbers = [int(Path(name).stem) for name, _ in images]

        def batches_of(index_N: np.ndarray) -> Iterator[torch.Tensor]:
            for start in range(0, len(index_N), 4):
                if len(self.asked) >= self.stop_after:
                    raise KeyboardInterrupt
                part = [numbers[index] for index in index_N[start : start + 4]]
                self.asked += part
                yield torch.tensor(part)

        return kept_features(lambda batch_B: batch_B[:, None] * torch.ones(3), batches_of, images, file, self.tell)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "features-0.bin"


def test_the_encoder_is_asked_once_of_each_image(file: Path) -> None:
    first = Encoder()
    assert first.features(file, IMAGES[:6]).of(slice(None))[:, 2].tolist() == [0, 1, 2, 3, 4, 5]
    more = Encoder()
    shuffled = [IMAGES[number] for number in (11, 3, 8, 0)]
    found = more.features(file, shuffled)
    assert more.asked == [11, 8]
    assert more.told == [f"the encoder is shown 2 images; what it says is kept in {file}"]
    assert len(found) == 4
    assert found.of(slice(None))[:, 0].tolist() == [11, 3, 8, 0]
    assert found.of(np.array([2, 0, 0]), slice(1, None)).tolist() == [[8, 8], [11, 11], [11, 11]]
    quiet = Encoder()
    quiet.features(file, IMAGES[:6])
    assert (quiet.asked, quiet.told) == ([], [])


def test_an_image_that_changed_is_shown_anew(file: Path) -> None:
    Encoder().features(file, IMAGES)
    again = Encoder()
    again.features(file, [*IMAGES[:3], (IMAGES[3][0], 7)])
    assert again.asked == [3]


def test_a_stopped_run_goes_on(file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Encoder(stop_after=8).features(file, IMAGES)
    with file.open("ab") as out:
        out.write(b"of one that was killed")
    rest = Encoder()
    assert rest.features(file, IMAGES).of(slice(None))[:, 1].tolist() == list(range(12))
    assert rest.asked == [8, 9, 10, 11]


@pytest.mark.parametrize("rows", [None, 0, 5])
def test_rows_that_a_copy_lacks_are_made_again(file: Path, rows: int | None) -> None:
    Encoder().features(file, IMAGES)
    if rows is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: 6 * rows + 3])
    again = Encoder()
    assert again.features(file, IMAGES).of(slice(None))[:, 0].tolist() == list(range(12))
    assert again.asked == list(range(rows or 0, 12))


def test_progress_is_told_once_a_minute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", iter(range(0, 10_000, 50)).__next__)
    encoder = Encoder()
    encoder.features(file, IMAGES)
    assert encoder.told[1:] == ["the encoder has seen 8 of 12 images"]


def test_trainings_that_start_together_ask_once(file: Path) -> None:
    asked, waiting = Event(), Event()
    encoders = [Encoder(), Encoder()]

    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if text.endswith("waiting"):
            waiting.set()
        else:
            asked.set()
            assert waiting.wait(60)

    for encoder in encoders:
        encoder.tell = tell
    threads = [Thread(target=encoder.features, args=(file, IMAGES)) for encoder in encoders]
    threads[0].start()
    assert asked.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert [len(encoder.asked) for encoder in encoders] == [12, 0]
    assert [text.rpartition(" ")[2] for text in told] == [str(file), "waiting"], "no second is told to show none"


@pytest.mark.parametrize("text", ["words", "{}", '{"width": 3, "images": [1]}'])
def test_what_lies_beside_is_not_overwritten(file: Path, text: str) -> None:
    file.with_suffix(".json").write_text(text)
    with pytest.raises(DataError, match="not what this version wrote; remove it"):
        Encoder().features(file, IMAGES)
    assert file.with_suffix(".json").read_text() == text


def test_a_file_is_named_after_all_that_a_row_depends_on() -> None:
    network = pocket_vit()
    spec = PreprocessSpec(SIZE)
    digest = features_digest(network, spec, 288)
    assert digest == features_digest(pocket_vit(), PreprocessSpec(SIZE), 288)
    assert digest != features_digest(network, spec, 224)
    with torch.no_grad():
        next(network.encoder.parameters()).add_(1)
    assert digest != features_digest(network, spec, 288)
