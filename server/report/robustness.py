"""The report's section on worse images: how far the model carries, and where its operating threshold breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.html import Block, Cell, Column, Details, Figure, Paragraph, Row, Table
from server.report import charts
from server.report.examined import Level
from server.report.fairness import examined
from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import arm_name, bounds, level, listing, metric_name, number

SHOWN = ("auc", "sensitivity", "specificity")
NAMES = {
    "noise": "noise",
    "blur": "blur",
    "gain": "over-exposure",
    "gamma": "another tone curve",
    "resolution": "coarse resolution",
    "jpeg": "JPEG compression",
}


def blocks(run: Run, drawn: bool, prefix: str) -> list[Block]:
    """Empty where no model was kept that could be examined."""
    kept = examined(run)
    if kept is None:
        return []
    arm, scores = kept
    if not scores.robustness:
        return [
            Paragraph(
                "Not measured: the study names no conditions. Add evaluation: {robustness: [noise, blur, gain, gamma, "
                "resolution, jpeg]} to it, and run it again.",
                "unsure",
            )
        ]
    lead = (
        f"The {arm_name(arm).lower()} model on everyone's test images, made worse step by step; the operating "
        "threshold stays where it is. Level 0 is the image as it came."
    )
    result: list[Block] = [Paragraph(f"{lead} {sentence(scores.test, scores.robustness)}")]
    if drawn:
        result.append(Row([_figure(name, levels, scores.test, prefix) for name, levels in scores.robustness.items()]))
    table = _table(scores.robustness, run.confidence)
    result.append(Details("These curves as numbers", [table]) if drawn else table)
    result.append(
        Paragraph(
            "The threshold breaks at the first level at which the interval of sensitivity, or of specificity, lies "
            "wholly below that of the images as they came: so said late rather than early, for both see the same "
            "patients. What is altered is the model's input, at the sites; levels are the same in every study.",
            "muted",
        )
    )
    return result


def broken(test: Mapping[str, Interval], levels: Sequence[Level]) -> tuple[Level, str] | None:
    """The first level at which the operating threshold breaks, and which rate does."""
    for one in levels:
        for metric in ("sensitivity", "specificity"):
            before, after = test.get(metric), one.metrics.get(metric)
            if before is None or after is None or before.low is None or after.high is None:
                continue
            if after.high < before.low:
                return one, metric
    return None


def sentence(test: Mapping[str, Interval], conditions: Mapping[str, tuple[Level, ...]]) -> str:
    """Where it breaks, in words."""
    said = []
    for name, levels in conditions.items():
        found = broken(test, levels)
        if found is not None:
            one, metric = found
            rate = one.metrics[metric]
            value = number(rate.value, 2) if rate.value is not None else f"at most {number(rate.high, 2)}"
            said.append(f"{NAMES.get(name, name)} from level {one.level} on ({one.setting}: {metric} {value})")
    if not said:
        return "Under none of these conditions the operating threshold breaks."
    return f"The operating threshold breaks under {listing(said)}."


def _figure(name: str, levels: Sequence[Level], test: Mapping[str, Interval], prefix: str) -> Figure:
    title = NAMES.get(name, name)
    title = title[:1].upper() + title[1:]
    lines = {}
    for metric in SHOWN:
        first = test.get(metric)
        points = [first or Interval(None)]
        lines[metric_name(metric)] = [*points, *(one.metrics.get(metric, Interval(None)) for one in levels)]
    told = "; ".join(f"{label} {', '.join(number(span.value) for span in spans)}" for label, spans in lines.items())
    return Figure(
        charts.svg(charts.severity(lines, title), f"{prefix}robust-{name}"),
        f"{title}, levels 0 to {len(levels)}: {told}",
        f"{title}: from {levels[0].setting} to {levels[-1].setting}.",
    )


def _table(conditions: Mapping[str, tuple[Level, ...]], confidence: float) -> Table:
    rows = [
        [Cell(NAMES.get(name, name)), Cell(f"{one.level}: {one.setting}"), *(_cell(one.metrics.get(m)) for m in SHOWN)]
        for name, levels in conditions.items()
        for one in levels
    ]
    return Table(
        f"Under each condition, with {level(confidence)} intervals",
        [Column("Condition", numeric=False), Column("Level", numeric=False), *(Column(metric_name(m)) for m in SHOWN)],
        rows,
    )


def _cell(span: Interval | None) -> Cell:
    if span is None or (span.value is None and span.low is None):
        return Cell("—", tone="muted")
    return Cell(bounds(span)) if span.value is None else Cell(number(span.value), bounds(span))
