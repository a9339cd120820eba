"""The paper's figures and ours, side by side: one measured figure a place, from the finished runs' results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from server.report.intervals import Interval
from server.report.results import Run as Result
from server.report.results import parse
from simulations.cli import read_results
from simulations.external import measured as summary
from simulations.reproduce.latency import Latency
from simulations.reproduce.paper import LATENCY, Comparison, Ours, Printed, Published
from simulations.reproduce.playing import Order
from simulations.reproduce.scoring import tested

HISTORY = ("train_loss", "val_loss", "val_auc")
"""Metrics that stand in the history of the training, at the round whose weights were kept."""


@dataclass(frozen=True)
class Measured:
    """One figure of ours: the mean over the seeds with their range, and the first seed's interval.

    ``low`` and ``high`` are clustered by patient; of a loss and of latencies there are none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None
    seeds: int = 1

    def json(self) -> dict[str, float | int | None]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "least": self.least,
            "most": self.most,
            "seeds": self.seeds,
        }


@dataclass(frozen=True)
class Line:
    """One figure of the paper beside ours; ``reason`` where there is none of ours."""

    published: Published
    measured: Measured | None
    reason: str


@dataclass(frozen=True)
class Beside:
    """One table of the paper beside ours."""

    printed: Printed
    lines: tuple[Line, ...]


Results = Mapping[str, Sequence[Result]]
"""The results of each run that was played, one for each seed."""


def results_of(order: Order) -> dict[str, list[Result]]:
    """What the runs found. Raises :class:`~common.errors.RunError` where one is not finished."""
    return {name: [parse(one) for one in read_results([order.folder(name)])] for name in order.wanted}


def beside(order: Order, results: Results, latencies: Sequence[Latency]) -> list[Beside]:
    """Every printed table of the paper with our figures."""
    times = {one.run: Measured(one.middle_ms) for one in latencies}
    return [
        Beside(printed, tuple(_line(order, results, times, row) for row in printed.rows))
        for printed in order.paper.published
    ]


def _line(order: Order, results: Results, times: Mapping[str, Measured], row: Published) -> Line:
    ours = row.ours
    if ours is None:
        return Line(row, None, row.why_not)
    if ours.run not in results:
        return Line(row, None, f"not run: {order.left_out[ours.run]}")
    if ours.within is not None:
        found = within(order, ours)
    else:
        found = times[ours.run] if ours.metric == LATENCY else measured(results[ours.run], ours)
    return Line(row, found, "" if found is not None else "undefined on these test patients")


def measured(runs: Sequence[Result], ours: Ours) -> Measured | None:
    """Our figure, or ``None`` where any seed has none."""
    return _over_seeds([_interval(run, ours) for run in runs])


def within(order: Order, ours: Ours) -> Measured | None:
    """Our figure on the test images of one data set: the model is scored again, image by image."""
    name = ours.within or ""
    names = [name, order.paper.sets[name].modality]
    found = []
    for repeat in range(order.seeds):
        all_of_them = tested(order.folder(ours.run), repeat, order.seeds)
        part = all_of_them.only(np.isin(all_of_them.sources, names))
        cell = summary(part.scores, part.card)["test"].get(ours.metric) if len(part.sources) else None
        found.append(_complement(Interval(cell["value"], cell["low"], cell["high"]) if cell else Interval(None), ours))
    return _over_seeds(found)


def _over_seeds(found: Sequence[Interval]) -> Measured | None:
    values = [one.value for one in found if one.value is not None]
    if len(values) < len(found):
        return None
    first = found[0]
    return Measured(statistics.fmean(values), first.low, first.high, min(values), max(values), len(values))


def _interval(run: Result, ours: Ours) -> Interval:
    arm = run.arms[ours.arm]
    if ours.metric in HISTORY:
        kept = [entry for entry in arm.model.history if entry.round == arm.model.kept_round]
        return Interval(getattr(kept[0], ours.metric) if kept else None)
    metrics = arm.model.test if ours.label is None else arm.model.per_class.get(ours.label, {})
    return _complement(metrics.get(ours.metric, Interval(None)), ours)


def _complement(found: Interval, ours: Ours) -> Interval:
    if not ours.complement or found.value is None:
        return found
    low, high = found.low, found.high
    return Interval(1.0 - found.value, None if high is None else 1.0 - high, None if low is None else 1.0 - low)


def compared(results: Results, comparison: Comparison) -> Iterator[tuple[str, list[Measured | None]]]:
    """Each of the comparison's runs that was played, with its metrics in order."""
    for name in comparison.runs:
        if name in results:
            cells = [
                measured(results[name], Ours(run=name, metric=metric, label=comparison.label))
                for metric in comparison.metrics
            ]
            yield name, cells
