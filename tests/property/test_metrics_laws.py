"""Laws of mergeable metrics: how images are spread over sites does not matter, nor the order of sites."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.metrics import METRICS, Counts, Layout, Moments, Reference, auc_bounds, choose_threshold, summarise
from common.metrics.cells import blocks
from common.study import ThresholdSpec


@dataclass(frozen=True)
class Images:
    layout: Layout
    scores: NDArray[np.float64]
    targets: NDArray[np.float64]
    patients: NDArray[np.int64]
    losses: NDArray[np.float64]
    site_of_patient: NDArray[np.int64]
    order: list[int]

    def site(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        here = self.site_of_patient[self.patients] == number
        return self.scores[here], self.targets[here], self.patients[here]

    def count(self, number: int | None, min_cell: int = 1) -> Counts:
        if number is None:
            return Counts.of(self.scores, self.targets, self.patients, self.losses, self.layout, min_cell)
        here = self.site_of_patient[self.patients] == number
        return Counts.of(*self.site(number), self.losses[here], self.layout, min_cell)


@st.composite
def images(draw: st.DrawFn) -> Images:
    """Up to 40 images of up to 15 patients at up to 4 sites, with ties, masks, missing classes and empty sites."""
    task, classes = draw(st.sampled_from([("binary", 1), ("multiclass", 3), ("multilabel", 2)]))
    bins = draw(st.sampled_from([2, 7, 64, 1 << 14]))
    count, patients, sites = draw(st.integers(0, 40)), draw(st.integers(1, 15)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = random.integers(0, draw(st.sampled_from([2, 10, 1000])), size=(count, classes), endpoint=True).astype(
        float
    )
    scores /= max(scores.max(initial=1.0), 1.0)
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if task == "multiclass":
        targets = np.eye(classes)[np.where(random.random(count) < share, 0, random.integers(classes, size=count))]
    else:
        targets = (random.random((count, classes)) < share).astype(float)
    targets[random.random(targets.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
    return Images(
        Layout(task, classes, bins),  # type: ignore[arg-type]
        scores,
        targets,
        random.integers(patients, size=count),
        random.integers(0, 1 << 20, size=count) / (1 << 20),
        random.integers(sites, size=patients),
        draw(st.permutations(range(sites))),
    )


def same(a: Counts | Moments, b: Counts | Moments) -> None:
    left, right = a.to_arrays(), b.to_arrays()
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert np.array_equal(left[key], right[key]), key


@settings(max_examples=150, deadline=None)
@given(images())
def test_sites_in_any_order_count_as_one(data: Images) -> None:
    whole = data.count(None)
    parts = [data.count(number) for number in data.order]
    same(reduce(add, parts, Counts.zero(data.layout)), whole)
    same(Counts.from_arrays(whole.to_arrays(), data.layout), whole)
    reference = Reference(whole, choose_threshold(whole, ThresholdSpec()))
    received = Reference.from_arrays(reference.to_arrays(), data.layout)
    moments = Moments.of(data.scores, data.targets, data.patients, reference)
    merged = [Moments.of(*data.site(number), received) for number in data.order]
    merged = [Moments.from_arrays(part.to_arrays(), data.layout) for part in merged]
    same(reduce(add, merged, Moments.zero(data.layout)), moments)


@settings(max_examples=100, deadline=None)
@given(images(), st.floats(0.6, 0.99))
def test_every_interval_holds_its_value_inside_zero_and_one(data: Images, confidence: float) -> None:
    whole = data.count(None)
    reference = Reference(whole, choose_threshold(whole, ThresholdSpec()))
    summary = summarise(reference, Moments.of(data.scores, data.targets, data.patients, reference), confidence)
    for table in (summary.overall, *summary.per_class.values()):
        assert tuple(table) == METRICS
        for found in table.values():
            if found.value is None:
                assert found.low is None and found.high is None
            else:
                assert found.low is not None and found.high is not None
                assert 0.0 <= found.low <= found.value <= found.high <= 1.0


@settings(max_examples=60, deadline=None)
@given(images(), st.integers(2, 6))
def test_released_counts_are_of_k_patients_or_nobody_and_bound_the_truth(data: Images, k: int) -> None:
    counts = data.count(None, k)
    same(Counts.from_arrays(counts.to_arrays(), data.layout), counts)
    for column in range(data.layout.classes):
        for sign in (0, 1):
            assert counts.class_patients[column, sign] == 0 or counts.class_patients[column, sign] >= k
            for histogram in (counts.low, counts.high):
                assert (histogram.group(2 * column + sign, data.layout.bins)[1] >= k).all()
    assert ((counts.confusion == 0) | (counts.confusion >= k)).all()
    if counts.withheld.any():
        return
    free = data.count(None)
    low, high = auc_bounds(counts)
    finest_low, finest_high = auc_bounds(free)
    defined = ~np.isnan(low)
    assert (low[defined] <= finest_low[defined]).all() and (finest_high[defined] <= high[defined]).all()
    thresholds = choose_threshold(free, ThresholdSpec())
    bounded, exact = summarise(Reference(counts, thresholds), None), summarise(Reference(free, thresholds), None)
    for name in METRICS:
        truth, bound = exact.overall[name].value, bounded.overall[name]
        if truth is not None and bound.value is None and bound.low is not None and bound.high is not None:
            assert bound.low - 1e-12 <= truth <= bound.high + 1e-12, name


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([2, 7, 64, 1000]), st.integers(5, 40))
def test_blocks_hold_k_patients_and_none_could_be_two(seed: int, k: int, bins: int, count: int) -> None:
    random = np.random.default_rng(seed)
    position, patient = random.integers(bins, size=count), random.integers(count, size=count)
    if len(np.unique(patient)) < k:
        return
    low, high = blocks(position, patient, bins, k)
    assert ((low <= position) & (position <= high)).all()

    def pieces(start: int, width: int) -> list[tuple[int, int]]:
        """By definition: halves are taken while there are k patients to be told apart."""
        inside = (position >= start) & (position < start + width)
        if width == 1 or len(np.unique(patient[inside])) < k:
            return [(start, min(start + width, bins) - 1)] if inside.any() else []
        return [*pieces(start, width // 2), *pieces(start + width // 2, width // 2)]

    fine = pieces(0, 1 << (bins - 1).bit_length())
    found = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    for number, (first, last) in enumerate(found):
        inside = (position >= first) & (position <= last)
        assert len(np.unique(patient[inside])) >= k
        parts = [piece for piece in fine if first <= piece[0] <= last]
        assert (parts[0][0], parts[-1][1]) == (first, last), "a block is of whole pieces"
        if number + 1 < len(found):
            assert last < found[number + 1][0]
            assert len(np.unique(patient[inside & (position < parts[-1][0])])) < k, "it ends as soon as it may"


def test_a_few_errors_do_not_hide_a_good_model() -> None:
    """60 of 63 positives score high, three low: every other block stays where it is, and so does the threshold."""
    random = np.random.default_rng(0)
    scores = np.concatenate([random.uniform(0.9, 1.0, 60), [0.02, 0.3, 0.6], random.uniform(0.0, 0.1, 60), [0.8, 0.95]])
    targets = np.repeat([1.0, 0.0], [63, 62])
    layout = Layout("binary", 1, 1024)
    counts = Counts.of(scores[:, None], targets[:, None], np.arange(125), np.zeros(125), layout, min_cell=10)
    low, high = auc_bounds(counts)
    assert 0.6 < low[0] < high[0] <= 1.0
    (edge,) = choose_threshold(counts, ThresholdSpec()).edges
    assert 0.1 <= edge <= 0.95
