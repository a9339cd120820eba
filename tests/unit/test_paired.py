"""Two models, or a model and a reader, from sums: against published figures, statsmodels and independent loops."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from common.metrics import Counts, Layout, Reference, auc_bounds, choose_threshold
from common.metrics.paired import (
    COMPARED,
    Areas,
    Comparison,
    Contrast,
    Joint,
    Models,
    Pair,
    Spread,
    compare,
    mcnemar,
)
from common.study import ThresholdSpec
from simulations.bootstrap import paired_bootstrap

Array = NDArray[np.float64]
Z = 1.959963984540054

OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
"""Albumin, total protein, K-G score and outcome of 43 patients: DeLong, DeLong and Clarke-Pearson 1988, as printed in
http://support.sas.com/documentation/cdl/en/statug/68162/HTML/default/statug_logistic_examples08.htm"""


def drawn(
    seed: int, task: str = "binary", classes: int = 1, images: int = 400, patients: int = 150
) -> tuple[Array, ...]:
    """Two correlated models' scores, targets and patients; a patient's images share a part of both scores."""
    random = np.random.default_rng(seed)
    patient = np.arange(images) if patients >= images else random.integers(patients, size=images)
    shared = random.normal(size=(images, classes)) + random.normal(size=(patients, classes))[patient % patients]
    if task == "multiclass":
        target = np.eye(classes)[random.integers(classes, size=images)]
    else:
        target = (random.random((images, classes)) < 0.4).astype(float)
    both = []
    for strength in (1.6, 1.2):
        logits = strength * target + 0.7 * shared + random.normal(size=(images, classes))
        if task == "multiclass":
            both.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
        else:
            both.append(1 / (1 + np.exp(0.6 - logits)))
    if task == "multilabel":
        target[random.random(target.shape) < 0.1] = np.nan
    return both[0], both[1], target, patient


def references(
    one: Array, other: Array, targets: Array, patients: Array, layout: Layout, min_cell: int = 1
) -> tuple[Reference, Reference]:
    found = []
    for scores in (one, other):
        counts = Counts.of(scores, targets, patients, np.zeros(len(scores)), layout, min_cell)
        found.append(Reference(counts, choose_threshold(counts, ThresholdSpec())))
    return found[0], found[1]


def compared(one: Array, other: Array, targets: Array, patients: Array, layout: Layout, parts: int = 1) -> Comparison:
    """Both passes over ``parts`` sites, patients whole."""
    both = references(one, other, targets, patients, layout)
    sites = [
        Pair.of(one[mine], other[mine], targets[mine], patients[mine], layout)
        for site in range(parts)
        if (mine := patients % parts == site).any()
    ]
    thresholds = both[0].thresholds.position, both[1].thresholds.position
    joint = sum((site.joint(thresholds) for site in sites), Joint.zero(layout))
    spread, areas = Spread.zero(layout), Areas.zero(layout)
    for site in sites:
        more = site.spread(both, joint)
        spread, areas = spread + more[0], areas + more[1]
    return compare(joint, spread, Models(both, areas))


def delong(one: Array, other: Array, truth: Array) -> tuple[float, float]:
    """Difference of AUC and its variance by all pairs: O(n·m), and no rank anywhere."""
    parts = []
    for scores in (one, other):
        kernel = (np.sign(scores[truth == 1][:, None] - scores[truth == 0][None]) + 1) / 2
        parts.append((kernel.mean(), kernel.mean(axis=1), kernel.mean(axis=0)))
    (a, a1, a0), (b, b1, b0) = parts
    covariance = [np.cov(np.stack(each), ddof=1) / each[0].size for each in ((a1, b1), (a0, b0))]
    v = covariance[0] + covariance[1]
    return a - b, v[0, 0] + v[1, 1] - 2 * v[0, 1]


