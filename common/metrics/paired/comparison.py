"""Both passes put together: how two deciders differ, with intervals and p-values clustered by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.metrics.counts import auc_bounds
from common.metrics.intervals import UNDEFINED, Interval, interval, quantile
from common.metrics.layout import Floats, Ints, Layout
from common.metrics.paired.areas import Areas
from common.metrics.paired.joint import Joint
from common.metrics.paired.kappa import kappa_of
from common.metrics.paired.significance import McNemar, mcnemar, two_sided
from common.metrics.paired.spread import COUNTED, UNIT, Spread
from common.metrics.ratios import RATES, Tally, over_classes, rates
from common.metrics.reference import Reference

COMPARED = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
FEWEST = 10
"""Patients of each truth below which a normal approximation gives no p-value: variances of so few are guesses."""
_NO_VARIANCE = 1e-24


@dataclass(frozen=True)
class Contrast:
    """One metric of the first less that of the second."""

    first: Interval
    second: Interval
    """Where :class:`Joint` is of readers with intervals of their own; of models, whose intervals stand in their
    summaries, values alone."""
    difference: Interval
    """In [-1, 1]; ``value`` None with ``low`` and ``high``: bounds, where small cells are hidden."""
    p: float | None
    """Primary, two-sided; None where it cannot be known."""
    test: str
    """``delong``, ``mcnemar-mid-p``, ``obuchowski`` or ``wald``."""
    mcnemar: McNemar | None = None
    p_bounds: tuple[float, float] | None = None
    """Least and greatest mid-p where small cells hide the table but not its margins."""


NOTHING = Contrast(UNDEFINED, UNDEFINED, UNDEFINED, None, "")


@dataclass(frozen=True)
class Comparison:
    """``overall`` and ``per_class`` as in :class:`~common.metrics.Summary`: of a binary task column 0 is overall."""

    images: int
    patients: int
    clustered: bool
    """Whether a patient has several images, so that patients and images are not the same units."""
    overall: Mapping[str, Contrast]
    per_class: Mapping[int, Mapping[str, Contrast]]
    agreement: Mapping[int, Interval]
    """Cohen's kappa by question (binary and multiclass: 0 only), in [-1, 1]; undefined where it is."""
    observed: Mapping[int, float | None]
    """Share of images on which both agree, by question."""
    withheld: int
    """Sites that withheld a part of the table for small cells."""


@dataclass(frozen=True)
class Models:
    """What only two models have, and not a model and a reader: scores."""

    references: tuple[Reference, Reference]
    areas: Areas | None


def compare(joint: Joint, spread: Spread | None, models: Models | None = None, confidence: float = 0.95) -> Comparison:
    """Every difference with its interval and p-value. ``spread`` None, or of other patients: values alone."""
    return _Made(joint, spread, models, quantile(confidence), confidence).comparison()


