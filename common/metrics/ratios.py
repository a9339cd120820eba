"""From confusion counts to rates, per class and over all classes.

Definitions are those of scikit-learn, except that a rate with nothing below the line is
undefined (NaN here, ``None`` to the reader) instead of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.metrics.layout import Floats, Task, divide

METRICS = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1")
RATES = METRICS[1:]


class Tally(NamedTuple):
    """Confusion counts of each class against the rest, ``(…, C)`` float64 (exact integers)."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


class Fraction(NamedTuple):
    """A rate as a ratio estimator: ``above / below``, both ``(…, C)``."""

    above: Floats
    below: Floats

    @property
    def value(self) -> Floats:
        return divide(self.above, self.below)


def fractions(tally: Tally) -> dict[str, Fraction]:
    """The rates that are one fraction each; balanced accuracy is the mean of two of them."""
    tp, fp, fn, tn = tally
    return {
        "accuracy": Fraction(tp + tn, tp + fp + fn + tn),
        "sensitivity": Fraction(tp, tp + fn),
        "specificity": Fraction(tn, tn + fp),
        "precision": Fraction(tp, tp + fp),
        "f1": Fraction(2 * tp, 2 * tp + fp + fn),
    }


def rates(tally: Tally) -> dict[str, Floats]:
    """Each of :data:`RATES` per class, ``(…, C)``; NaN where undefined."""
    result = {name: fraction.value for name, fraction in fractions(tally).items()}
    result["balanced_accuracy"] = (result["sensitivity"] + result["specificity"]) / 2
    return result


def over_classes(
    task: Task, per_class: Mapping[str, Floats], defined: Mapping[str, NDArray[np.bool_]], plain_accuracy: Floats
) -> dict[str, Floats]:
    """The overall value ``(…,)`` of every metric in ``per_class`` (values or influences, ``(…, C)``).

    The mean over the classes where the metric is ``defined`` ``(C,)`` (binary: the one class). Multiclass:
    accuracy is ``plain_accuracy``, the share of right argmaxes, and balanced accuracy is the mean
    sensitivity, as everybody means it. NaN where no class is defined.
    """
    result = {name: _mean(values, defined[name]) for name, values in per_class.items()}
    if task == "multiclass":
        result["accuracy"] = plain_accuracy
        result["balanced_accuracy"] = _mean(per_class["sensitivity"], defined["sensitivity"])
    return result


def _mean(values: Floats, defined: NDArray[np.bool_]) -> Floats:
    count = int(defined.sum())
    if not count:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values[..., defined].sum(axis=-1) / count)
