"""Metrics from merged counts against scikit-learn, textbook variances and the truth."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from common.errors import DataError, ModelError, ProtocolError
from common.metrics import (
    METRICS,
    Counts,
    Interval,
    Layout,
    Moments,
    Reference,
    Summary,
    Thresholds,
    auc,
    auc_bounds,
    choose_threshold,
    roc,
    summarise,
)
from common.metrics.intervals import interval, wilson
from common.study import Study, ThresholdSpec

Array = NDArray[np.float64]
YOUDEN = ThresholdSpec()


def example(
    task: str, classes: int, images: int = 300, patients: int = 120, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Scores, targets and patients; a patient's images share a part of their score, some multilabel entries are NaN."""
    random = np.random.default_rng(seed)
    patient = random.integers(patients, size=images)
    if task == "multiclass":
        label = random.integers(classes, size=images)
        target = np.eye(classes)[label]
        logits = 1.2 * target + random.normal(size=(images, classes)) + random.normal(size=(patients, classes))[patient]
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    else:
        target = (random.random((images, classes)) < 0.4).astype(float)
        noise = random.normal(size=(images, classes)) + random.normal(size=(patients, classes))[patient]
        scores = 1 / (1 + np.exp(-(1.5 * target - 0.5 + noise)))
        if task == "multilabel":
            target[random.random(target.shape) < 0.1] = np.nan
    return scores, target, patient


def both_passes(
    scores: Array, targets: Array, patients: Array, layout: Layout, thresholds: Thresholds | None = None
) -> tuple[Reference, Moments]:
    counts = Counts.of(scores, targets, patients, np.zeros(len(scores)), layout)
    reference = Reference(counts, thresholds or choose_threshold(counts, YOUDEN))
    return reference, Moments.of(scores, targets, patients, reference)


def summary_of(scores: Array, targets: Array, patients: Array, layout: Layout, confidence: float = 0.95) -> Summary:
    return summarise(*both_passes(scores, targets, patients, layout), confidence)


def value(one: Interval) -> float:
    assert one.value is not None and one.low is not None and one.high is not None
    assert 0.0 <= one.low <= one.value <= one.high <= 1.0
    return one.value


@pytest.mark.parametrize(
    ("task", "classes", "bins"), [("binary", 1, 64), ("multilabel", 3, 1 << 14), ("multilabel", 1, 37)]
)
def test_thresholded_metrics_equal_scikit_learn_on_the_binned_scores(task: str, classes: int, bins: int) -> None:
    scores, targets, patients = example(task, classes)
    layout = Layout(task, classes, bins)  # type: ignore[arg-type]
    summary = summary_of(scores, targets, patients, layout)
    binned = layout.positions(scores)
    expected: dict[str, list[float]] = {name: [] for name in METRICS}
    for column in range(classes):
        known = ~np.isnan(targets[:, column])
        truth, score = targets[known, column], binned[known, column]
        decided = score >= summary.reference.thresholds.position[column]
        precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, decided, average="binary")
        ours = {
            "auc": sk.roc_auc_score(truth, score),
            "accuracy": sk.accuracy_score(truth, decided),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
            "sensitivity": recall,
            "specificity": sk.recall_score(truth, decided, pos_label=0),
            "precision": precision,
            "f1": f1,
        }
        for name in METRICS:
            assert value(summary.per_class[column][name]) == pytest.approx(ours[name], abs=1e-9), name
            expected[name].append(ours[name])
        matrix = summary.confusion if task == "binary" else summary.confusion[column]  # type: ignore[index]
        np.testing.assert_array_equal(matrix, sk.confusion_matrix(truth, decided))
    for name in METRICS:
        assert value(summary.overall[name]) == pytest.approx(np.mean(expected[name]), abs=1e-9), name


