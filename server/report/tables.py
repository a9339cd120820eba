"""The tables of arms and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from common.html import Cell, Column, Table
from server.report.contrasts import ends, hospitals, metrics_of, shortened
from server.report.intervals import Interval
from server.report.results import Difference, Run, Scores
from server.report.words import (
    arm_name,
    bounds,
    count,
    in_sentence,
    level,
    metric_cell,
    metric_name,
    number,
    ordered_metrics,
    verdict_cell,
)

TEXT = False


def overall(run: Run) -> Table:
    """Arms by metric on everyone's test patients."""
    metrics = metrics_of(run)
    rows = [
        [Cell(metric_name(metric)), *(metric_cell(arm.model.test.get(metric), metric) for arm in run.arms.values())]
        for metric in metrics
    ]
    if any(len(arm.model.thresholds) == 1 for arm in run.arms.values()):
        thresholds = [
            number(next(iter(arm.model.thresholds.values()))) if len(arm.model.thresholds) == 1 else "—"
            for arm in run.arms.values()
        ]
        rows.append([Cell("Operating threshold"), *map(Cell, thresholds)])
    notes = ["Intervals are clustered by patient. Thresholds were chosen on validation images only."]
    if "local" in run.arms:
        notes.append("“Each alone” is the mean over hospitals, each with a threshold of its own.")
    if any(interval.hidden for arm in run.arms.values() for interval in arm.model.test.values()):
        notes.append(
            "Where small cells are hidden there is no value and no interval, but the least and the most that it can "
            "be on these patients."
        )
    return Table(
        f"Every arm on everyone's test patients, with {level(run.confidence)} intervals",
        [Column("Metric", numeric=TEXT), *(Column(arm_name(name)) for name in run.arms)],
        rows,
        " ".join(notes),
    )


def gains(run: Run, metric: str) -> Table:
    """What each hospital gains: alone against federated, with the verdict in words."""
    federated = run.arms["federated"].model.test.get(metric) if "federated" in run.arms else None
    rows = {
        h.site: [
            Cell(h.site),
            verdict_cell(h.gain_everyone),
            metric_cell(h.gain_everyone, metric, sign=True),
            Cell(number(federated.value if federated else None)),
            metric_cell(h.alone_everyone, metric),
            Cell("—" if h.train_images is None else count(h.train_images)),
        ]
        for h in hospitals(run, metric)
    }
    name = metric_name(metric)
    return Table(
        f"What each hospital gains from federating: {in_sentence(metric)} on everyone's test patients",
        [
            Column("Hospital", numeric=TEXT),
            Column("Federating is", numeric=TEXT),
            Column("Difference"),
            Column(f"{name} federated"),
            Column(f"{name} alone"),
            Column("Training images"),
        ],
        [rows[site] for site in ends(run, metric, list(rows))],
        shortened(len(rows)),
    )


def per_hospital(run: Run, metric: str) -> Table:
    """Arms on each hospital's own test patients, and each hospital alone on everyone's."""
    arms = [arm for arm in run.arms.values() if arm.own]
    own = [
        Column(arm_name(arm.name) if arm.name != "local" else "Alone", f"{metric_name(metric)} on its own patients")
        for arm in arms
    ]
    local = run.arms.get("local")
    everyone = [Column("Alone", f"{metric_name(metric)} on everyone's")] if local and local.everyone else []
    gained = {h.site: h.gain_own for h in hospitals(run, metric)}
    compared = any(gained.values())
    verdicts = [Column("Difference", "Federated − alone, own patients")] if compared else []
    names = list(run.sites)
    rows = [
        [
            Cell(site),
            Cell(_patients(run, site)),
            *(metric_cell(arm.own.get(site, {}).get(metric), metric) for arm in arms),
            *([_gain_cell(gained.get(site), metric)] if verdicts else []),
            *([metric_cell(local.everyone.get(site, {}).get(metric), metric)] if local and everyone else []),
        ]
        for site in ends(run, metric, names)
    ]
    return Table(
        f"{metric_name(metric)} of the arms at each hospital",
        [Column("Hospital", numeric=TEXT), Column("Test patients"), *own, *verdicts, *everyone],
        rows,
        shortened(len(names)),
    )


def _gain_cell(gain: Interval | None, metric: str) -> Cell:
    said = verdict_cell(gain)
    return metric_cell(gain, metric, sign=True, tone=said.tone if said.tone != "unsure" else "")


