"""Holm's and Benjamini and Hochberg's corrections: by hand, against statsmodels, and what they promise."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from common.metrics.many import benjamini_hochberg, holm


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> Iterator[None]:
    """statsmodels collects garbage in each of its Holm corrections: over the heap of a whole test run a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_order_does_not_matter_and_nothing_becomes_surer(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1.0 for p, q in zip(p_values, adjusted, strict=True))
    turn = np.argsort(p_values)
    assert np.all(np.diff(np.asarray(adjusted)[turn]) >= 0)
    assert holm([p_values[i] for i in turn]) == [adjusted[i] for i in turn]


def test_one_false_call_among_many_is_as_rare_as_promised() -> None:
    p = np.random.default_rng(0).random((4000, 10))
    false_calls = sum(min(holm(row.tolist())) <= 0.05 for row in p) / len(p)
    assert 0.035 < false_calls < 0.06


@pytest.mark.parametrize("wrong", [[-0.1], [1.1], [float("nan")]])
def test_what_is_no_probability_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values must be"):
        holm(wrong)
    with pytest.raises(ValueError, match="p-values must be"):
        benjamini_hochberg(wrong)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40))
def test_as_statsmodels_corrects(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)
    assert benjamini_hochberg(p_values) == pytest.approx(multipletests(p_values, method="fdr_bh")[1], abs=1e-12)
    assert all(b <= h + 1e-12 for b, h in zip(benjamini_hochberg(p_values), holm(p_values), strict=True))
