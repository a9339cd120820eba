"""The readiness report as a page: verdict, what to look at, then the counts behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from client.ingest import readiness_tables as tables
from client.ingest.readiness_columns import GROUPED
from client.ingest.readiness_counts import CROSSED, Readiness
from client.ingest.readiness_findings import Finding, findings
from client.ingest.readiness_looks import CHECKED, CORRELATION, FARTHEST, NEAR_BITS, PLAIN_PATIENTS, SIDE
from client.ingest.readiness_quality import FEWEST, LIMIT
from client.ingest.readiness_words import number, percent, plural, word
from common.html import Banner, Block, Facts, Page, Paragraph, Row, Section, Statement, Tiles, Tone

if TYPE_CHECKING:
    from client.ingest.summary import Summary

_SEARCHED = (
    f"Two pictures may be the same where a difference hash of 64 bits differs in at most {NEAR_BITS}, and brightness, "
    f"contrast and sharpness agree; of different patients' such pairs the {CHECKED} most alike are compared pixel by "
    f"pixel ({SIDE} × {SIDE}, correlation of {CORRELATION} or more). That finds scaled and newly compressed copies, "
    "not turned or cropped ones. It can err: look before you erase."
)


def page(found: Readiness, summary: Summary, notes: Sequence[str]) -> Page:
    """The whole page; ``notes`` are ``LabelSheet.notes()``."""
    # A note begins with the sheet's name, and file names have no place on this page.
    notes = [note.rpartition(": ")[2] for note in notes]
    points = findings(found, summary, notes)
    sections = [
        Section("verdict", "Is the data ready?", _verdict(found, points)),
        Section("findings", "What to look at", _findings(points)),
        Section("classes", "Classes", _classes(found)),
        Section("splits", "Training, validation and test", _splits(found)),
        Section("groups", "Who and what is in the images", _groups(found)),
        Section("confounding", "Classes by device and view", _confounding(found)),
        Section("metadata", "Missing metadata", [tables.missing(found)] if found.images else []),
        Section("patients", "Patients", _patients(found)),
        Section("duplicates", "Duplicates", _duplicates(found, summary)),
        Section("quality", "Image quality", _quality(found)),
        Section("pixels", "Sizes and types of pixels", _pixels(found)),
        Section("readers", "Agreement of the readers", _readers(found)),
        Section("import", "This import", _import(summary, notes)),
    ]
    return Page(
        "Data readiness",
        f"The vault after its generation {number(found.generation)}; written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        _banner(found),
        [section for section in sections if section.blocks],
        f"Written by fedward {metadata.version('fedward')}. Images are named by their numbers in the vault; no "
        "patient, file or pseudonym is on this page. Counts of small groups can still point to people: keep it inside.",
    )


def _banner(found: Readiness) -> Banner:
    if found.synthetic:
        return Banner("synthetic", "Synthetic data", "Computer-made images, no patient among them.")
    return Banner("real", "Real images", "For the hospital's own eyes. Research software; not for use on patients.")


def _verdict(found: Readiness, points: Sequence[Finding]) -> list[Block]:
    ready, patients = found.labelled
    if not found.images:
        said = "The vault is empty: there is nothing to report on"
    elif not ready:
        said = f"No image is ready: none of {number(found.images)} has a label"
    else:
        said = f"{plural(ready, 'image')} of {plural(patients, 'patient')} {'is' if ready == 1 else 'are'} ready"
    bad = sum(finding.tone == "bad" for finding in points)
    left = len(points) - bad
    if points:
        said += f"; {plural(len(points), 'thing')} to look at"
    elif ready:
        said += "; nothing stands out"
    tone: Tone = "bad" if bad or not ready else "unsure" if points else "good"
    detail = ""
    if bad:
        detail = f"{number(bad)} of them should be settled before a study" + (
            f", {number(left)} should be known." if left else "."
        )
    elif left:
        detail = "None of them keeps a study from starting; each should be known."
    blocks: list[Block] = [Statement(said, detail, tone)]
    if found.images:
        without = found.images - ready
        blocks.append(
            Tiles(
                [
                    (number(found.images), "images", f"{number(found.masks)} with a mask" if found.masks else ""),
                    (number(found.patients), "patients", _of_unknown(found)),
                    (percent(ready, found.images), "have a label", f"{number(without)} have none" if without else ""),
                    (
                        number(max((len(set(classes) - {""}) for classes in found.classes.values()), default=0)),
                        "classes",
                        f"in {plural(len(found.classes), 'label column')}" if len(found.classes) > 1 else "",
                    ),
                    *([(number(found.boxes), "lesion boxes", "")] if found.boxes else []),
                ]
            )
        )
    return blocks


def _findings(points: Sequence[Finding]) -> list[Block]:
    return [
        tables.findings_table(caption, chosen)
        for tone, caption in (("bad", "To settle before a study"), ("unsure", "To know"))
        if (chosen := [finding for finding in points if finding.tone == tone])
    ]


def _of_unknown(found: Readiness) -> str:
    return f"{number(found.anonymous)} of them one file each" if found.anonymous else ""


def _classes(found: Readiness) -> list[Block]:
    blocks: list[Block] = [
        tables.counts(f"Classes: {word(column)}", "Class", classes, found, none="no label")
        for column, classes in found.classes.items()
    ]
    return _paired(blocks)


def _splits(found: Readiness) -> list[Block]:
    if not found.images:
        return []
    sizes = tables.counts("Expected sizes", "Split", found.groups["split"], found, none="no split")
    balance: list[Block] = [
        tables.by_split(column, found) for column in found.classes if found.crossed["split"][column]
    ]
    return [
        sizes,
        *balance,
        Paragraph("Shares are of all images in the split; fewer than ten patients are marked.", "muted"),
    ]


def _groups(found: Readiness) -> list[Block]:
    if not found.images:
        return []
    known = [name for name in GROUPED if set(found.groups[name]) - {""}]
    unknown = [name for name in GROUPED if name not in known]
    blocks = _paired([tables.counts(f"By {name}", name.capitalize(), found.groups[name], found) for name in known])
    if unknown:
        blocks.append(Paragraph(f"Known of no image: {', '.join(unknown)}.", "muted"))
    return blocks


def _paired(blocks: Sequence[Block]) -> list[Block]:
    return [Row(blocks)] if len(blocks) > 1 else list(blocks)


def _confounding(found: Readiness) -> list[Block]:
    blocks: list[Block] = (
        [
            tables.against(side, column, crossed)
            for side in CROSSED
            if side != "split"
            for column, crossed in found.crossed[side].items()
            if len({other for _, other in crossed}) > 1
        ]
        if found.images
        else []
    )
    if not blocks:
        return []
    lead = "Where a class comes from one device only, a model may learn the device. Shares and tint are of the class."
    return [Paragraph(lead), *blocks]


def _patients(found: Readiness) -> list[Block]:
    if not found.images:
        return []
    least, median, most = found.per_patient
    facts = Facts(
        [
            ("Images of a patient", f"{number(least)} to {number(most)}, half have {number(median)} or fewer"),
            ("Images of unknown patients", number(found.anonymous)),
            ("Images without a label", number(found.images - found.labelled.images)),
        ]
    )
    return [facts, *([tables.busy(found)] if found.busy else [])]


def _duplicates(found: Readiness, summary: Summary) -> list[Block]:
    if not found.images and not summary.duplicates:
        return []
    near = found.near
    facts = [
        ("Exact, left out of this import", number(summary.duplicates)),
        ("Nearly the same, two patients", plural(len(found.twins), "pair")),
        ("Alike by hash, two patients", f"{'' if near.complete else 'at least '}{plural(near.different, 'pair')}"),
        ("Alike by hash, one patient", f"{'' if near.complete else 'at least '}{plural(near.same, 'pair')}"),
    ]
    if near.plain:
        facts.append(("Not compared", f"{plural(near.plain, 'image')} with a look of over {PLAIN_PATIENTS} patients"))
    blocks: list[Block] = [Facts(facts)]
    if found.twins:
        blocks += [
            Paragraph(
                "The same picture under two patients leaks from training into testing, and makes a model look better "
                "than it is.",
                "bad",
            ),
            tables.twins(found.twins),
        ]
    if not near.complete:
        blocks.append(
            Paragraph(
                f"Many images here look alike. Each was compared with up to {FARTHEST} of the likeliest in each of 16 "
                "orders; there may be more pairs.",
                "unsure",
            )
        )
    return [*blocks, Paragraph(_SEARCHED, "muted")]


def _quality(found: Readiness) -> list[Block]:
    if not found.images:
        return []
    explained = Paragraph(
        "Brightness, contrast, shares of black and white, and sharpness, each against the other images of the same "
        f"modality (at least {FEWEST}): listed is what lies more than {LIMIT:g} robust standard deviations off (from "
        "median and MAD).",
        "muted",
    )
    if not found.outliers:
        return [Paragraph("No image stands out."), explained]
    return [tables.outliers(found), explained]


def _pixels(found: Readiness) -> list[Block]:
    return [Row([tables.sizes(found), tables.forms(found)])] if found.images else []


def _readers(found: Readiness) -> list[Block]:
    return [block for one in found.agreements for block in tables.agreement(one)]


def _import(summary: Summary, notes: Sequence[str]) -> list[Block]:
    facts = [
        ("Files", number(summary.files)),
        ("Images added", number(summary.images)),
        ("Files that were in the vault already", number(summary.known)),
        ("Masks added", number(summary.masks)),
        ("Duplicates left out", number(summary.duplicates)),
        ("Left out: consent, or erased", number(summary.withheld)),
        ("Refused", number(summary.refused)),
    ]
    blocks: list[Block] = [Facts(facts)]
    if summary.rejected:
        blocks.append(tables.rejected(summary.rejected))
    if summary.warnings:
        blocks.append(tables.warnings(summary.warnings))
    return [*blocks, *(Paragraph(f"Label sheet: {note}") for note in notes)]