def test_multiclass_metrics_equal_scikit_learn_on_the_binned_scores() -> None:
    scores, targets, patients = example("multiclass", 4)
    layout = Layout("multiclass", 4, 1 << 14)
    summary = summary_of(scores, targets, patients, layout)
    truth, decided, binned = targets.argmax(axis=1), scores.argmax(axis=1), layout.positions(scores)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, decided)
    areas = [sk.roc_auc_score(targets[:, column], binned[:, column]) for column in range(4)]
    for column in range(4):
        ours = summary.per_class[column]
        assert value(ours["auc"]) == pytest.approx(areas[column], abs=1e-9)
        assert value(ours["precision"]) == pytest.approx(precision[column], abs=1e-9)
        assert value(ours["sensitivity"]) == pytest.approx(recall[column], abs=1e-9)
        assert value(ours["f1"]) == pytest.approx(f1[column], abs=1e-9)
        assert value(ours["balanced_accuracy"]) == pytest.approx(
            sk.balanced_accuracy_score(truth == column, decided == column), abs=1e-9
        )
    overall = summary.overall
    assert value(overall["auc"]) == pytest.approx(np.mean(areas), abs=1e-9)
    assert value(overall["auc"]) == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-3)
    assert value(overall["accuracy"]) == pytest.approx(sk.accuracy_score(truth, decided), abs=1e-9)
    assert value(overall["balanced_accuracy"]) == pytest.approx(sk.balanced_accuracy_score(truth, decided), abs=1e-9)
    assert value(overall["f1"]) == pytest.approx(sk.f1_score(truth, decided, average="macro"), abs=1e-9)
    np.testing.assert_array_equal(summary.confusion, sk.confusion_matrix(truth, decided))


def test_raw_auc_lies_within_the_stated_bound_of_the_binned_one() -> None:
    scores, targets, patients = example("binary", 1)
    raw = sk.roc_auc_score(targets, scores)
    for bins in (2, 16, 256, 1 << 14):
        counts = Counts.of(scores, targets, patients, np.zeros(300), Layout("binary", 1, bins))
        low, high = (bound[0] for bound in auc_bounds(counts))
        assert low - 1e-12 <= raw <= high + 1e-12
        assert auc(counts)[0] == pytest.approx((low + high) / 2)
        positions = counts.layout.positions(scores)[:, 0]
        tied = sum(
            ((positions == at) & (targets[:, 0] == 1)).sum() * ((positions == at) & (targets[:, 0] == 0)).sum()
            for at in range(bins)
        )
        assert high - low == pytest.approx(tied / targets.sum() / (1 - targets).sum())


def textbook_auc_variance(scores: Array, targets: Array, patients: Array) -> float:
    """Obuchowski (1997), equations 2 to 4, by its double sums; with one image per patient DeLong (1988)."""
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    kernel = np.array(
        [[1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]) for j in negative] for i in positive]
    )
    m, n = kernel.shape
    area = kernel.mean()
    over_positive, over_negative = kernel.mean(axis=1), kernel.mean(axis=0)
    s10 = s01 = s11 = 0.0
    everybody = np.unique(patients)
    for one in everybody:
        mine, other = patients[positive] == one, patients[negative] == one
        a, b = over_positive[mine].sum() - mine.sum() * area, over_negative[other].sum() - other.sum() * area
        s10, s01, s11 = s10 + a * a, s01 + b * b, s11 + a * b
    i10, i01, i = len(np.unique(patients[positive])), len(np.unique(patients[negative])), len(everybody)
    s10 *= i10 / ((i10 - 1) * m)
    s01 *= i01 / ((i01 - 1) * n)
    s11 *= i / (i - 1)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("patients", [None, 40])
