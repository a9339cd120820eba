"""What an examination found, as it stands in ``results.json``: groups compared with all others, mistakes, conditions.

A comparison is called only after Holm's correction for all of them, and only where both sides have
:data:`TESTED_FROM` patients behind the metric: with fewer, no interval is to be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.corruptions import setting
from common.metrics import METRICS, Interval, Reference, Summary, Thresholds
from common.metrics.calibration import Scale
from common.metrics.estimates import Estimate, difference, shown
from common.metrics.many import holm
from common.metrics.subgroup_moments import COMPARED, GAP, GroupMoments, gaps, rest_of
from common.metrics.subgroups import NOT_RECORDED, OTHER
from common.metrics.summary import estimate
from common.study import Study
from server.examining import Examined, Grouped
from server.mistakes import mistakes_json

TESTED_FROM = 10
"""Patients that a metric must rest on at either side."""
SHOWN = ("auc", "sensitivity", "specificity")
_DIGITS = 6


def examined_json(examined: Examined, test: Summary, study: Study) -> dict[str, Any]:
    """``subgroups``, ``mistakes`` and ``robustness``, each where the study asks for it; mistakes by class always."""
    found: dict[str, Any] = {}
    by = {name: examined.by[name] for name in study.evaluation.subgroups}
    if by:
        found["subgroups"] = subgroups_json(by, examined.thresholds, study)
    if examined.conditions:
        found["robustness"] = {
            name: [
                {"level": level, "setting": setting(name, level), "test": _metrics(summary)}
                for (of, level), summary in examined.conditions.items()
                if of == name
            ]
            for name in study.evaluation.robustness
        }
    found["mistakes"] = mistakes_json(test, examined, study)
    return found


def subgroups_json(by: Mapping[str, Grouped], thresholds: Thresholds, study: Study) -> dict[str, Any]:
    """Every group of every attribute, and which differences from the others stand after correction."""
    level = 1.0 - study.evaluation.confidence
    attributes: dict[str, Any] = {}
    compared: dict[tuple[str, ...], tuple[float, list[dict[str, Any]]]] = {}
    for name, grouped in by.items():
        rows = [_group(value, grouped, thresholds, study) for value in sorted(grouped.groups.counts)]
        attributes[name] = {"values": rows, "suppressed": grouped.groups.suppressed}
        named = [row for row in rows if row["value"] != NOT_RECORDED]
        for row in named:
            for metric, cell in row["differences"].items():
                # Of two groups each is the other's rest: their differences are one comparison.
                key = (name, metric) if len(named) == 2 else (name, metric, row["value"])
                if cell["patients"] >= TESTED_FROM:
                    compared.setdefault(key, (cell["p"], []))[1].append(cell)
    adjusted = holm([p for p, _ in compared.values()])
    for (_, cells), corrected in zip(compared.values(), adjusted, strict=True):
        for cell in cells:
            cell |= {"adjusted": round(corrected, _DIGITS), "stands": corrected <= level}
    return {"comparisons": len(compared), "level": round(level, _DIGITS), "tested_from": TESTED_FROM, "by": attributes}


def _group(value: str, grouped: Grouped, thresholds: Thresholds, study: Study) -> dict[str, Any]:
    """One group; ``patients`` of a difference are those behind the side that has fewer."""
    confidence, groups = study.evaluation.confidence, grouped.groups
    moments = grouped.moments[value] if grouped.moments is not None else None
    own = Reference(groups.counts[value], thresholds)
    rest = Reference(groups.rest(value) if moments is None else rest_of(groups, value, moments), thresholds)
    column = own.counts.layout.classes if own.counts.layout.classes > 1 else 0
    cells: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for metric in (*SHOWN, GAP):
        mine, theirs = (
            side_estimate(reference, sums, squares, metric, column)
            for reference, sums, squares in (
                (own, moments and moments.own, moments and moments.gaps[0]),
                (rest, moments and moments.rest, moments and moments.gaps[1]),
            )
        )
        cells[metric] = _rounded(shown(mine, confidence))
        if mine is None or theirs is None or value in (NOT_RECORDED, OTHER):
            continue
        found = difference(mine, theirs, confidence, _correlation(moments, metric, column))
        patients = math.floor(min(mine.n, theirs.n))
        differences[metric] = {**_rounded(found.interval), "p": found.p, "patients": patients}
    scale = Scale.of(own.counts, 0) if own.counts.layout.classes == 1 else None
    return {
        "value": value,
        "images": own.counts.images,
        "patients": own.counts.patients,
        "positives": own.counts.totals[:, 1].tolist(),
        "withheld": int(own.counts.withheld.max(initial=0)),
        "metrics": cells,
        "expected_error": None if scale is None else round(scale.expected_error(), _DIGITS),
        "differences": differences,
    }


def side_estimate(reference: Reference, moments: Any, gap_squares: Any, metric: str, column: int) -> Estimate | None:
    """One metric of one side, ``None`` where undefined. The gap is known only where no small cell is hidden."""
    if metric != GAP:
        return estimate(reference, moments, metric, column)
    value, n = float(gaps(reference.counts)[column]), float(reference.counts.patients)
    if gap_squares is None or math.isnan(value) or n <= 1:
        return None
    return Estimate(value, value, float(gap_squares[column]) * 2.0**-56 * n / (n - 1.0), n, proportion=False)


def _correlation(moments: GroupMoments | None, metric: str, column: int) -> float:
    """Of a group's metric and the others', by the patients that both have."""
    if moments is None:
        return 0.0
    row = COMPARED.index(metric)
    if metric == GAP:
        one, other = (float(moments.gaps[side, column]) for side in (0, 1))
    else:
        one, other = (float(side.squares[METRICS.index(metric), column]) for side in (moments.own, moments.rest))
    if not one or not other:
        return 0.0
    together = (one + other - float(moments.contrast[row, column])) / (2.0 * math.sqrt(one * other))
    return float(np.clip(together, -1.0, 1.0))


def _metrics(summary: Summary) -> dict[str, Any]:
    return {metric: _rounded(summary.overall[metric]) for metric in SHOWN}


def _rounded(interval: Interval) -> dict[str, float | None]:
    return {key: None if value is None else round(value, _DIGITS) for key, value in interval.to_dict().items()}
