"""What a model gets wrong, as it stands in ``results.json``: misses, false alarms, wrong classes, by group and class.

Counts are of images of the test, at the operating threshold; shares have intervals clustered by patient. Where small
cells are hidden a count is the least and the most that it can be. What a model is wrong about and sure of is counted
too: a share of the scale at either end, of which no image is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.metrics import Counts, Interval, Moments, Reference, Summary
from common.metrics.estimates import Estimate, shown
from common.metrics.summary import estimate
from common.study import Study
from server.examining import Examined, Grouped

SURE = 0.1
"""A positive image scored below this, or a negative one from 1 less this on, is wrong and sure of it."""
_DIGITS = 6


def mistakes_json(test: Summary, examined: Examined, study: Study) -> dict[str, Any]:
    """``classes``: each class against the rest; ``by``: the groups of each attribute or column; worst first."""
    names = study.class_names[1:] if study.task == "binary" else study.class_names
    confidence = study.evaluation.confidence
    classes = [
        {"value": name, **_of_class(test.reference, test.per_class[column], column)}
        for column, name in enumerate(names)
    ]
    by = {
        name: sorted(
            (
                {"value": value, **_of_group(value, examined.by[name], examined, confidence)}
                for value in examined.by[name].groups.counts
            ),
            key=_worst_first,
        )
        for name in study.evaluation.by
    }
    return {"sure": SURE, "classes": sorted(classes, key=_worst_first), "by": by}


def _worst_first(row: Mapping[str, Any]) -> tuple[float, str]:
    shares = [row[key]["value"] for key in ("missed", "wrong") if row.get(key) and row[key]["value"] is not None]
    return (-shares[0] if shares else 1.0, row["value"])


def _of_class(reference: Reference, metrics: Mapping[str, Interval], column: int) -> dict[str, Any]:
    shares = {
        "missed": _turned(metrics["sensitivity"]),
        "false_alarms": _turned(metrics["specificity"]),
        "wrong": _turned(metrics["accuracy"]),
    }
    return {**_counted(reference, column), **shares}


def _of_group(value: str, grouped: Grouped, examined: Examined, confidence: float) -> dict[str, Any]:
    reference = Reference(grouped.groups.counts[value], examined.thresholds)
    moments: Moments | None = grouped.moments[value].own if grouped.moments is not None else None
    classes = reference.counts.layout.classes
    column = classes if classes > 1 else 0

    def share(metric: str) -> dict[str, float | None]:
        found: Estimate | None = estimate(reference, moments, metric, column)
        return _turned(shown(found, confidence))

    shares = {"wrong": share("accuracy")}
    if reference.counts.layout.task != "multiclass":
        shares |= {"missed": share("sensitivity"), "false_alarms": share("specificity")}
    return {**_counted(reference, None), **shares}


def _counted(reference: Reference, column: int | None) -> dict[str, Any]:
    """Counts of class ``column``, or of all classes together."""
    counts = reference.counts
    columns = slice(None) if column is None else slice(column, column + 1)
    worst, best = reference.tallies
    found: dict[str, Any] = {
        "images": counts.images,
        "negatives": int(counts.totals[columns, 0].sum()),
        "positives": int(counts.totals[columns, 1].sum()),
        "withheld": [bool(counts.withheld[columns, sign].any()) for sign in (0, 1)],
        "misses": [int(side.fn[columns].sum()) for side in (best, worst)],
        "alarms": [int(side.fp[columns].sum()) for side in (best, worst)],
    }
    if counts.exact and counts.layout.task != "multiclass":
        found |= {"sure_misses": _sure(counts, columns, 1), "sure_alarms": _sure(counts, columns, 0)}
    return found


def _sure(counts: Counts, columns: slice, sign: int) -> int:
    """Images of ``sign`` at the wrong end of the scale."""
    bins, total = counts.layout.bins, 0
    for column in range(counts.layout.classes)[columns]:
        at, n = counts.low.group(2 * column + sign, bins)
        scores = (at + 0.5) / bins
        total += int(n[scores < SURE if sign else scores >= 1.0 - SURE].sum())
    return total


def _turned(interval: Interval) -> dict[str, float | None]:
    """1 less a rate."""
    found = {"value": interval.value, "low": interval.high, "high": interval.low}
    return {key: None if value is None else round(1.0 - value, _DIGITS) for key, value in found.items()}