def test_auc_interval_is_delongs_and_with_clusters_obuchowskis(patients: int | None) -> None:
    scores, targets, patient = example("binary", 1, images=150, patients=patients or 150)
    patient = np.arange(150) if patients is None else patient
    layout = Layout("binary", 1, 32)  # with ties
    ours = summary_of(scores, targets, patient, layout).overall["auc"]
    variance = textbook_auc_variance(layout.positions(scores)[:, 0], targets[:, 0], patient)
    if patients is None:  # DeLong by numpy's unbiased variances
        ranked, truth = layout.positions(scores)[:, 0], targets[:, 0] == 1
        kernel = (np.sign(ranked[truth][:, None] - ranked[~truth][None]) + 1) / 2
        delong = kernel.mean(axis=1).var(ddof=1) / truth.sum() + kernel.mean(axis=0).var(ddof=1) / (~truth).sum()
        assert variance == pytest.approx(delong, rel=1e-12)
    area = value(ours)
    logit, reach = math.log(area / (1 - area)), 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    assert ours.low == pytest.approx(1 / (1 + math.exp(-(logit - reach))), abs=1e-9)
    assert ours.high == pytest.approx(1 / (1 + math.exp(-(logit + reach))), abs=1e-9)


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multiclass", 3), ("multilabel", 3)])
def test_variances_agree_with_the_jackknife_over_patients(task: str, classes: int) -> None:
    """Leaving out one patient after the other knows nothing of influences, placements or covariances."""
    scores, targets, patients = example(task, classes, images=360, patients=150)
    layout = Layout(task, classes, 1 << 10)  # type: ignore[arg-type]
    reference, moments = both_passes(scores, targets, patients, layout)
    everybody = np.unique(patients)
    left_out: dict[tuple[str, int], list[float]] = {}
    for one in everybody:
        keep = patients != one
        counts = Counts.of(scores[keep], targets[keep], patients[keep], np.zeros(keep.sum()), layout)
        summary = summarise(Reference(counts, reference.thresholds), None)
        for name, column in itertools.product(METRICS, range(-1, classes)):
            table = summary.overall if column < 0 else summary.per_class[column]
            left_out.setdefault((name, column), []).append(float(table[name].value))  # type: ignore[arg-type]
    n = len(everybody)
    squares, _ = moments.variances()
    for (name, column), values in left_out.items():
        jackknife = (n - 1) / n * np.square(np.array(values) - np.mean(values)).sum()
        ours = squares[METRICS.index(name), column] * n / (n - 1)
        assert ours == pytest.approx(jackknife, rel=0.1), (name, column)


def test_clustered_interval_covers_where_an_unclustered_one_does_not() -> None:
    """Four images a patient, normal signal 1.2 apart, variance 1 of the patient + 0.25: AUC Φ(1.2 / √2.5)."""
    random = np.random.default_rng(7)
    layout = Layout("binary", 1, 1 << 10)
    truth = NormalDist().cdf(1.2 / math.sqrt(2 * 1.25))
    covered = {"clustered": 0, "plain": 0}
    repeats = 200
    for _ in range(repeats):
        label = np.repeat(random.integers(2, size=60), 4)
        signal = 1.2 * label + np.repeat(random.normal(size=60), 4) + random.normal(scale=0.5, size=240)
        scores = (1 / (1 + np.exp(-signal)))[:, None]
        for kind, patients in (("clustered", np.repeat(np.arange(60), 4)), ("plain", np.arange(240))):
            found = summary_of(scores, label[:, None].astype(float), patients, layout).overall["auc"]
            covered[kind] += found.low <= truth <= found.high  # type: ignore[operator]
    assert 0.90 <= covered["clustered"] / repeats <= 0.99
    assert covered["plain"] / repeats < 0.85


def test_all_right_gives_wilsons_interval_with_patients_as_n() -> None:
    targets = np.repeat([0.0, 1.0], 30)[:, None]
    patients = np.arange(60) // 2
    overall = summary_of(0.1 + 0.8 * targets, targets, patients, Layout("binary", 1, 256)).overall
    z = 1.959963984540054
    for name, n in (("accuracy", 30), ("sensitivity", 15), ("specificity", 15), ("auc", 15), ("balanced_accuracy", 30)):
        assert overall[name].value == 1.0 == overall[name].high
        assert overall[name].low == pytest.approx(1 / (1 + z * z / n)), name


def test_undefined_metrics_are_none() -> None:
    scores, targets = np.array([[0.2], [0.7], [0.9]]), np.ones((3, 1))
    summary = summary_of(scores, targets, np.arange(3), Layout("binary", 1, 16))
    assert not summary.reference.thresholds.chosen[0]
    assert summary.reference.thresholds.edges[0] == 0.5
    for name in ("auc", "specificity", "balanced_accuracy"):
        assert summary.overall[name] == Interval(None, None, None)
    assert value(summary.overall["sensitivity"]) == pytest.approx(2 / 3)
    assert summary.roc(0) is None
    empty = summarise(
        Reference(Counts.zero(Layout("multiclass", 3, 16)), Thresholds.at([], 16)),
        Moments.zero(Layout("multiclass", 3, 16)),
    )
    assert all(found.value is None for found in empty.overall.values())
    assert empty.loss is None


def test_precision_without_a_positive_call_is_undefined_and_macro_skips_the_class() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    targets = np.eye(3)
    summary = summary_of(scores, targets, np.arange(3), Layout("multiclass", 3, 16))
    assert summary.per_class[2]["precision"].value is None
    assert summary.per_class[2]["f1"].value == 0.0
    assert summary.overall["precision"].value == pytest.approx((0.5 + 1.0) / 2)


