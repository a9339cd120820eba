"""Comparisons from sums: any order gives equal sums, no cell tells of few patients, nonsense is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics import Counts, Layout, Reference, choose_threshold
from common.metrics.layout import Scored
from common.metrics.paired import UNREAD, Areas, Decided, Joint, Models, Pair, Spread, called, compare
from common.study import ThresholdSpec

TASKS = st.sampled_from([("binary", 1), ("multiclass", 3), ("multilabel", 2)])


def drawn(seed: int, task: str, classes: int, images: int) -> tuple[NDArray[Any], ...]:
    random = np.random.default_rng(seed)
    scores = [random.random((images, classes)) for _ in range(2)]
    if task == "multiclass":
        scores = [one / one.sum(axis=1, keepdims=True) for one in scores]
        targets = np.eye(classes)[random.integers(classes, size=images)]
    else:
        targets = (random.random((images, classes)) < 0.5).astype(float)
        if task == "multilabel":
            targets[random.random(targets.shape) < 0.1] = np.nan
    return scores[0], scores[1], targets, random.integers(max(images // 2, 1), size=images)


def reference_of(scores: Any, targets: Any, patients: Any, layout: Layout, least: int = 1) -> Reference:
    counts = Counts.of(scores, targets, patients, np.zeros(len(scores)), layout, least)
    return Reference(counts, choose_threshold(counts, ThresholdSpec()))


def same(one: Joint | Spread | Areas, other: Joint | Spread | Areas) -> None:
    left, right = one.to_arrays(), other.to_arrays()
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@given(st.integers(0, 2**32), TASKS, st.permutations(range(4)))
def test_sites_in_any_order_are_one_site(seed: int, task: tuple[Any, int], order: list[int]) -> None:
    one, other, targets, patients = drawn(seed, *task, 60)
    layout = Layout(*task, 64)
    both = reference_of(one, targets, patients, layout), reference_of(other, targets, patients, layout)
    thresholds = both[0].thresholds.position, both[1].thresholds.position
    whole = Pair.of(one, other, targets, patients, layout)
    parts = [
        Pair.of(*(each[patients % 4 == site] for each in (one, other, targets, patients)), layout) for site in order
    ]
    joint = sum((part.joint(thresholds) for part in parts), Joint.zero(layout))
    same(joint, whole.joint(thresholds))
    spreads = [part.spread(both, joint) for part in parts]
    expected = whole.spread(both, joint)
    same(sum((spread for spread, _ in spreads), Spread.zero(layout)), expected[0])
    same(sum((areas for _, areas in spreads), Areas.zero(layout)), expected[1])


@given(st.integers(0, 2**32), TASKS, st.integers(2, 12))
def test_no_cell_of_a_table_speaks_of_fewer_than_k_patients(seed: int, task: tuple[Any, int], least: int) -> None:
    """Counted again from the images that are in the table."""
    one, other, targets, patients = drawn(seed, *task, 80)
    layout = Layout(*task, 32)
    both = reference_of(one, targets, patients, layout, least), reference_of(other, targets, patients, layout, least)
    pair = Pair.of(one, other, targets, patients, layout, least)
    decided = pair.decided((both[0].thresholds.position, both[1].thresholds.position))
    behind: dict[tuple[int, int, int], set[int]] = {}
    for cell in zip(decided.group, decided.first, decided.second, decided.patient, strict=True):
        behind.setdefault(cell[:3], set()).add(int(cell[3]))
    assert all(len(found) >= least for found in behind.values())
    joint = Joint.of(decided)
    assert joint.table.n.sum() == len(decided.group)
    assert not (set(decided.group.tolist()) & set(np.flatnonzero(joint.withheld).tolist()))


@given(st.integers(0, 2**32), st.integers(2, 10))
def test_images_that_few_readers_left_out_hide_the_table(seed: int, least: int) -> None:
    """Or the table and the model's own counts would tell who was not read."""
    random = np.random.default_rng(seed)
    targets, patients = np.ones((60, 1)), np.arange(60)
    layout = Layout("binary", 1, 16)
    scored = Scored.of(np.full((60, 1), 0.9), targets, patients, layout)
    model = called(scored, np.array([8]), layout, least)
    unread = int(random.integers(0, 12))
    reader = np.where(np.arange(60)[:, None] < unread, UNREAD, 1)
    joint = Joint.of(Decided.of(scored, model, reader, layout, least))
    assert bool(joint.withheld[1]) is (0 < unread < least)
    assert joint.images(0) == (0 if 0 < unread < least else 60 - unread)


