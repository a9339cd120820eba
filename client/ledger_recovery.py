"""What a privacy ledger that was put back together with its audit log, and is gone, may have held.

How many entries are lost the site's own signature tells, which others have kept (``client.anchoring``); what stood in
them nobody knows. Each counts as a round of the costliest private study that can have been at work, up to what those
studies had left to do. ``client.ledger_mending`` writes it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from client.approvals import Approvals
from client.federation import ANCHORS, FOLDER, REPLACED, REQUESTED
from client.home import Home
from client.ledger_entries import Book, Entry, spending
from client.vault.store import Vault
from common.accounting import Mechanism, epsilon
from common.anchors import Anchor, Anchors, Head
from common.audit import START
from common.errors import LedgerError, PrivacyError, StudyError
from common.privacy import mechanism_of, spec_of, steps_of
from common.study import Study

LOST = "may have stood among entries that were lost when the ledger was put back"
UNKNOWN = "was trained with an entry that was lost, and nothing is known of its noise"
_DELTA = 1e-5
"""At which costs are compared."""


@dataclass(frozen=True)
class Left:
    """What a private study had left to do, as far as is known."""

    like: Entry
    """One round of it."""
    rounds: int


@dataclass(frozen=True)
class Missing:
    """What is lost."""

    head: Head
    """Number and digest of the entry up to which the ledger had come."""
    entries: int
    """At the most."""
    counted: tuple[tuple[Entry, int], ...]
    """One round of a study, and how many such rounds are to count."""
    unknown: str
    """Hash of a study that was trained and of which nothing is known here, so that it has no bound; empty: none."""


def missing(home: Home, vault: Vault, book: Book, why: str = "") -> Missing | None:
    """What this site has signed, as others have shown it, and ``book`` neither holds nor makes up for.

    Raises :class:`StoreError` where it cannot be known what others have shown, :class:`LedgerError` for what was signed
    with a key that this site's log does not know, unless ``why`` names it: whoever signs the roster can list any key.
    """
    anchors = Anchors(home.directory / FOLDER / ANCHORS)
    newest, agreed = (found.get(home.config.alias) for found in (anchors.newest, anchors.agreed))
    if newest is None or book.contains(*newest.anchor.head) or newest.anchor.head in book.lost:
        return None
    own, signer = newest.anchor, newest.by.fingerprint
    if signer not in _own_keys(home) and signer not in why:
        raise LedgerError(
            f"others show entry {own.sequence} of this ledger, signed with a key that this site's log does not know, "
            f"{signer}; call the coordinator and the other sites: counting what was never spent would use up the "
            "budget. If it was this site's key, before a restoration, say so with that fingerprint in --why"
        )
    known = agreed.anchor.sequence if agreed is not None and book.contains(*agreed.anchor.head) else 0
    entries = max(1, own.sequence - known)
    found = _candidates(book, _asked(home), lambda study: _units(home, vault, study))
    counted = tuple((one.like, rounds) for one, rounds in _most(found, entries))
    return Missing(own.head, entries, counted, _unknown(own, book, {one.like.study for one in found}))


def _own_keys(home: Home) -> set[str]:
    """Fingerprints of the keys that were made here, as the log has them."""
    made = (entry for entry in home.audit.entries() if entry.event in (REQUESTED, REPLACED))
    return {str(entry.facts.get("fingerprint")) for entry in made}


def _asked(home: Home) -> list[Study]:
    """The studies that were asked for here; but for those of another version of fedward."""
    found = []
    with closing(Approvals(home)) as approvals:
        for record in approvals.records():
            with suppress(StudyError):
                found.append(record.study)
    return found


def _units(home: Home, vault: Vault, study: Study) -> int:
    """Training patients (or images) that ``study`` would protect here."""
    import torch

    from client.site import Site
    from client.vault.view import ViewCache

    site = Site(home.config, home.directory, (vault,), torch.device("cpu"), ViewCache(0), ())
    return site.training_units(study)


def _candidates(book: Book, studies: Iterable[Study], units: Callable[[Study], int]) -> list[Left]:
    """Private studies that may have been at work since: those not charged to their end, and those not begun."""
    found: dict[str, Left] = {}
    presumed: dict[str, Left] = {}
    for entry in book.entries:
        left = entry.planned - book.steps(entry.study)
        if entry.kind == "reserve" and left > 0:
            found[entry.study] = Left(entry, -(-left // max(1, entry.steps)))
        elif entry.kind == "presumed" and left > 0:
            # How long a round of it is nobody knows here: what is left counts as one.
            presumed[entry.study] = Left(entry.model_copy(update={"steps": left}), 1)
    for study in studies:
        left = steps_of(study) - book.steps(study.hash)
        if study.privacy is not None and study.hash not in found and left > 0:
            try:
                one = _round(study, units(study), book.population)
            except PrivacyError:
                continue  # it can never have been trained here
            found[study.hash] = Left(one, -(-left // one.steps))
    return list((presumed | found).values())


def _round(study: Study, units: int, population: str) -> Entry:
    """One round of ``study``, as an entry would have it."""
    privacy, mechanism = spec_of(study), mechanism_of(study, units)
    return Entry(
        sequence=1,
        before=START,
        kind="presumed",
        at="",
        population=population,
        study=study.hash,
        name=study.name,
        planned=mechanism.steps,
        **spending(privacy, replace(mechanism, steps=steps_of(study, 1))),
    )


def _most(found: Iterable[Left], lost: int) -> list[tuple[Left, int]]:
    """The most that ``lost`` rounds can have spent of each population, and of patients and images each by themselves.

    A costlier round that another budget pays for does not stand in place of one that this does.
    """
    apart: dict[tuple[str, str | None], list[Left]] = {}
    for one in found:
        apart.setdefault((one.like.population, one.like.unit), []).append(one)
    return [counted for candidates in apart.values() for counted in _costliest(candidates, lost)]


def _costliest(candidates: Sequence[Left], lost: int) -> list[tuple[Left, int]]:
    """All that was left to do, or ``lost`` rounds of the costliest."""
    if sum(one.rounds for one in candidates) <= lost:
        return [(one, one.rounds) for one in candidates]

    def cost(one: Left) -> float:
        noise, rate = one.like.noise_multiplier, one.like.sample_rate
        assert noise is not None
        assert rate is not None
        return epsilon([Mechanism(noise, rate, lost * one.like.steps)], _DELTA, "rdp")

    return [(max(candidates, key=cost), lost)]


def _unknown(anchor: Anchor, book: Book, candidates: set[str]) -> str:
    """The study with whose reply the lost head left, where neither ledger nor approvals know what it did."""
    known = anchor.study in candidates or any(entry.study == anchor.study for entry in book.entries)
    return "" if known else anchor.study