def test_one_patient_alone_gives_a_wide_interval() -> None:
    random = np.random.default_rng(0)
    targets = (np.arange(40) % 2).astype(float)[:, None]
    summary = summary_of(random.random((40, 1)), targets, np.zeros(40), Layout("binary", 1, 64))
    for name in METRICS:
        found = summary.overall[name]
        assert found.high - found.low > 0.5, name  # type: ignore[operator]


def test_values_stand_without_intervals_when_the_second_pass_lacks_patients() -> None:
    scores, targets, patients = example("binary", 1)
    reference, _ = both_passes(scores, targets, patients, Layout("binary", 1, 256))
    half = patients < 60
    partial = Moments.of(scores[half], targets[half], patients[half], reference)
    for moments in (None, partial):
        found = summarise(reference, moments).overall["auc"]
        assert found.value is not None and found.low is None and found.high is None


def test_masked_images_count_nowhere() -> None:
    scores, targets, patients = example("multiclass", 3)
    layout = Layout("multiclass", 3, 64)
    masked = targets.copy()
    masked[::3, 1] = np.nan  # one masked entry masks the image
    keep = np.arange(300) % 3 != 0
    losses = np.random.default_rng(0).random(300)
    ours = Counts.of(scores, masked, patients, losses, layout)
    expected = Counts.of(scores[keep], targets[keep], patients[keep], losses[keep], layout)
    same(ours, expected)
    assert ours.images == keep.sum()
    assert ours.patients == len(np.unique(patients[keep]))
    assert ours.loss == pytest.approx(losses[keep].sum(), abs=1e-6)
    reference = Reference(ours, Thresholds.at([], 64))
    same(
        Moments.of(scores, masked, patients, reference),
        Moments.of(scores[keep], targets[keep], patients[keep], reference),
    )


def same(a: Counts | Moments | Reference, b: Counts | Moments | Reference) -> None:
    left, right = a.to_arrays(), b.to_arrays()
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def youden_by_hand(counts: Counts) -> int:
    """Every edge tried; of the best the lowest run, of it the middle."""
    bins = counts.layout.bins
    tp, fp = (
        [int(n[at >= edge].sum()) for edge in range(bins + 1)]
        for at, n in (counts.low.group(1, bins), counts.low.group(0, bins))
    )
    gain = [t * fp[0] - f * tp[0] for t, f in zip(tp, fp, strict=True)]
    first = last = gain.index(max(gain))
    while last + 1 <= bins and gain[last + 1] == max(gain):
        last += 1
    return (first + last) // 2


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("bins", [2, 5, 64, 1000])
def test_youden_threshold_is_the_best_edge(seed: int, bins: int) -> None:
    scores, targets, patients = example("binary", 1, images=12, patients=12, seed=seed)
    counts = Counts.of(scores, targets, patients, np.zeros(12), Layout("binary", 1, bins))
    chosen = choose_threshold(counts, YOUDEN)
    assert chosen.chosen[0]
    assert chosen.position[0] == youden_by_hand(counts)


def test_youden_threshold_of_separated_groups_is_halfway() -> None:
    counts = Counts.of(
        np.array([[0.2], [0.8]]), np.array([[0.0], [1.0]]), np.arange(2), np.zeros(2), Layout("binary", 1, 100)
    )
    assert choose_threshold(counts, YOUDEN).edges[0] == pytest.approx(0.5)


@pytest.mark.parametrize("required", [0.07, 0.5, 0.9, 0.95, 0.999])
def test_required_sensitivity_is_met_by_the_highest_edge(required: float) -> None:
    scores, targets, patients = example("binary", 1)
    counts = Counts.of(scores, targets, patients, np.zeros(300), Layout("binary", 1, 512))
    position = choose_threshold(counts, ThresholdSpec(rule="sensitivity", sensitivity=required)).position[0]
    positives = counts.layout.positions(scores)[targets[:, 0] == 1, 0]
    assert (positives >= position).mean() >= required
    assert (positives >= position + 1).mean() < required


def test_thresholds_are_found_again_from_their_edges() -> None:
    thresholds = Thresholds.at([0.25, 1.0], 1 << 14)
    assert thresholds.position.tolist() == [4096, 16384]
    assert thresholds.edges.tolist() == [0.25, 1.0]
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        Thresholds.at([1.5], 16)


