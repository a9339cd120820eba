"""The report's section on heat maps: what the model looked at, and how far that can be believed."""

from __future__ import annotations

from collections.abc import Iterator

from common.html import Block, Cell, Column, Details, Paragraph, Table
from common.pictures import Shown, figure
from server.report.explanations import Explained, Measured
from server.report.words import number

METHODS = {
    "grad-cam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "integrated-gradients": "integrated gradients",
    "rollout": "attention rollout",
}
_ROWS = (
    ("pointed", "Hottest point inside the finding"),
    ("chance", "… of a random point (the finding's share of the image)"),
    ("mass", "Share of the heat inside the finding"),
    ("deletion", "Score left while the image is taken away, hottest first"),
    ("random", "… in random order"),
    ("fresh", "Likeness to a network that learnt nothing"),
)
_ALIKE = 0.5
"""A rank correlation from which on a map says as much of the image as of what was learnt."""


def blocks(found: Explained | None, confidence: float) -> list[Block]:
    """Empty where nothing was explained."""
    if found is None:
        return []
    made: list[Block] = [Paragraph(" ".join(sentences(found))), _table(found, confidence)]
    if found.pictures:
        outlined = " The line is where the finding was drawn." if found.masked else ""
        rows = [
            [Shown(one.png, f"{one.label}: {number(one.score, 2)} ({one.site})") for one in found.pictures[at : at + 2]]
            for at in range(0, len(found.pictures), 2)
        ]
        padded = [[*row, None] if len(row) == 1 and len(rows) > 1 else row for row in rows]
        made.append(
            figure(
                [("Image, and what spoke for its class", "") for _ in padded[0]],
                padded,
                f"First test images of each hospital, not the best ones; below, the class and its score.{outlined}",
                size=(280, 140),
            )
        )
    if len(found.sites) > 1:
        made.append(Details("Hospital by hospital", [_by_site(found)]))
    made.append(
        Paragraph(
            "A heat map shows what moved this model's score. It is no proof that the model is right, nor that it looks "
            "as a radiologist does, and no diagnosis.",
            "muted",
        )
    )
    return made


def sentences(found: Explained) -> Iterator[str]:
    """The answer, in words."""
    measures, method = found.measures, METHODS.get(found.method, found.method)
    pointed, chance, gain = (measures[name] for name in ("pointed", "chance", "pointed_gain"))
    if pointed.value is not None:
        yield (
            f"By {method}, the hottest point lay inside the finding for {_percent(pointed.value)} of "
            f"{pointed.patients} patients; a random point would for {_percent(chance.value)} {_verdict(gain)}."
        )
    deletion, random, lost = (measures[name] for name in ("deletion", "random", "deletion_gain"))
    if deletion.value is not None:
        yield (
            f"Taking away the hottest parts of an image first left a score of {number(deletion.value)} on average, "
            f"any parts {number(random.value)} {_verdict(lost)}."
        )
    fresh = measures["fresh"]
    if fresh.value is not None and fresh.value >= _ALIKE:
        yield (
            f"Beware: maps of the same network with weights that learnt nothing look alike (rank correlation "
            f"{number(fresh.value, 2)}), so these show the image at least as much as what was learnt."
        )


def _verdict(gain: Measured) -> str:
    if gain.low is None or gain.high is None:
        return "(too few patients to tell)"
    if gain.low > 0:
        return "(better than chance)"
    return "(worse than chance)" if gain.high < 0 else "(not to be told from chance)"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.0f}%"


def _table(found: Explained, confidence: float) -> Table:
    rows = [
        [Cell(words), Cell(number(one.value)), Cell(_between(one)), Cell(str(one.patients))]
        for name, words in _ROWS
        if (one := found.measures[name]).value is not None
    ]
    heads = ("Mean over patients", f"{100 * confidence:g}% interval", "Patients")
    return Table(
        f"{METHODS.get(found.method, found.method)} on {found.images} test images that show their class",
        [Column("", numeric=False), *(Column(head) for head in heads)],
        rows,
    )


def _by_site(found: Explained) -> Table:
    kept = [(name, words) for name, words in _ROWS if found.measures[name].value is not None]
    rows = [
        [Cell(site), *(Cell(number(measures[name].value), _between(measures[name])) for name, _ in kept)]
        for site, measures in found.sites.items()
    ]
    return Table("", [Column("Hospital", numeric=False), *(Column(words) for _, words in kept)], rows)


def _between(one: Measured) -> str:
    return "" if one.low is None or one.high is None else f"{number(one.low)} to {number(one.high)}"
