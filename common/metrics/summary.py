"""Both passes put together: every metric, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.metrics.counts import auc_bounds, roc
from common.metrics.estimates import Estimate
from common.metrics.intervals import UNDEFINED, Interval, interval
from common.metrics.layout import Floats, Ints
from common.metrics.lesions import Lesions
from common.metrics.moments import Moments
from common.metrics.outlines import Outlines
from common.metrics.ratios import METRICS, RATES, Tally, over_classes, rates
from common.metrics.reference import Reference


@dataclass(frozen=True, eq=False)
class Summary:
    """What a report shows of one model on one set of images."""

    overall: Mapping[str, Interval]
    """Each of METRICS. Binary: of the positive class; else the mean over the classes where it is
    defined, except for multiclass: accuracy is the share of right argmaxes, balanced accuracy the mean sensitivity."""
    per_class: Mapping[int, Mapping[str, Interval]]
    """By score column (binary: 0 only, the positive class)."""
    confusion: Ints | None
    """``[true, predicted]``: multiclass ``(C, C)``, binary ``(2, 2)``, multilabel ``(C, 2, 2)``.
    None where not all of it was released."""
    reference: Reference
    patients_in_moments: int
    """Patients of the second pass; intervals are given only when it reached all of them."""
    outlines: Outlines | None = None
    lesions: Lesions | None = None
    """Both in a study that outlines."""

    @property
    def images(self) -> int:
        return self.reference.counts.images

    @property
    def patients(self) -> int:
        return self.reference.counts.patients

    @property
    def loss(self) -> float | None:
        """Mean over images; None without images."""
        return self.reference.counts.loss / self.images if self.images else None

    @property
    def withheld(self) -> Ints:
        """``(C, 2)`` sites that withheld negatives, positives of a class: their images are in no number here."""
        return self.reference.counts.withheld

    def roc(self, column: int) -> tuple[Floats, Floats] | None:
        """(False, true positive rate) of a class in at most 200 points; None where a class is missing."""
        return roc(self.reference.counts, column)


def summarise(reference: Reference, moments: Moments | None, confidence: float = 0.95) -> Summary:
    """Every metric with its interval.

    ``moments`` of the same patients (the second pass). Without them, or where they lack patients because a site did not
    answer twice, values stand without intervals. Where the small-cell rule left only bounds, these are given instead.
    """
    counts = reference.counts
    classes = counts.layout.classes
    values = [_values(reference, tally) for tally in reference.tallies]
    bounds = auc_bounds(counts)
    worst, best = (np.concatenate([_auc_row(row), table]) for row, table in zip(bounds, values, strict=True))
    exact = np.concatenate([_auc_row(reference.auc), values[0]])
    usable = moments is not None and moments.patients == counts.patients
    table: list[list[Interval]] = []
    for row, name in enumerate(METRICS):
        known = counts.exact if name == "auc" else reference.exact
        cells: list[Interval] = []
        for column in range(classes + 1):
            if not known:
                cells.append(_bound(float(worst[row, column]), float(best[row, column])))
            elif np.isnan(exact[row, column]):
                cells.append(UNDEFINED)
            elif moments is None or not usable or moments.withheld[row, column]:
                cells.append(Interval(float(exact[row, column]), None, None))
            else:
                variance, n = _variance(reference, moments, exact, row, column)
                cells.append(interval(float(exact[row, column]), variance, n, confidence))
        table.append(cells)
    column_of = {
        column: {name: table[row][column] for row, name in enumerate(METRICS)} for column in range(classes + 1)
    }
    overall = column_of.pop(classes)
    return Summary(
        overall=column_of[0] if classes == 1 else overall,
        per_class=column_of,
        confusion=_confusion(reference),
        reference=reference,
        patients_in_moments=0 if moments is None else moments.patients,
    )


def with_outlines(summary: Summary, outlines: Outlines, lesions: Lesions, at: int, confidence: float) -> Summary:
    """``summary`` with what is told of outlines at threshold ``GRID[at]`` before its other metrics."""
    overall = {**outlines.metrics(at, confidence), **lesions.metrics(at, confidence), **summary.overall}
    return replace(summary, overall=overall, outlines=outlines, lesions=lesions)


def estimate(reference: Reference, moments: Moments | None, metric: str, column: int) -> Estimate | None:
    """One metric of class ``column`` (the last: over all classes), for comparisons; ``None`` where undefined.

    Without ``moments`` (small cells hidden) between its worst and its best, and as sure as if a patient had one image.
    Raises ``ValueError`` where ``moments`` are of other patients, or one of their sums was withheld.
    """
    row, counts = METRICS.index(metric), reference.counts
    worst, best = _table(reference)
    if np.isnan(worst[row, column]) or np.isnan(best[row, column]):
        return None
    if moments is None:
        support = _patients_behind(reference, metric, column)
        return Estimate(float(worst[row, column]), float(best[row, column]), None, max(support, 1.0))
    if moments.patients != counts.patients or moments.withheld[row, column]:
        raise ValueError("the second pass is not of the first one's patients")
    exact = np.concatenate([_auc_row(reference.auc), _values(reference, reference.tallies[0])])
    value = float(exact[row, column])
    variance, n = _variance(reference, moments, exact, row, column)
    return Estimate(value, value, variance, n)


def _table(reference: Reference) -> tuple[Floats, Floats]:
    """``(7, C + 1)`` METRICS at their worst and at their best."""
    bounds = (reference.auc, reference.auc) if reference.counts.exact else auc_bounds(reference.counts)
    worst, best = (
        np.concatenate([_auc_row(row), _values(reference, tally)])
        for row, tally in zip(bounds, reference.tallies, strict=True)
    )
    return worst, best


def _patients_behind(reference: Reference, metric: str, column: int) -> float:
    """Patients, at least, that a metric rests on; of a mean over classes, those of the class that has fewest."""
    counts = reference.counts
    columns = range(counts.layout.classes) if column == counts.layout.classes else (column,)
    pairs = [counts.class_patients[one] for one in columns if counts.totals[one].all()]
    if not pairs:
        return 1.0
    side = {"sensitivity": 1, "specificity": 0}.get(metric)
    if metric == "accuracy":
        return float(max(counts.patients, 1))
    return float(min(pair.min() if side is None else pair[side] for pair in pairs))


def _values(reference: Reference, tally: Tally) -> Floats:
    """``(6, C + 1)`` RATES per class and over all."""
    per_class = rates(tally)
    defined = {name: ~np.isnan(values) for name, values in per_class.items()}
    images = (tally.tp + tally.fn).sum()
    plain = np.asarray(tally.tp.sum() / images if images else np.nan)
    overall = over_classes(reference.counts.layout.task, per_class, defined, plain)
    return np.stack([np.append(per_class[name], overall[name]) for name in RATES])


def _auc_row(per_class: Floats) -> Floats:
    """``(1, C + 1)``: the classes' AUC and their mean."""
    defined = per_class[~np.isnan(per_class)]
    return np.append(per_class, defined.mean() if len(defined) else np.nan)[None]


