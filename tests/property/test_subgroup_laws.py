"""Laws of counts by groups: groups part the whole, sites merge, and what is hidden stays hidden."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics import METRICS, Counts, Layout, Moments, Reference, choose_threshold, joint
from common.metrics.layout import Ints, Scored
from common.metrics.subgroup_moments import (
    GroupMoments,
    gaps,
    measure,
    moments_arrays,
    open_moments,
    open_reference,
    reference_arrays,
    rest_of,
)
from common.metrics.subgroups import MOST_VALUES, NOT_RECORDED, OTHER, Subgroups, told
from common.study import ThresholdSpec
from tests.property.test_metrics_laws import Images, images, same

VALUES = ("F", "M", "O", "not recorded")


@dataclass(frozen=True)
class Grouped:
    images: Images
    values: list[str]

    def count(self, number: int | None, min_cell: int = 1) -> Subgroups:
        here = np.ones(len(self.values), bool) if number is None else self.at(number)
        data = self.images
        return Subgroups.of(
            data.scores[here], data.targets[here], data.patients[here], self.of(here), data.layout, min_cell
        )

    def at(self, number: int) -> NDArray[np.bool_]:
        return np.asarray(self.images.site_of_patient[self.images.patients] == number)

    def of(self, here: NDArray[np.bool_]) -> list[str]:
        return [value for value, use in zip(self.values, here.tolist(), strict=True) if use]


@st.composite
def grouped(draw: st.DrawFn) -> Grouped:
    data = draw(images())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = np.array(draw(st.sampled_from([[1, 1, 1, 1], [20, 20, 2, 1], [1, 0, 0, 0], [10, 1, 1, 0]])), float)
    by_patient = draw(st.booleans())
    chosen = random.choice(4, size=max(len(data.scores), 20), p=weights / weights.sum())
    index = chosen[data.patients] if by_patient else chosen[: len(data.scores)]
    return Grouped(data, [VALUES[i] for i in index.tolist()])


@settings(max_examples=100)
@given(grouped())
def test_groups_part_the_whole_and_sites_merge(data: Grouped) -> None:
    whole = data.count(None)
    parts = sum((data.count(number) for number in data.images.order), Subgroups.zero(data.images.layout))
    assert list(parts.counts) == list(whole.counts)
    for name, counts in whole.counts.items():
        same(counts, parts.counts[name])
        here = np.array([value == name for value in data.values])
        pooled = Counts.of(
            data.images.scores[here],
            data.images.targets[here],
            data.images.patients[here],
            np.zeros(int(here.sum())),
            data.images.layout,
        )
        same(counts, pooled)
    everybody = data.images.count(None)
    total = sum(whole.counts.values(), Counts.zero(data.images.layout))
    assert np.array_equal(total.low.at, everybody.low.at)
    assert np.array_equal(total.low.n, everybody.low.n)
    assert (total.images, total.totals.tolist()) == (everybody.images, everybody.totals.tolist())


@settings(max_examples=80)
@given(grouped(), st.sampled_from([1, 2, 4]))
def test_groups_survive_the_wire(data: Grouped, k: int) -> None:
    sent = data.count(None, k)
    came = Subgroups.from_arrays(sent.to_arrays(), data.images.layout)
    assert (list(came.counts), came.suppressed) == (list(sent.counts), sent.suppressed)
    for name, counts in sent.counts.items():
        same(counts, came.counts[name])


@settings(max_examples=80)
@given(grouped())
def test_the_second_pass_adds_up_and_equals_each_side_alone(data: Grouped) -> None:
    groups = data.count(None)
    if not groups.counts:
        return
    layout = data.images.layout
    thresholds = choose_threshold(data.images.count(None), ThresholdSpec())
    names = list(groups.counts)
    came, edges = open_reference(reference_arrays(groups, thresholds), layout, 24)

    def of(here: NDArray[np.bool_]) -> dict[str, GroupMoments]:
        d = data.images
        found = measure(d.scores[here], d.targets[here], d.patients[here], data.of(here), came, edges)
        return open_moments(moments_arrays(found), names, layout)

    pooled = of(np.ones(len(data.values), bool))
    told_ = [of(data.at(number)) for number in data.images.order]
    sites = {name: sum((part[name] for part in told_), GroupMoments.zero(layout)) for name in names}
    for name in names:
        one, other = (part.to_arrays() for part in (pooled[name], sites[name]))
        assert all(np.abs(one[key] - other[key]).max() <= len(data.values) for key in one)
        here = np.array([value == name for value in data.values])
        others = np.array([value not in (name, NOT_RECORDED) for value in data.values])
        for mask, reference, found in (
            (here, Reference(groups.counts[name], thresholds), pooled[name].own),
            (others, Reference(rest_of(groups, name, pooled[name]), thresholds), pooled[name].rest),
        ):
            d = data.images
            alone = Moments.of(d.scores[mask], d.targets[mask], d.patients[mask], reference)
            assert np.abs(alone.squares - found.squares).max() <= len(d.scores)
            assert np.array_equal(alone.support, found.support)
            assert alone.patients == found.patients == reference.counts.patients
            assert np.abs(alone.auc_parts - found.auc_parts).max() <= len(d.scores)


@settings(max_examples=60)
@given(grouped())
def test_without_patients_in_two_groups_differences_vary_as_much_as_both_sides(data: Grouped) -> None:
    groups = data.count(None)
    owners: dict[int, set[str]] = {}
    for patient, value in zip(data.images.patients.tolist(), data.values, strict=True):
        owners.setdefault(patient, set()).add(value)
    if not groups.counts or any(len(of) > 1 for of in owners.values()):
        return
    d = data.images
    thresholds = choose_threshold(d.count(None), ThresholdSpec())
    found = measure(d.scores, d.targets, d.patients, data.values, groups, thresholds)
    for one in found.values():
        both = one.own.squares + one.rest.squares
        assert np.abs(one.contrast[: len(METRICS)] - both).max() <= len(d.scores)
        assert np.abs(one.contrast[-1] - one.gaps.sum(axis=0)).max() <= len(d.scores)


@settings(max_examples=60)
@given(grouped())
def test_the_gap_is_mean_score_less_share_of_positives(data: Grouped) -> None:
    d = data.images
    found = gaps(d.count(None))
    position = Scored.of(d.scores, d.targets, d.patients, d.layout).position
    for column in range(d.layout.classes):
        known = ~np.isnan(d.targets[:, column])
        if d.layout.task != "multilabel":
            known &= ~np.isnan(d.targets).any(axis=1)
        if not known.any():
            assert np.isnan(found[column])
            continue
        expected = ((position[known, column] + 0.5) / d.layout.bins - d.targets[known, column]).mean()
        assert found[column] == pytest.approx(expected, abs=1e-12)


# --- small cells -----------------------------------------------------------------------------------------------------


def _blocks(counts: Counts, cell: int, bins: int) -> list[tuple[int, int]]:
    """First and last bin of each block that was released, as who reads the message can put them together."""
    low, high = counts.low.group(cell, bins), counts.high.group(cell, bins)
    assert np.array_equal(low[1], high[1]), "blocks do not part the scores"
    return list(zip(low[0].tolist(), high[0].tolist(), strict=True))


class Attacker:
    """Adds and subtracts what left, as it likes, and knows that no count is negative.

    What it wants are counts of cells: (block of the whole, predicted class, group); withheld groups are one to it.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.rows: list[NDArray[np.float64]] = []
        self.sums: list[int] = []

    def cells(
        self, blocks: Iterable[int] | None, predicted: Iterable[int] | None, owner: int | None
    ) -> NDArray[np.float64]:
        """Indicator of cells; ``None``: all along that side."""
        found = np.zeros(self.shape)
        sides = [range(n) if of is None else list(of) for n, of in zip(self.shape, (blocks, predicted), strict=False)]
        found[np.ix_(*sides, range(self.shape[2]) if owner is None else [owner])] = 1.0
        return found.reshape(-1)

    def learn(self, of: NDArray[np.float64], count: int) -> None:
        self.rows.append(of)
        self.sums.append(count)

    def prepare(self) -> None:
        empty = np.zeros(int(np.prod(self.shape)), bool)
        for row, total in zip(self.rows, self.sums, strict=True):
            if not total:
                empty |= row > 0
        self.some = ~empty
        table = np.unique(np.array(self.rows)[:, self.some], axis=0)
        _, s, basis = np.linalg.svd(table, full_matrices=False)
        self.basis = basis[s > 1e-9]

    def knows(self, of: NDArray[np.float64]) -> bool:
        wanted = of[self.some]
        return float(np.abs(wanted - self.basis.T @ (self.basis @ wanted)).max(initial=0.0)) < 1e-6