def delong_by_patient(one: Array, other: Array, truth: Array, patients: Array) -> float:
    """Variance of the difference for clusters: Obuchowski 1997, equations 2 to 4, by double sums, of both kernels'
    difference."""
    positive, negative = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    kernel = sum(
        sign * (np.sign(scores[positive][:, None] - scores[negative][None]) + 1) / 2
        for sign, scores in ((1, one), (-1, other))
    )
    assert isinstance(kernel, np.ndarray)
    m, n = kernel.shape
    s10 = s01 = s11 = 0.0
    everybody = np.unique(patients)
    for patient in everybody:
        mine, others = patients[positive] == patient, patients[negative] == patient
        a = (kernel.mean(axis=1) - kernel.mean())[mine].sum()
        b = (kernel.mean(axis=0) - kernel.mean())[others].sum()
        s10, s01, s11 = s10 + a * a, s01 + b * b, s11 + a * b
    i10, i01, i = len(np.unique(patients[positive])), len(np.unique(patients[negative])), len(everybody)
    return float(s10 * i10 / (i10 - 1) / m**2 + s01 * i01 / (i01 - 1) / n**2 + 2 * s11 * i / (i - 1) / (m * n))


def binned(scores: Array, layout: Layout) -> Array:
    return layout.positions(scores).astype(float)


def half(found: Contrast) -> float:
    """Half of an interval's width as standard errors."""
    assert found.difference.low is not None and found.difference.high is not None
    return (found.difference.high - found.difference.low) / 2 / Z


@pytest.mark.parametrize(
    ("name", "area", "difference", "error", "chi_square", "p"),
    [("tp", 0.6478, -0.0780, 0.1046, 0.5554, 0.4561), ("alb", 0.7366, 0.0108, 0.0953, 0.0127, 0.9102)],
)
def test_delong_of_the_ovarian_cancer_patients_of_1988(
    name: str, area: float, difference: float, error: float, chi_square: float, p: float
) -> None:
    """Against the K-G score, AUC .7258; figures as SAS prints them."""
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    scores = {"alb": table[:, :1] / 10, "tp": table[:, 1:2] / 10, "kg": (10 - table[:, 2:3]) / 11}
    truth, layout = 1 - table[:, 3:], Layout("binary", 1, 1 << 14)
    found = compared(1 - scores[name], 1 - scores["kg"], truth, np.arange(43), layout).overall["auc"]
    assert found.first.value == pytest.approx(area, abs=5e-5)
    assert found.second.value == pytest.approx(0.7258, abs=5e-5)
    assert found.difference.value == pytest.approx(difference, abs=5e-5)
    assert half(found) == pytest.approx(error, abs=5e-5)
    assert (found.difference.value / half(found)) ** 2 == pytest.approx(chi_square, abs=5e-5)
    assert found.p == pytest.approx(p, abs=5e-5)


@pytest.mark.parametrize("bins", [12, 1 << 14])
@pytest.mark.parametrize("sites", [1, 4])
def test_delong_from_merged_sums_equals_all_pairs_on_the_binned_scores(bins: int, sites: int) -> None:
    one, other, targets, patients = drawn(1, images=300, patients=300)
    layout = Layout("binary", 1, bins)
    found = compared(one, other, targets, patients, layout, sites).overall["auc"]
    value, variance = delong(binned(one, layout)[:, 0], binned(other, layout)[:, 0], targets[:, 0])
    assert found.difference.value == pytest.approx(value, abs=1e-9)
    assert half(found) == pytest.approx(math.sqrt(variance), abs=1e-9)
    assert found.p == pytest.approx(2 * norm.sf(abs(value) / math.sqrt(variance)), abs=1e-6)
    assert found.first.value == pytest.approx(roc_auc_score(targets, binned(one, layout)), abs=1e-9)