def _patients(run: Run, site: str) -> str:
    patients = run.sites[site].patients.get("test")
    return "—" if patients is None else count(patients)


def spread(run: Run, metric: str) -> Table:
    """Over many hospitals: the arms' least, middle and greatest value on their own patients."""
    rows = []
    for arm in run.arms.values():
        for label, groups in (("own patients", arm.own), ("everyone's", arm.everyone)):
            values = sorted(
                interval.value
                for metrics in groups.values()
                if (interval := metrics.get(metric)) is not None and interval.value is not None
            )
            if values:
                shown = [values[0], values[len(values) // 4], values[len(values) // 2], values[3 * len(values) // 4]]
                cells = [Cell(number(value)) for value in (*shown, values[-1])]
                rows.append([Cell(f"{arm_name(arm.name)}, {label}"), Cell(count(len(values))), *cells])
    return Table(
        f"{metric_name(metric)} over all hospitals",
        [
            Column("Arm and test patients", numeric=TEXT),
            *map(Column, ("Hospitals", "Least", "Lower quarter", "Middle", "Upper quarter", "Greatest")),
        ],
        rows,
        "A hospital whose own test patients all belong to one class has no AUC there and is not counted.",
    )


def per_class(run: Run) -> Table | None:
    """Arms by class, where there is more than one class to speak of."""
    metrics = ordered_metrics(m for arm in run.arms.values() for values in arm.model.per_class.values() for m in values)
    rows = [
        [
            Cell(name),
            Cell(arm_name(arm.name)),
            *(metric_cell(values.get(metric), metric) for metric in metrics),
            Cell(number(arm.model.thresholds.get(name))),
        ]
        for name in run.classes
        for arm in run.arms.values()
        if (values := arm.model.per_class.get(name)) is not None
    ]
    if len({row[0].text for row in rows}) < 2:  # the one class of a binary task is the table of all metrics
        return None
    return Table(
        "Each class against the others, on everyone's test patients",
        [
            Column("Class", numeric=TEXT),
            Column("Arm", numeric=TEXT),
            *(Column(metric_name(metric)) for metric in metrics),
            Column("Threshold"),
        ],
        rows,
    )


def confusion(scores: Scores, classes: Sequence[str], arm: str) -> list[Table]:
    """Confusion matrices of one arm: true rows, predicted columns, tinted by their share of the row."""
    if scores.confusion_matrix is not None:
        return [_matrix(scores.confusion_matrix, classes, f"{arm_name(arm)}: all classes")]
    tables = []
    for name, matrix in scores.confusion.items():
        labels = list(classes) if len(classes) == 2 and name == classes[1] else [f"not {name}", name]
        tables.append(_matrix(matrix, labels, f"{arm_name(arm)}: {name}"))
    return tables


def _matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str], caption: str) -> Table:
    rows = []
    for index, values in enumerate(matrix):
        total = sum(values)
        shares = [value / total if total else 0.0 for value in values]
        rows.append(
            [
                Cell(f"is {_label(labels, index)}"),
                *(
                    Cell(count(value), small=f"{share:.1%}" if total else "", shade=share)
                    for value, share in zip(values, shares, strict=True)
                ),
            ]
        )
    width = len(matrix[0]) if matrix else 0
    return Table(
        caption,
        [Column("Images", numeric=TEXT), *(Column(f"called {_label(labels, i)}", numeric=TEXT) for i in range(width))],
        rows,
    )


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else f"class {index + 1}"


def differences_table(run: Run, chosen: Sequence[Difference]) -> Table:
    """The numbers behind a forest plot."""
    rows = [
        [
            Cell(f"{arm_name(d.a)} − {arm_name(d.b)}"),
            Cell(metric_name(d.metric)),
            Cell("everyone's" if d.on == "all" else f"{d.on}'s own"),
            metric_cell(Interval(d.interval.value), d.metric, sign=True),
            Cell(bounds(d.interval, sign=True) or "—"),
            verdict_cell(d.interval),
        ]
        for d in chosen
    ]
    return Table(
        f"Differences with {level(run.confidence)} intervals (paired bootstrap over patients)",
        [
            Column("Comparison", numeric=TEXT),
            Column("Metric", numeric=TEXT),
            Column("Test patients", numeric=TEXT),
            Column("Difference"),
            Column("Interval"),
            Column("The first is", numeric=TEXT),
        ],
        rows,
    )
