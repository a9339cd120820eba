"""Sums about heat maps: what merges, what small groups give, and measures whose values are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.weightstats import DescrStatsW
from torch import Tensor

from client.explaining.examples import Example
from client.explaining.faithfulness import CELLS, cell_numbers, measure, merged
from common.metrics.faithfulness import MEASURES, Faithfulness

AT = {name: place for place, name in enumerate(MEASURES)}


def drawn(seed: int, images: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(images, len(MEASURES)))
    values[random.random(values.shape) < 0.3] = np.nan
    return values, random.integers(0, max(1, images // 2), images)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_sites_sums_are_the_sums_of_all_their_patients(seed: int, images: int, sites: int) -> None:
    values, patients = drawn(seed, images)
    whole = Faithfulness.of(values, patients)
    parts = [
        Faithfulness.of(values[patients % sites == site], patients[patients % sites == site]) for site in range(sites)
    ]
    together = merged(parts)
    assert together.patients.tolist() == whole.patients.tolist()
    assert together.images == whole.images
    np.testing.assert_allclose(together.sums, whole.sums, atol=1e-9)
    np.testing.assert_allclose(together.squares, whole.squares, atol=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_measure_of_too_few_patients_leaves_nothing(seed: int, images: int, least: int) -> None:
    values, patients = drawn(seed, images)
    free, told = Faithfulness.of(values, patients), Faithfulness.of(values, patients, least)
    for place in range(len(MEASURES)):
        if free.patients[place] >= least:
            assert told.sums[place] == free.sums[place]
        else:
            assert told.patients[place] == told.sums[place] == told.squares[place] == 0
    assert told.images == (images if told.patients.any() else 0)


def test_intervals_are_those_of_the_patients_means() -> None:
    values, patients = drawn(5, 60)
    found = Faithfulness.of(values, patients)
    for name, place in AT.items():
        means = [
            np.nanmean(values[patients == patient, place])
            for patient in np.unique(patients)
            if np.isfinite(values[patients == patient, place]).any()
        ]
        expected = DescrStatsW(means)
        interval = found.interval(name, 0.9)
        assert interval.value == pytest.approx(expected.mean, abs=1e-12)
        assert (interval.low, interval.high) == pytest.approx(expected.zconfint_mean(alpha=0.1), abs=1e-9)


def test_of_nobody_nothing_and_of_one_patient_no_interval() -> None:
    assert Faithfulness.zero().interval("pointed", 0.95).to_dict() == {"value": None, "low": None, "high": None}
    alone = Faithfulness.of(np.full((3, len(MEASURES)), 0.25), np.zeros(3, np.int64))
    assert alone.interval("mass", 0.95).to_dict() == {"value": 0.25, "low": None, "high": None}
    assert alone.images == 3 and alone.patients.tolist() == [1] * len(MEASURES)


class Known:
    """A model that adds up one square of the image, and a map that is given."""

    def __init__(self, heat: Tensor) -> None:
        self.heat = heat

    def of(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.heat.expand(len(images), -1, -1)

    def scores(self, images: Tensor) -> Tensor:
        return images[:, :, 8:16, 8:16].mean((1, 2, 3))[:, None]


def square(value: float = 1.0) -> Tensor:
    made = torch.zeros(32, 32)
    made[8:16, 8:16] = value
    return made


def example(mask: NDArray[np.uint8] | None) -> Example:
    """A bright square on black: all that :class:`Known` sees."""
    return Example(square()[None], 0, "ill", 0, 1, mask)


def measured(heat: Tensor, mask: NDArray[np.uint8] | None, fresh: Tensor | None = None) -> dict[str, float | None]:
    maps: Any = Known(heat)
    other: Any = Known(heat if fresh is None else fresh)
    found = measure([example(mask)], maps, other, seed=1, site="a", least=1)
    return {name: found.interval(name, 0.95).value for name in MEASURES}


def test_a_map_that_is_the_mask_has_all_marks() -> None:
    found = measured(square(), square().numpy().astype(np.uint8))
    assert (found["pointed"], found["mass"], found["chance"]) == (1.0, 1.0, 1 / 16)
    assert found["pointed_gain"] == found["mass_gain"] == 15 / 16
    assert found["deletion"] is not None and found["random"] is not None
    assert found["deletion"] < 0.5 < 0.6 < found["random"]
    assert found["deletion_gain"] == pytest.approx(found["random"] - found["deletion"])
    assert found["fresh"] == pytest.approx(1.0), "of the same map"


def test_a_map_of_everything_else_has_none() -> None:
    found = measured(1.0 - square(), square().numpy().astype(np.uint8), fresh=square())
    assert found["pointed"] == found["mass"] == 0.0
    assert found["deletion_gain"] is not None and found["deletion_gain"] < 0.0
    assert found["fresh"] == pytest.approx(-1.0)


def test_a_map_without_heat_points_nowhere_and_resembles_none() -> None:
    found = measured(torch.zeros(32, 32), square().numpy().astype(np.uint8))
    assert found["pointed"] == 0.0
    assert found["pointed_gain"] == -1 / 16
    assert found["fresh"] is None


def test_equally_hot_points_share_the_mark() -> None:
    assert measured(torch.ones(32, 32), square().numpy().astype(np.uint8))["pointed"] == 1 / 16


def test_without_a_mask_there_is_no_pointing() -> None:
    found = measured(square(), None)
    assert [found[name] for name in ("pointed", "chance", "mass", "mass_gain")] == [None] * 4
    assert found["deletion"] is not None


@given(st.integers(8, 100), st.integers(8, 100))
def test_cells_share_an_image_without_rest(height: int, width: int) -> None:
    cells = cell_numbers(height, width)
    sizes = np.bincount(cells.ravel(), minlength=CELLS * CELLS)
    assert len(sizes) == CELLS * CELLS and sizes.min() > 0
    assert sizes.max() <= (height // CELLS + 1) * (width // CELLS + 1)
