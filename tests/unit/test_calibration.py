"""Calibration and net benefit from histograms agree with scikit-learn on the same binned scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from common.metrics import Counts, Layout
from common.metrics.calibration import GROUPS, Scale, temperature

BINS = 16384
Scores = NDArray[np.float64]


def counted(scores: Scores, targets: Scores, bins: int = BINS, min_cell: int = 1) -> Counts:
    count = len(scores)
    layout = Layout("binary", 1, bins)
    return Counts.of(scores[:, None], targets[:, None], np.arange(count), np.zeros(count), layout, min_cell)


def drawn(seed: int, count: int = 400, sharpness: float = 1.0) -> tuple[Scores, Scores]:
    """Scores and truths; true probabilities have the scores' logits divided by ``sharpness``."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0.0, 1.5, count)
    targets = (draw.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    targets[:2] = 0.0, 1.0
    return 1 / (1 + np.exp(-logits * sharpness)), targets


def middles(scores: Scores) -> Scores:
    return (np.minimum(np.floor(scores * BINS), BINS - 1) + 0.5) / BINS


def scale_of(scores: Scores, targets: Scores) -> Scale:
    found = Scale.of(counted(scores, targets), 0)
    assert found is not None
    return found


@given(st.integers(0, 2**32), st.floats(0.1, 8.0))
@settings(max_examples=60, deadline=None)
def test_they_are_scikit_learns_on_the_same_binned_scores(seed: int, sharpness: float) -> None:
    scores, targets = drawn(seed, sharpness=sharpness)
    scale, binned = scale_of(scores, targets), middles(scores)
    assert scale.brier == pytest.approx(brier_score_loss(targets, binned), abs=1e-9)
    assert scale.log_loss == pytest.approx(log_loss(targets, binned), abs=1e-9)
    observed, mean = calibration_curve(targets, binned, n_bins=GROUPS)
    images, score, share = scale.groups()
    assert score[images > 0] == pytest.approx(mean, abs=1e-9)
    assert share[images > 0] == pytest.approx(observed, abs=1e-9)
    error = (images[images > 0] * np.abs(mean - observed)).sum() / len(scores)
    assert scale.expected_error() == pytest.approx(error, abs=1e-9)
    # and against the raw scores, within what the module says
    assert abs(scale.brier - brier_score_loss(targets, scores)) <= 1 / BINS


@given(st.integers(0, 2**32), st.floats(0.02, 0.98))
@settings(max_examples=60, deadline=None)
def test_net_benefit_by_its_definition(seed: int, threshold: float) -> None:
    scores, targets = drawn(seed)
    binned = middles(scores)
    acted = binned >= threshold
    odds = threshold / (1 - threshold)
    expected = ((acted & (targets == 1)).sum() - (acted & (targets == 0)).sum() * odds) / len(scores)
    benefit, always = scale_of(scores, targets).net_benefit(np.array([threshold]))
    assert benefit[0] == pytest.approx(expected)
    assert always[0] == pytest.approx((targets.sum() - (1 - targets).sum() * odds) / len(scores))


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_the_temperature_is_the_one_of_least_loss_and_undoes_overconfidence(sharpness: float) -> None:
    scores, targets = drawn(7, count=20_000, sharpness=sharpness)
    scale = scale_of(scores, targets)
    found = temperature(scale)
    best = minimize_scalar(
        lambda log: scale.at(np.exp(log)).log_loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-12}
    )
    assert scale.at(found).log_loss == pytest.approx(best.fun, abs=1e-9)
    by_logits = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    logits = np.log(middles(scores) / (1 - middles(scores)))[:, None]
    assert found == pytest.approx(1 / by_logits.fit(logits, targets).coef_[0, 0], abs=1e-6)
    assert found == pytest.approx(sharpness, rel=0.05)
    if sharpness > 1:
        assert scale.expected_error() > 0.05
    assert scale.at(found).expected_error() < 0.015
    assert scale.at(1.0).brier == pytest.approx(scale.brier)


def test_separated_classes_have_a_temperature_all_the_same() -> None:
    scores, targets = np.array([0.0, 0.1, 0.9, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert temperature(scale_of(scores, targets)) == pytest.approx(1 / 32, rel=1e-3)
    assert temperature(scale_of(scores, 1 - targets)) == pytest.approx(32, rel=1e-3)


def test_of_hidden_cells_and_of_one_class_nothing_is_said() -> None:
    scores, targets = drawn(3, count=60)
    assert Scale.of(counted(scores, targets, min_cell=10), 0) is None
    assert Scale.of(counted(scores, np.ones(60)), 0) is None


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_sites_together_are_one_site(seed: int) -> None:
    scores, targets = drawn(seed, count=200)
    parts = counted(scores[:80], targets[:80]) + counted(scores[80:], targets[80:])
    apart, whole = Scale.of(parts, 0), scale_of(scores, targets)
    assert apart is not None
    assert np.array_equal(apart.score, whole.score)
    assert np.array_equal(apart.images, whole.images)
    assert temperature(apart) == temperature(whole)
