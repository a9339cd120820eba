"""Paired bootstrap over patients, against drawing the images again one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from common.errors import DataError
from common.metrics import METRICS
from common.randomness import generator
from simulations.bootstrap import _draws, paired_bootstrap

Array = NDArray[np.float64]


def example(images: int = 200, patients: int = 80, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(seed)
    patient = random.integers(patients, size=images)
    targets = (random.random((images, 1)) < 0.4).astype(float)
    signal = targets + random.normal(size=(patients, 1))[patient]
    a, b = (1 / (1 + np.exp(-(scale * signal + random.normal(size=(images, 1))))) for scale in (1.5, 0.7))
    return np.round(a, 2), np.round(b, 2), targets, patient


def by_hand(metric: str, scores: Array, targets: Array, threshold: float) -> float:
    decided = scores >= threshold
    return float(
        {
            "auc": lambda: sk.roc_auc_score(targets, scores),
            "accuracy": lambda: sk.accuracy_score(targets, decided),
            "balanced_accuracy": lambda: sk.balanced_accuracy_score(targets, decided),
            "sensitivity": lambda: sk.recall_score(targets, decided),
            "specificity": lambda: sk.recall_score(targets, decided, pos_label=0),
            "precision": lambda: sk.precision_score(targets, decided),
            "f1": lambda: sk.f1_score(targets, decided),
        }[metric]()
    )


@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_the_same_as_drawing_images_again(metric: str) -> None:
    a, b, targets, patients = example()
    found = paired_bootstrap(a, b, targets, patients, metric, [0.5], [0.4], resamples=60, confidence=0.9, seed=3)
    weights = _draws(generator(3, "paired bootstrap"), 60, len(np.unique(patients)))
    number = np.unique(patients, return_inverse=True)[1]
    differences = []
    for draw in weights.T:
        rows = np.repeat(np.arange(len(a)), draw[number].astype(int))
        differences.append(by_hand(metric, a[rows], targets[rows], 0.5) - by_hand(metric, b[rows], targets[rows], 0.4))
    assert found.value == pytest.approx(by_hand(metric, a, targets, 0.5) - by_hand(metric, b, targets, 0.4), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.05, 0.95])), abs=1e-12)
    assert found.resamples == 60


def test_multiclass_decides_by_argmax_and_takes_means_over_classes() -> None:
    random = np.random.default_rng(1)
    label = random.integers(3, size=150)
    targets = np.eye(3)[label]
    a, b = (random.random((150, 3)) + weight * targets for weight in (0.6, 0.2))
    patients = np.array([f"patient {number}" for number in random.integers(60, size=150)])
    for metric, function in (
        ("accuracy", lambda s: sk.accuracy_score(label, s.argmax(axis=1))),
        ("balanced_accuracy", lambda s: sk.balanced_accuracy_score(label, s.argmax(axis=1))),
        ("sensitivity", lambda s: sk.recall_score(label, s.argmax(axis=1), average="macro")),
        ("auc", lambda s: sk.roc_auc_score(targets, s, average="macro")),
    ):
        found = paired_bootstrap(a, b, targets, patients, metric, resamples=200, seed=0)
        assert found.value == pytest.approx(function(a) - function(b), abs=1e-12)
        assert found.low is not None and found.high is not None and found.value is not None
        assert found.low < found.value < found.high


def test_masked_entries_change_nothing() -> None:
    a, b, targets, patients = example()
    more = np.full((10, 1), np.nan)
    plain = paired_bootstrap(a, b, targets, patients, "auc", resamples=200, seed=5)
    extended = [
        np.vstack([a, np.full((10, 1), 0.9)]),
        np.vstack([b, np.full((10, 1), 0.1)]),
        np.vstack([targets, more]),
    ]
    assert paired_bootstrap(*extended, np.append(patients, patients[:10]), "auc", resamples=200, seed=5) == plain


def test_the_same_model_twice_differs_by_nothing_and_seeds_repeat() -> None:
    a, b, targets, patients = example()
    nothing = paired_bootstrap(a, a, targets, patients, "auc", seed=1, resamples=100)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    one, again, other = (
        paired_bootstrap(a, b, targets, patients, "auc", seed=seed, resamples=300) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    assert set(one.to_dict()) == {"value", "low", "high"}


def test_undefined_metrics_are_none_and_undefined_draws_are_not_counted() -> None:
    a, b, _, patients = example(images=12, patients=12)
    nobody = paired_bootstrap(a, b, np.zeros((12, 1)), patients, "auc", seed=0)
    assert (nobody.value, nobody.low, nobody.high, nobody.resamples) == (None, None, None, 0)
    one = np.zeros((12, 1))
    one[0] = 1.0
    rare = paired_bootstrap(a, b, one, np.arange(12), "auc", resamples=400, seed=0)
    assert rare.value is not None and rare.low is not None
    assert 0.5 * 400 < rare.resamples < 0.8 * 400  # 1 - (11/12)^12 = 0.65 of the draws hold the positive
    empty = np.zeros((0, 1))
    assert paired_bootstrap(empty, empty, empty, np.zeros(0), "auc", seed=0).value is None


def test_copies_of_an_image_are_no_evidence_when_they_are_one_patient() -> None:
    a, b, targets, _ = example(images=300)
    once = paired_bootstrap(a, b, targets, np.arange(300), "accuracy", [0.5], [0.5], seed=0)
    copies = [np.repeat(array, 4, axis=0) for array in (a, b, targets)]
    by_patient = paired_bootstrap(*copies, np.repeat(np.arange(300), 4), "accuracy", [0.5], [0.5], seed=0)
    by_image = paired_bootstrap(*copies, np.arange(1200), "accuracy", [0.5], [0.5], seed=0)
    assert (by_patient.value, by_patient.low, by_patient.high) == pytest.approx((once.value, once.low, once.high))
    assert by_image.high - by_image.low < 0.6 * (once.high - once.low)  # type: ignore[operator]


def test_unusable_arguments_are_refused() -> None:
    a, b, targets, patients = example()
    with pytest.raises(DataError, match="must all be"):
        paired_bootstrap(a, b[:-1], targets, patients, "auc", seed=0)
    with pytest.raises(DataError, match="a metric of"):
        paired_bootstrap(a, b, targets, patients, "area", seed=0)
    with pytest.raises(DataError, match="one patient per image"):
        paired_bootstrap(a, b, targets, patients[:-1], "auc", seed=0)
    with pytest.raises(DataError, match="needs a threshold"):
        paired_bootstrap(a, b, targets, patients, "accuracy", seed=0)
    with pytest.raises(DataError, match="one per class"):
        paired_bootstrap(a, b, targets, patients, "accuracy", [0.5, 0.5], [0.5], seed=0)
    with pytest.raises(DataError, match="finite"):
        paired_bootstrap(a * np.nan, b, targets, patients, "auc", seed=0)
