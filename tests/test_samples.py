"""Data sets: what is found, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_image

from aivsreal.runtime.errors import DataError
from aivsreal.runtime.verdict import LABELS
from aivsreal.train.config import PRESETS, TrainConfig
from aivsreal.train.samples import (
    counts_of,
    digest_of,
    in_split,
    licences_of,
    limited,
    readable,
    samples_from_data,
)

HEADER = "path,label,split,source,licence\n"


def _csv(folder: Path, rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "images.csv").write_text(rows)
    return folder


def test_a_table_and_folders_give_the_same_samples(tmp_path: Path) -> None:
    for name in ("train/real/a.png", "train/ai/b.png", "val/real/c.png", "val/ai/d.png"):
        write_image(tmp_path / "folders" / name, 1)
    rows = "".join(
        f"{path},{path.split('/')[1]},{path.split('/')[0]},{path.split('/')[1]},MIT\n"
        for path in ("train/real/a.png", "train/ai/b.png", "val/real/c.png", "val/ai/d.png")
    )
    table = _csv(tmp_path / "table", HEADER + rows)
    found, listed = samples_from_data(tmp_path / "folders"), samples_from_data(table)
    assert {(s.path.name, s.label, s.split, s.source) for s in found} == {
        (s.path.name, s.label, s.split, s.source) for s in listed
    }
    assert licences_of(listed) == {"ai": "MIT", "real": "MIT"}
    assert counts_of(listed)["train/ai"] == {"ai": 1}
    assert [sample.target for sample in listed] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-8", ";"), ("utf-8-sig", ";"), ("utf-16", "\t")]
)
def test_a_table_that_excel_saved_is_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    lines = [
        "path,label,split,source,licence",
        "ä.png,real,val,s,MIT",
        "b.png,ai,val,s,",
        ",,,,",
        "",
        "c.png,ai,train,s,",
    ]
    text = "\r\n".join(lines).replace(",", delimiter)
    (tmp_path / "images.csv").write_bytes(text.encode(encoding))
    samples = samples_from_data(tmp_path)
    assert [(sample.path.name, sample.label, sample.split) for sample in samples] == [
        ("ä.png", "real", "val"), ("b.png", "ai", "val"), ("c.png", "ai", "train"),
    ]  # fmt: skip
    assert samples[0].licence == "MIT"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\nä.png,real\n".encode("latin-1"), "CSV UTF-8"),
        (b"Name|label\na.png|real\n", r"path missing.*Name\|label"),
        (b"file;label\na.png;real\n", "path missing, it has 'file', 'label'"),
        (b"path,label\n,real\n", "line 2: there is no path"),
        (b"path,label\na.png\n", "line 2: label must be"),
        (b"\n\n", "first line is empty"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_was_found(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "images.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        samples_from_data(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("path,split\na.png,train\n", "label"),
        (HEADER + "a.png,fake,train,s,\n", "line 2: label must be real or ai, not 'fake'"),
        (HEADER, "no images"),
    ],
)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        samples_from_data(_csv(tmp_path, rows))


def test_what_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        samples_from_data(tmp_path / "absent")
    write_image(tmp_path / "train" / "real" / "a.png", 1)
    with pytest.raises(DataError, match="labelled ai"):
        in_split(samples_from_data(tmp_path), "train")


@pytest.mark.parametrize(("real", "ai"), [("Real", "AI"), ("REAL", "ai"), ("train/Real", "train/Ai")])
def test_a_folder_is_a_class_whatever_its_case(tmp_path: Path, real: str, ai: str) -> None:
    for folder in (real, ai):
        write_image(tmp_path / folder / "a.png", 1)
    assert [(sample.label, sample.path) for sample in samples_from_data(tmp_path)] == [
        ("real", tmp_path / real / "a.png"), ("ai", tmp_path / ai / "a.png"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "folders", [("real", "fake"), ("train/real", "train/fake"), ("generated", "photos"), ("FAKE",)]
)
def test_folders_of_other_names_are_refused_and_the_error_says_what_is_taken(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    for folder in folders:
        write_image(tmp_path / folder / "a.png", 1)
    with pytest.raises(DataError) as caught:
        samples_from_data(tmp_path)
    assert "train/real and train/ai" in str(caught.value)
    assert folders[-1].rpartition("/")[2] in str(caught.value)


def test_a_split_of_one_class_does_not_spoil_the_others(tmp_path: Path) -> None:
    for folder in ("train/real", "train/ai", "val_extra/real"):
        write_image(tmp_path / folder / "a.png", 1)
    assert {sample.split for sample in samples_from_data(tmp_path)} == {"train", "val_extra"}


def test_a_held_out_tenth_stays_the_same_when_images_are_added(tmp_path: Path) -> None:
    def held_out(count: int) -> set[str]:
        rows = "".join(f"{index}.png,{'ai' if index % 2 else 'real'},train,s,\n" for index in range(count))
        return {s.path.name for s in samples_from_data(_csv(tmp_path, HEADER + rows)) if s.split == "val"}

    few, many = held_out(300), held_out(600)
    assert 15 <= len(few) <= 50
    assert few == {name for name in many if int(name.split(".")[0]) < 300}


def test_a_name_that_is_no_utf8_is_one_like_others(tmp_path: Path) -> None:
    for label in LABELS:
        (tmp_path / label).mkdir()
        for number in range(20):
            write_image(tmp_path / label / f"{number}.png", number)
        os.rename(tmp_path / label / "0.png", os.fsencode(tmp_path / label) + b"/caf\xe9.png")
    samples = samples_from_data(tmp_path)
    assert len(samples) == 40
    assert len(digest_of(samples, tmp_path)) == 64


def test_a_tenth_is_held_out_of_images_that_lie_elsewhere(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    rows = "".join(f"{tmp_path / f'{index}.png'},{'ai' if index % 2 else 'real'},train,s,\n" for index in range(90))
    assert {sample.split for sample in samples_from_data(_csv(table, HEADER + rows))} == {"train", "val"}


def test_a_broken_image_is_reported_and_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "real" / "good.png", 1)
    (tmp_path / "train" / "ai").mkdir()
    (tmp_path / "train" / "ai" / "broken.png").write_bytes(b"words")
    good, problems = readable(samples_from_data(tmp_path), workers=2)
    assert [sample.path.name for sample in good if sample.split] == ["good.png"]
    assert len(problems) == 1
    assert "broken.png" in problems[0]


def test_the_digest_follows_names_labels_splits_and_sizes_but_not_the_place(tiny_data: Path, tmp_path: Path) -> None:
    samples = samples_from_data(tiny_data)
    digest = digest_of(samples, tiny_data)
    (tmp_path / "elsewhere").symlink_to(tiny_data)
    assert digest_of(samples_from_data(tmp_path / "elsewhere"), tmp_path / "elsewhere") == digest
    assert digest_of(samples[1:], tiny_data) != digest
    assert digest_of([replace(samples[0], label="ai"), *samples[1:]], tiny_data) != digest


def test_a_limit_keeps_every_class_and_spreads(tiny_data: Path) -> None:
    samples = samples_from_data(tiny_data)
    few = limited(samples, 4)
    assert {(s.split, s.label) for s in few} == {(s.split, s.label) for s in samples}
    assert len(few) == 16
    assert limited(samples, None) == [s for group in _groups(samples) for s in group]


def _groups(samples: list) -> list[list]:
    keys = dict.fromkeys((s.split, s.label) for s in samples)
    return [[s for s in samples if (s.split, s.label) == key] for key in keys]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_is_json(preset: str) -> None:
    values = PRESETS[preset].to_json()
    assert values["preset"] == preset
    assert json.loads(json.dumps(values))["augment"] == values["augment"]


BASES = {
    "frequency-noise": "labels", "noise-consistency": "labels",
    "student-features": "student-once", "student-logits": "student-once", "student-alone": "student-once",
}  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_each_ablation_is_one_change_to_its_base(name: str) -> None:
    values, base = PRESETS[name].to_json(), PRESETS[BASES[name]].to_json()
    changed = {key for key in values if values[key] != base[key]} - {"preset"}
    assert len(changed) == 1


def test_a_teacher_that_is_asked_once_sees_the_same_views_whatever_the_student_sees() -> None:
    sides = {PRESETS[name].view_side for name in ("student-once", "student-features", "student-alone")}
    small = replace(PRESETS["student-once"], spec=replace(PRESETS["student-once"].spec, size=96))
    assert sides == {small.view_side} == {288}
    assert replace(PRESETS["labels"], spec=small.spec).view_side == 123


@pytest.mark.parametrize("change", [{"schedule": "step"}, {"epochs": 0}, {"batch_size": 1}])
def test_what_cannot_be_trained_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        TrainConfig(**change)  # type: ignore[arg-type]
