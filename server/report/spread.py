"""What the pages of several runs share: values over runs, and each run folded away."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from common.html import Block, Cell, Details, Figure, Heading, Paragraph
from server.report import charts
from server.report.intervals import Interval
from server.report.page import sections_of
from server.report.results import ARMS, Run
from server.report.words import listing, metric_name, number, signed

DRAWN = 4
"""Runs whose own figures stand on a page of several; the others keep their tables."""


def repeat_name(run: Run) -> str:
    return f"Repeat {run.repeat + 1}, seed {run.seed}"


def arms_of(runs: Sequence[Run]) -> list[str]:
    present = dict.fromkeys(arm for run in runs for arm in run.arms)
    return [arm for arm in (*ARMS, *(a for a in present if a not in ARMS)) if arm in present]


def intervals_of(runs: Sequence[Run], arm: str, metric: str) -> list[Interval]:
    return [i for run in runs if arm in run.arms and (i := run.arms[arm].model.test.get(metric)) is not None]


def values_of(runs: Sequence[Run], arm: str, metric: str) -> list[float]:
    return [interval.value for interval in intervals_of(runs, arm, metric) if interval.value is not None]


def extent(values: Sequence[float], *, sign: bool = False) -> str:
    show = signed if sign else number
    return f"{show(min(values))} to {show(max(values))}"


def spread_cell(values: Sequence[float], *, sign: bool = False) -> Cell:
    """Mean ± sample standard deviation, least and greatest below."""
    if not values:
        return Cell("—", title="undefined, or not measured in these runs", tone="muted")
    show = signed if sign else number
    if len(values) == 1:
        return Cell(show(values[0]))
    return Cell(f"{show(statistics.fmean(values))} ± {number(statistics.stdev(values))}", extent(values, sign=sign))


def dot_figure(rows: Sequence[charts.Dots], title: str, metric: str, name: str) -> Figure:
    axis = f"{metric_name(metric)} on everyone's test patients"
    said = "; ".join(
        f"{row.label} {listing(number(i.value) for i in row.values if i.value is not None) or 'undefined'}"
        for row in rows[:12]
    )
    return Figure(
        charts.svg(charts.dots(rows, title, axis), name),
        f"Dot plot. {title}: {said}",
        f"{title}, with intervals.",
    )


def details(runs: Sequence[Run], titles: Sequence[str]) -> list[Block]:
    """Every run's own report, folded; figures for the first few only, to bound the page."""
    blocks: list[Block] = []
    if len(runs) > DRAWN:
        blocks.append(
            Paragraph(
                f"Figures are drawn for the first {DRAWN} only; the report in each run's own folder has them.", "muted"
            )
        )
    for index, (run, title) in enumerate(zip(runs, titles, strict=True)):
        inner: list[Block] = []
        for section in sections_of(run, drawn=index < DRAWN, prefix=f"run{index}-"):
            inner += [Heading(section.heading), *section.blocks]
        blocks.append(Details(title, inner))
    return blocks