def test_roc_curve_is_thin_rises_and_holds_the_area() -> None:
    random = np.random.default_rng(3)
    targets = (random.random((5000, 1)) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(targets + random.normal(size=(5000, 1)))))
    counts = Counts.of(scores, targets, np.arange(5000), np.zeros(5000), Layout("binary", 1, 1 << 14))
    curve = roc(counts, 0)
    assert curve is not None
    fpr, tpr = curve
    assert len(fpr) <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(counts)[0], abs=1e-3)
    everything = roc(counts, 0, points=100_000)
    assert everything is not None
    assert np.trapezoid(everything[1], everything[0]) == pytest.approx(auc(counts)[0], abs=1e-12)


def test_score_one_falls_into_the_last_bin() -> None:
    layout = Layout("binary", 1, 10)
    assert layout.positions(np.array([0.0, 0.099, 0.1, 1.0])).tolist() == [0, 0, 1, 9]


@pytest.mark.parametrize("scores", [np.nan, -0.1, 1.1, np.inf])
def test_scores_that_are_no_probabilities_are_refused(scores: float) -> None:
    with pytest.raises(ModelError, match="diverged"):
        Counts.of(np.full((2, 1), scores), np.zeros((2, 1)), np.arange(2), np.zeros(2), Layout("binary", 1, 16))


def test_targets_that_do_not_fit_are_refused() -> None:
    two = np.zeros((2, 2))
    cases = [
        (two, Layout("binary", 1, 16), "must be"),
        (two + 0.5, Layout("multilabel", 2, 16), "0, 1 or NaN"),
        (two, Layout("multiclass", 2, 16), "exactly one class"),
        (two + 1, Layout("multiclass", 2, 16), "exactly one class"),
    ]
    for targets, layout, message in cases:
        with pytest.raises(DataError, match=message):
            Counts.of(two, targets, np.arange(2), np.zeros(2), layout)
    with pytest.raises(DataError, match="losses"):
        Counts.of(two, two, np.arange(2), np.full(2, np.nan), Layout("multilabel", 2, 16))


def study(task: str, classes: str, model: str = "{name: cnn}") -> Study:
    return Study.parse(f"{{name: x, task: {task}, classes: {classes}, model: {model}, evaluation: {{bins: 64}}}}")


def test_layout_of_a_study() -> None:
    assert Layout.of(study("binary", "{a: [a], b: [b]}")) == Layout("binary", 1, 64)
    assert Layout.of(study("multiclass", "{a: [a], b: [b], c: [c]}")) == Layout("multiclass", 3, 64)
    for task, classes, bins in (("binary", 2, 16), ("multiclass", 1, 16), ("binary", 1, 1), ("other", 1, 16)):
        with pytest.raises(ValueError, match="layout"):
            Layout(task, classes, bins)  # type: ignore[arg-type]


def test_counts_of_other_layouts_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="cannot add"):
        Counts.zero(Layout("binary", 1, 16)) + Counts.zero(Layout("binary", 1, 32))
    with pytest.raises(ValueError, match="cannot add"):
        Moments.zero(Layout("binary", 1, 16)) + Moments.zero(Layout("multilabel", 1, 16))


def test_intervals_stay_inside_and_shrink_with_confidence() -> None:
    wide, narrow = (interval(0.98, 1e-3, 50, confidence) for confidence in (0.99, 0.8))
    assert 0.0 <= wide.low < narrow.low < 0.98 < narrow.high < wide.high <= 1.0  # type: ignore[operator]
    assert interval(0.5, 1e9, 10, 0.95) == Interval(0.5, 0.0, 1.0)
    assert interval(math.nan, 0.1, 10, 0.95) == Interval(None, None, None)
    # 81 of 263, Newcombe 1998, Statistics in Medicine 17, table I: 0.2553 to 0.3662
    found = wilson(81 / 263, 263, 1.959963984540054)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


# -- small cells -------------------------------------------------------------------------


def test_a_minimum_cell_of_one_changes_nothing() -> None:
    for task, classes in (("binary", 1), ("multiclass", 3), ("multilabel", 3)):
        scores, targets, patients = example(task, classes)
        layout = Layout(task, classes, 64)  # type: ignore[arg-type]
        free = Counts.of(scores, targets, patients, np.zeros(300), layout)
        same(free, Counts.of(scores, targets, patients, np.zeros(300), layout, min_cell=1))
        assert free.exact and not free.withheld.any()