class _Made:
    def __init__(self, joint: Joint, spread: Spread | None, models: Models | None, z: float, confidence: float) -> None:
        self.joint, self.layout, self.models, self.z, self.confidence = joint, joint.layout, models, z, confidence
        usable = spread is not None and np.array_equal(spread.asked, joint.asked)
        self.spread = spread if usable else None
        self.values = [_values(self.layout, tally) for tally in joint.tallies]

    def comparison(self) -> Comparison:
        layout, joint = self.layout, self.joint
        asked = range(len(joint.asked))
        per_class = {
            column: {metric: self._contrast(metric, column) for metric in self._metrics()}
            for column in range(layout.classes)
        }
        overall = (
            per_class[0]
            if layout.classes == 1
            else {metric: self._contrast(metric, layout.classes) for metric in self._metrics()}
        )
        tables = {question: joint.crossed(question) for question in asked}
        return Comparison(
            images=max((joint.images(question) for question in asked), default=0),
            patients=int(joint.asked.max(initial=0)),
            clustered=any(joint.asked[question] < joint.images(question) for question in asked),
            overall=overall,
            per_class=per_class,
            agreement={question: self._kappa(question, tables[question]) for question in asked},
            observed={
                question: float(np.trace(table) / table.sum()) if table.sum() and joint.exact[question] else None
                for question, table in tables.items()
            },
            withheld=int(joint.withheld.max(initial=0)),
        )

    def _metrics(self) -> tuple[str, ...]:
        return COMPARED if self.models is not None else COMPARED[1:]

    def _question(self, column: int) -> int:
        return 0 if self.layout.task == "multiclass" else column

    def _exact(self, column: int) -> bool:
        exact = self.joint.exact
        return bool(exact.all() if column == self.layout.classes else exact[self._question(column)])

    def _contrast(self, metric: str, column: int) -> Contrast:
        if metric == "auc":
            return self._area(column)
        if not self._exact(column):
            return self._hidden(metric, column)
        row = RATES.index(metric)
        first, second = (float(values[row, column]) for values in self.values)
        if math.isnan(first) or math.isnan(second):
            return NOTHING
        rests_on = self._rests_on(metric, column)
        n = int(rests_on.max())
        variances: list[float | None] = [None, None, None]
        if self.spread is not None and rests_on.min() > 1:
            variances = [float(self.spread.squares[kind, row, column]) * UNIT * n / (n - 1) for kind in range(3)]
        ends = [
            interval(value, variance, n, self.confidence) if self.spread is not None else Interval(value, None, None)
            for value, variance in zip((first, second), variances, strict=False)
        ]
        difference = self._difference(first - second, variances[2], float(rests_on.min()))
        table = self._mcnemar(metric, column, n)
        normal = rests_on.min() >= FEWEST
        if table is None:
            p = _wald(first - second, variances[2]) if normal else None
            return Contrast(ends[0], ends[1], difference, p, "wald")
        if not self._clustered(column):
            return Contrast(ends[0], ends[1], difference, table.mid_p, "mcnemar-mid-p", table)
        p = 1.0 if not table.first_only + table.second_only else table.clustered if normal else None
        return Contrast(ends[0], ends[1], difference, p, "obuchowski", table)

    def _rests_on(self, metric: str, column: int) -> Ints:
        """Patients of each share that a metric is made of."""
        joint = self.joint
        if column == self.layout.classes:
            return joint.asked if metric == "accuracy" else joint.patients[joint.patients > 0]
        if self.layout.task == "multiclass":
            return joint.patients[[column]] if metric == "sensitivity" else joint.asked
        negative, positive = 2 * column, 2 * column + 1
        of = {"sensitivity": [positive], "specificity": [negative], "balanced_accuracy": [negative, positive]}
        return joint.patients[of[metric]] if metric in of else joint.asked[[column]]

    def _clustered(self, column: int) -> bool:
        """Whether a patient has several images of the question."""
        question = 0 if self.layout.task == "multiclass" else min(column, self.layout.classes - 1)
        return bool(self.joint.asked[question] < self.joint.images(question))

    def _difference(self, value: float, variance: float | None, n: float) -> Interval:
        """value ± z·s in [-1, 1]. Where nothing varies, as where no image tells the two apart, Tango's limits for that
        (1998, Statistics in Medicine 17: 891-908): ± z² / (n + z²)."""
        if self.spread is None or variance is None or n <= 1:
            return Interval(value, None, None)
        reach = self.z * math.sqrt(variance) if variance > _NO_VARIANCE else self.z**2 / (n + self.z**2)
        return Interval(value, max(-1.0, value - reach), min(1.0, value + reach))

    def _mcnemar(self, metric: str, column: int, patients: int) -> McNemar | None:
        """Of shares of images; the mean over several classes is none."""
        classes, multiclass = self.layout.classes, self.layout.task == "multiclass"
        if metric not in COUNTED or (column == classes and not (multiclass and metric == "accuracy")):
            return None
        if column == classes:
            table = self.joint.right()
            b, c = table[1, 0], table[0, 1]
        else:
            signs = self.joint.signs(column)
            gained = (signs[0, 0, 1] + signs[1, 1, 0], signs[1, 1, 0], signs[0, 0, 1])
            lost = (signs[0, 1, 0] + signs[1, 0, 1], signs[1, 0, 1], signs[0, 1, 0])
            b, c = gained[COUNTED.index(metric)], lost[COUNTED.index(metric)]
        differing = None if self.spread is None else float(self.spread.differing[COUNTED.index(metric), column])
        return mcnemar(int(b), int(c), differing, patients)

    def _area(self, column: int) -> Contrast:
        assert self.models is not None
        one, other = self.models.references
        rows = [np.append(reference.auc, _mean(reference.auc, (one, other))) for reference in (one, other)]
        first, second = (float(row[column]) for row in rows)
        if math.isnan(first) or math.isnan(second):
            return NOTHING
        if not (one.counts.exact and other.counts.exact):
            ends = [_bounds(reference, column, (one, other)) for reference in (one, other)]
            difference = Interval(None, max(-1.0, ends[0][0] - ends[1][1]), min(1.0, ends[0][1] - ends[1][0]))
            return Contrast(Interval(None, *ends[0]), Interval(None, *ends[1]), difference, None, "")
        variance, n = self._area_variance(column, one)
        value = first - second
        p = _wald(value, variance) if n >= FEWEST else None
        plain = [Interval(each, None, None) for each in (first, second)]
        return Contrast(plain[0], plain[1], self._difference(value, variance, n), p, "delong")

    def _area_variance(self, column: int, reference: Reference) -> tuple[float | None, float]:
        """DeLong's, each part scaled by its own n as Obuchowski does; with the patients that it rests on."""
        assert self.models is not None
        areas, counts = self.models.areas, reference.counts
        n = float(counts.patients)
        if areas is None or areas.patients != counts.patients or areas.withheld[column] or n <= 1:
            return None, n
        total = float(areas.squares[column]) * UNIT
        if column == self.layout.classes:
            both = counts.class_patients[~np.isnan(reference.auc)]
            return total * n / (n - 1), float(both.min())
        negative, positive = (float(patients) for patients in counts.class_patients[column])
        if min(negative, positive) <= 1:
            return None, n
        parts = areas.parts[column] * UNIT
        cross = total - parts.sum()
        scaled = negative / (negative - 1) * parts[0] + positive / (positive - 1) * parts[1] + n / (n - 1) * cross
        return max(float(scaled), 0.0), min(negative, positive)

    def _kappa(self, question: int, table: Floats) -> Interval:
        found = kappa_of(table)
        n = int(self.joint.asked[question])
        if found is None or not self.joint.exact[question]:
            return UNDEFINED
        if self.spread is None or n <= 1:
            return Interval(found.value, None, None)
        rows, columns = table.sum(axis=1) / table.sum(), table.sum(axis=0) / table.sum()
        variance = float(self.spread.kappa[question]) * UNIT * n / (n - 1) / (1.0 - float(rows @ columns)) ** 2
        reach = self.z * math.sqrt(variance)
        return Interval(found.value, max(-1.0, found.value - reach), min(1.0, found.value + reach))

    def _hidden(self, metric: str, column: int) -> Contrast:
        """Small cells hide the table: of two models what their own counts bound, and McNemar's if these are exact."""
        if self.models is None:
            return NOTHING
        ends = [_rate_bounds(reference, metric, column, self.layout) for reference in self.models.references]
        if any(math.isnan(end) for pair in ends for end in pair):
            return NOTHING
        low, high = ends[0][0] - ends[1][1], ends[0][1] - ends[1][0]
        told = [Interval(pair[0], None, None) if pair[0] == pair[1] else Interval(None, *pair) for pair in ends]
        difference = Interval(low, None, None) if low == high else Interval(None, low, high)
        bounds = None
        if metric in ("sensitivity", "specificity") and column < self.layout.classes and low == high:
            bounds = self._hidden_p(metric == "sensitivity", column)
        return Contrast(told[0], told[1], difference, None, "", None, bounds)

    def _hidden_p(self, positive: bool, column: int) -> tuple[float, float] | None:
        """Mid-p for the fewest and for the most images that may tell the two apart: their margins are known."""
        assert self.models is not None
        if self.layout.task == "multiclass" or not all(reference.exact for reference in self.models.references):
            return None
        table = self.joint.signs(column)[int(positive)][:2, :2]
        right = 1 if positive else 0
        wholes = [reference.tallies[0] for reference in self.models.references]
        total = self.models.references[0].totals[column][int(positive)]
        hits = [float((whole.tp if positive else whole.tn)[column]) for whole in wholes]
        b, c = float(table[right, 1 - right]), float(table[1 - right, right])
        images = total - table.sum()
        one, other = hits[0] - table[right].sum(), hits[1] - table[:, right].sum()
        least, most = max(0.0, other - one), min(images - one, other)
        found = [binomial_mid(b + one - other + lost, c + lost) for lost in (least, most)]
        return min(found), max(found)


