"""The report's tables: numbers of a run as cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.html import Cell, Column, Table
from server.report.results import Arm, Difference, Interval, Metrics, Run, Scores
from server.report.words import (
    arm_name,
    bounds,
    count,
    duration,
    in_sentence,
    level,
    metric_cell,
    metric_name,
    number,
    ordered_metrics,
    plural,
    verdict_cell,
)

MANY_SITES = 30
"""Above this many hospitals a table shows the ends of the list and a summary."""
ENDS = 10
MAX_LISTED = 50
TEXT = False


@dataclass(frozen=True)
class Hospital:
    """One hospital's row: its comparisons of federated with alone on one metric."""

    site: str
    train_images: int | None
    alone_everyone: Interval | None
    gain_everyone: Interval | None
    gain_own: Interval | None


def hospitals(run: Run, metric: str) -> list[Hospital]:
    """Every hospital's comparisons, in the order of the results."""
    local = run.arms.get("local")
    found = {(d.b, d.on): d.interval for d in run.differences if d.a == "federated" and d.metric == metric}
    return [
        Hospital(
            site=name,
            train_images=site.images.get("train"),
            alone_everyone=local.everyone.get(name, {}).get(metric) if local else None,
            gain_everyone=found.get((f"local:{name}", "all")),
            gain_own=found.get((f"local:{name}", name)),
        )
        for name, site in run.sites.items()
    ]


def difference(run: Run, a: str, b: str, metric: str, on: str = "all") -> Interval | None:
    """The interval of a − b, or ``None`` where the run has not compared them."""
    return next(
        (d.interval for d in run.differences if (d.a, d.b, d.metric, d.on) == (a, b, metric, on)),
        None,
    )


def main_metric(run: Run) -> str:
    """What the verdict speaks of: AUC, or else the first metric compared or measured."""
    names = [d.metric for d in run.differences] or [m for arm in run.arms.values() for m in arm.model.test]
    return next(iter(ordered_metrics(names)), "auc")


def metrics_of(run: Run) -> list[str]:
    return ordered_metrics(metric for arm in run.arms.values() for metric in arm.model.test)


def ends(run: Run, metric: str, names: Sequence[str]) -> list[str]:
    """``names``, or where they are many the hospitals with least and most to gain, worst first."""
    if len(names) <= MANY_SITES:
        return list(names)
    gains = {h.site: h.gain_everyone for h in hospitals(run, metric)}
    federated = run.arms.get("federated")

    def rank(site: str) -> float:
        gain = gains.get(site)
        if gain is not None and gain.value is not None:
            return gain.value
        own = federated.own.get(site, {}).get(metric) if federated else None
        return own.value if own is not None and own.value is not None else float("inf")

    ranked = sorted(names, key=rank)
    return ranked[:ENDS] + ranked[-ENDS:]


def shortened(total: int) -> str:
    """The note under a table that :func:`ends` has cut."""
    if total <= MANY_SITES:
        return ""
    return (
        f"{plural(total, 'hospital')}: shown are the {ENDS} that gain least and the {ENDS} that gain most; "
        "metrics.csv has all of them."
    )


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
    return Table(
        f"Every arm on everyone's test patients, with {level(run.confidence)} intervals",
        [Column("Metric", numeric=TEXT), *(Column(arm_name(name)) for name in run.arms)],
        rows,
        "Intervals are clustered by patient. Thresholds were chosen on validation images only. "
        "“Each alone” is the mean over hospitals, each with a threshold of its own."
        if "local" in run.arms
        else "Intervals are clustered by patient. Thresholds were chosen on validation images only.",
    )


