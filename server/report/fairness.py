"""The report's section on groups of patients: for whom the model works, and what these numbers cannot tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.html import Block, Cell, Column, Figure, Paragraph, Row, Table
from server.report import charts
from server.report.examined import Apart, Group, Subgroups
from server.report.intervals import Interval
from server.report.results import Run, Scores
from server.report.words import arm_name, bounds, count, level, metric_name, number, plural, signed

GAP = "gap"
ASKED = "evaluation: {subgroups: [sex, age, view]}"
ATTRIBUTES = {"sex": "sex", "age": "age", "view": "view", "site": "hospital", "device": "device", "source": "source"}
_VALUES = {("sex", "F"): "women", ("sex", "M"): "men"}
_NOT_RECORDED = "not recorded"
_SHOWN = ("auc", "sensitivity", "specificity")
_DRAWN = ("sensitivity", "specificity")
_MOST_DRAWN = 30


@dataclass(frozen=True)
class Found:
    """A group for which a metric is apart from that of all others, beyond chance."""

    attribute: str
    group: Group
    metric: str
    apart: Apart

    @property
    def worse(self) -> bool:
        """Less of a metric; of the gap, neither way is better."""
        return self.metric != GAP and (self.apart.span.high or 0.0) < 0.0


def examined(run: Run) -> tuple[str, Scores] | None:
    """The arm whose model was kept, and so examined."""
    return next(((name, run.arms[name].model) for name in ("federated", "pooled") if name in run.arms), None)


def group_label(attribute: str, value: str) -> str:
    """A group in a table of its attribute: ``women``, ``40-59``, ``PA``."""
    return "several at once" if value == "several" else _VALUES.get((attribute, value), value)


def group_name(attribute: str, value: str) -> str:
    """A group in a sentence: ``women``, ``patients aged 40-59``, ``images of view PA``."""
    name = ATTRIBUTES.get(attribute, attribute)
    if (attribute, value) in _VALUES:
        return _VALUES[attribute, value]
    if value == _NOT_RECORDED:
        return f"images whose {name} is not recorded"
    if attribute == "age":
        return f"patients aged {value}"
    return f"patients of {value}" if attribute == "site" else f"images of {name} {value}"


def ordered(attribute: str, groups: Iterable[Group]) -> list[Group]:
    """As one reads them: ages rising, what is not recorded last."""
    return sorted(
        groups, key=lambda group: (group.value in (_NOT_RECORDED, "other"), _first_year(attribute, group.value))
    )


def _first_year(attribute: str, value: str) -> tuple[int, str]:
    years = re.search(r"\d+", value) if attribute == "age" else None
    return (int(years[0]) - value.startswith("under") if years else 0, value)


def standing(found: Subgroups) -> list[Found]:
    """The differences that stand after correction, farthest first; of two groups only the one that is worse off."""
    every = [
        Found(attribute, group, metric, apart)
        for attribute, groups in found.by.items()
        for group in groups
        for metric, apart in group.differences.items()
        if apart.stands
        and (len([one for one in groups if one.differences]) != 2 or metric == GAP or (apart.span.high or 0.0) < 0.0)
    ]
    return sorted(every, key=lambda one: -abs(_middle(one.apart.span)))


def least_excluded(found: Subgroups) -> Found | None:
    """Of all differences that were tested, in sensitivity, the one that may be worst."""
    tested = [
        Found(attribute, group, "sensitivity", apart)
        for attribute, groups in found.by.items()
        for group in groups
        if (apart := group.differences.get("sensitivity")) is not None
        and apart.adjusted is not None
        and apart.span.low is not None
    ]
    return min(tested, key=lambda one: one.apart.span.low or 0.0, default=None)


def blocks(run: Run, drawn: bool, prefix: str) -> list[Block]:
    """Empty where no model was kept that could be examined."""
    kept = examined(run)
    if kept is None:
        return []
    arm, scores = kept
    found = scores.subgroups
    if found is None or not found.by:
        return [
            Paragraph(f"Not measured: the study names no subgroups. Add {ASKED} to it, and run it again.", "unsure")
        ]
    lead = (
        f"The {arm_name(arm).lower()} model on everyone's test patients, counted again by group, at the one operating "
        "threshold. A difference is that of a group from all others of whom the attribute is recorded."
    )
    result: list[Block] = [Paragraph(lead)]
    if drawn:
        drawings = [_figure(metric, found, run.confidence, f"{prefix}groups-{metric}") for metric in _DRAWN]
        result.append(Row([figure for figure in drawings if figure is not None]))
    for attribute, groups in found.by.items():
        result.append(_table(attribute, ordered(attribute, groups), run.confidence))
        result.append(_differences(attribute, ordered(attribute, groups), run.confidence))
        if found.suppressed.get(attribute):
            where = plural(found.suppressed[attribute], "hospital")
            result.append(Paragraph(f"Suppressed: at {where} groups of too few patients were left out.", "unsure"))
    result.append(
        Paragraph(
            f"{plural(found.comparisons, 'comparison')} in all. One is called a difference where its p-value, "
            f"corrected for all of them (Holm), is at most {found.level:g}; none where fewer than {found.tested_from} "
            "patients stand behind either side. The intervals are of each by itself, not corrected. Calibration gap: "
            "mean score less share that has it; 0 is right, above it scores promise too much. That no difference is "
            "called does not show that there is none: read how wide the intervals are.",
            "muted",
        )
    )
    return result


def _table(attribute: str, groups: Sequence[Group], confidence: float) -> Table:
    rows = [
        [
            Cell(group_label(attribute, group.value), small="one class suppressed somewhere" if group.withheld else ""),
            Cell(count(group.images)),
            Cell(count(group.patients)),
            *(_span_cell(group.metrics.get(metric)) for metric in _SHOWN),
            _span_cell(group.metrics.get(GAP), sign=True),
        ]
        for group in groups
    ]
    heads = [*(Column(metric_name(metric)) for metric in _SHOWN), Column("Calibration gap")]
    return Table(
        f"By {ATTRIBUTES.get(attribute, attribute)}, with {level(confidence)} intervals",
        [Column("Group", numeric=False), Column("Test images"), Column("Patients"), *heads],
        rows,
    )


def _differences(attribute: str, groups: Sequence[Group], confidence: float) -> Table:
    compared = [group for group in groups if group.differences]
    rows = [
        [
            Cell(group_label(attribute, group.value)),
            *(_apart_cell(group.differences.get(metric)) for metric in (*_SHOWN, GAP)),
        ]
        for group in compared
    ]
    return Table(
        f"By {ATTRIBUTES.get(attribute, attribute)}: difference from all others, with {level(confidence)} intervals "
        "and corrected p-values",
        [
            Column("Group", numeric=False),
            *(Column(metric_name(metric)) for metric in _SHOWN),
            Column("Calibration gap"),
        ],
        rows,
    )


def _span_cell(span: Interval | None, *, sign: bool = False) -> Cell:
    if span is None or (span.value is None and span.low is None):
        return Cell("—", title="undefined, or suppressed: too few patients", tone="muted")
    show = signed if sign else number
    between = bounds(span, sign=sign)
    if span.value is None:
        return Cell(between, title="small cells are hidden: somewhere between")
    return Cell(show(span.value), small=between)


def _apart_cell(apart: Apart | None) -> Cell:
    if apart is None:
        return Cell("—", title="nothing to compare", tone="muted")
    between = f"{signed(apart.span.low, 2)} to {signed(apart.span.high, 2)}"
    value = signed(apart.span.value, 2) if apart.span.value is not None else between
    if apart.adjusted is None:
        return Cell(value, f"{between}; too few", title="too few patients to test", tone="muted")
    said = f"{between}; p {p_words(apart.adjusted)}"
    return Cell(f"{value} differs" if apart.stands else value, said, tone="bad" if apart.stands else "")


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2f}"


def _figure(metric: str, found: Subgroups, confidence: float, name: str) -> Figure | None:
    """All groups' differences in one metric; ``None`` where nothing can be compared."""
    rows = [
        (group_label(attribute, group.value), group.differences[metric].span)
        for attribute, groups in found.by.items()
        for group in ordered(attribute, groups)
        if metric in group.differences
    ][:_MOST_DRAWN]
    if not rows:
        return None
    title = f"{metric_name(metric)}: each group against all others"
    effects = [charts.Effect(label, span) for label, span in rows]
    axis = f"Difference ({level(confidence)} interval)"
    told = "; ".join(f"{label} {signed(span.value)}, {signed(span.low)} to {signed(span.high)}" for label, span in rows)
    return Figure(
        charts.svg(charts.forest(effects, title, axis), name),
        f"Forest plot. {title}: {told}",
        "Left of zero the model works less well than among all others. A filled square: the interval by itself leaves "
        "out zero, before correction for many comparisons.",
    )


def _middle(span: Interval) -> float:
    if span.value is not None:
        return span.value
    return ((span.low or 0.0) + (span.high or 0.0)) / 2.0
