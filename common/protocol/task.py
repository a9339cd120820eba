"""What every request says: whose work this is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from common.basis import Basis, check_given
from common.compression import Compression
from common.errors import ProtocolError, StudyError
from common.protocol.anchoring import anchors_in
from common.protocol.records import DIGEST, MOST_SITES, Fields, get
from common.study import PersonalisationSpec, SecureAggregationSpec, Study

_ARM = re.compile(r"[a-z][a-z-]{0,31}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_MOST_REPEATS = (1 << 31) - 1


@dataclass(frozen=True)
class Task:
    """What every request says: whose work this is. The study travels whole; a site checks its hash."""

    study: Study
    arm: str = "federated"
    repeat: int = 0
    round: int = 0
    roster: str = ""
    """In a real federation: the hash of the coordinator's roster, so that a site notices that it has another."""
    basis: Basis | None = None
    """What training takes from the survey, where the study asks for it; in every request but a survey's."""
    anchors: tuple[bytes, ...] = ()
    """Newest anchors of all sites' privacy ledgers, as they signed them (``common.anchors``)."""

    @property
    def compression(self) -> Compression:
        """How a fit is told: of a single hospital and of pooled images, which nobody sends, as it is."""
        return self.study.federation.compression if self.arm == "federated" else "none"

    @property
    def summed(self) -> SecureAggregationSpec | None:
        """How fits are summed under masks; a single hospital's and pooled images' are not."""
        return self.study.federation.secure_aggregation if self.arm == "federated" else None

    @property
    def personal(self) -> PersonalisationSpec | None:
        """What sites have of their own; a single hospital and pooled images are trained as if there were no others."""
        return self.study.personalisation if self.arm == "federated" else None


def task_fields(task: Task) -> Fields:
    """Of a request's head."""
    fields: Fields = {
        "study": task.study.canonical().decode(),
        "arm": task.arm,
        "repeat": task.repeat,
        "round": task.round,
    }
    if task.roster:
        fields["roster_hash"] = task.roster
    if task.anchors:
        fields["anchors"] = list(task.anchors)
    if task.basis is not None:
        fields |= {f"basis-{name}": numbers for name, numbers in task.basis.json().items() if numbers}
    return fields


def task_in(head: Mapping[str, Any], *, first: int, trains: bool) -> Task:
    """A request's task. Its round and repeat go into schedules and seeds, so they are held to the study's range.

    ``first`` is the least round that its kind may name; ``trains``: it may bring a basis. Raises
    :class:`ProtocolError`.
    """
    study = _study(get(head, "study", str))
    arm, repeat, round_ = get(head, "arm", str), get(head, "repeat", int), get(head, "round", int)
    if not _ARM.fullmatch(arm):
        raise ProtocolError("a request names an arm with characters that are not allowed")
    if not 0 <= repeat <= _MOST_REPEATS:
        raise ProtocolError(f"a request names repeat {repeat}; repeats count from 0")
    last = study.federation.rounds
    if not first <= round_ <= last:
        raise ProtocolError(f"a request names round {round_}; the study has rounds {first} to {last}")
    roster = get(head, "roster_hash", str) if "roster_hash" in head else ""
    if roster and not DIGEST.fullmatch(roster):
        raise ProtocolError("a request names a roster by what is no hash; upgrade the coordinator")
    basis = _basis(head, study) if trains else None
    return Task(study, arm, repeat, round_, roster, basis, anchors_in(head, MOST_SITES))


@lru_cache(maxsize=64)
def _study(text: str) -> Study:
    """Parsed once per process: every request of a run carries the same text."""
    try:
        return Study.parse(text, "received study")
    except StudyError as error:
        raise ProtocolError(f"{error}; the coordinator runs another version of fedward?") from None


def _basis(head: Mapping[str, Any], study: Study) -> Basis | None:
    """The pooled numbers of a request, held to their range."""
    numbers = [_reals(head, f"basis-{name}") for name in ("mean", "deviation", "class_weights")]
    basis = Basis(*numbers) if any(numbers) else None
    check_given(basis, study)
    return basis


def _reals(head: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = get(head, key, list) if key in head else []
    if not all(isinstance(value, float) for value in values):
        raise ProtocolError(f"the message's field {key!r} holds something else than numbers; upgrade the older side")
    return tuple(values)