def gains(run: Run, metric: str) -> Table:
    """What each hospital gains: alone against federated, with the verdict in words."""
    federated = run.arms["federated"].model.test.get(metric) if "federated" in run.arms else None
    rows = {
        h.site: [
            Cell(h.site),
            Cell("—" if h.train_images is None else count(h.train_images)),
            metric_cell(h.alone_everyone, metric),
            metric_cell(federated, metric),
            metric_cell(h.gain_everyone, metric, sign=True),
            verdict_cell(h.gain_everyone),
        ]
        for h in hospitals(run, metric)
    }
    name = metric_name(metric)
    return Table(
        f"What each hospital gains from federating: {in_sentence(metric)} on everyone's test patients",
        [
            Column("Hospital", numeric=TEXT),
            Column("Training images"),
            Column(f"{name} alone"),
            Column(f"{name} federated"),
            Column("Difference"),
            Column("Federating is", numeric=TEXT),
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
    if not rows:
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


def pairs(values: Sequence[Sequence[float]], sites: Sequence[str], caption: str) -> Table:
    """Distances between every two hospitals."""
    top = max((value for row in values for value in row), default=0.0)
    rows = [
        [
            Cell(_label(sites, index)),
            *(Cell("·" if i == index else number(v), shade=v / top if top > 0.0 else 0.0) for i, v in enumerate(row)),
        ]
        for index, row in enumerate(values)
    ]
    return Table(caption, [Column("", numeric=TEXT), *(Column(_label(sites, i)) for i in range(len(values)))], rows)


def partition(run: Run, names: Sequence[str]) -> Table:
    """Images and patients of each hospital by split, and where they come from."""
    splits = [s for s in ("train", "val", "test") if any(s in site.images for site in run.sites.values())]
    origin = any(site.origin for site in run.sites.values())
    device = any(site.device for site in run.sites.values())
    rows = []
    for name in names:
        site = run.sites[name]
        rows.append(
            [
                Cell(name),
                *(Cell(count(site.images.get(split, 0)), small=_people(site.patients, split)) for split in splits),
                *([Cell(site.origin or "—")] if origin else []),
                *([Cell(site.device or "—")] if device else []),
            ]
        )
    return Table(
        "Images of each hospital",
        [
            Column("Hospital", numeric=TEXT),
            *(Column(split) for split in splits),
            *([Column("Origin", numeric=TEXT)] if origin else []),
            *([Column("Detector", numeric=TEXT)] if device else []),
        ],
        rows,
    )


def _people(patients: Mapping[str, int], split: str) -> str:
    return plural(patients[split], "patient") if split in patients else ""


def phases(run: Run) -> Table:
    rows = [[Cell(p.name), Cell(duration(p.wall_s)), Cell(duration(p.cpu_s))] for p in run.phases]
    rows.append([Cell("Whole run"), Cell(duration(run.wall_s)), Cell(duration(run.cpu_s))])
    return Table(
        "Where the time went", [Column("Phase", numeric=TEXT), Column("Clock"), Column("Processor time")], rows
    )


def refusals(run: Run) -> Table:
    shown = run.refusals[:MAX_LISTED]
    return Table(
        "Replies that did not count",
        [Column("Hospital", numeric=TEXT), Column("Arm", numeric=TEXT), Column("Round"), Column("Why", numeric=TEXT)],
        [
            [Cell(r.site), Cell(arm_name(r.arm)), Cell(str(r.round)), Cell(_brief(r.reason.removeprefix("refused: ")))]
            for r in shown
        ],
        _more(len(run.refusals), len(shown)),
    )


def unreadable(run: Run) -> Table:
    shown = run.unreadable[:MAX_LISTED]
    return Table(
        "Images that could not be read",
        [Column("File", numeric=TEXT), Column("Why", numeric=TEXT)],
        [[Cell(_brief(file)), Cell(_brief(reason))] for file, reason in shown],
        _more(len(run.unreadable), len(shown)),
    )


def _brief(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _more(total: int, shown: int) -> str:
    return f"And {count(total - shown)} more; results.json lists them all." if total > shown else ""


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


def has_own(arm: Arm | None, metric: str) -> bool:
    """Whether any hospital has this metric on its own patients."""
    return arm is not None and any(metric in metrics for metrics in arm.own.values())


def metric_values(groups: Mapping[str, Metrics], metric: str) -> dict[str, float]:
    """The defined values of a metric by site."""
    return {
        site: interval.value
        for site, metrics in groups.items()
        if (interval := metrics.get(metric)) is not None and interval.value is not None
    }