def binomial_mid(b: float, c: float) -> float:
    return mcnemar(round(b), round(c)).mid_p


def _wald(value: float, variance: float | None) -> float | None:
    if variance is None:
        return None
    if variance <= _NO_VARIANCE:
        return 1.0 if value == 0.0 else None
    return two_sided(value, variance)


def _values(layout: Layout, tally: Tally) -> Floats:
    """``(6, C + 1)`` RATES per class and over all."""
    per_class = rates(tally)
    defined = {name: ~np.isnan(values) for name, values in per_class.items()}
    images = (tally.tp + tally.fn).sum()
    plain = np.asarray(tally.tp.sum() / images if images else np.nan)
    overall = over_classes(layout.task, per_class, defined, plain)
    return np.stack([np.append(per_class[name], overall[name]) for name in RATES])


def _mean(area: Floats, references: tuple[Reference, Reference]) -> float:
    """Over the classes that have an AUC under both."""
    defined = ~np.isnan(references[0].auc) & ~np.isnan(references[1].auc)
    return float(area[defined].mean()) if defined.any() else math.nan


def _bounds(reference: Reference, column: int, references: tuple[Reference, Reference]) -> tuple[float, float]:
    low, high = (float(np.append(row, _mean(row, references))[column]) for row in auc_bounds(reference.counts))
    return low, high


def _rate_bounds(reference: Reference, metric: str, column: int, layout: Layout) -> tuple[float, float]:
    low, high = (float(_values(layout, tally)[RATES.index(metric), column]) for tally in reference.tallies)
    return low, high
