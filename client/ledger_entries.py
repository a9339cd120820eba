"""What a privacy ledger is made of: entries, each bound to all before it, and what they say together.

Nothing is ever changed or removed. What was done is a :class:`Mechanism` under a study's name, in the order in which it
was reserved; the clock is for people to read and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.accounting import Mechanism
from common.audit import START
from common.errors import LedgerError
from common.study_privacy import PrivacySpec

ALL_PATIENTS = "all"
EVENT = "ledger"
"""Of the audit log: an entry of the ledger, which stands there before what it pays for leaves."""
"""The population of a site that has named none."""
_NAME = b"fedward ledger 1\0"
_REMEDY = "`fedward site ledger --mend` puts it right from the audit log; until then nothing is trained"

Kind = Literal[
    "begun",  # the first entry
    "reserve",  # a private round is about to be trained: spent from now on
    "commit",  # of a reservation: its reply is kept
    "unbounded",  # something left that no noise covers
    "presumed",  # may have been spent, and nobody here knows: counted
    "population",  # from here on the vault holds these patients
    "restored",  # from a backup: later entries may have been lost
    "lost",  # a head that this site once signed is not in the ledger any more
    "mended",  # somebody put the ledger right, or vouches for it
]
_Text = Annotated[str, Field(max_length=512)]
_Count = Annotated[int, Field(ge=0)]


class Entry(BaseModel):
    """One line of the ledger."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    sequence: Annotated[int, Field(ge=1)]
    before: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the entry before."""
    kind: Kind
    at: _Text
    """ISO 8601, by this machine's clock."""
    population: Annotated[str, Field(min_length=1, max_length=64)]
    study: _Text = ""
    """Hash."""
    name: _Text = ""
    arm: _Text = ""
    repeat: int = 0
    round: int = 0
    request: _Text = ""
    """Digest of the weights that came; of a presumed or lost entry, its own; of the first, a mark."""
    unit: Literal["patient", "image"] | None = None
    noise_multiplier: Annotated[float, Field(gt=0.0)] | None = None
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    steps: _Count = 0
    planned: _Count = 0
    """Steps of the whole study."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    accountant: Literal["prv", "rdp"] | None = None
    """Of the study's own promise."""
    of: _Count = 0
    """Of a commit: its reservation's number; of what is lost, the head's."""
    by: _Text = ""
    """Of a mending or a population: who vouches."""
    why: _Text = ""
    """Of these and of a restoration; of an unbounded one what left; of a presumed one what may have been done."""

    @property
    def text(self) -> str:
        """As it is kept, and as the audit log quotes it."""
        kept = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over this and, through ``before``, over all entries before."""
        return hashlib.sha256(_NAME + self.text.encode()).hexdigest()

    @property
    def mechanism(self) -> Mechanism | None:
        """What was, or may have been, done; ``None`` for an entry that spends nothing, or what has no bound."""
        if self.noise_multiplier is None or self.sample_rate is None or self.kind not in ("reserve", "presumed"):
            return None
        return Mechanism(self.noise_multiplier, self.sample_rate, self.steps)

    @classmethod
    def parse(cls, text: str) -> Entry | None:
        """``None`` where ``text`` is no entry as one is written here."""
        try:
            entry = cls.model_validate_json(text, strict=True)
        except ValidationError:
            return None
        return entry if entry.text == text else None


def spending(privacy: PrivacySpec, mechanism: Mechanism) -> dict[str, Any]:
    """An entry's fields that say what ``mechanism``, done under ``privacy``, spends."""
    return {
        "unit": privacy.unit,
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": mechanism.steps,
        "delta": privacy.delta,
        "accountant": privacy.accountant,
    }


@dataclass(frozen=True)
class Charge:
    """What is to be trained, as it is reserved."""

    study: str
    """Hash."""
    name: str
    arm: str
    repeat: int
    round: int
    request: str
    """Digest of the weights that came."""
    privacy: PrivacySpec
    mechanism: Mechanism
    """Of this round, at this site."""
    planned: int
    """Steps of the whole study."""

    @property
    def unit(self) -> Literal["patient", "image"]:
        return self.privacy.unit


