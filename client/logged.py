"""What the audit log says of approvals: a row of the approvals' file without its entry in the log counts for nothing.

So a row that was written in by hand approves nothing, and a refusal or withdrawal that was taken out of the file still
stops what was approved before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from client.people import ADDED, REMOVED
from common.audit import Entry

EVENTS = {
    "approve": "study-approved",
    "refuse": "study-refused",
    "withdraw": "study-withdrawn",
    "finish": "study-finished",
}
"""What the log calls each kind of decision."""

Line = tuple[str, str, str, str]
"""An approval in the log: study, role, person, moment to the second."""


@dataclass(frozen=True)
class Logged:
    """The log's word."""

    standing: frozenset[Line] = frozenset()
    """Approvals since the last refusal, withdrawal or end of their study."""
    until_finish: frozenset[Line] = frozenset()
    """The same, as if no study had ended by its model's coming."""
    people: frozenset[tuple[str, str]] = frozenset()
    """Names and fingerprints that were added and not removed since."""


def read(entries: Iterable[Entry]) -> Logged:
    """All of it, from the log's beginning."""
    standing: dict[str, set[Line]] = {}
    until_finish: dict[str, set[Line]] = {}
    people: set[tuple[str, str]] = set()
    for entry in entries:
        facts = entry.facts
        study = str(facts.get("study", ""))
        if entry.event == EVENTS["approve"]:
            line = (study, str(facts.get("role")), str(facts.get("by")), entry.at)
            standing.setdefault(study, set()).add(line)
            until_finish.setdefault(study, set()).add(line)
        elif entry.event in (EVENTS["refuse"], EVENTS["withdraw"]):
            standing.pop(study, None)
            until_finish.pop(study, None)
        elif entry.event == EVENTS["finish"]:
            standing.pop(study, None)
        elif entry.event in (ADDED, REMOVED):
            known = (str(facts.get("name")), str(facts.get("fingerprint")))
            people = people | {known} if entry.event == ADDED else people - {known}
    return Logged(frozenset().union(*standing.values()), frozenset().union(*until_finish.values()), frozenset(people))
