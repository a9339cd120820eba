"""The tables of a readiness report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from client.ingest.kinds import Reason
from client.ingest.readers import Agreement
from client.ingest.readiness_counts import NONE, Count, Crossed, Readiness
from client.ingest.readiness_findings import CONFOUNDED, FEW_IN_SPLIT, SPLITS, Finding, confounded
from client.ingest.readiness_looks import Twins
from client.ingest.readiness_words import attribute, number, percent, plural, word
from common.html import Block, Cell, Column, Facts, Table

MOST_ROWS, MOST_COLUMNS = 30, 8
LISTED = 20
TEXT = False
_FORMS = {
    "uint8 grey": "8 bits, grey",
    "uint8 colour": "8 bits, colour",
    "uint16 grey": "up to 16 bits, grey",
    "uint16 colour": "up to 16 bits, colour",
    "int16 grey": "Hounsfield units (16 bits)",
    "int16 colour": "signed 16 bits, colour",
}
_MEASURES = {
    "mean": ("brightness", "dark", "bright"),
    "spread": ("contrast", "flat", "stark"),
    "dark": ("share of black", "little black", "much black"),
    "bright": ("share of white", "little white", "much white"),
    "sharpness": ("sharpness", "blurred", "sharp or noisy"),
}
_WARNINGS = {
    "text-in-pixels": ("something in the pixels looks like text", "look whether it names the patient"),
    "recognisable-face": ("a head, from whose volume a face can be drawn", "ask your data protection officer"),
    "lossy": ("compressed with loss before it came here", "prefer the original where there is one"),
    "rescaled": ("values were rescaled to fit 16 bits", "nothing, where studies normalise brightness"),
    "depth-reduced": ("colours of 16 bits a channel, read with 8", "nothing: 8 bits are enough for colour"),
}
_STAGES = "source parse decode pixels deidentify labels consent duplicate"


def findings_table(caption: str, found: Sequence[Finding]) -> Table:
    """Findings with their remedies."""
    return Table(
        caption,
        [Column("Finding", numeric=TEXT), Column("What to do", numeric=TEXT)],
        [[Cell(_sentence(one.text)), Cell(_sentence(one.remedy))] for one in found],
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def counts(caption: str, head: str, found: Mapping[str, Count], of: Readiness, *, none: str = "not known") -> Table:
    """Images and patients by value, the most frequent first (ages and splits in their own order), none last."""
    ordered = sorted(found.items(), key=lambda item: (item[0] == "", _place(head, item)))
    shown, left = ordered[:MOST_ROWS], ordered[MOST_ROWS:]
    rows = [
        [
            Cell(word(value, none), tone="" if value else "muted"),
            Cell(number(count.images)),
            Cell(percent(count.images, of.images), shade=count.images / of.images),
            Cell(number(count.patients)),
        ]
        for value, count in shown
    ]
    if left:
        images = sum(count.images for _, count in left)
        rows.append(
            [
                Cell(f"{number(len(left))} others"),
                Cell(number(images)),
                Cell(percent(images, of.images), shade=min(1.0, images / of.images)),
                Cell("—", title="a patient may be under several of them", tone="muted"),
            ]
        )
    return Table(caption, [Column(head, numeric=TEXT), Column("Images"), Column("Share"), Column("Patients")], rows)


def _place(head: str, item: tuple[str, Count]) -> tuple[int, int, str]:
    value, count = item
    if head == "Split":
        return SPLITS.index(value) if value in SPLITS else len(SPLITS), 0, value
    if head == "Age":
        digits = value.partition("-")[0].rstrip("+")
        return 0, int(digits) if digits.isascii() and digits.isdigit() else 1000, value
    return -count.images, 0, value


def by_split(column: str, found: Readiness) -> Table:
    """Class balance of each split."""
    crossed = found.crossed["split"][column]
    splits = [split for split in SPLITS if split in found.groups["split"]]
    whole = {split: found.groups["split"][split].images for split in splits}
    rows = []
    for name in _largest(found.classes[column])[:MOST_ROWS]:
        row = [Cell(word(name))]
        for split in splits:
            count = crossed.get((name, split), NONE)
            few = count.patients < FEW_IN_SPLIT
            row += [
                Cell(number(count.patients), tone="bad" if few else ""),
                Cell(number(count.images)),
                Cell(percent(count.images, whole[split]), shade=count.images / whole[split]),
            ]
        rows.append(row)
    return Table(
        f"Class balance: {word(column)}",
        [Column("Class", numeric=TEXT), *(Column(head, split) for split in splits for head in _BALANCE)],
        rows,
        _shortened(len(found.classes[column]), MOST_ROWS, "classes"),
    )


_BALANCE = ("Patients", "Images", "Share")


def _largest(found: Mapping[str, Count]) -> list[str]:
    return sorted((name for name in found if name), key=lambda name: (-found[name].images, name))


def _shortened(count: int, shown: int, what: str) -> str:
    return f"The {shown} most frequent of {number(count)} {what}." if count > shown else ""


def against(side: str, column: str, crossed: Crossed) -> Table:
    """Images of each class by device or view; tinted by the share of the class."""
    classes, others = Counter[str](), Counter[str]()
    for (name, other), count in crossed.items():
        classes[name] += count.images
        others[other] += count.images
    names = [name for name, _ in sorted(classes.items(), key=_most)[:MOST_COLUMNS]]
    places = [other for other, _ in sorted(others.items(), key=_most)[:MOST_ROWS]]
    suspicious = {(name, other) for name, other, _ in confounded(crossed)}
    rows = [
        [
            Cell(word(other)),
            *(_share(crossed.get((name, other), NONE), classes[name], (name, other) in suspicious) for name in names),
        ]
        for other in places
    ]
    notes = (
        _shortened(len(classes), MOST_COLUMNS, "classes"),
        _shortened(len(others), MOST_ROWS, f"{side}s"),
        f"▲ go together: at least {CONFOUNDED:.0%} of one, where most others are elsewhere." if suspicious else "",
    )
    return Table(
        f"{word(column)} by {side}",
        [Column(side.capitalize(), numeric=TEXT), *(Column(word(name)) for name in names)],
        rows,
        " ".join(note for note in notes if note),
    )


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _share(count: Count, whole: int, suspicious: bool) -> Cell:
    small = f"{percent(count.images, whole)}{' ▲' if suspicious else ''}"
    return Cell(number(count.images), small, shade=count.images / whole, tone="bad" if suspicious else "")


def missing(found: Readiness) -> Table:
    """Images without each attribute, of those whose modality has it."""
    rows = [
        [
            Cell(attribute(name)),
            Cell(number(share.without)),
            Cell(number(share.of)),
            Cell(percent(*share), shade=share.without / share.of),
        ]
        for name, share in sorted(found.missing.items(), key=lambda one: (-one[1].without / one[1].of, one[0]))
    ]
    return Table(
        "Images without each attribute",
        [Column("Attribute", numeric=TEXT), Column("Without"), Column("Of"), Column("Share")],
        rows,
        "Attributes of one modality, such as sequence or kVp, are asked of its images only.",
    )


def busy(found: Readiness) -> Table:
    """Patients with very many images."""
    return Table(
        "Patients with very many images",
        [Column("Patient of image", numeric=TEXT), Column("Images"), Column("Share")],
        [
            [Cell(f"#{one.first}"), Cell(number(one.images)), Cell(percent(one.images, found.images))]
            for one in found.busy[:LISTED]
        ],
        f"The first {LISTED} of {number(len(found.busy))}." if len(found.busy) > LISTED else "",
    )


def twins(found: Sequence[Twins]) -> Table:
    """Images of two patients that look nearly the same."""
    return Table(
        "Images of two patients that look nearly the same",
        [
            Column("Image", numeric=TEXT),
            Column("And image", numeric=TEXT),
            Column("Correlation"),
            Column("Bits of 64 that differ"),
        ],
        [
            [Cell(f"#{one.one}"), Cell(f"#{one.other}"), Cell(f"{one.correlation:.3f}"), Cell(number(one.bits))]
            for one in found[:LISTED]
        ],
        f"The {LISTED} most alike of {number(len(found))} pairs." if len(found) > LISTED else "",
    )


def outliers(found: Readiness) -> Table:
    """Images with an unusual measure."""
    rows = []
    for one in found.outliers:
        name, below, above = _MEASURES[one.measure]
        rows.append(
            [
                Cell(f"#{one.image}"),
                Cell(word(one.modality)),
                Cell(below if one.score < 0 else above),
                Cell(name),
                Cell(f"{one.value:.3f}"),
                Cell(f"{one.median:.3f}"),
                Cell(f"{one.score:+.1f}".replace("-", "−")),
            ]
        )
    return Table(
        "Images that stand out",
        [
            Column("Image", numeric=TEXT),
            Column("Modality", numeric=TEXT),
            Column("It is", numeric=TEXT),
            Column("Measure", numeric=TEXT),
            Column("Value"),
            Column("Usual"),
            Column("Deviations"),
        ],
        rows,
        f"The {len(rows)} furthest off of {plural(found.odd, 'image')}." if found.odd > len(rows) else "",
    )


def sizes(found: Readiness) -> Table:
    """Sides of the images."""
    return Table(
        "Sides in pixels",
        [Column("Side", numeric=TEXT), Column("Least"), Column("Median"), Column("Most")],
        [
            [Cell(name), *(Cell(number(value)) for value in spread)]
            for name, spread in (("shorter", found.shorter), ("longer", found.longer))
        ],
    )


def forms(found: Readiness) -> Table:
    """Types of pixels, and the share that was compressed with loss."""
    rows = [
        [Cell(_FORMS[form]), Cell(number(count)), Cell(percent(count, found.images), shade=count / found.images)]
        for form, count in sorted(found.forms.items(), key=_most)
    ]
    lossy = percent(found.lossy, found.images)
    rows.append(
        [
            Cell("known to be compressed with loss"),
            Cell(number(found.lossy)),
            Cell(lossy, shade=found.lossy / found.images),
        ]
    )
    return Table("Types of pixels", [Column("Type", numeric=TEXT), Column("Images"), Column("Share")], rows)


def agreement(one: Agreement) -> list[Block]:
    """Cohen's κ of two readers, and their cross table."""
    first, second = (word(name) for name in one.readers)
    kappa = (
        f"{one.kappa:.2f} (95% interval {one.low:.2f} to {one.high:.2f})"
        if one.kappa is not None
        else "— " + one.reason
    )
    facts = Facts(
        [
            ("Read by both", plural(one.images, "image")),
            ("The same", f"{number(one.agreed)} ({percent(one.agreed, one.images)})"),
            ("Cohen's κ", kappa),
        ],
        wide=True,
    )
    if not one.images:
        return [facts]
    shown = range(min(len(one.classes), MOST_COLUMNS))
    table = Table(
        f"{first} (rows) and {second} (columns)",
        [Column("Class", numeric=TEXT), *(Column(word(one.classes[at])) for at in shown)],
        [
            [
                Cell(word(one.classes[row])),
                *(
                    Cell(
                        number(one.table[row][at]),
                        shade=one.table[row][at] / (sum(one.table[row]) or 1),
                        tone="" if row == at or not one.table[row][at] else "bad",
                    )
                    for at in shown
                ),
            ]
            for row in shown
        ],
        f"The first {len(shown)} of {number(len(one.classes))} classes." if len(one.classes) > len(shown) else "",
    )
    return [facts, table]


def rejected(found: Sequence[tuple[str, Reason]]) -> Table:
    """What this import left out, by reason."""
    reasons = Counter(reason for _, reason in found)
    ordered = sorted(reasons.items(), key=lambda one: (_STAGES.find(one[0].stage), -one[1], one[0].code))
    return Table(
        "Left out of this import",
        [
            Column("Reason", numeric=TEXT),
            Column("Stage", numeric=TEXT),
            Column("Files or images"),
            Column("What to do", numeric=TEXT),
        ],
        [
            [Cell(reason.reason), Cell(reason.stage), Cell(number(count)), Cell(reason.remedy)]
            for reason, count in ordered
        ],
        "rejected.csv beside this page lists each.",
    )


def warnings(found: Counter[str]) -> Table:
    """Warnings of this import, by code."""
    return Table(
        "Taken with a warning",
        [Column("Warning", numeric=TEXT), Column("Files"), Column("What to do", numeric=TEXT)],
        [
            [Cell(words), Cell(number(count)), Cell(remedy)]
            for code, count in sorted(found.items())
            for words, remedy in (_WARNINGS.get(code, (word(code), "see the site operator's guide")),)
        ],
    )
