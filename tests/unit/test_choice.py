"""Which model a hospital would run: never for nothing, and not by the luck of a few patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.choice import FEWEST, choose, lead
from client.evaluation import Scores


def scores(losses: Sequence[float], patients: Sequence[int] | None = None) -> Scores:
    """Validation scores of which only the losses count."""
    count = len(losses)
    whose = range(count) if patients is None else patients
    flat = np.zeros((count, 1))
    return Scores(flat, flat.astype(np.float32), np.array(list(whose), np.int64), np.array(losses, np.float64))


def test_a_lead_is_measured_by_patient_against_its_standard_error() -> None:
    """Gains .1 … 1.2 of twelve patients: mean .65, error sqrt(.13 / 12), t of 11 degrees of freedom 1.048 (scipy)."""
    gains = np.arange(1, 13) / 10
    found = lead(scores([2.0] * 12), scores(list(2.0 - gains)))
    assert found.mean == pytest.approx(0.65)
    assert found.needed == pytest.approx(np.sqrt(0.13 / 12) * 1.0476, rel=1e-3)
    assert found.patients == 12 and found.convinces
    doubled = lead(scores([2.0] * 24, [*range(12)] * 2), scores(list(2.0 - np.tile(gains, 2)), [*range(12)] * 2))
    assert (doubled.mean, doubled.needed) == pytest.approx((found.mean, found.needed)), "images do not count twice"


def test_nobody_is_convinced_by_few_patients_or_by_nothing() -> None:
    for count in (0, 1, FEWEST - 1):
        assert choose("global", {"global": scores([5.0] * count), "personal": scores([0.0] * count)}) == "global"
    many = {"global": scores([5.0] * 20), "personal": scores([0.0] * 20)}
    assert choose("global", many) == "personal"
    assert choose("global", many, fewest=21) == "global", "a study's smallest cell"
    assert choose("global", {"global": scores([1.0] * 20), "personal": scores([1.0] * 20)}) == "global"


def test_of_several_that_convince_the_one_with_the_largest_lead_is_run() -> None:
    found = {name: scores([loss] * 15) for name, loss in (("global", 1.0), ("personal", 0.6), ("local", 0.5))}
    assert choose("global", found) == "local"
    assert choose("global", found | {"local": scores([1.1] * 15)}) == "personal"


@pytest.mark.parametrize("count", [10, 20, 200])
def test_between_equal_models_the_default_is_left_in_one_case_of_six(count: int) -> None:
    random = np.random.default_rng(count)
    losses = random.exponential(size=(4000, 2, count))
    # The difference of two exponential draws is symmetric around 0, with tails far heavier than a normal one's.
    left = np.mean([lead(scores(a), scores(b)).convinces for a, b in losses])
    assert left == pytest.approx(1 / 6, abs=0.035)


@given(
    st.lists(st.floats(0.0, 10.0), min_size=10, max_size=40),
    st.floats(-5.0, 5.0),
)
def test_neither_the_order_of_patients_nor_a_shift_of_both_matters(losses: list[float], shift: float) -> None:
    other = [loss * 0.9 for loss in losses]
    order = np.random.default_rng(len(losses)).permutation(len(losses))
    first = lead(scores(losses), scores(other))
    moved = lead(scores(np.array(losses)[order] + shift), scores(np.array(other)[order] + shift))
    assert moved.mean == pytest.approx(first.mean, abs=1e-9)
    assert moved.needed == pytest.approx(first.needed, abs=1e-9)
    assert first.mean >= 0.0