def test_a_class_of_too_few_patients_is_withheld_and_cannot_be_subtracted_out() -> None:
    scores, targets, patients = example("multiclass", 3, images=90, patients=90)
    rare = np.flatnonzero(targets[:, 2])
    kept = rare[:3]
    targets[np.setdiff1d(rare, kept)] = [1, 0, 0]
    layout = Layout("multiclass", 3, 64)
    counts = Counts.of(scores, targets, patients, np.ones(90), layout, min_cell=5)
    assert counts.withheld.tolist() == [[0, 0], [0, 0], [0, 1]]
    assert counts.images == 87 and counts.loss == 87.0
    assert counts.totals[2, 1] == 0 and (counts.totals.sum(axis=1) == 87).all()
    assert counts.confusion[2].sum() == 0

    few = (np.arange(90) < 2).astype(float)[:, None]
    binary = Counts.of(scores[:, :1], few, np.arange(90), np.ones(90), Layout("binary", 1, 64), min_cell=5)
    assert binary.withheld.tolist() == [[0, 1]] and binary.totals.tolist() == [[88, 0]] and binary.images == 88
    multilabel = Counts.of(
        scores[:, :2],
        np.hstack([few, targets[:, :1]]),
        np.arange(90),
        np.ones(90),
        Layout("multilabel", 2, 64),
        min_cell=5,
    )
    assert multilabel.withheld.tolist() == [[1, 1], [0, 0]] and multilabel.totals[0].tolist() == [0, 0]
    assert multilabel.images == 90
    nobody = Counts.of(scores[:3], targets[:3], np.arange(3), np.ones(3), layout, min_cell=5)
    assert nobody.images == nobody.patients == 0 and nobody.loss == 0.0 and len(nobody.low.at) == 0


def test_coarse_counts_give_bounds_that_hold_the_truth() -> None:
    for task, classes in (("binary", 1), ("multiclass", 3), ("multilabel", 3)):
        scores, targets, patients = example(task, classes)
        layout = Layout(task, classes, 1 << 10)  # type: ignore[arg-type]
        reference, moments = both_passes(scores, targets, patients, layout)
        exact = summarise(reference, moments)
        site = patients < 60
        coarse = Counts.zero(layout)
        for part in (site, ~site):
            coarse += Counts.of(scores[part], targets[part], patients[part], np.zeros(part.sum()), layout, min_cell=5)
        assert not coarse.exact
        bounded = summarise(Reference(coarse, reference.thresholds), None)
        for name in METRICS:
            truth, bound = exact.overall[name].value, bounded.overall[name]
            if bound.value is None:
                assert bound.low <= truth <= bound.high, (task, name)  # type: ignore[operator]
                assert bound.high - bound.low < 0.5  # type: ignore[operator]
            else:
                assert bound.value == pytest.approx(truth)
        assert bounded.overall["auc"].value is None
        same(coarse, Counts.from_arrays(coarse.to_arrays(), layout))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_no_reference_singles_a_patient_out(task: str) -> None:
    """A coordinator that sends a threshold and a reference of its own choice, again and again, learns nothing of where
    one patient stands within the block, or the cell, that was released."""
    bins, classes = 64, 1 if task == "binary" else 3
    targets = np.zeros((60, classes))
    targets[np.arange(60), 0 if classes == 1 else np.arange(60) % 3] = 1.0
    if classes == 1:
        targets[::2] = 0.0
    layout = Layout(task, classes, bins)  # type: ignore[arg-type]
    found: dict[int, set[bytes]] = {1: set(), 10: set()}
    for place in (0.7, 0.8, 0.95):
        scores = np.full((60, classes), 0.55) if classes == 1 else targets * 0.6 + 0.1
        if classes == 1:
            scores[1] = place
        else:
            scores[1] = {0.7: [0.7, 0.2, 0.1], 0.8: [0.2, 0.1, 0.7], 0.95: [0.6, 0.1, 0.3]}[place]
        made_up = Counts.of(
            np.repeat(np.eye(classes) if classes > 1 else [[0.0], [1.0]], 500, axis=0),
            np.repeat(np.eye(classes) if classes > 1 else [[1.0], [0.0]], 500, axis=0),
            np.arange(500 * max(classes, 2)), np.zeros(500 * max(classes, 2)), layout,
        )  # fmt: skip
        for k in found:
            answers = b""
            for edge in range(bins + 1) if classes == 1 else [0]:
                position = np.full(1, edge) if classes == 1 else np.zeros(0, np.int64)
                reference = Reference(made_up, Thresholds(position, np.ones(len(position), np.bool_), bins))
                sums = Moments.of(scores, targets, np.arange(60), reference, min_cell=k).to_arrays()
                answers += b"".join(sums[name].tobytes() for name in sorted(sums))
            found[k].add(answers)
    assert len(found[1]) > 1, "without the rule a place shows"
    assert len(found[10]) == 1


