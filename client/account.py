"""What a site's ledger comes to: per study, together, against the budget; for the terminal, a page and alerts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from client.budget import Budget, StudySpent, by_study, cost, mechanisms, within
from client.home import Home
from client.ledger import Ledger
from client.ledger_entries import Book, Entry
from client.policy import POLICY_FILE, PolicyFile
from common.alerts import Alert
from common.errors import AuditError, LedgerError, PolicyError, PrivacyError
from common.privacy import belief, mechanism_of
from common.study import Study
from common.words import sure

DELTA = 1e-5
"""At which sums are shown where neither a budget nor a study says otherwise."""
NEARLY = 0.8
"""So much of a budget spent is an alert."""


@dataclass(frozen=True)
class Unbounded:
    """A study of which something left that no noise covers."""

    study: str
    """Hash."""
    name: str
    what: Sequence[str]
    """Kinds of requests."""
    since: str


@dataclass(frozen=True)
class Account:
    """One population, as it stands now."""

    site: str
    population: str
    populations: Sequence[str]
    budget: Budget | None
    delta: float
    epsilon: float
    """Of all private studies together; of those that protect what the budget is for, where there is one."""
    studies: Sequence[StudySpent]
    unbounded: Sequence[Unbounded]
    head: tuple[int, str]
    doubt: Entry | None
    vouched: Entry | None
    """The last time that somebody mended the ledger."""

    @property
    def left(self) -> float | None:
        """Of the budget's ε; ``None`` without a budget."""
        return None if self.budget is None else max(0.0, self.budget.epsilon - self.epsilon)

    @property
    def apart(self) -> Sequence[StudySpent]:
        """Private studies that the budget cannot count: they protect images, and it is for patients."""
        return [] if self.budget is None else [one for one in self.studies if not self.budget.covers(one.unit)]

    def json(self) -> dict[str, Any]:
        """As ``site ledger --json`` prints it (docs/privacy.md)."""
        return {
            "site": self.site,
            "population": self.population,
            "populations": list(self.populations),
            "budget": None if self.budget is None else self.budget.model_dump(),
            "delta": self.delta,
            "epsilon": self.epsilon,
            "left": self.left,
            "studies": [asdict(one) for one in self.studies],
            "unbounded": [asdict(one) for one in self.unbounded],
            "entries": self.head[0],
            "head": self.head[1],
            "in_doubt_since": None if self.doubt is None else self.doubt.at,
        }


def account(home: Home, population: str | None = None) -> Account:
    """The site's account of a population, by default the present one. Asks for no key.

    Raises :class:`LedgerError` for a ledger that is not as it was written, or a population that it does not know.
    """
    book = Ledger(home).book()
    if population is not None and population not in book.populations:
        raise LedgerError(f"the ledger knows no patients {population!r}, but {', '.join(book.populations)}")
    wanted = book.population if population is None else population
    policy = PolicyFile(home.directory / POLICY_FILE).now()
    budget = None if isinstance(policy, PolicyError) else policy.budget
    deltas = [entry.delta for entry, _ in book.charges(wanted) if entry.delta is not None]
    delta = budget.delta if budget is not None else min(deltas, default=DELTA)
    return Account(
        site=home.config.alias,
        population=wanted,
        populations=book.populations,
        budget=budget,
        delta=delta,
        epsilon=cost(mechanisms(book, budget, wanted), delta),
        studies=by_study(book, delta, wanted),
        unbounded=_unbounded(book, wanted),
        head=book.head,
        doubt=book.in_doubt,
        vouched=next((entry for entry in reversed(book.entries) if entry.kind == "mended"), None),
    )


def _unbounded(book: Book, population: str) -> list[Unbounded]:
    found: dict[str, list[Entry]] = {}
    for entry in book.entries:
        if entry.kind == "unbounded" and entry.population == population:
            found.setdefault(entry.study, []).append(entry)
    return [
        Unbounded(study, entries[-1].name, [entry.why for entry in entries], entries[0].at)
        for study, entries in found.items()
    ]


def meaning(epsilon_: float, delta: float, unit: str) -> str:
    """What ε says of one patient, in words."""
    if epsilon_ == 0.0:
        return f"Nothing was told of any {unit} by a private study."
    return (
        f"Somebody who has seen all that private training let out, knows all other {unit}s, and held it as likely as "
        f"not that a given {unit} was in it, can be {sure(belief(epsilon_))} sure of that at most, but for a chance of "
        f"about {delta:g}."
    )


def taking(study: Study, budget: Budget, book: Book, units: int | None) -> str:
    """What ``study`` takes of a budget, for the people who decide about it.

    ``units``: the site's training patients (or images); ``None``: they were not counted.
    """
    spent = list(mechanisms(book, budget))
    before = cost(spent, budget.delta)
    text = f"Of epsilon {budget.epsilon:g} for each {budget.unit} at delta {budget.delta:g}, {before:.3g} is spent"
    privacy = study.privacy
    if privacy is None or not budget.covers(privacy.unit) or book.steps(study.hash):
        return f"{text}."
    try:
        whole = mechanism_of(study, units or 1) if units or privacy.sample_rate else None
    except PrivacyError:
        whole = None  # which is told elsewhere
    return f"{text}." if whole is None else f"{text}; with this study {cost([*spent, whole], budget.delta):.3g}."


def alerts(ledger: Ledger, budget: Budget | None) -> Iterator[Alert]:
    """What the site's people should know of its ledger."""
    try:
        book = ledger.book()
    except (LedgerError, AuditError):
        text = "the privacy ledger cannot be used, and nothing is trained: `fedward site ledger` says why"
        yield Alert("ledger-unusable", "", "critical", text)
        return
    if budget is None:
        return
    if book.in_doubt is not None:
        text = "the site was restored from a backup and its ledger is in doubt: `fedward site ledger` says what to do"
        yield Alert("ledger-in-doubt", "", "warning", text)
    spent = list(mechanisms(book, budget))
    if spent and not within(spent, budget.delta, NEARLY * budget.epsilon):
        text = f"more than {NEARLY:.0%} of the privacy budget is spent: `fedward site ledger`"
        yield Alert("budget-nearly-spent", book.population, "warning", text)


def line(found: Account) -> str:
    """For ``site status``."""
    spent = f"epsilon {found.epsilon:.3g}"
    if found.budget is not None:
        spent += f" of {found.budget.epsilon:g}"
    others = f"; {len(found.unbounded)} studies without a bound" if found.unbounded else ""
    return f"privacy ledger: {spent} spent at delta {found.delta:g} by {len(found.studies)} private studies{others}"


def facts(found: Account) -> Mapping[str, Any]:
    """For ``site status --json``."""
    kept = found.json()
    return {name: kept[name] for name in ("population", "budget", "delta", "epsilon", "left", "entries", "head")}