@given(st.integers(0, 2**32), st.integers(3, 8))
def test_bounds_under_the_small_cell_rule_hold(seed: int, least: int) -> None:
    """Differences and mid-p of all images lie where the bounds say, where tables are hidden and margins are not."""
    one, other, targets, patients = drawn(seed, "binary", 1, 90)
    # blocks never straddle the threshold: two heights of scores
    one, other = np.where(one > 0.4, 0.9, 0.1), np.where(other > 0.5, 0.9, 0.1)
    layout = Layout("binary", 1, 16)
    tellable = [reference_of(scores, targets, patients, layout, least) for scores in (one, other)]
    fine = [
        Reference(reference_of(scores, targets, patients, layout).counts, reference.thresholds)
        for scores, reference in zip((one, other), tellable, strict=True)
    ]
    thresholds = tellable[0].thresholds.position, tellable[1].thresholds.position
    hidden = Pair.of(one, other, targets, patients, layout, least).joint(thresholds)
    shown = Pair.of(one, other, targets, patients, layout).joint(thresholds)
    coarse = compare(hidden, None, Models((tellable[0], tellable[1]), None))
    exact = compare(shown, None, Models((fine[0], fine[1]), None))
    for rate in ("sensitivity", "specificity"):
        found, truth = coarse.overall[rate], exact.overall[rate]
        if truth.difference.value is None or tellable[0].counts.withheld.any():
            continue
        if found.p_bounds is not None and truth.mcnemar is not None:
            assert found.difference.value == pytest.approx(truth.difference.value)
            assert found.p_bounds[0] - 1e-9 <= truth.mcnemar.mid_p <= found.p_bounds[1] + 1e-9
        elif found.difference.value is None:
            assert found.difference.low is not None and found.difference.high is not None
            assert found.difference.low - 1e-9 <= truth.difference.value <= found.difference.high + 1e-9


def test_what_travels_comes_back() -> None:
    one, other, targets, patients = drawn(1, "multilabel", 2, 50)
    layout = Layout("multilabel", 2, 64)
    both = reference_of(one, targets, patients, layout), reference_of(other, targets, patients, layout)
    pair = Pair.of(one, other, targets, patients, layout)
    joint = pair.joint((both[0].thresholds.position, both[1].thresholds.position))
    spread, areas = pair.spread(both, joint)
    same(Joint.from_arrays(joint.to_arrays(), layout), joint)
    same(Spread.from_arrays(spread.to_arrays(), layout), spread)
    same(Areas.from_arrays(areas.to_arrays(), layout), areas)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("table_at", np.array([10**6])),
        ("table_n", np.array([0])),
        ("asked", np.array([10**6])),
        ("asked", np.array([-1])),
        ("patients", np.array([0, 0])),
        ("withheld", np.array([0.5, 1.0])),
        ("layout", np.array([1, 1, 64])),
        ("more", np.array([1])),
    ],
)
def test_a_table_that_no_honest_site_could_send_is_refused(key: str, value: NDArray[Any]) -> None:
    layout = Layout("binary", 1, 64)
    one, other, targets, patients = drawn(2, "binary", 1, 30)
    arrays = Pair.of(one, other, targets, patients, layout).joint((np.array([32]), np.array([32]))).to_arrays()
    if key == "table_n":
        value = np.zeros_like(arrays[key])
    with pytest.raises(ProtocolError):
        Joint.from_arrays({**arrays, key: value}, layout)


@pytest.mark.parametrize("kind", ["spread", "areas"])
def test_sums_greater_than_any_patients_could_make_are_refused(kind: str) -> None:
    layout = Layout("binary", 1, 64)
    zero: Spread | Areas = Spread.zero(layout) if kind == "spread" else Areas.zero(layout)
    arrays = zero.to_arrays()
    read = Spread.from_arrays if kind == "spread" else Areas.from_arrays
    most = np.full_like(arrays["squares"], 1 << 58)
    big = read({**arrays, "squares": most}, layout)
    with pytest.raises(ProtocolError):
        read({**arrays, "squares": most + 1}, layout)
    with pytest.raises(ProtocolError):
        big + big  # type: ignore[operator]