def _bound(low: float, high: float) -> Interval:
    return UNDEFINED if np.isnan(low) or np.isnan(high) else Interval(None, low, high)


def _variance(
    reference: Reference, moments: Moments, values: Floats, row: int, column: int
) -> tuple[float | None, float]:
    """Variance of a metric, None where one patient carries a part of it, and the patients it is worth.

    Sums of squares are scaled by n / (n - 1), the AUC's two parts each by their own n as Obuchowski does. A mean
    of proportions that rest on n_1 … n_d patients is worth d² / Σ 1/n_i, though not more than there are.
    """
    squares, parts = moments.variances()
    name, classes = METRICS[row], reference.counts.layout.classes
    everybody = float(moments.support[row, column])
    groups = _groups(reference, moments, values, name, column)
    worth = min(len(groups) ** 2 / sum(1 / n for n in groups), everybody) if groups and min(groups) > 0 else 1.0
    if not groups or min(groups) <= 1 or everybody <= 1:
        return None, worth
    if name == "auc" and column < classes:
        negative, positive = reference.counts.class_patients[column].tolist()
        cross = squares[row, column] - parts[column].sum()
        variance = (
            negative / (negative - 1) * parts[column, 0]
            + positive / (positive - 1) * parts[column, 1]
            + everybody / (everybody - 1) * cross
        )
        return max(float(variance), 0.0), float(min(negative, positive))
    return float(squares[row, column]) * everybody / (everybody - 1), worth


def _groups(reference: Reference, moments: Moments, values: Floats, name: str, column: int) -> Sequence[float]:
    """Patients that each averaged proportion of a metric rests on."""
    counts, row = reference.counts, METRICS.index(name)
    classes, task = counts.layout.classes, counts.layout.task
    if column == classes and name == "accuracy" and task == "multiclass":
        return [float(moments.support[row, column])]
    if column == classes and name == "balanced_accuracy" and task == "multiclass":
        row, name = METRICS.index("sensitivity"), "sensitivity"
    columns = [column] if column < classes else [c for c in range(classes) if not np.isnan(values[row, c])]
    if name == "auc":
        return [float(counts.class_patients[c].min()) for c in columns]
    if name == "balanced_accuracy":
        return [float(n) for c in columns for n in counts.class_patients[c]]
    return [float(moments.support[row, c]) for c in columns]


def _confusion(reference: Reference) -> Ints | None:
    if not reference.exact:
        return None
    if reference.counts.layout.task == "multiclass":
        return reference.counts.confusion[:, :-1]
    tp, fp, fn, tn = (part.astype(np.int64) for part in reference.tallies[0])
    matrices = np.stack([np.stack([tn, fp], axis=1), np.stack([fn, tp], axis=1)], axis=1)
    return matrices[0] if reference.counts.layout.task == "binary" else matrices
