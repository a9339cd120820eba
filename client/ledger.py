"""A site's privacy ledger: what all studies together have spent on the same patients, and what a budget still pays for.

``ledger.sqlite`` is the site's, not a vault's: another vault of the same patients goes on with it. A round is
reserved before it is trained and stays spent whatever becomes of it: a crash counts too much, never too little.

Each entry is bound to all before it by its digest. The last digest stands under a MAC of the vault's secret, which
survives new keys, so that nobody without the vault can write an entry or cut one off. And each entry stands in the
audit log before the ledger has it: the two are compared, and neither can be put back alone. Both put back together
only somebody outside can tell, who has seen a later head.

Without the vault the ledger can be read, and nothing can be spent.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Connection
from typing import Any, Literal

from client.budget import Budget, beyond_promise, lacking
from client.home import Home
from client.ledger_entries import EVENT, Book, Charge, Entry, spending
from client.sqlite_file import Database
from client.vault.store import Vault
from common.audit import START, Reader
from common.errors import BudgetExhausted, LedgerError, PrivacyError, StoreError

logger = logging.getLogger("fedward.ledger")

LEDGER = "ledger.sqlite"
MENDED = "ledger-mended"
"""Of the audit log: from here on the ledger's entries are those up to ``sequence``, whatever the log said before."""
UNKNOWN = "training of which the ledger knows nothing"
_REMEDY = "`fedward site ledger --mend` puts it right from the audit log; until then nothing is trained"
_MAC = b"ledger\0"
TABLES = (
    "CREATE TABLE entry (sequence INTEGER PRIMARY KEY, text TEXT NOT NULL, digest TEXT NOT NULL)",
    "CREATE TABLE seal (one INTEGER PRIMARY KEY CHECK (one = 1), mac TEXT NOT NULL)",
)


