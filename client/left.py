"""What has left this site, by study and round, as its audit log tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.ledger_entries import EVENT
from client.ledger_entries import Entry as LedgerEntry
from common.accounting import Mechanism, epsilon
from common.audit import Entry

REPLY, RECEIVED = "reply", "model-received"
"""Of the audit log: a reply is about to leave (once: what is sent again has the same bytes); a finished model came, of
which a receipt leaves."""
OWN_MADE, EXPORTED = "own-model-made", "model-exported"
"""Of the audit log too, of what no message takes along: this site's own model was put into ``models/``; a finished
model was copied to a place that its operator named."""
FIT = "train.fit"
"""The kind of request that a fit answers (``common.protocol.TRAIN``)."""
_RECEIPT_BYTES = 32
_BEFORE: Mapping[str, tuple[str, ...]] = {
    "query.survey": ("image counts",),
    FIT: ("weights", "number of images", "training loss", "seconds"),
    "evaluate.scores": ("counts of scores", "seconds"),
    "evaluate.moments": ("counts of scores", "seconds"),
}
"""What left with a reply to each kind of request, in entries that do not say: all that could, before they did."""


@dataclass(frozen=True)
class Left:
    """One reply that left, as the audit log has it."""

    study: str
    """Hash."""
    at: str
    """ISO 8601."""
    request: str
    """The kind of request that it answers, with the split of an evaluation, e.g. ``evaluate.scores val``."""
    round: int
    kinds: tuple[str, ...]
    bytes: int | None
    """Of the reply; ``None``: not recorded."""
    number: int
    """Of the log's entry."""
    spent: tuple[Mechanism, ...] = ()
    """Of a private fit: what its study had been charged by then, this fit included. Empty: no noise bounds it."""
    delta: float = 0.0

    @property
    def epsilon(self) -> float | None:
        """What the study had spent after it, by itself, at its own δ; ``None``: no bound."""
        return epsilon(self.spent, self.delta) if self.spent else None


@dataclass(frozen=True)
class StudyLeft:
    """All that left for one study."""

    study: str
    name: str
    replies: tuple[Left, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each once, in the order in which they first left."""
        return tuple(dict.fromkeys(kind for one in self.replies for kind in one.kinds))

    @property
    def bytes(self) -> int:
        return sum(one.bytes or 0 for one in self.replies)

    @property
    def epsilon(self) -> float | None:
        """What its fits have spent, by themselves, at its own δ; ``None``: none left, or one that no noise bounds."""
        fits = [one for one in self.replies if one.request == FIT]
        return fits[-1].epsilon if fits and all(one.spent for one in fits) else None

    @property
    def rounds(self) -> int:
        """Rounds of which something left."""
        return len({one.round for one in self.replies if one.round})


def left(entries: Iterable[Entry]) -> list[StudyLeft]:
    """What the log says has left, study by study in the order in which they were asked for."""
    names: dict[str, str] = {}
    charged: dict[str, list[LedgerEntry]] = {}
    replies: dict[str, list[Left]] = {}
    for entry in entries:
        facts = entry.facts
        study = str(facts.get("study", ""))
        if entry.event.startswith("study-asked"):
            names[study] = str(facts.get("name", ""))
        elif entry.event == REPLY:
            replies.setdefault(study, []).append(_reply(entry, charged.get(study, ())))
        elif entry.event == EVENT:
            charge = LedgerEntry.parse(str(facts.get("entry")))
            if charge is not None and charge.mechanism is not None:
                charged.setdefault(charge.study, []).append(charge)
        elif entry.event == RECEIVED:
            found = Left(study, entry.at, "query.model", 0, ("receipt",), _RECEIPT_BYTES, entry.number)
            replies.setdefault(study, []).append(found)
    ordered = [*(study for study in names if study in replies), *(study for study in replies if study not in names)]
    return [StudyLeft(study, names.get(study, ""), tuple(replies[study])) for study in ordered]


def _reply(entry: Entry, charged: Sequence[LedgerEntry]) -> Left:
    facts = entry.facts
    paid: dict[str, Any] = {}
    if charged and facts.get("kind") == FIT:
        spent = tuple(one for charge in charged if (one := charge.mechanism) is not None)
        paid = {"spent": spent, "delta": charged[-1].delta}
    request = str(facts.get("kind", ""))
    named = facts.get("kinds")
    found: Sequence[Any] = named if isinstance(named, list) else _before(facts)
    size = facts.get("bytes")
    return Left(
        study=str(facts.get("study", "")),
        at=entry.at,
        request=request,
        round=int(facts.get("round", 0)),
        kinds=tuple(map(str, found)),
        bytes=int(size) if isinstance(size, int) else None,
        number=entry.number,
        **paid,
    )


def _before(facts: Mapping[str, Any]) -> Sequence[str]:
    """Of an entry that names no kinds: it was written before they were."""
    request = str(facts.get("kind", "")).partition(" ")[0]
    measured = ("survey: measured",) if "statistics" in facts else ()
    return (*_BEFORE.get(request, (request,)), *measured)