@dataclass
class Book:
    """All entries, and an index of them. Grows by :meth:`add` alone."""

    entries: list[Entry] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    population: str = ALL_PATIENTS
    """Whose images the vault holds now."""
    _committed: set[tuple[str, str, int, int]] = field(default_factory=set)
    _unbounded: set[tuple[str, str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, str, str]]) -> Book:
        """From ``(sequence, text, digest)``. Raises :class:`LedgerError` at the first that does not follow."""
        book = cls()
        for sequence, text, digest in rows:
            entry = Entry.parse(str(text))
            number = len(book.entries) + 1
            if entry is None or (sequence, entry.sequence) != (number, number) or entry.digest != digest:
                raise LedgerError(f"the privacy ledger was altered or damaged at entry {number}; {_REMEDY}")
            book.add(entry)
        return book

    def add(self, entry: Entry) -> None:
        """Raises :class:`LedgerError` where it does not follow the last one."""
        if (entry.sequence, entry.before) != (len(self.entries) + 1, self.head[1]):
            raise LedgerError(f"entry {entry.sequence} of the privacy ledger does not follow the one before; {_REMEDY}")
        if entry.kind == "commit":
            done = self.entries[entry.of - 1]
            self._committed.add((done.study, done.arm, done.repeat, done.round))
        elif entry.kind in ("begun", "population"):
            self.population = entry.population
        elif entry.kind == "unbounded":
            self._unbounded.add((entry.population, entry.study, entry.why))
        self.entries.append(entry)
        self.digests.append(entry.digest)

    @property
    def head(self) -> tuple[int, str]:
        """Number and digest of the last entry; ``(0, START)`` where nothing was ever written."""
        return (len(self.entries), self.digests[-1]) if self.entries else (0, START)

    def contains(self, sequence: int, digest: str) -> bool:
        """Whether this was once the head."""
        return (sequence, digest) == (0, START) or (
            1 <= sequence <= len(self.entries) and self.digests[sequence - 1] == digest
        )

    @property
    def populations(self) -> list[str]:
        """All that there ever were, in the order in which they came."""
        return list(dict.fromkeys(entry.population for entry in self.entries)) or [ALL_PATIENTS]

    @property
    def in_doubt(self) -> Entry | None:
        """The restoration after which nobody has vouched for the ledger yet."""
        for entry in reversed(self.entries):
            if entry.kind in ("restored", "mended"):
                return entry if entry.kind == "restored" else None
        return None

    @property
    def lost(self) -> tuple[tuple[int, str], ...]:
        """Heads that were signed here once and are not in the ledger; what was spent up to them is counted since."""
        return tuple((entry.of, entry.request) for entry in self.entries if entry.kind == "lost")

    def committed(self, study: str, arm: str, repeat: int, round_: int) -> bool:
        """Whether the reply to this private training was kept once."""
        return (study, arm, repeat, round_) in self._committed

    def has_unbounded(self, study: str, what: str) -> bool:
        """Whether it is written down that ``what`` left, of the population that is there now."""
        return (self.population, study, what) in self._unbounded

    def has_copy(self, entry: Entry) -> bool:
        """Whether ``entry``, of another chain, is in this one, or counted here in its place."""
        if entry.kind == "unbounded":
            return (entry.population, entry.study, entry.why) in self._unbounded
        return entry.digest in self.digests or any(entry.digest == one.request for one in self.entries)

    def charges(self, population: str | None = None) -> Iterator[tuple[Entry, Mechanism]]:
        """What was spent on a population (by default the present one), in order."""
        wanted = self.population if population is None else population
        for entry in self.entries:
            mechanism = entry.mechanism
            if mechanism is not None and entry.population == wanted:
                yield entry, mechanism

    def steps(self, study: str) -> int:
        """Steps of a study that were charged, whichever the population."""
        return sum(entry.steps for entry in self.entries if entry.study == study and entry.mechanism is not None)
