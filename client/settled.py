"""What a site's test patients are looked at with in a run: settled by the first request, once, for ever.

The small-cell rule guards one release. Two that differ by a threshold, by the model or by the operating point of an
outline can be subtracted, and the difference be of as few patients as whoever asks pleases. A run tests one model, at
one set of thresholds, and holds it against each second model that its study names once; so that is all a site answers,
whatever else is asked, and however often its agent was started anew. The file holds digests only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from client.sqlite_file import Database
from common import protocol
from common.errors import SettledOtherwise
from common.metrics import Layout, Question, Reference
from common.metrics.paired.wire import Given, ModelReference
from common.study import Study
from common.weights import digest

SETTLED = "settled.sqlite"
MODEL, OWN, OUTLINE, THRESHOLD = "the tested model", "whose own model", "the outline's threshold", "the threshold"
_TABLES = (
    "CREATE TABLE settled (study TEXT NOT NULL, arm TEXT NOT NULL, repeat INTEGER NOT NULL, about TEXT NOT NULL, "
    "digest TEXT NOT NULL, PRIMARY KEY (study, arm, repeat, about))",
)
_OfTest = protocol.EvaluateRequest | protocol.MomentsRequest


class Settled:
    """Of one site; each call is one transaction."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _TABLES)

    def hold(self, request: _OfTest, weights: str, started: str | None) -> None:
        """Settle what ``request`` is about, on the disk, or hold it to what was settled before.

        ``weights``: digest of the request's (``common.weights.digest``). ``started``: of those from which this site
        trained round 1, where it did: the model that a study means by ``evaluation.compare: [start]``.

        Raises :class:`SettledOtherwise`, :class:`ProtocolError` for what is no question, :class:`StoreError`.
        """
        about = _about(request, weights)
        task = request.task
        run = (task.study.hash, task.arm, task.repeat)
        with self._database.transaction() as connection:
            query = "SELECT about, digest FROM settled WHERE study = ? AND arm = ? AND repeat = ?"
            known: dict[str, str] = dict(connection.execute(query, run).fetchall())
            second = _second(request)
            if second is not None:
                about[_slot(task.study, known, second, started)] = second.digest
            for name, wanted in about.items():
                if known.setdefault(name, wanted) != wanted:
                    raise SettledOtherwise(
                        f"{name} of study {task.study.hash[:12]} was another when its run first asked; two answers "
                        "could be subtracted from each other. The coordinator must ask as it first did (a run that is "
                        "resumed does), or start another study"
                    )
                connection.execute("INSERT OR IGNORE INTO settled VALUES (?, ?, ?, ?, ?)", (*run, name, wanted))

    def close(self) -> None:
        """May be called twice."""
        self._database.close()


class _Second:
    """A second model as a comparison's first or second pass names it: its weights, and its thresholds."""

    def __init__(self, weights: str, thresholds: bytes) -> None:
        self.weights = weights
        self.digest = _hash(weights.encode(), thresholds)


def _about(request: _OfTest, weights: str) -> dict[str, str]:
    """What of a request is settled, but for a second model: name -> digest."""
    study, about = request.task.study, dict[str, str]()
    if isinstance(request, protocol.MomentsRequest) and request.beside is None and not request.by:
        at = Question.from_arrays(request.reference, study).outline
        if at is not None:
            about[f"{OUTLINE} on {request.split}"] = str(at)
    if request.split != "test":
        return about
    basis = request.task.basis
    round_ = str(request.task.round)
    about[MODEL] = _hash(weights.encode(), round_.encode(), (basis.digest if basis else "").encode())
    if request.personal is not None:
        about[OWN] = str(request.personal)
    if request.beside is not None:
        about[THRESHOLD] = _hash(_thresholds(request)[0])
    return about


def _second(request: _OfTest) -> _Second | None:
    if request.beside is None or request.beside.weights is None:
        return None
    return _Second(digest(request.beside.weights), _thresholds(request)[1])


def _thresholds(request: _OfTest) -> tuple[bytes, ...]:
    """Of the model and, in a comparison with one, of a second: the same bytes in both passes."""
    assert request.beside is not None
    layout, given = Layout.of(request.task.study), request.beside.given
    if isinstance(request, protocol.EvaluateRequest):
        count = 1 if request.beside.weights is None else 2
        found = Given.from_arrays(given, layout, count).thresholds
    else:
        found = (Reference.from_arrays(request.reference, layout).thresholds.position,)
        if request.beside.weights is not None:
            found += (ModelReference.from_arrays(given, layout).second.thresholds.position,)
    return tuple(position.tobytes() for position in found)


def _slot(study: Study, known: Mapping[str, str], second: _Second, started: str | None) -> str:
    """Which of ``evaluation.compare`` a second model is. Who has not trained round 1 cannot tell, and gives each name
    to one model."""
    slots = {name: f"the second model ({name})" for name in study.evaluation.compare}
    if started is not None:
        other = next((name for name in slots if name != "start"), None)
        name = "start" if second.weights == started and "start" in slots else other
        if name is None:
            raise SettledOtherwise(
                f"the model beside the one of study {study.hash[:12]} is not the one that round 1 was trained from, "
                "with which alone the study compares; the coordinator must send that, or start another study"
            )
        return slots[name]
    mine = [slot for slot in slots.values() if known.get(slot) == second.digest]
    free = [slot for slot in slots.values() if slot not in known]
    return (mine or free or list(slots.values()))[0]


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
