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
from server.asking import Link, SignedRoster, ask, may_yet
from server.work import quorum_of

_MOST_PAUSES = 2
"""A wait grows to this many times ``pause_s``: with the usual 5 s, to ten, so that a run begins soon after the last
approval. Sites look as seldom while their people decide."""


@dataclass
class Admission:
    """Who may come, and how long they are waited for."""

    sites: Callable[[], Mapping[str, int]]
    """Alias -> node id of every site on the roster, online or not, now."""
    online: Callable[[], frozenset[str]]
    roster: Callable[[], SignedRoster]
    patience_s: float
    """Once the quorum has approved, how long the others are waited for."""
    pause_s: float = 5.0
    """Between two surveys; longer while nobody answers otherwise than before."""
    begun: frozenset[str] = frozenset()
    """The sites of a run that has begun before: only these are asked, and all of them stay its sites."""
    answers: dict[str, str] = field(default_factory=dict)
    """Alias -> ``ready``, ``offline`` or a site's code: what ``status`` shows."""
    programs: dict[str, str] = field(default_factory=dict)
    """Alias -> version of fedward there, as it last said."""
    images: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Alias -> labelled images by split, as a site that is ready told; of a private study whether there are any."""
    until: dict[str, int] = field(default_factory=dict)
    """Alias -> when a closed site opens, in seconds of the epoch."""
    program: str = ""
    """Version of fedward here."""

    def nodes(self) -> dict[str, int]:
        """Alias -> node id of the sites to ask; 0 for one that has begun and is not on the roster now."""
        sites = self.sites()
        return {alias: sites.get(alias, 0) for alias in sorted(self.begun)} if self.begun and sites else dict(sites)


def admit(link: Link, study: Study, admission: Admission) -> dict[str, int]:
    """The sites that take part: alias -> node id. Waits for them; ``link.stop`` ends it.

    A run that has begun goes on with all of its sites once a quorum of them is there: its checkpoint is theirs, and
    who is still away counts as away in each round, as if it had left in the middle.

    Raises :class:`QuorumError` when so many have refused that the quorum cannot be reached.
    """
    since: float | None = None
    said: dict[str, str] = {}
    pause_s = admission.pause_s
    while True:
        link.check_stop()
        nodes, online = admission.nodes(), admission.online()
        ready = _ask_all(link, study, admission, nodes, online)
        for alias, answer in admission.answers.items():
            if said.get(alias) != answer:
                link.events.emit("site-answer", site=alias, answer=answer)
        unchanged = said == admission.answers
        pause_s = min(2 * pause_s, _MOST_PAUSES * admission.pause_s) if unchanged else admission.pause_s
        said = dict(admission.answers)
        quorum = quorum_of(study, len(nodes))
        undecided = [alias for alias, answer in said.items() if may_yet(answer)]
        if nodes and len(ready) + len(undecided) < quorum:
            listed = ", ".join(f"{alias}: {answer}" for alias, answer in sorted(said.items()) if answer != "ready")
            waiting = f", {len(undecided)} more may" if undecided else ""
            raise QuorumError(
                f"{len(ready)} of {len(nodes)} sites take part{waiting}, the quorum asks for {quorum} ({listed})"
            )
        if len(ready) >= quorum:
            since = link.clock() if since is None else since
            left = since + admission.patience_s - link.clock()
            if not undecided or left <= 0:
                link.watch.begins(None)
                return nodes if admission.begun else ready
            link.watch.begins(left)
            pause_s = min(pause_s, left)
        else:
            since = None
            link.watch.begins(None)
        _rest(link, admission, pause_s, online)


def _rest(link: Link, admission: Admission, pause_s: float, online: frozenset[str]) -> None:
    """Wait ``pause_s`` seconds, or until another site has come or gone."""
    ends = link.clock() + pause_s
    while (left := ends - link.clock()) > 0 and not link.stop.is_set():
        link.sleep(min(left, admission.pause_s))
        if admission.online() != online:
            return


def _ask_all(
    link: Link, study: Study, admission: Admission, nodes: Mapping[str, int], online: frozenset[str]
) -> dict[str, int]:
    reached = {alias: node for alias, node in nodes.items() if alias in online}
    listed = admission.sites()
    said = {alias: "offline" if alias in listed else "not on the roster" for alias in sorted(nodes)}
    roster = admission.roster()
    task = protocol.Task(study, roster=roster.hash, anchors=link.all_anchors)
    sealed = protocol.seal(protocol.SurveyRequest(task, roster.signed, admission.program))
    ready: dict[str, int] = {}
    admission.until.clear()
    for answer in ask(link, sealed, reached, max(30.0, admission.pause_s)):
        reply = answer.reply
        if answer.program:
            admission.programs[answer.site] = answer.program
        if answer.until:
            admission.until[answer.site] = answer.until
        if not isinstance(reply, protocol.SurveyReply):
            said[answer.site] = answer.word or "wrong kind of reply"
        elif reply.site != answer.site:
            said[answer.site] = "calls itself otherwise"
        elif not reply.images.get("train"):
            said[answer.site] = "no training images"
        else:
            said[answer.site] = "ready"
            admission.programs[answer.site] = reply.program
            admission.images[answer.site] = dict(reply.images)
            ready[answer.site] = nodes[answer.site]
    admission.answers = said
    return dict(sorted(ready.items()))