class Ledger:
    """The ledger of one site. For any thread and process: what two spend at the same time adds up.

    Opened anew and read at the first use; checked again when anybody else has changed it. All methods raise
    :class:`LedgerError` for a ledger that is not what was written, and :class:`AuditError` for such a log.
    """

    def __init__(self, home: Home, vault: Callable[[], Vault] | None = None) -> None:
        """``vault`` gives the site's open vault; without it the ledger can only be looked at."""
        self._home, self._vault = home, vault
        self._database = Database(home.directory / LEDGER, TABLES)
        self._forget()

    def _forget(self) -> None:
        self._book = Book()
        self._state: tuple[int, ...] = ()
        self._log, self._logged = Reader(self._home.audit), Logged()

    # What it says

    def book(self) -> Book:
        """All that is in it, checked. Empty where nothing was ever spent; not to be changed."""
        if not self._database.path.exists() and not self._read_log().last[0]:
            return Book()
        with self._using("DEFERRED"):
            return self._book

    def entries(self) -> Sequence[Entry]:
        """All entries, the earliest first."""
        return tuple(self.book().entries)

    def head(self) -> tuple[int, str]:
        """Number and digest of the last entry; ``(0, "00…")`` where nothing was ever spent."""
        return self.book().head

    def contains(self, sequence: int, digest: str) -> bool:
        """Whether ``(sequence, digest)`` was once the head of this very ledger."""
        return self.book().contains(sequence, digest)

    def lost(self) -> tuple[tuple[int, str], ...]:
        """Heads of which it is known that they were lost, the earliest first."""
        return self.book().lost

    # What is spent

    def begin(self, trained: Iterable[str] = ()) -> None:
        """Begin the ledger, where nothing was ever written. ``trained``: hashes of studies that have trained here.

        What those have spent that are not in it nobody knows: they stand as unbounded.
        """
        with self._using() as connection:
            if not self._book.entries:
                mark = secrets.token_hex(16)  # no two ledgers have an entry in common
                self._append(connection, kind="begun", request=mark, why=self._home.config.alias)
        for study in trained:
            with self._using() as connection:
                if not any(entry.study == study for entry in self._book.entries):
                    self._append(connection, kind="unbounded", study=study, why=UNKNOWN)

    def reserve(self, charge: Charge, budget: Budget | None) -> Entry:
        """Spend a round, before it is trained; on the disk when this returns.

        Raises :class:`BudgetExhausted` where ``budget`` does not pay for it, :class:`PrivacyError` where it would cost
        more than the study promises, and then nothing is spent.
        """
        self.begin()
        # The sums may take a second, during which others are to spend.
        _check(self.book(), charge, budget)
        with self._using() as connection:
            _check(self._book, charge, budget)
            privacy, mechanism = charge.privacy, charge.mechanism
            return self._append(
                connection,
                kind="reserve",
                study=charge.study,
                name=charge.name,
                arm=charge.arm,
                repeat=charge.repeat,
                round=charge.round,
                request=charge.request,
                planned=charge.planned,
                **spending(privacy, mechanism),
            )

    def commit(self, reservation: Entry) -> None:
        """The reply of a reserved round is kept: it can be sent again, and is not to be trained once more."""
        with self._using() as connection:
            self._append(
                connection,
                kind="commit",
                population=reservation.population,
                study=reservation.study,
                of=reservation.sequence,
            )

    def unbounded(self, study: str, name: str, what: str) -> None:
        """``what`` (a kind of request) is about to leave without a bound; written down once for a study."""
        if self.book().has_unbounded(study, what):
            return
        self.begin()
        with self._using() as connection:
            if not self._book.has_unbounded(study, what):
                self._append(connection, kind="unbounded", study=study, name=name, why=what)

    def change_population(self, population: str, *, by: str, why: str) -> None:
        """From now on the vault holds ``population``, none of whose patients is in another: ``by`` vouches for it."""
        self.begin()
        with self._using() as connection:
            self._append(connection, kind="population", population=population, by=by, why=why)

    # After something went wrong (``client.ledger_mending``)

    def presume(self, like: Entry, steps: int, *, why: str) -> None:
        """Count ``steps`` more of a study, each as in ``like``: they may have been done, and nobody here knows."""
        with self._using() as connection:
            facts = like.model_dump(exclude={"sequence", "before", "at", "kind", "arm", "repeat", "round", "request"})
            self._append(connection, **(facts | {"kind": "presumed", "steps": steps, "why": why}))

    def note_restored(self) -> None:
        """What follows the present head may be missing."""
        self.begin()
        with self._using() as connection:
            self._append(connection, kind="restored")

    def replace(self, book: Book) -> None:
        """Write ``book``, every entry of which the log has, into a new file."""
        with self._database.transaction() as connection:
            for entry in book.entries:
                connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (entry.sequence, entry.text, entry.digest))
            self._book = book
            connection.execute("INSERT OR REPLACE INTO seal VALUES (1, ?)", (self._mac(),))
        self._forget()

    def copy(self) -> bytes | None:
        """The whole file as it is between two entries, for a backup; ``None`` where nothing was ever spent."""
        if not self.book().entries:
            return None
        with self._using("DEFERRED") as connection:
            return connection.serialize()

    def close(self) -> None:
        """May be called twice; the next use opens it again."""
        self._database.close()
        self._forget()

    def _append(self, connection: Connection, **facts: Any) -> Entry:
        """Add one entry, in the log first: killed between the two, the ledger takes it from there."""
        number, before = self._book.head
        entry = Entry(
            sequence=number + 1,
            before=before,
            at=self._home.clock().isoformat(timespec="seconds"),
            **{"population": self._book.population, **facts},
        )
        self._home.record(EVENT, {"entry": entry.text, "digest": entry.digest})
        self._insert(connection, entry)
        return entry

    def _insert(self, connection: Connection, entry: Entry) -> None:
        self._book.add(entry)
        connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (entry.sequence, entry.text, entry.digest))
        connection.execute("INSERT OR REPLACE INTO seal VALUES (1, ?)", (self._mac(),))

    # What is checked

    @contextmanager
    def _using(self, mode: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[Connection]:
        """A transaction on a ledger that is as it was written, and agrees with the log; one entry at most is added."""
        try:
            if not self._database.path.exists() and (last := self._read_log().last[0]):
                raise LedgerError(f"the privacy ledger is gone, which had {last} entries; {_REMEDY}")
            with self._database.transaction(mode) as connection:
                state = self._database.foreign()
                if state != self._state:
                    self._load(connection)
                whole = self._compare(connection, writes=mode == "IMMEDIATE")
                yield connection
            self._state = state if whole else ()
        except (BudgetExhausted, PrivacyError):
            raise  # nothing was written
        except BaseException as error:
            self._forget()  # what is in memory may be ahead of the disk
            if isinstance(error, StoreError):
                raise LedgerError(f"{error}; if that does not help, {_REMEDY}") from None
            raise

    def _load(self, connection: Connection) -> None:
        """Read all of it, and the log, from the beginning."""
        self._forget()
        self._book = Book.of(connection.execute("SELECT sequence, text, digest FROM entry ORDER BY sequence"))
        if self._vault is None:
            return
        seen = self._home.witness.seen(self._vault())
        self._home.audit.verify(seen.entries, seen.head)
        found = connection.execute("SELECT mac FROM seal").fetchone()
        if self._book.entries and not (found and hmac.compare_digest(str(found[0]), self._mac())):
            raise LedgerError(f"the privacy ledger was altered, or is another vault's than is here now; {_REMEDY}")

    def _compare(self, connection: Connection, *, writes: bool) -> bool:
        """Against what the log has come to say. Whether the file has all of it.

        The one entry that a kill, or a full disk, kept from the ledger is taken from the log.
        """
        logged, book = self._read_log(), self._book
        (last, _), number, whole = logged.last, book.head[0], True
        missing = Entry.parse(logged.text) if last == number + 1 else None
        if missing is not None and missing.before == book.head[1]:
            if writes:
                logger.warning("entry %d of the ledger was cut off by a kill; it is taken from the audit log", last)
                self._insert(connection, missing)
            else:
                book.add(missing)
                whole = False
        elif last > number:
            found = "is gone" if number == 0 else "is an older copy, or was cut"
            raise LedgerError(f"the privacy ledger {found}: {number} entries where there were {last}; {_REMEDY}")
        elif last < number:
            raise LedgerError(
                f"the audit log is an older copy, or was cut: it knows {last} entries of the ledger, which has "
                f"{number}; restore the log, or {_REMEDY}"
            )
        for sequence, known in logged.digests.items():
            if not book.contains(sequence, known):
                raise LedgerError(f"the privacy ledger is not this site's from entry {sequence} on; {_REMEDY}")
        logged.digests.clear()
        return whole

    def _read_log(self) -> Logged:
        for entry in self._log.new():
            if entry.event == EVENT:
                self._logged.note(str(entry.facts.get("entry")), str(entry.facts.get("digest")))
            elif entry.event == MENDED:
                self._logged.reset(int(entry.facts.get("sequence", 0)), str(entry.facts.get("digest")))
        return self._logged

    def _mac(self) -> str:
        """Of the head. Raises :class:`LedgerError` where the vault is not open."""
        if self._vault is None:
            raise LedgerError("the ledger is written with the vault open only")
        return self._vault().mac(_MAC + json.dumps(self._book.head).encode())


def _check(book: Book, charge: Charge, budget: Budget | None) -> None:
    broken = beyond_promise(book, charge)
    if broken:
        raise PrivacyError(broken)
    if budget is None:
        return
    if book.in_doubt is not None:
        raise LedgerError(
            "the site was restored from a backup, and what was spent since that was made may be missing; "
            "`fedward site ledger` says what to compare, and `--mend` ends the doubt"
        )
    why = lacking(book, charge, budget)
    if why:
        raise BudgetExhausted(why)


class Logged:
    """What the audit log has said of the ledger since it was last compared."""

    def __init__(self) -> None:
        self.last = (0, START)
        self.text = ""
        """The last entry."""
        self.digests: dict[int, str] = {}

    def note(self, text: str, digest: str) -> None:
        entry = Entry.parse(text)
        if entry is None or entry.digest != digest:
            raise LedgerError(f"the audit log quotes an entry of the ledger that was never written; {_REMEDY}")
        self.last, self.text = (entry.sequence, digest), text
        self.digests[entry.sequence] = digest

    def reset(self, sequence: int, digest: str) -> None:
        self.last, self.text = (sequence, digest), ""
        self.digests = {sequence: digest}
