"""Tables of ours alone: runs against each other, classes, what the kind of image tells, times."""

from __future__ import annotations

from common.html import Block, Cell, Column, Row, Statement, Table
from server.report.intervals import Interval
from server.report.words import bounds, count, metric_name, number
from simulations.reproduce.beside import Measured, compared, measured
from simulations.reproduce.confounding import Confounding
from simulations.reproduce.found import SYNTHETIC, Found
from simulations.reproduce.paper import Comparison, Ours

TEXT = False
_NAMES = {"val_auc": "Validation AUC", "val_loss": "Validation loss", "train_loss": "Training loss"}


def confounding(found: Found) -> list[Block]:
    """What a rule reaches that sees no pixel, beside the network; nothing where the paper has one data set."""
    told = found.confounded
    if told is None:
        return []
    counts = Table(
        "Training images by data set and class",
        [Column("Data set", numeric=TEXT), *map(Column, told.classes)],
        [[Cell(source), *(Cell(count(value)) for value in row)] for source, row in told.counts.items()],
    )
    right = Table(
        "Right answers on test images",
        [Column("Images", numeric=TEXT), Column("The rule"), Column("The network"), Column("Test images")],
        [
            [Cell(source or "all"), Cell(number(values[0])), Cell(number(values[1])), Cell(count(values[2]))]
            for source, values in told.right.items()
        ],
        "The rule answers with the most frequent class among the training images of the same data set. Inside one data "
        "set the kind of image tells nothing: the lines by data set are what the network has learned of the disease.",
    )
    return [
        Statement(
            confounding_sentence(told),
            "Kind of image and class go together in this design: the rule knows only which data set an image is from.",
        ),
        Row([counts, right]),
    ]


def confounding_sentence(told: Confounding) -> str:
    """The rule and the network on all test images, in one sentence."""
    rule, network, images = told.right[""]
    return (
        f"Without looking at a single pixel, {number(rule)} of {count(images)} test images go into the right class; "
        f"the network reaches {number(network)}."
    )


def comparisons(found: Found) -> list[Block]:
    """Runs of ours side by side, where at least two were played, and runs whose classes are shown one by one."""
    paper = found.order.paper
    blocks: list[Block] = [
        _comparison(found, one) for one in paper.comparisons if len(list(compared(found.results, one))) > 1
    ]
    return blocks + [_by_class(found, name) for name in paper.by_class if name in found.results]


_BY_CLASS = ("auc", "sensitivity", "specificity", "precision", "f1")


def _by_class(found: Found, name: str) -> Table:
    runs = found.results[name]
    rows = []
    for label in runs[0].classes:
        cells = [measured(runs, Ours(run=name, metric=metric, label=label)) for metric in _BY_CLASS]
        ill = sum(site.classes.get("test", {}).get(label, 0) for site in runs[0].sites.values())
        rows.append([Cell(label), Cell(count(ill)), *map(_measured_cell, cells)])
    return Table(
        f"{found.order.paper.runs[name].title}: each class against the others",
        [Column("Class", numeric=TEXT), Column("Test images"), *(Column(metric_name(m)) for m in _BY_CLASS)],
        rows,
        SYNTHETIC if runs[0].synthetic else "",
    )


def _measured_cell(cell: Measured | None, digits: int = 3) -> Cell:
    if cell is None:
        return Cell("—", tone="muted")
    seeds = range_text(cell)
    return Cell(number(cell.value, digits), small=" ".join(filter(None, (interval_text(cell), seeds and f"({seeds})"))))


def _comparison(found: Found, one: Comparison) -> Table:
    rows = []
    for name, cells in compared(found.results, one):
        shown = [
            _measured_cell(cell, 4 if metric.endswith("loss") else 3)
            for metric, cell in zip(one.metrics, cells, strict=True)
        ]
        rows.append([Cell(found.order.paper.runs[name].title, small=name), *shown])
    label = f" ({one.label})" if one.label else ""
    note = f"{SYNTHETIC}. {one.note}" if found.synthetic else one.note
    return Table(
        f"{one.title}{label}",
        [Column("Run", numeric=TEXT), *(Column(_NAMES.get(m) or metric_name(m)) for m in one.metrics)],
        rows,
        note,
    )


def latency(found: Found) -> list[Block]:
    """Time a case on this machine's CPU."""
    if not found.latencies:
        return []
    environment = next(iter(found.results.values()))[0].environment
    rows = [
        [
            Cell(found.order.paper.runs[one.run].title, small=one.run),
            Cell(count(one.parameters)),
            Cell(number(one.middle_ms, 1)),
            Cell(number(one.p90_ms, 1)),
            Cell(count(one.cases)),
        ]
        for one in found.latencies
    ]
    return [
        Table(
            f"Preparing and scoring one case on a CPU, one thread ({environment.get('cpu', 'unknown processor')})",
            [
                Column("Run", numeric=TEXT),
                Column("Parameters"),
                Column("Middle, ms"),
                Column("90th percentile, ms"),
                Column("Cases"),
            ],
            rows,
            "A case at a time, its pixels decrypted before the clock starts; other work on this machine counts.",
        )
    ]


def interval_text(measured: Measured | None) -> str:
    """``0.941 to 0.973``, or nothing."""
    return "" if measured is None else bounds(Interval(measured.value, measured.low, measured.high))


def range_text(measured: Measured | None) -> str:
    """Least to greatest over the seeds, or nothing where there is one."""
    if measured is None or measured.seeds == 1:
        return ""
    return f"{number(measured.least)} to {number(measured.most)}"