def test_sums_are_over_blocks_and_never_over_few_patients() -> None:
    targets = (np.arange(20) % 2).astype(float)[:, None]
    scores = np.where(np.arange(20) < 3, 0.9, 0.1 + 0.01 * np.arange(20))[:, None]
    layout = Layout("binary", 1, 256)
    counts = Counts.of(scores, targets, np.arange(20), np.zeros(20), layout)
    reference = Reference(counts, Thresholds.at([0.5], 256))
    free = Moments.of(scores, targets, np.arange(20), reference)
    safe = Moments.of(scores, targets, np.arange(20), reference, min_cell=5)
    precision = METRICS.index("precision")
    assert free.support[precision, 0] == 3 and free.squares[precision, 0] > 0
    assert safe.support[precision, 0] == 10, "of all negatives, as their block is released at its worst"
    assert not safe.withheld.any()
    same(safe, Moments.from_arrays(safe.to_arrays(), layout))


# -- what a hostile sender may send ------------------------------------------------------


def counts_message(task: str = "multiclass", classes: int = 3) -> tuple[dict[str, NDArray[np.generic]], Layout]:
    scores, targets, patients = example(task, classes, images=60, patients=30)
    layout = Layout(task, classes, 64)  # type: ignore[arg-type]
    return Counts.of(scores, targets, patients, np.ones(60), layout).to_arrays(), layout


HOSTILE_COUNTS = {
    "field missing": lambda a: a.pop("loss"),
    "field too many": lambda a: a.update(more=np.zeros(1)),
    "half of high": lambda a: a.update(high_at=a["low_at"]),
    "not an array": lambda a: a.update(loss=[1.0]),
    "float for integer": lambda a: a.update(low_n=a["low_n"].astype(float)),
    "32 bits": lambda a: a.update(low_n=a["low_n"].astype(np.int32)),
    "other byte order": lambda a: a.update(low_n=a["low_n"].astype(">i8")),
    "other layout": lambda a: a.update(layout=np.array([1, 3, 128])),
    "negative count": lambda a: a.update(low_n=-a["low_n"]),
    "huge count": lambda a: a["low_n"].__setitem__(0, 1 << 62),
    "bin outside": lambda a: a["low_at"].__setitem__(-1, 3 * 2 * 64),
    "bin twice": lambda a: a["low_at"].__setitem__(1, a["low_at"][0]),
    "empty bin": lambda a: a["low_n"].__setitem__(0, 0),
    "lengths differ": lambda a: a.update(low_n=a["low_n"][1:].copy()),
    "two axes": lambda a: a.update(low_at=a["low_at"][None]),
    "loss nan": lambda a: a.update(loss=np.array([np.nan])),
    "loss infinite": lambda a: a.update(loss=np.array([np.inf])),
    "loss negative": lambda a: a.update(loss=np.array([-1.0])),
    "loss huge": lambda a: a.update(loss=np.array([1e300])),
    "loss not in units": lambda a: a.update(loss=np.array([0.1])),
    "more images than counted": lambda a: a["size"].__setitem__(0, 61),
    "more patients than images": lambda a: a["size"].__setitem__(1, 61),
    "no patients": lambda a: a["size"].__setitem__(1, 0),
    "confusion of others": lambda a: a["confusion"].__setitem__((0, 0), a["confusion"][0, 0] + 1),
    "confusion shape": lambda a: a.update(confusion=a["confusion"][:, :3]),
    "class without patients": lambda a: a["class_patients"].__setitem__((0, 0), 0),
    "class of too many patients": lambda a: a["class_patients"].__setitem__((0, 0), 31),
    "high below low": lambda a: a.update(high_at=np.maximum(a["low_at"] - 1, 0), high_n=a["low_n"]),
    "high of another class": lambda a: a.update(high_at=a["low_at"] + 2 * 64, high_n=a["low_n"]),
}