@settings(max_examples=300)
@given(grouped(), st.sampled_from([2, 3, 5]))
def test_no_cell_below_k_can_be_had_by_subtraction(data: Grouped, k: int) -> None:
    d = data.images
    whole, groups = d.count(None, k), data.count(None, k)
    scored = Scored.of(d.scores, d.targets, d.patients, d.layout)
    value, names = np.array(data.values, dtype=object), list(groups.counts)
    multiclass = d.layout.task == "multiclass"
    predicted = d.scores.argmax(axis=1) if multiclass and len(d.scores) else np.zeros(len(d.scores), int)
    true = np.nan_to_num(d.targets).argmax(axis=1) if multiclass else predicted
    for column in range(d.layout.classes):
        for sign in (0, 1):
            cell = 2 * column + sign
            of = scored.known[:, column] & (scored.positive[:, column] == bool(sign))
            if multiclass:  # who is withheld of the whole is in no count of it
                of &= whole.withheld[true, 1] == 0
            elif whole.withheld[column, sign]:
                of &= False
            owner = np.full(len(value), len(names))  # withheld, until the group's counts say otherwise
            for number, name in enumerate(names):
                counts = groups.counts[name]
                told = (counts.withheld[true, 1] == 0) if multiclass else not counts.withheld[column, sign]
                owner[of & (value == name) & told] = number
            parts = _blocks(whole, cell, d.layout.bins)
            position = scored.position[:, column]
            block = np.array(
                [next((i for i, (a, b) in enumerate(parts) if a <= p <= b), -1) for p in position.tolist()]
            )
            if not parts:
                assert not any(counts.totals[column, sign] for counts in groups.counts.values())
                continue
            confused = multiclass and sign == 1
            width = d.layout.classes if confused else 1
            attacker = Attacker((len(parts), width, len(names) + 1))
            for i in range(len(parts)):
                attacker.learn(attacker.cells([i], None, None), int((of & (block == i)).sum()))
            if not any(of & (owner == len(names))):  # it is told where nothing was withheld
                attacker.learn(attacker.cells(None, None, len(names)), 0)
            for number, name in enumerate(names):
                counts = groups.counts[name]
                mine = of & (owner == number)
                assert counts.totals[column, sign] == mine.sum()
                assert counts.class_patients[column, sign] % k == 0
                covered: list[int] = []
                for first, last in _blocks(counts, cell, d.layout.bins):
                    inside = [i for i, (a, b) in enumerate(parts) if first <= a and b <= last]
                    assert sorted(inside) == [i for i, (a, b) in enumerate(parts) if b >= first and a <= last], (
                        "cuts a block"
                    )
                    attacker.learn(attacker.cells(inside, None, number), int((mine & np.isin(block, inside)).sum()))
                    covered += inside
                attacker.learn(attacker.cells(set(range(len(parts))) - set(covered), None, number), 0)
                if confused:
                    row = counts.confusion[column]
                    assert row.sum() == mine.sum()
                    shown = [c for c in range(width) if row[c]]
                    for c in shown:
                        assert row[c] == (mine & (predicted == c)).sum()
                        attacker.learn(attacker.cells(None, [c], number), int(row[c]))
                    # Of columns with 0 it cannot tell an empty one from one that is not released, but together.
                    attacker.learn(attacker.cells(None, set(range(width)) - set(shown), number), int(row[-1]))
            if confused:
                row = whole.confusion[column]
                shown = [c for c in range(width) if row[c]]
                for c in shown:
                    attacker.learn(attacker.cells(None, [c], None), int(row[c]))
                attacker.learn(attacker.cells(None, set(range(width)) - set(shown), None), int(row[-1]))
            attacker.prepare()
            runs = [range(a, b) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)]
            for number in range(len(names) + 1):
                for run in runs:
                    for columns in [range(width), *([c] for c in range(width))]:
                        inside = of & (owner == number) & np.isin(block, run)
                        if confused:
                            inside &= np.isin(predicted, columns)
                        if 0 < len(set(d.patients[inside].tolist())) < k:
                            assert not attacker.knows(attacker.cells(run, columns, number))


