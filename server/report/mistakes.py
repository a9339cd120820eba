"""The report's section on mistakes: what is missed, what alarms falsely, and where the model is wrong and sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.html import Block, Cell, Column, Details, Paragraph, Table
from server.report.examined import Mistakes
from server.report.fairness import ATTRIBUTES, examined, group_label
from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import arm_name, count, level, listing, plural


def blocks(run: Run) -> list[Block]:
    """Empty where the model was not examined."""
    kept = examined(run)
    if kept is None or kept[1].mistakes is None:
        return []
    arm, scores = kept
    found = scores.mistakes
    assert found is not None
    lead = (
        f"The {arm_name(arm).lower()} model on everyone's test images, at the operating threshold chosen on validation."
    )
    result: list[Block] = [Paragraph(f"{lead} {_worst(run, found.by)}".strip())]
    result.append(_table("By class", found.classes, run, ""))
    asked = run.setting_list("evaluation", "errors_by")
    tables = {
        name: _table(f"By {ATTRIBUTES.get(name, name)}", rows, run, name) for name, rows in found.by.items() if rows
    }
    result += [table for name, table in tables.items() if name in asked]
    rest = [table for name, table in tables.items() if name not in asked]
    if rest:
        result.append(Details("The same by " + listing(ATTRIBUTES.get(n, n) for n in tables if n not in asked), rest))
    edge = f"{found.sure:.0%}"
    result.append(
        Paragraph(
            f"Wrong and sure: positives scored in the lowest {edge} of the scale, negatives in the highest {edge}; "
            "they are counted, no image is shown. Shares have intervals clustered by patient; a class counts against "
            "all others."
            + (
                ""
                if found.by
                else " Add evaluation: {errors_by: [finding]} to the study to see which findings are missed."
            ),
            "muted",
        )
    )
    return result


def _worst(run: Run, by: Mapping[str, Sequence[Mistakes]]) -> str:
    """Which finding is missed most, of those with ten positives; empty where nothing was counted by findings."""
    rows = [
        (name, row)
        for name, found in by.items()
        if name in run.setting_list("evaluation", "errors_by")
        for row in found
        if row.positives >= 10 and row.missed.value is not None
    ]
    if not rows:
        return ""
    name, row = max(rows, key=lambda pair: pair[1].missed.value or 0.0)
    return (
        f"Missed most: {group_label(name, row.value)}, {count(row.misses[1])} of {plural(row.positives, 'image')} "
        f"({_percent(row.missed)})."
    )


def _table(caption: str, rows: Sequence[Mistakes], run: Run, attribute: str) -> Table:
    with_signs = (
        any(row.missed.value is not None or row.false_alarms.value is not None for row in rows) or not attribute
    )
    columns = [Column("Group" if attribute else "Class", numeric=False), Column("Test images")]
    if with_signs:
        columns += [
            Column("Missed", "False negatives"),
            Column("of", "False negatives"),
            Column("Share", "False negatives"),
        ]
        columns += [
            Column("Alarms", "False positives"),
            Column("of", "False positives"),
            Column("Share", "False positives"),
        ]
    columns += [Column("Wrong"), Column("Wrong and sure")]
    cells = []
    for row in rows:
        line = [Cell(group_label(attribute, row.value) if attribute else row.value), Cell(count(row.images))]
        if with_signs:
            line += [*_counts(row.misses, row.positives, row.withheld[1]), _share(row.missed)]
            line += [*_counts(row.alarms, row.negatives, row.withheld[0]), _share(row.false_alarms)]
        sure = None if row.sure_misses is None or row.sure_alarms is None else row.sure_misses + row.sure_alarms
        cells.append([*line, _share(row.wrong), Cell("—" if sure is None else count(sure))])
    return Table(f"{caption}, with {level(run.confidence)} intervals; most missed first", columns, cells)


def _counts(wrong: tuple[int, int], of: int, withheld: bool) -> tuple[Cell, Cell]:
    """Mistakes, and of how many; what was left out is told to be, and is no 0."""
    if withheld and not of:
        hidden = Cell("suppressed", title="too few patients", tone="muted")
        return hidden, hidden
    more = "and more, suppressed" if withheld else ""
    return Cell(_range(wrong), more), Cell(count(of), more)


def _range(pair: tuple[int, int]) -> str:
    return count(pair[0]) if pair[0] == pair[1] else f"{count(pair[0])} to {count(pair[1])}"


def _percent(span: Interval) -> str:
    if span.low is None or span.high is None:
        return "—" if span.value is None else f"{span.value:.0%}"
    between = f"{span.low:.0%} to {span.high:.0%}"
    return between if span.value is None else f"{span.value:.0%}, {between}"


def _share(span: Interval) -> Cell:
    if span.value is None and span.low is None:
        return Cell("—", title="undefined, or suppressed: too few patients", tone="muted")
    between = "" if span.low is None or span.high is None else f"{span.low:.1%} to {span.high:.1%}"
    return Cell(between, title="small cells are hidden") if span.value is None else Cell(f"{span.value:.1%}", between)
