"""The tables of what a run was made of: data, time, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.html import Cell, Column, Table
from server.answer_words import in_words
from server.report.results import Heterogeneity, Run, Site
from server.report.words import arm_name, count, duration, number, plural

TEXT = False
MAX_LISTED = 50


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
                *(_images(site, split) for split in splits),
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


def _images(site: Site, split: str) -> Cell:
    if split not in site.images:
        return Cell("—", title="none, or of too few patients to be told", tone="muted")
    return Cell(count(site.images[split]), small=_people(site.patients, split))


def _people(patients: Mapping[str, int], split: str) -> str:
    return plural(patients[split], "patient") if split in patients else ""


def pairs(values: Sequence[Sequence[float | None]], sites: Sequence[str], caption: str) -> Table:
    """Distances between every two hospitals, tinted by their share of the greatest."""
    top = max((value for row in values for value in row if value is not None), default=0.0)
    rows = []
    for index, row in enumerate(values):
        cells = [Cell(_label(sites, index))]
        for other, value in enumerate(row):
            if other == index:
                cells.append(Cell("·"))
            elif value is None:
                cells.append(Cell("—", title="one of the two has nothing to compare", tone="muted"))
            else:
                cells.append(Cell(number(value), shade=value / top if top > 0.0 else 0.0))
        rows.append(cells)
    return Table(caption, [Column("", numeric=TEXT), *(Column(_label(sites, i)) for i in range(len(values)))], rows)


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else f"class {index + 1}"


def heterogeneity(found: Heterogeneity) -> Table:
    """How unlike the hospitals are, each number with its reference and its meaning."""
    measures = (
        (
            "Labels (Jensen–Shannon)", found.label_js, found.label_js_iid,
            "How far two hospitals' mixes of findings lie apart: 0 when they are the same, 1 when no finding is common "
            "to both; the mean over all pairs.",
        ),
        (
            "Sizes (Gini)", found.size_gini, None,
            "How unequal the numbers of images are: 0 when all hospitals are equally large, near 1 when one "
            "holds almost everything.",
        ),
        (
            "Images (feature shift)", found.feature_shift, found.feature_shift_iid,
            "How differently two hospitals' images look (brightness, contrast, detail), in standard deviations of all "
            "images; the mean over all pairs.",
        ),
    )  # fmt: skip
    return Table(
        "How unlike the hospitals are",
        [
            Column("Measure", numeric=TEXT),
            Column("Here"),
            Column("Dealt at random"),
            Column("What it means", numeric=TEXT),
        ],
        [
            [Cell(name), Cell(number(value)), Cell(number(reference)), Cell(meaning)]
            for name, value, reference, meaning in measures
            if value is not None
        ],
        "“Dealt at random” is what the same patients, dealt by chance to hospitals of the same sizes, would show: "
        "small hospitals differ by chance alone.",
    )


def phases(run: Run) -> Table:
    worked = [] if run.cpu_s is None else [Column("Processor time")]
    timed = [(p.name, p.wall_s, p.cpu_s) for p in run.phases] + [("Whole run", run.wall_s, run.cpu_s)]
    rows = [
        [Cell(name), Cell(duration(wall_s)), *([] if cpu_s is None else [Cell(duration(cpu_s))])]
        for name, wall_s, cpu_s in timed
    ]
    return Table("Where the time went", [Column("Phase", numeric=TEXT), Column("Clock"), *worked], rows)


def refusals(run: Run) -> Table:
    shown = run.refusals[:MAX_LISTED]
    return Table(
        "Replies that did not count",
        [Column("Hospital", numeric=TEXT), Column("Arm", numeric=TEXT), Column("Round"), Column("Why", numeric=TEXT)],
        [
            [
                Cell(r.site),
                Cell(arm_name(r.arm)),
                Cell(str(r.round)),
                Cell(_brief(in_words(r.reason.removeprefix("refused: ")))),
            ]
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