def test_delong_clustered_by_patient_equals_obuchowskis_double_sums() -> None:
    one, other, targets, patients = drawn(2, images=240, patients=60)
    layout = Layout("binary", 1, 64)
    found = compared(one, other, targets, patients, layout, 3).overall["auc"]
    variance = delong_by_patient(binned(one, layout)[:, 0], binned(other, layout)[:, 0], targets[:, 0], patients)
    assert half(found) == pytest.approx(math.sqrt(variance), abs=1e-9)


@pytest.mark.parametrize("bins", [4, 64, 1 << 14])
def test_raw_scores_lie_within_the_stated_bound_of_the_binned_difference(bins: int) -> None:
    """Each AUC moves by half its tied pairs at most, the difference by both together."""
    one, other, targets, patients = drawn(3)
    both = references(one, other, targets, patients, Layout("binary", 1, bins))
    found = compared(one, other, targets, patients, Layout("binary", 1, bins)).overall["auc"].difference.value
    raw = roc_auc_score(targets, one) - roc_auc_score(targets, other)
    reach = sum(float((high - low)[0]) / 2 for low, high in (auc_bounds(reference.counts) for reference in both))
    assert found is not None and abs(raw - found) <= reach + 1e-12
    assert reach < {4: 0.4, 64: 0.04, 1 << 14: 2e-4}[bins]


def test_delong_and_the_bootstrap_agree() -> None:
    """The simulation's reference: paired, clustered by patient, on unbinned scores."""
    one, other, targets, patients = drawn(4, images=600, patients=250)
    found = compared(one, other, targets, patients, Layout("binary", 1, 1 << 14), 5)
    both = references(one, other, targets, patients, Layout("binary", 1, 1 << 14))
    for metric in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"):
        edges = [reference.thresholds.edges for reference in both]
        drawn_ = paired_bootstrap(one, other, targets, patients, metric, *edges, resamples=4000, seed=1)
        contrast = found.overall[metric]
        assert contrast.difference.value == pytest.approx(drawn_.value, abs=1e-4)
        assert drawn_.low is not None and drawn_.high is not None
        assert half(contrast) == pytest.approx((drawn_.high - drawn_.low) / 2 / Z, rel=0.07), metric


def test_an_interval_clustered_by_patient_covers_where_a_plain_one_does_not() -> None:
    """Two models of one quality, four images a patient, errors shared by them: sensitivities do not differ."""
    random = np.random.default_rng(5)
    layout, covered, repeats = Layout("binary", 1, 1 << 10), {"clustered": 0, "plain": 0}, 200
    for _ in range(repeats):
        targets = np.repeat(random.integers(2, size=60), 4)[:, None].astype(float)
        both = [
            1 / (1 + np.exp(0.8 - 1.6 * targets[:, 0] - np.repeat(random.normal(size=60), 4) - random.normal(size=240)))
            for _ in range(2)
        ]
        for kind, patients in (("clustered", np.repeat(np.arange(60), 4)), ("plain", np.arange(240))):
            auc = compared(both[0][:, None], both[1][:, None], targets, patients, layout).overall["auc"].difference
            covered[kind] += auc.low <= 0.0 <= auc.high  # type: ignore[operator]
    assert 0.90 <= covered["clustered"] / repeats <= 0.99
    assert covered["plain"] / repeats < 0.85


@pytest.mark.parametrize(("b", "c"), [(1, 7), (0, 5), (12, 12), (40, 22), (300, 262), (0, 0)])
def test_mcnemar_equals_statsmodels_and_the_binomial(b: int, c: int) -> None:
    found = mcnemar(b, c)
    exact = sm_mcnemar([[50, b], [c, 30]], exact=True)
    assert found.exact == pytest.approx(exact.pvalue if b + c else 1.0, abs=1e-9)
    expected = 2 * binom.cdf(min(b, c), b + c, 0.5) - binom.pmf(min(b, c), b + c, 0.5) if b + c else 1.0
    assert found.mid_p == pytest.approx(expected, abs=1e-9)
    if b + c:
        plain = sm_mcnemar([[50, b], [c, 30]], exact=False, correction=False)
        assert (found.chi_square, found.asymptotic) == pytest.approx((plain.statistic, plain.pvalue), abs=1e-9)
    else:
        assert found.chi_square is None and found.asymptotic is None