@pytest.mark.parametrize("change", HOSTILE_COUNTS.values(), ids=HOSTILE_COUNTS.keys())
def test_hostile_counts_are_refused(change: object) -> None:
    arrays, layout = counts_message()
    arrays = {key: array.copy() for key, array in arrays.items()}
    Counts.from_arrays(arrays, layout)
    change(arrays)  # type: ignore[operator]
    with pytest.raises(ProtocolError):
        Counts.from_arrays(arrays, layout)


HOSTILE_MOMENTS = {
    "field missing": lambda a: a.pop("patients"),
    "other layout": lambda a: a["layout"].__setitem__(0, 0),
    "negative": lambda a: a["squares"].__setitem__((0, 0), -1),
    "huge": lambda a: a["squares"].__setitem__((0, 0), (1 << 58) + 1),
    "float": lambda a: a.update(squares=a["squares"].astype(float)),
    "shape": lambda a: a.update(squares=a["squares"][:, :1]),
    "squares without patients": lambda a: a["support"].__setitem__((1, 0), 0),
    "parts without patients": lambda a: (a["support"].__setitem__((0, 0), 0), a["squares"].__setitem__((0, 0), 0)),
    "more support than patients": lambda a: a["support"].__setitem__((1, 0), 31),
}


@pytest.mark.parametrize("change", HOSTILE_MOMENTS.values(), ids=HOSTILE_MOMENTS.keys())
def test_hostile_moments_are_refused(change: object) -> None:
    scores, targets, patients = example("multiclass", 3, images=60, patients=30)
    layout = Layout("multiclass", 3, 64)
    _, moments = both_passes(scores, targets, patients, layout)
    arrays = {key: array.copy() for key, array in moments.to_arrays().items()}
    same(moments, Moments.from_arrays(arrays, layout))
    change(arrays)  # type: ignore[operator]
    with pytest.raises(ProtocolError):
        Moments.from_arrays(arrays, layout)


def test_moments_that_add_up_to_more_than_possible_are_refused() -> None:
    layout = Layout("binary", 1, 64)
    most = Moments(
        layout,
        np.full((7, 2), 1 << 58),
        np.zeros((1, 2), np.int64),
        np.ones((7, 2), np.int64),
        np.zeros((7, 2), np.int64),
        1,
    )
    with pytest.raises(ProtocolError, match="greater than any"):
        most + most


def test_a_reference_without_the_sites_own_images_is_refused() -> None:
    """A coordinator that sends a tiny reference would otherwise get squares of any size, or an overflow."""
    scores, targets, patients = example("binary", 1)
    layout = Layout("binary", 1, 64)
    tiny = Counts.of(scores[:4], np.array([[0.0], [1.0], [0.0], [1.0]]), np.arange(4), np.zeros(4), layout)
    with pytest.raises(ProtocolError, match="lacks this site's images"):
        Moments.of(scores, targets, patients, Reference(tiny, choose_threshold(tiny, YOUDEN)))


def test_hostile_references_are_refused() -> None:
    arrays, layout = counts_message("multilabel", 2)
    good = {**arrays, "threshold": np.array([3, 64]), "threshold_chosen": np.array([1, 0])}
    assert Reference.from_arrays(good, layout).thresholds.chosen.tolist() == [True, False]
    for wrong in (
        {"threshold": np.array([3, 65])},
        {"threshold": np.array([3])},
        {"threshold": np.array([3, -1])},
        {"threshold": np.array([3.0, 4.0])},
        {"threshold_chosen": np.array([1, 2])},
    ):
        with pytest.raises(ProtocolError):
            Reference.from_arrays({**good, **wrong}, layout)
    with pytest.raises(ProtocolError, match="no thresholds"):
        Reference.from_arrays(arrays, layout)
    with pytest.raises(ValueError, match="thresholds must be"):
        Reference(Counts.from_arrays(arrays, layout), Thresholds.at([0.5], 64))


def test_segmentation_counts_whether_an_image_has_anything_to_outline() -> None:
    parsed = study("segmentation", "{healthy: [a], lesion: [b]}", model="{name: unet}")
    assert Layout.of(parsed) == Layout("binary", 1, 64)
