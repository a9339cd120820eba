"""The report's section on human readers: how well they and the model read the same images; never simulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from common.html import Block, Cell, Column, Paragraph, Table
from server.report import pairs
from server.report.compared import Compared, Contrasted
from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import arm_name, bounds, count, in_sentence, level, listing, metric_name, number

TEXT = False
_SHOWN = ("accuracy", "sensitivity", "specificity")


def blocks(run: Run) -> list[Block]:
    """Empty where the study asks for no readers."""
    if run.readers is None:
        return []
    if not run.readers.comparisons:
        return [
            Paragraph(
                f"No reader data: no vault holds readers' labels in the columns {listing(run.readers.columns)}. "
                "Readers are never simulated."
            )
        ]
    against = [pair for pair in run.readers.comparisons if pair.a == "model"]
    found: list[Block] = [
        Paragraph(" ".join(_sentence(pair, run.confidence) for pair in against)),
        _own(run),
        pairs.decided(run, run.readers.comparisons, "Model and readers, two by two, on the same images"),
        Paragraph(
            "Only images that all readers have read. The truth is the study's own label; where that label is the "
            "readers' consensus, each reader helped to make it, and looks better for it than on a truth from elsewhere "
            "(pathology, follow-up). Each reader saw what the hospital showed; the model saw one image.",
            "muted",
        ),
    ]
    return found


def _sentence(pair: Compared, confidence: float) -> str:
    metric, found = next(_told(pair), ("", None))
    if found is None:
        return f"{arm_name(pair.b)}: hidden, because too few patients stand behind a cell."
    amount = (
        f"{in_sentence(metric)} {number(found.first.value)} against {arm_name(pair.b)}'s {number(found.second.value)}"
    )
    p = found.p_holm if found.p_holm is not None else found.p
    if p is None:
        return f"The model reaches {amount}; whether that is chance cannot be told."
    verdict = "more than chance" if p < 1 - confidence else "may well be chance"
    return f"The model reaches {amount}; the difference {'is ' * (verdict[0] == 'm')}{verdict} (p {pairs.equals(p)})."


def _told(pair: Compared) -> Iterator[tuple[str, Contrasted]]:
    for metric in _SHOWN:
        found = pair.overall.get(metric)
        if found is not None and found.first.value is not None and found.second.value is not None:
            yield metric, found


def _own(run: Run) -> Table:
    """Everyone by themselves, on the same images."""
    assert run.readers is not None
    rates: dict[str, Mapping[str, Interval]] = {}
    classes: dict[str, dict[str, Mapping[str, Interval]]] = {}
    images = 0
    for pair in run.readers.comparisons:
        images = max(images, pair.images)
        for who, first in ((pair.a, True), (pair.b, False)):
            rates.setdefault(who, _side(pair.overall, first=first))
            for name, metrics in pair.per_class.items():
                classes.setdefault(who, {}).setdefault(name, _side(metrics, first=first))
    rows = []
    for who, known in rates.items():
        rows.append([Cell(arm_name(who)), Cell("all"), *(_cell(known.get(metric)) for metric in _SHOWN)])
        for name, own in classes.get(who, {}).items():
            rows.append([Cell(""), Cell(name), *(_cell(own.get(metric)) for metric in _SHOWN)])
    return Table(
        f"How well the model and each reader read {count(images)} test images, with {level(run.confidence)} intervals",
        [Column("Who", numeric=TEXT), Column("Class", numeric=TEXT), *(Column(metric_name(m)) for m in _SHOWN)],
        rows,
        "Intervals are clustered by patient.",
    )


def _side(metrics: Mapping[str, Contrasted], *, first: bool) -> dict[str, Interval]:
    return {metric: one.first if first else one.second for metric, one in metrics.items()}


def _cell(known: Interval | None) -> Cell:
    if known is None or known.value is None:
        return Cell("—", title="hidden, or undefined on these images", tone="muted")
    return Cell(number(known.value), small=bounds(known))