def test_mcnemar_of_the_airways_of_21_children() -> None:
    """Fagerland, Lydersen and Laake 2013, table 1: 1 against 7; asymptotic .034, exact .070, mid-p .039."""
    found = mcnemar(1, 7)
    assert (found.asymptotic, found.exact, found.mid_p) == pytest.approx((0.034, 0.070, 0.039), abs=5e-4)


def by_hand(both: tuple[Array, Array], targets: Array, patients: Array, rate: str) -> tuple[int, int, float]:
    """First only right, second only right, and of each patient the difference, squared; one patient after the other."""
    keep = {"accuracy": targets >= 0, "sensitivity": targets == 1, "specificity": targets == 0}[rate]
    right = [(decided == targets) & keep for decided in both]
    more = [int(right[0][patients == one].sum()) - int(right[1][patients == one].sum()) for one in np.unique(patients)]
    return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()), float(np.square(more).sum())


@pytest.mark.parametrize(("images", "patients_"), [(260, 260), (260, 80)])
def test_rates_and_their_tests_by_hand(images: int, patients_: int) -> None:
    one, other, targets, patients = drawn(6, images=images, patients=patients_)
    layout = Layout("binary", 1, 1 << 12)
    found = compared(one, other, targets, patients, layout, 3)
    both = references(one, other, targets, patients, layout)
    decided = tuple(
        (layout.positions(scores)[:, 0] >= reference.thresholds.position[0]).astype(float)
        for scores, reference in zip((one, other), both, strict=True)
    )
    assert found.clustered is (patients_ < images)
    for rate in ("accuracy", "sensitivity", "specificity"):
        b, c, squares = by_hand((decided[0], decided[1]), targets[:, 0], patients, rate)
        mine = {"accuracy": targets >= 0, "sensitivity": targets == 1, "specificity": targets == 0}[rate][:, 0]
        contrast, n = found.overall[rate], len(np.unique(patients[mine]))
        table = contrast.mcnemar
        assert table is not None and (table.first_only, table.second_only) == (b, c)
        assert table.clustered_chi_square == pytest.approx((b - c) ** 2 / (squares * n / (n - 1)), abs=1e-9)
        total = {"accuracy": images, "sensitivity": targets.sum(), "specificity": (1 - targets).sum()}[rate]
        assert contrast.difference.value == pytest.approx((b - c) / total, abs=1e-9)
        assert contrast.test == ("mcnemar-mid-p" if patients_ == images else "obuchowski")
        assert contrast.p == (table.mid_p if patients_ == images else table.clustered)
        if patients_ == images:  # the paired proportions of every textbook
            variance = (b + c - (b - c) ** 2 / total) / total**2 * n / (n - 1)
            assert half(contrast) == pytest.approx(math.sqrt(variance), abs=1e-9)
            assert table.clustered_chi_square == pytest.approx((b - c) ** 2 / (b + c) * (n - 1) / n, abs=1e-9)


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multiclass", 4), ("multilabel", 3)])
def test_kappa_equals_statsmodels(task: str, classes: int) -> None:
    one, other, targets, patients = drawn(7, task, classes, images=300, patients=300)
    layout = Layout(task, classes, 1 << 12)  # type: ignore[arg-type]
    found = compared(one, other, targets, patients, layout, 3)
    both = references(one, other, targets, patients, layout)
    for question, agreement in found.agreement.items():
        if task == "multiclass":
            decisions = [scores.argmax(axis=1) for scores in (one, other)]
        else:
            known = ~np.isnan(targets[:, question])
            decisions = [
                (layout.positions(scores) >= reference.thresholds.position)[known, question].astype(int)
                for scores, reference in zip((one, other), both, strict=True)
            ]
        table = np.zeros((max(classes, 2) if task == "multiclass" else 2,) * 2)
        np.add.at(table, tuple(decisions), 1)
        expected, n = cohens_kappa(table), table.sum()
        assert agreement.value == pytest.approx(expected.kappa, abs=1e-9)
        assert found.observed[question] == pytest.approx(np.trace(table) / n, abs=1e-9)
        assert agreement.low is not None and agreement.high is not None
        reach = Z * expected.std_kappa * math.sqrt(n / (n - 1))
        assert (agreement.high - agreement.low) / 2 == pytest.approx(reach, abs=1e-6)


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multiclass", 3), ("multilabel", 3)])
def test_variances_agree_with_the_jackknife_over_patients(task: str, classes: int) -> None:
    """Leaving out one patient after the other knows nothing of influences or covariances."""
    one, other, targets, patients = drawn(8, task, classes, images=360, patients=150)
    layout = Layout(task, classes, 1 << 10)  # type: ignore[arg-type]
    whole = references(one, other, targets, patients, layout)
    position = whole[0].thresholds.position, whole[1].thresholds.position
    left_out: dict[tuple[str, int], list[float]] = {}
    for patient in np.unique(patients):
        keep = patients != patient
        both = tuple(
            Reference(Counts.of(s[keep], targets[keep], patients[keep], np.zeros(keep.sum()), layout), r.thresholds)
            for s, r in zip((one, other), whole, strict=True)
        )
        joint = Pair.of(one[keep], other[keep], targets[keep], patients[keep], layout).joint(position)
        found = compare(joint, None, Models((both[0], both[1]), None))
        for metric in COMPARED:
            for column in range(-1, classes):
                contrast = found.overall[metric] if column < 0 else found.per_class[column][metric]
                assert contrast.difference.value is not None and contrast.difference.low is None
                left_out.setdefault((metric, column), []).append(contrast.difference.value)
    ours = compared(one, other, targets, patients, layout, 2)
    for (metric, column), values in left_out.items():
        n = len(values)
        jackknife = (n - 1) / n * np.square(np.array(values) - np.mean(values)).sum()
        contrast = ours.overall[metric] if column < 0 else ours.per_class[column][metric]
        assert half(contrast) ** 2 == pytest.approx(jackknife, rel=0.1), (metric, column)


