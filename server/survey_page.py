"""The survey as a page: is the federation ready to train, and what should be looked at first."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from common.basis import Basis
from common.errors import DataError
from common.html import Banner, Block, Cell, Column, Facts, Page, Paragraph, Section, Statement, Table, Tiles, write
from common.study import Study
from common.survey import SPLITS, ClassCounts, PixelSums
from server.report.words import count, number, plural, signed
from server.survey import Surveyed
from server.survey_findings import SPLIT_NAMES, Finding, findings, shift

PAGE = "survey.html"
_TEXT = False
_MOST_CLASSES = 30
_ALL = "All sites"


def write_page(found: Surveyed, path: Path) -> None:
    """Write the page, whole or not at all."""
    write(page(found), path)


def page(found: Surveyed) -> Page:
    """The whole page."""
    points = findings(found)
    sections = [
        Section("verdict", "Is the federation ready?", _verdict(found, points)),
        Section("findings", "What to look at", _findings(points)),
        Section("splits", "Training, validation and test", [_splits(found)]),
        Section("classes", "Classes", _classes(found)),
        Section("pixels", "Pixels", _pixels(found)),
        Section("training", "What training takes from it", _basis(found)),
        Section("silent", "Sites that are missing here", _silent(found)),
    ]
    return Page(
        "Before training",
        f"{found.study.name}: {plural(len(found.sites), 'site')} surveyed before the first round",
        Banner("plain", "For the coordinator", "Counts and sums that the sites' people agreed to send. No image left."),
        [section for section in sections if section.blocks],
        f"Written by fedward {metadata.version('fedward')}. Study {found.study.hash}. These numbers stay as they are "
        "for the whole run. Research software: not a medical device.",
    )


def _verdict(found: Surveyed, points: Sequence[Finding]) -> list[Block]:
    bad = sum(one.tone == "bad" for one in points)
    if not points:
        statement = Statement("Ready to train; nothing stands out", tone="good")
    else:
        said = f"{plural(len(points), 'thing')} to look at before training"
        detail = f"{bad} of them should be settled first." if bad else "None of them keeps the study from training."
        statement = Statement(said, detail, "bad" if bad else "unsure")
    totals = {split: sum(told.images.get(split, 0) for told in found.sites.values()) for split in SPLITS}
    asked = len(found.sites) + len(found.silent)
    tiles = [(f"{len(found.sites)} of {asked}", "sites answered", "")]
    tiles += [(count(totals[split]), f"{SPLIT_NAMES[split]} images", "") for split in SPLITS]
    return [statement, Tiles(tiles)]


def _findings(points: Sequence[Finding]) -> list[Block]:
    blocks: list[Block] = []
    for tone, caption in (("bad", "To settle before training"), ("unsure", "To know")):
        rows = [[Cell(_sentence(one.text)), Cell(_sentence(one.remedy))] for one in points if one.tone == tone]
        if rows:
            blocks.append(Table(caption, [Column("Finding", numeric=_TEXT), Column("What to do", numeric=_TEXT)], rows))
    return blocks


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _splits(found: Surveyed) -> Table:
    k = found.study.evaluation.min_cell
    why = f"none, or of fewer than {k} patients" if k > 1 else "none"
    rows = [
        [
            Cell(site),
            *(
                Cell(count(images), shade=_share(images, sum(told.images.values())))
                if (images := told.images.get(split, 0))
                else Cell("—", title=why, tone="muted", shade=0.0)
                for split in SPLITS
            ),
        ]
        for site, told in found.sites.items()
    ]
    whole = [sum(told.images.get(split, 0) for told in found.sites.values()) for split in SPLITS]
    rows.append([Cell(_ALL), *(Cell(count(n), shade=_share(n, sum(whole))) for n in whole)])
    note = f"—: {why}. Of validation and test, images of classes with fewer than {k} patients are left out."
    return Table(
        "Labelled images by split; the tint is the share of the site's",
        [Column("Site", numeric=_TEXT), *(Column(_sentence(SPLIT_NAMES[split])) for split in SPLITS)],
        rows,
        note if k > 1 else "",
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _classes(found: Surveyed) -> list[Block]:
    together = found.together.classes
    if together is None:
        return []
    k = found.study.evaluation.min_cell
    blocks: list[Block] = []
    if k > 1:
        blocks.append(
            Paragraph(
                f"Withheld: of fewer than {k} patients, or a count from which such a one would follow. "
                "Sums over all sites are then the least that there are.",
                "muted",
            )
        )
    blocks += [_by_class(found, together, split) for split in range(len(SPLITS))]
    if len(found.study.classes) > _MOST_CLASSES:
        blocks.append(Paragraph(f"The first {_MOST_CLASSES} of {len(found.study.classes)} classes are shown.", "muted"))
    return blocks


def _by_class(found: Surveyed, together: ClassCounts, split: int) -> Table:
    names = found.study.class_names[:_MOST_CLASSES]
    whole = {site: told.images.get(SPLITS[split], 0) for site, told in found.sites.items()}
    told = {site: one.survey.classes for site, one in found.sites.items()} | {_ALL: together}
    whole[_ALL] = sum(whole.values())
    rows = [
        [Cell(site), *(_class_cell(found, counts, (split, column), whole[site]) for column in range(len(names)))]
        for site, counts in told.items()
        if counts is not None
    ]
    return Table(
        f"{_sentence(SPLIT_NAMES[SPLITS[split]])} images of each class; the tint is the share of the site's",
        [Column("Site", numeric=_TEXT), *(Column(name) for name in names)],
        rows,
    )


def _class_cell(found: Surveyed, counts: ClassCounts, place: tuple[int, int], whole: int) -> Cell:
    images, patients, hidden = (int(part[(*place, 1)]) for part in (counts.images, counts.patients, counts.withheld))
    if hidden and not images:
        k = found.study.evaluation.min_cell
        why = f"fewer than {k} patients, or a count from which such a one would follow"
        return Cell("withheld", title=why, tone="muted", shade=0.0)
    shown = f"≥ {count(images)}" if hidden else count(images)
    return Cell(shown, small=plural(patients, "patient") if images else "", shade=_share(images, whole))


def _pixels(found: Surveyed) -> list[Block]:
    together = found.together.pixels
    if together is None or not together.images:
        return []
    rows = []
    for site, told in found.sites.items():
        sums = told.survey.pixels
        if sums is None or not sums.images:
            rows.append([Cell(site), *(Cell("withheld", tone="muted") for _ in range(4))])
        else:
            rows.append([Cell(site), *_moments(sums), Cell(f"{signed(shift(sums, together), 2)} σ")])
    rows.append([Cell(_ALL), *_moments(together), Cell("·")])
    heads = ("Images", "Mean", "Standard deviation", "Off from all sites'")
    return [
        Table(
            "Grey levels of the prepared training images, black 0 to white 1"
            + (f"; {_channels(found.study)}" if found.study.image.channels == 3 else ""),
            [Column("Site", numeric=_TEXT), *(Column(head) for head in heads)],
            rows,
            "Off: the site's mean less that of all sites, in standard deviations σ of all pixels"
            + ("; of the channel that is farthest off." if found.study.image.channels == 3 else "."),
        )
    ]


def _channels(study: Study) -> str:
    return ", ".join(study.image.sequences) or "red, green, blue"


def _moments(sums: PixelSums) -> list[Cell]:
    means, deviations = (", ".join(number(value) for value in values) for values in (sums.mean, sums.deviation))
    return [Cell(count(sums.images)), Cell(means), Cell(deviations)]


def _basis(found: Surveyed) -> list[Block]:
    try:
        basis = found.basis
    except DataError as error:
        return [Paragraph(_sentence(f"{error}."), "bad")]
    if basis is None:
        return [Paragraph("Nothing: the study trains without numbers of other sites.", "muted")]
    facts = []
    if basis.mean:
        shown = (", ".join(number(value, 4) for value in values) for values in (basis.mean, basis.deviation))
        facts.append(("Pixels are normalised with", "mean {}, standard deviation {}".format(*shown)))
    facts += _weights(found, basis)
    return [Facts(facts, wide=True), Paragraph("The same at every site and for the whole run.", "muted")]


def _weights(found: Surveyed, basis: Basis) -> list[tuple[str, str]]:
    names, weights = found.study.class_names, basis.class_weights
    if found.study.task in ("binary", "multiclass"):
        return [(f"Weight of {name}", number(weight)) for name, weight in zip(names, weights, strict=False)]
    half = len(weights) // 2
    return [
        (f"Weight of {name}", f"{number(weights[half + column])}, of images without it {number(weights[column])}")
        for column, name in enumerate(names[:half])
    ]


def _silent(found: Surveyed) -> list[Block]:
    if not found.silent:
        return []
    rows = [[Cell(site), Cell(why)] for site, why in found.silent.items()]
    return [Table("Sites", [Column("Site", numeric=_TEXT), Column("Why", numeric=_TEXT)], rows)]