def test_a_lone_small_group_takes_another_with_it() -> None:
    """Nine women, two men and five others, k = 3: hidden alone, the two men are what the others leave of the total."""
    count = 16
    scores, targets = np.linspace(0.1, 0.9, count)[:, None], np.ones((count, 1))
    values = ["F"] * 9 + ["M"] * 2 + ["O"] * 5
    found = Subgroups.of(scores, targets, np.arange(count), values, Layout("binary", 1, 64), 3)
    assert list(found.counts) == ["F"]
    assert found.suppressed == 1


def test_values_beyond_the_most_frequent_are_told_together() -> None:
    values = [f"device {i}" for i in range(20) for _ in range(i + 1)]
    groups = told(values)
    assert len(set(groups)) == MOST_VALUES + 1
    assert groups.count(OTHER) == sum(range(1, 9))
    assert told(["a", "b"], known=["a"]) == ["a", OTHER]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("suppressed"), "other fields"),
        (lambda a: a.update({"suppressed": np.array([2])}), "outside"),
        (lambda a: a.update({"x\n/size": np.array([1, 1])}), "plain, short word"),
        (lambda a: a.update({f"{'v' * 65}/size": np.array([1, 1])}), "plain, short word"),
        (lambda a: [a.update({f"v{i}/size": np.array([1, 1])}) for i in range(20)], "more than"),
        (lambda a: a.update({"F/size": np.array([9, 9])}), "contradicts"),
        (lambda a: a.pop("F/low_n"), "other fields|has no"),
    ],
)
def test_forged_groups_are_refused(change: object, words: str) -> None:
    layout = Layout("binary", 1, 64)
    sent = Subgroups.of(np.full((4, 1), 0.5), np.ones((4, 1)), np.arange(4), ["F"] * 4, layout).to_arrays()
    change(sent)  # type: ignore[operator]
    with pytest.raises(ProtocolError, match=words):
        Subgroups.from_arrays(sent, layout)