def test_the_same_model_twice_differs_nowhere() -> None:
    one, _, targets, patients = drawn(9)
    found = compared(one, one, targets, patients, Layout("binary", 1, 1 << 10), 2)
    for contrast in found.overall.values():
        assert contrast.difference.value == 0.0 and contrast.p == 1.0
        assert contrast.difference.low is not None and -0.1 < contrast.difference.low < 0.0
    assert found.agreement[0].value == found.observed[0] == 1.0


def test_without_the_second_pass_values_stand_without_intervals() -> None:
    one, other, targets, patients = drawn(10)
    layout = Layout("binary", 1, 256)
    both = references(one, other, targets, patients, layout)
    joint = Pair.of(one, other, targets, patients, layout).joint((both[0].thresholds.position,) * 2)
    partial = Pair.of(one[:200], other[:200], targets[:200], patients[:200], layout).spread(both, joint)
    for spread, areas in ((None, None), partial):
        found = compare(joint, spread, Models(both, areas))
        for metric in ("auc", "sensitivity"):
            contrast = found.overall[metric].difference
            assert contrast.value is not None and contrast.low is None
        assert found.overall["auc"].p is None


def test_the_guides_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "researcher.md").read_text()
    code = re.search(r"From Python, with scores at hand[^`]*```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    exec(code[1], {})
    said = capsys.readouterr().out
    assert re.match(r"Interval\(value=0\.\d+, low=.*McNemar\(first_only=\d+", said)
