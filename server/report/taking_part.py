"""The report's section on who took part in a real federation: what each hospital gave, and what it kept to itself."""

from __future__ import annotations

from collections import Counter

from common.html import Block, Cell, Column, Paragraph, Statement, Table
from server.answer_words import in_words
from server.report.contrasts import ENDS, MANY_SITES
from server.report.results import Run, Site
from server.report.words import count, listing, plural

TEXT = False
_NAMED = 4


def blocks(run: Run) -> list[Block]:
    """Empty for a simulation, whose hospitals are virtual and keep nothing back."""
    if not run.at_hospitals:
        return []
    found: list[Block] = [Paragraph(_rule(run))]
    if run.unpaid:
        found.insert(0, Statement("Privacy budgets ended it early.", _unpaid(run), "unsure"))
    return [*found, _table(run)]


def _rule(run: Run) -> str:
    told = "All of this page is made of sums that the hospitals' people agreed to send; no image, no score left them."
    if run.suppressed:
        return f"{told} Of validation and test patients not even a count did: this study asks for none."
    least = run.least
    if least < 2:
        return told
    return (
        f"{told} Nor did counts of fewer than {least} patients: where one is missing, a number is given as the least "
        "and the most that it can be, or not at all."
    )


def _unpaid(run: Run) -> str:
    return (
        f"The privacy budget of {listing(run.unpaid)} was used up after {plural(run.rounds, 'round')}; the model is "
        "the last one that was paid for."
    )


def _table(run: Run) -> Table:
    missed = Counter(refusal.site for refusal in run.refusals)
    names = list(run.sites)
    shown = names if len(names) <= MANY_SITES else sorted(names, key=lambda name: -missed[name])[: 2 * ENDS]
    rows = [
        [
            Cell(name),
            _trained(run.rounds, missed[name]),
            _tested(name, run),
            _withheld(run.sites[name], run.least),
        ]
        for name in shown
    ]
    rows += [
        [Cell(name), Cell("took no part", small=in_words(answer), tone="unsure"), Cell("—"), Cell("—")]
        for name, answer in run.declined.items()
    ]
    return Table(
        "What each hospital gave",
        [
            Column("Hospital", numeric=TEXT),
            Column("Trained in", numeric=TEXT),
            Column("Test patients", numeric=TEXT),
            Column("Left out of the test", numeric=TEXT),
        ],
        rows,
        f"Of {plural(len(names), 'hospital')}, the {len(shown)} that were missed most." if shown != names else "",
    )


def _trained(rounds: int, missed: int) -> Cell:
    return Cell(f"{count(rounds - missed)} of {plural(rounds, 'round')}", tone="unsure" if missed else "")


def _tested(name: str, run: Run) -> Cell:
    if run.suppressed:
        return Cell("not told", tone="muted")
    if name in run.absent:
        return Cell("not tested", small="was away, or had left", tone="unsure")
    patients = run.sites[name].patients.get("test")
    if patients is None:
        return Cell("none", small="no test images, or of too few patients", tone="unsure")
    return Cell(count(patients), small=plural(run.sites[name].images.get("test", 0), "image"))


def _withheld(site: Site, least: int) -> Cell:
    if not site.withheld:
        return Cell("nothing" if site.patients.get("test") is not None else "—")
    parts = [f"images {sign} {name}" for name, sign in site.withheld]
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    named = listing(parts) if not more else ", ".join(parts[:_NAMED]) + more
    return Cell(named, small=f"fewer than {least} patients", tone="unsure")