def joined_slowly(low: Ints, high: Ints, owner: Ints, patient: Ints, k: int) -> list[tuple[int, int]]:
    """The rule of ``joint._joined``, word for word: each block looked at anew with all that waits before it."""

    def holds(rows: list[int]) -> bool:
        owned = {who: {int(patient[row]) for row in rows if owner[row] == who} for who in {int(owner[r]) for r in rows}}
        return all(len(patients) >= k for patients in owned.values())

    closed: list[list[int]] = []
    pending: list[int] = []
    for start in np.unique(low):
        pending += np.flatnonzero(low == start).tolist()
        if holds(pending):
            closed.append(pending)
            pending = []
    while pending and closed and not holds(pending):
        pending = closed.pop() + pending
    block = {row: rows for rows in [*closed, pending] for row in rows}
    return [(min(low[block[row]]), max(high[block[row]])) for row in range(len(low))]


@given(st.integers(0, 60), st.integers(1, 4), st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**32))
def test_blocks_are_joined_as_the_rule_says_it(images_: int, owners: int, k: int, wide: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    low = random.integers(0, 64 // wide + 1, images_) * wide
    owner, patient = random.integers(0, owners, images_), random.integers(0, max(1, images_ // 2), images_)
    first, last = joint._joined(low, low + wide - 1, owner, patient, owners, k)
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == joined_slowly(
        low, low + wide - 1, owner, patient, k
    )


def test_joining_looks_at_no_image_more_than_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of one image each, and one patient who is alone to the end: all is joined, from below and from above."""
    looked: list[int] = []
    take = joint._Pending.take

    def counted(self: joint._Pending, rows: Ints, owner: Ints, patient: Ints) -> None:
        looked.append(len(rows))
        take(self, rows, owner, patient)

    monkeypatch.setattr(joint._Pending, "take", counted)
    low = np.arange(5000)
    owner, patient = (low == 4999).astype(np.int64), low
    first, last = joint._joined(low, low, owner, patient, 2, 10)
    assert (first == 0).all() and (last == 4999).all() and sum(looked) < 10_000
