"""The benchmark of maps: each figure tells a good map from a bad one where the right answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import write_image

from aivsreal.benchmarks.studies.faithfulness import deletion_and_insertion, filled, ranked, road
from aivsreal.benchmarks.studies.maps import composite, main, overlap, points_into, rank_correlation

SIZE = 64


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


def _corner_judge(squares: list[np.ndarray]) -> np.ndarray:
    """A probability that hangs on the contrast in the upper left quarter alone."""
    return np.array([1 / (1 + np.exp(-(np.asarray(one)[:32, :32].std() - 40) / 5)) for one in squares])


@pytest.fixture(scope="module")
def good_and_bad() -> tuple[np.ndarray, np.ndarray]:
    good_SS = np.zeros((SIZE, SIZE), dtype=np.float32)
    good_SS[:32, :32] = 1.0
    return good_SS, 1 - good_SS


def test_deletion_and_insertion_prefer_the_map_that_names_the_cause(good_and_bad: tuple[np.ndarray, ...]) -> None:
    good, bad = (deletion_and_insertion(_noise(0), map_SS, _corner_judge) for map_SS in good_and_bad)
    assert good[0] < bad[0] - 0.3
    assert good[1] > bad[1] + 0.3


def test_road_is_positive_for_a_good_map_and_negative_for_its_reverse(good_and_bad: tuple[np.ndarray, ...]) -> None:
    good, bad = (road(_noise(0), map_SS, _corner_judge, np.random.default_rng(0)) for map_SS in good_and_bad)
    assert good > 0.2
    assert bad < -0.2


def test_the_fill_solves_roads_equations() -> None:
    from scipy.sparse import lil_matrix
    from scipy.sparse.linalg import spsolve

    y_S1, x_1S = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    smooth_SSC = np.stack([200 * x_1S, 255 * y_S1, 128 + 100 * np.sin(6 * x_1S * y_S1)], axis=2).astype(np.uint8)
    gone_SS = np.random.default_rng(0).random((SIZE, SIZE)) < 0.5
    gone_SS[20:30, 20:30] = True
    unknown = {(row, column): index for index, (row, column) in enumerate(np.argwhere(gone_SS).tolist())}
    matrix, right = lil_matrix((len(unknown), len(unknown))), np.zeros((len(unknown), 3))
    for (row, column), index in unknown.items():
        for down, across in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
            place, weight = (row + down, column + across), 1 / 6 if 0 in (down, across) else 1 / 12
            if min(place) < 0 or max(place) >= SIZE:
                continue
            matrix[index, index] += weight
            if place in unknown:
                matrix[index, unknown[place]] -= weight
            else:
                right[index] += weight * smooth_SSC[place]
    solved_SSC = smooth_SSC.astype(float)
    solved_SSC[gone_SS] = spsolve(matrix.tocsc(), right)
    assert np.abs(filled(smooth_SSC, gone_SS, None) - solved_SSC).max() < 2  # less than the noise that is laid over it


def test_pointing_and_overlap_know_where_the_square_lies() -> None:
    real_SSC, other_SSC = _noise(1), _noise(2)
    pasted_SSC, mask_SS = composite(real_SSC, other_SSC, np.random.default_rng(3))
    assert (pasted_SSC[~mask_SS] == real_SSC[~mask_SS]).all()
    assert (pasted_SSC[mask_SS] != real_SSC[mask_SS]).mean() > 0.9
    assert mask_SS.mean() == pytest.approx((3 / 7) ** 2, abs=0.02)
    found_SS, missed_SS = mask_SS.astype(np.float32), 1 - mask_SS.astype(np.float32)
    assert points_into(found_SS, mask_SS)
    assert not points_into(missed_SS, mask_SS)
    assert overlap(found_SS, mask_SS) == 1.0
    assert overlap(missed_SS, mask_SS) < 0.05


def test_ranks_are_a_permutation_and_correlate_as_spearman_does() -> None:
    map_SS = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    assert sorted(ranked(map_SS).ravel() * map_SS.size) == pytest.approx(range(map_SS.size))
    assert rank_correlation(map_SS, np.exp(map_SS)) == pytest.approx(1)
    assert rank_correlation(map_SS, -map_SS) == pytest.approx(-1)


def test_the_command_gives_a_row_for_each_map(map_bundle: Path, tmp_path: Path) -> None:
    for index in range(4):
        label = ("real", "ai")[index % 2]
        write_image(tmp_path / "test" / label / f"{index}.png", index, (260, 256), smooth=label == "ai")
        write_image(tmp_path / "train" / label / f"{index}.png", index)
    options = ("--limit", 2, "--method", "gradcam", "--layer", "stage2")
    arguments = [str(value) for value in (tmp_path, "--bundle", map_bundle, *options)]
    result = CliRunner().invoke(main, arguments)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["map"], row["layer"]) for row in rows] == [
        ("exact", None),
        ("gradcam", "stage2"),
        ("centre blob", None),
    ]
    for row in rows:
        assert (row["real"], row["ai"]) == (2, 2)
        assert 0 <= row["deletion"][0] <= 1
        assert row["deletion"][1] <= row["deletion"][0] <= row["deletion"][2]
    assert result.exit_code == (0 if all(row["head_changes_it"] for row in rows) else 1)
    assert rows[2]["new_head"][0] == 1
