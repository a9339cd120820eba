"""Before a run: every site on the roster is asked until its people have decided.

A study waits for people, for hours or days; nothing is trained meanwhile. Who refused does not take part; who cannot
be reached may come until the run begins. Told apart here, by key: the coordinator knows from the roster which node
is which site, and a site that calls itself otherwise is not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from common import protocol
from common.errors import QuorumError
from common.study import Study
from server.rounds import Link, ask, quorum_of

PENDING = (
    "offline",
    "no answer before the deadline",
    "not reachable",
    "approval-pending",
    "site-paused",
    "outside-hours",
    "busy",
    "roster-changed",
)
"""Codes of sites that may yet say yes."""


@dataclass
class Admission:
    """Who may come, and how long they are waited for."""

    sites: Callable[[], Mapping[str, int]]
    """Alias -> node id of every site on the roster, online or not, now."""
    online: Callable[[], frozenset[str]]
    roster: Callable[[], bytes]
    """The roster, signed."""
    patience_s: float
    """Once the quorum has approved, how long the others are waited for."""
    pause_s: float = 5.0
    answers: dict[str, str] = field(default_factory=dict)
    """Alias -> ``ready``, ``offline`` or a site's code: what ``status`` shows."""
    programs: dict[str, str] = field(default_factory=dict)
    """Alias -> version of fedward there."""


def admit(link: Link, study: Study, admission: Admission) -> dict[str, int]:
    """The sites that take part: alias -> node id. Waits for them; ``link.stop`` ends it.

    Raises :class:`QuorumError` when so many have refused that the quorum cannot be reached.
    """
    since: float | None = None
    said: dict[str, str] = {}
    while True:
        link.check_stop()
        nodes = dict(admission.sites())
        ready = _ask_all(link, study, admission, nodes)
        for alias, answer in admission.answers.items():
            if said.get(alias) != answer:
                link.events.emit("site-answer", site=alias, answer=answer)
        said = dict(admission.answers)
        quorum = quorum_of(study, len(nodes))
        undecided = [alias for alias, answer in said.items() if answer in PENDING]
        if nodes and not undecided and len(ready) < quorum:
            listed = ", ".join(f"{alias}: {answer}" for alias, answer in sorted(said.items()) if answer != "ready")
            raise QuorumError(f"{len(ready)} of {len(nodes)} sites take part, the quorum asks for {quorum} ({listed})")
        if len(ready) >= quorum:
            since = link.clock() if since is None else since
            if not undecided or link.clock() - since >= admission.patience_s:
                return ready
        else:
            since = None
        link.sleep(admission.pause_s)


def _ask_all(link: Link, study: Study, admission: Admission, nodes: Mapping[str, int]) -> dict[str, int]:
    online = {alias: node for alias, node in nodes.items() if alias in admission.online()}
    said = dict.fromkeys(sorted(nodes), "offline")
    sealed = protocol.seal(protocol.SurveyRequest(protocol.Task(study), admission.roster()))
    ready: dict[str, int] = {}
    for answer in ask(link, sealed, online, max(30.0, admission.pause_s)):
        reply = answer.reply
        if not isinstance(reply, protocol.SurveyReply):
            said[answer.site] = answer.reason.removeprefix("declined: ") or "wrong kind of reply"
        elif reply.site != answer.site:
            said[answer.site] = "calls itself otherwise"
        elif not reply.images.get("train"):
            said[answer.site] = "no training images"
        else:
            said[answer.site] = "ready"
            admission.programs[answer.site] = reply.program
            ready[answer.site] = nodes[answer.site]
    admission.answers = said
    return dict(sorted(ready.items()))
