"""``metrics.csv``: one line per run, arm, group of test patients, class and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from common.csv_text import cell_text
from common.study_personal import PERSONALISED
from server.report.intervals import Interval
from server.report.results import Metrics, Run

HEADER = (
    "study", "study_hash", "synthetic", "seed", "repeat", "engine",
    "arm", "trained_by", "tested_on", "class", "metric", "value", "low", "high",
)  # fmt: skip


def metrics_csv(runs: Sequence[Run]) -> str:
    """The table as text (RFC 4180); undefined numbers are empty, others have all their digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(HEADER)
    for run in runs:
        head = (run.name, run.study_hash, _known(run.synthetic), run.seed, run.repeat, run.engine)
        for arm, trained, tested, label, metric, interval in _lines(run):
            names = map(cell_text, (arm, trained, tested, label, metric))
            numbers = ("" if x is None else repr(x) for x in (interval.value, interval.low, interval.high))
            writer.writerow([*map(cell_text, head), *names, *numbers])
    return buffer.getvalue()


def _known(flag: bool | None) -> str:
    return "" if flag is None else str(flag).lower()


def _lines(run: Run) -> Iterator[tuple[str, str, str, str, str, Interval]]:
    """arm, who trained, whose patients, class, metric, value."""
    for name, arm in run.arms.items():
        trained = "each alone" if name == "local" else "all"
        yield from _metrics(name, trained, "all", "", arm.model.test)
        for label, metrics in arm.model.per_class.items():
            yield from _metrics(name, trained, "all", label, metrics)
        for site, metrics in arm.own.items():
            yield from _metrics(name, site if name == "local" else "all", site, "", metrics)
        for site, metrics in arm.everyone.items():
            yield from _metrics(name, site, "all", "", metrics)
    for site, own in run.own_models.sites.items() if run.own_models is not None else ():
        yield from _metrics(PERSONALISED, site, site, "", own.test)
        for d in own.differences:
            yield f"{d.a} - {d.b}", site, site, "", d.metric, d.interval
    for d in run.differences:
        yield f"{d.a} - {d.b}", "", d.on, "", d.metric, d.interval


def _metrics(
    arm: str, trained: str, tested: str, label: str, metrics: Metrics
) -> Iterator[tuple[str, str, str, str, str, Interval]]:
    for metric, interval in metrics.items():
        yield arm, trained, tested, label, metric, interval
