"""What is done about a ledger that is not as it was written, or that may lack entries: it never gets shorter.

Every entry stands twice, in ``ledger.sqlite`` and in the audit log. Mending takes all that either of them still tells;
a site that comes out of a backup counts what its studies may have spent since. Somebody vouches for the rest, by name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.home import Home
from client.ledger import LEDGER, MENDED, Ledger
from client.ledger_entries import EVENT, Book, Entry
from client.ledger_recovery import LOST, UNKNOWN, Missing, missing
from client.vault.store import Vault
from common.errors import LedgerError

_REPLACED = "replaced"
_SINCE = "may have been trained after the copy that the site goes on with"
_TORN = "stood in a ledger that was not whole"


@dataclass(frozen=True)
class Mended:
    """What came of it."""

    entries: int
    """In the ledger now."""
    kept: int
    """Of these, taken as they were."""
    presumed: int
    """Rounds that were found outside of the chain, and count."""
    replaced: Path | None
    """Where the file lies that was there before."""
    lost: Missing | None
    """What others have seen of it and neither file nor log tells."""


def mend(home: Home, *, by: str, why: str = "") -> Mended:
    """Put the ledger right from what its file and the audit log tell, and let ``by`` vouch for it.

    Also where nothing is wrong but the doubt after a restoration, or that the vault is another one. Killed at any
    moment, it is done again. Raises :class:`AuditError` for a log that is damaged itself: a backup mends that.
    """
    with home.exclusive(), home.vault(read_only=True) as vault:
        path = home.directory / LEDGER
        found, logged = _salvaged(path), _logged(home)
        if not found and not logged:
            raise LedgerError("nothing was ever spent here, neither by the ledger nor by the audit log: begin training")
        ours = _chain(logged)
        theirs = _chain(found)
        # The longer where one goes on from the other; where they part, the log's: that is harder to write.
        goes_on = len(theirs.entries) > len(ours.entries) and theirs.contains(*ours.head)
        book = theirs if goes_on else ours
        kept = len(book.entries)
        at = home.clock().isoformat(timespec="seconds")
        same = not theirs.entries or theirs.digests[0] == book.digests[0]  # another site's ledger is not counted here
        for entry in _charges([*found, *logged] if same else logged, book):
            _add(book, at, entry, why=_TORN)
        presumed = len(book.entries) - kept
        lost = missing(home, vault, book, why)
        if lost is not None:
            for entry, rounds in lost.counted:
                _add(book, at, entry.model_copy(update={"steps": rounds * entry.steps}), why=LOST)
            if lost.unknown:
                _close(book, at, kind="unbounded", study=lost.unknown, why=UNKNOWN)
            _close(book, at, kind="lost", of=lost.head[0], request=lost.head[1])
        _close(book, at, kind="mended", by=by, why=why or "checked")
        known = {entry.digest for entry in logged}
        for entry, digest in zip(book.entries, book.digests, strict=True):
            if digest not in known:
                home.record(EVENT, {"entry": entry.text, "digest": digest})
        sequence, digest = book.head
        home.record(MENDED, {"sequence": sequence, "digest": digest, "by": by, "kept": kept, "presumed": presumed})
        replaced = _move_away(path, home.clock())
        with closing(Ledger(home, lambda: vault)) as ledger:
            ledger.replace(book)
        return Mended(sequence, kept, presumed, replaced, lost)


def presume_since_backup(home: Home, vault: Vault) -> int:
    """After a restoration: count the rest of every study that had not come to its end, and note the doubt.

    How many studies that were. Of those that began since the backup nothing is known here: who has the site's later
    receipts can tell, and until somebody vouches for the ledger no finite budget is spent.
    """
    with closing(Ledger(home, lambda: vault)) as ledger:
        found = rest(ledger.book())
        for entry, steps in found:
            ledger.presume(entry, steps, why=_SINCE)
        ledger.note_restored()
    return len(found)


def rest(book: Book) -> list[tuple[Entry, int]]:
    """Of each private study that has not come to its end, its last charge and how many steps it may yet take."""
    last = {entry.study: entry for entry in book.entries if entry.mechanism is not None}
    left = {study: entry.planned - book.steps(study) for study, entry in last.items()}
    return [(entry, left[study]) for study, entry in last.items() if left[study] > 0]


def _salvaged(path: Path) -> list[Entry]:
    """Every entry that the file still has as it was written, in order; of a ruined one what can be read."""
    found: list[Entry] = []
    if not path.exists():
        return found
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)) as connection:
            for text, digest in connection.execute("SELECT text, digest FROM entry ORDER BY sequence"):
                entry = Entry.parse(str(text))
                if entry is not None and entry.digest == digest:
                    found.append(entry)
    except sqlite3.Error:
        pass  # what came before the ruined page is something
    return found


def _logged(home: Home) -> list[Entry]:
    """Every entry that the audit log quotes, in order."""
    found = []
    for line in home.audit.entries():
        entry = Entry.parse(str(line.facts.get("entry"))) if line.event == EVENT else None
        if entry is not None:
            found.append(entry)
    return found


def _chain(entries: Iterable[Entry]) -> Book:
    """As many of ``entries`` as follow one another from the first."""
    book = Book()
    for entry in entries:
        if (entry.sequence, entry.before) == (book.head[0] + 1, book.head[1]):
            book.add(entry)
    return book


def _charges(entries: Sequence[Entry], book: Book) -> list[Entry]:
    """What was spent by ``entries`` and is not in ``book``, once each."""
    spent = {entry.digest: entry for entry in entries if entry.mechanism is not None or entry.kind == "unbounded"}
    return [entry for entry in spent.values() if not book.has_copy(entry)]


def _add(book: Book, at: str, entry: Entry, *, why: str) -> None:
    sequence, before = book.head
    update = {"sequence": sequence + 1, "before": before, "at": at}
    if entry.mechanism is not None:
        update |= {"kind": "presumed", "why": why, "request": entry.digest}
    book.add(entry.model_copy(update=update))


def _close(book: Book, at: str, **facts: str | int) -> None:
    sequence, before = book.head
    entry = {"sequence": sequence + 1, "before": before, "at": at, "population": book.population, **facts}
    book.add(Entry.model_validate(entry))


def _move_away(path: Path, at: datetime) -> Path | None:
    """The file and its journal, which would be played into the new one; kept to be looked at."""
    if not path.exists():
        return None
    target = path.with_name(f"{path.name}.{_REPLACED}-{at.strftime('%Y%m%d-%H%M%S-%f')}")
    journal = path.with_name(f"{path.name}-journal")
    path.rename(target)
    if journal.exists():
        journal.rename(target.with_name(f"{target.name}-journal"))
    return target
