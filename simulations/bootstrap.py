"""Is one model better than another on the same patients? A paired bootstrap over patients.

Only where one owner holds all scores: in simulation. Patients are drawn with replacement, the same
draw for both models (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 8, 13: clusters, percentiles).
A draw is a vector of weights, so that scores are sorted once and not once per draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics import METRICS
from common.metrics.layout import Floats, Ints, Task, divide
from common.metrics.ratios import Tally, over_classes, rates
from common.randomness import generator

_CELLS = 1 << 18
"""Weights held at a time (resamples × images): two megabytes, which stay in the cache."""

Statistic = Callable[[Floats], Floats]
"""Patients' weights ``(patients, R)`` -> metric ``(R,)``."""


@dataclass(frozen=True)
class Difference:
    """``metric(a) - metric(b)`` with its percentile interval; None where a model's metric is undefined."""

    value: float | None
    low: float | None
    high: float | None
    resamples: int
    """Draws that the interval rests on: those in which the metric was defined for both."""

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def paired_bootstrap(
    scores_a: NDArray[np.floating],
    scores_b: NDArray[np.floating],
    targets: NDArray[np.floating],
    patients: NDArray[np.generic],
    metric: str,
    thresholds_a: Sequence[float] | Floats | None = None,
    thresholds_b: Sequence[float] | Floats | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> Difference:
    """Difference of two models on the same images.

    Args:
        scores_a, scores_b: ``(N, C)`` scores; binary: one column, of the positive class.
        targets: ``(N, C)`` in {0, 1}, NaN masked.
        patients: ``(N,)`` any values that tell patients apart.
        metric: one of ``common.metrics.METRICS``, over all classes as defined there (AUC on unbinned scores).
        thresholds_a, thresholds_b: ``(C,)``, positive is ``score >= threshold``; None: argmax (multiclass).
        resamples: draws.
        confidence: of the percentile interval.
        seed: the same seed gives the same draws, whatever the metric and the models.

    Raises :class:`DataError` where shapes or names do not fit.
    """
    truth = np.asarray(targets, dtype=np.float64)
    if scores_a.ndim != 2 or not scores_a.shape == scores_b.shape == targets.shape:
        raise DataError(f"scores {scores_a.shape}, {scores_b.shape} and targets {targets.shape} must all be (N, C)")
    if patients.shape != (len(targets),) or metric not in METRICS or resamples < 1 or not 0.0 < confidence < 1.0:
        raise DataError(
            f"a bootstrap needs one patient per image, a metric of {', '.join(METRICS)}, at least one resample and a "
            f"confidence in (0, 1); got {patients.shape}, {metric!r}, {resamples}, {confidence}"
        )
    patient = np.unique(patients, return_inverse=True)[1].reshape(len(targets)).astype(np.int64)
    count = int(patient.max()) + 1 if len(patient) else 0
    if not count:
        return Difference(None, None, None, 0)
    a = _statistic(scores_a, truth, patient, metric, thresholds_a)
    b = _statistic(scores_b, truth, patient, metric, thresholds_b)
    return _resampled(lambda weights: a(weights) - b(weights), count, len(targets), resamples, confidence, seed)


def paired_means(
    a: Floats, b: Floats, patients: NDArray[np.generic], *, resamples: int, confidence: float, seed: int
) -> Difference:
    """Difference of two means over the same images: values ``a`` and ``b`` ``(N,)``, drawn anew by patient."""
    patient = np.unique(patients, return_inverse=True)[1].reshape(len(patients))
    images = np.bincount(patient).astype(np.float64)
    gains = np.bincount(patient, weights=np.asarray(a - b, dtype=np.float64), minlength=len(images))

    def gain(weights: Floats) -> Floats:
        return divide(gains @ weights, images @ weights)

    return _resampled(gain, len(images), len(patients), resamples, confidence, seed)


def _resampled(
    statistic: Statistic, count: int, images: int, resamples: int, confidence: float, seed: int
) -> Difference:
    """A statistic of ``count`` patients' weights and its percentile interval."""
    if not count:
        return Difference(None, None, None, 0)
    value = float(statistic(np.ones((count, 1)))[0])
    if np.isnan(value):
        return Difference(None, None, None, 0)
    random = generator(seed, "paired bootstrap")
    rows = max(1, _CELLS // max(images, 1))
    parts = [statistic(_draws(random, min(rows, resamples - start), count)) for start in range(0, resamples, rows)]
    differences = np.concatenate(parts)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Difference(value, None, None, 0)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Difference(value, float(low), float(high), len(differences))


def _draws(random: np.random.Generator, rows: int, patients: int) -> Floats:
    """``(patients, rows)``: how often each patient is drawn when as many are drawn as there are."""
    drawn = random.integers(patients, size=(rows, patients))
    drawn *= rows
    drawn += np.arange(rows)[:, None]
    return np.bincount(drawn.reshape(-1), minlength=rows * patients).reshape(patients, rows).astype(np.float64)


def _statistic(
    scores: NDArray[np.floating],
    targets: Floats,
    patient: Ints,
    metric: str,
    thresholds: Sequence[float] | Floats | None,
) -> Statistic:
    if not np.isfinite(scores).all():
        raise DataError("scores must be finite to be compared; the model diverged")
    if metric == "auc":
        return _auc(scores, targets, patient)
    return _rate(scores, targets, patient, metric, thresholds)


def _auc(scores: NDArray[np.floating], targets: Floats, patient: Ints) -> Statistic:
    """Mean over classes of the weighted Mann-Whitney statistic, O(N) per draw, ties counted a half."""
    plans = []
    for column in range(targets.shape[1]):
        target, score = targets[:, column], scores[:, column]
        negative, positive = np.flatnonzero(target == 0.0), np.flatnonzero(target == 1.0)
        if not len(negative) or not len(positive):
            continue
        negative = negative[np.argsort(score[negative], kind="stable")]
        ranked = score[negative]
        below = np.searchsorted(ranked, score[positive], side="left")
        upto = np.searchsorted(ranked, score[positive], side="right")
        plans.append((patient[negative], patient[positive], below, upto))

    def statistic(weights: Floats) -> Floats:
        areas = []
        for negative, positive, below, upto in plans:
            cumulative = np.zeros((len(negative) + 1, weights.shape[1]))
            np.cumsum(weights[negative], axis=0, out=cumulative[1:])
            beaten = cumulative[below]
            beaten += cumulative[upto]
            weight = weights[positive]
            pairs = 2.0 * cumulative[-1] * weight.sum(axis=0)
            areas.append(divide(np.einsum("pr,pr->r", weight, beaten), pairs))
        return np.mean(areas, axis=0, dtype=np.float64) if areas else np.full(weights.shape[1], np.nan)

    return statistic


def _rate(
    scores: NDArray[np.floating],
    targets: Floats,
    patient: Ints,
    metric: str,
    thresholds: Sequence[float] | Floats | None,
) -> Statistic:
    """A rate from confusion counts, summed by patient once and weighted per draw."""
    classes = targets.shape[1]
    task: Task = "multiclass" if thresholds is None else "multilabel"
    known = ~np.isnan(targets)
    if thresholds is None:
        if classes < 2:
            raise DataError("one column of scores needs a threshold; give thresholds_a and thresholds_b")
        known &= known.all(axis=1, keepdims=True)
        predicted = np.zeros(targets.shape, dtype=np.bool_)
        predicted[np.arange(len(scores)), scores.argmax(axis=1)] = True
    else:
        edges = np.asarray(thresholds, dtype=np.float64)
        if edges.shape != (classes,):
            raise DataError(f"thresholds must be one per class ({classes},), got {edges.shape}")
        predicted = scores >= edges
    positive = (targets == 1.0) & known
    negative = known & ~positive
    images = np.stack([positive & predicted, negative & predicted, positive & ~predicted, negative & ~predicted])
    counts = np.zeros((int(patient.max()) + 1, 4 * classes))
    np.add.at(counts, patient, images.transpose(1, 0, 2).reshape(len(patient), -1))
    everybody = rates(_tally(counts.sum(axis=0, keepdims=True)))
    defined = {name: ~np.isnan(values[0]) for name, values in everybody.items()}

    def statistic(weights: Floats) -> Floats:
        tally = _tally(weights.T @ counts)
        right = divide(tally.tp.sum(axis=-1), (tally.tp + tally.fn).sum(axis=-1))
        return over_classes(task, rates(tally), defined, right)[metric]

    return statistic


def _tally(flat: Floats) -> Tally:
    """``(R, 4·C)`` -> four times ``(R, C)``."""
    return Tally(*flat.reshape(len(flat), 4, -1).transpose(1, 0, 2))
