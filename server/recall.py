"""Sites that answer "not now" in the middle of a run: asked again when they can.

A hospital that closes for the night, or whose people pause it, has not left. A round whose quorum the others make goes
on without it; one that cannot be had without it waits, for days if the study says so. A site that has another roster
than the coordinator is given the present one and asked again at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from common import protocol
from common.protocol import secure
from server.asking import UNREACHED, Answer, Link, ask, may_yet

OTHER_ROSTER = "roster-differs"
NOT_NOW = frozenset({"outside-hours", "site-paused", "roster-changed", "approval-pending"})
"""Codes of people's decisions, and of the clock: who answers so is there, and will be asked again."""
_MOST_ROSTERS = 3
_SURVEY_S = 30.0
_MOST_PAUSES = 2


@dataclass
class Call:
    """One request of a round, or of the survey before the first, to its sites."""

    link: Link
    request: (
        protocol.SurveyRequest
        | protocol.TrainRequest
        | protocol.EvaluateRequest
        | protocol.MomentsRequest
        | secure.KeysRequest
    )
    sites: Mapping[str, int]
    """Alias -> node id."""
    deadline_s: float
    lacking: Callable[[], int]
    """How many more good replies it takes, after those that were yielded; 0 and less: it goes on without."""
    _held: dict[str, Answer] = field(default_factory=dict)
    _moved: Counter[str] = field(default_factory=Counter)
    _rosters: Counter[str] = field(default_factory=Counter)

    def answers(self) -> Iterator[Answer]:
        """One :class:`Answer` for each site, as they arrive or give up. ``bytes`` counts both ways."""
        asked, ends = dict(self.sites), self.link.clock() + self.deadline_s
        deadline_s = self.deadline_s
        while asked:
            for answer in self._ask(asked, deadline_s):
                yield answer
                del answer  # a whole model, while the next one is on its way
            asked = self._with_our_roster()
            deadline_s = ends - self.link.clock()
            if not asked or deadline_s <= 0:
                asked = self._reopened()
                ends, deadline_s = self.link.clock() + self.deadline_s, self.deadline_s
        for site in sorted(self._held):
            yield replace(self._held[site], bytes=self._moved[site])

    def _ask(self, sites: Mapping[str, int], deadline_s: float) -> Iterator[Answer]:
        """Ask ``sites``; who answers "not now" is held, and who does not answer, for the case that we wait."""
        task = replace(self.request.task, roster=self.link.roster().hash)
        if not isinstance(self.request, protocol.EvaluateRequest | protocol.MomentsRequest):
            task = replace(task, anchors=self.link.all_anchors)
        sealed = protocol.seal(replace(self.request, task=task))
        asked, answers = sealed.bytes, ask(self.link, sealed, sites, deadline_s, needed=max(0, self.lacking()))
        del sealed  # a model, which the Grid has by then
        for answer in answers:
            self._held.pop(answer.site, None)
            self._moved[answer.site] += asked + answer.bytes
            if answer.word == OTHER_ROSTER or answer.word in NOT_NOW or answer.word in UNREACHED:
                self._held[answer.site] = answer
            else:
                yield replace(answer, bytes=self._moved[answer.site])
            del answer

    def _with_our_roster(self) -> dict[str, int]:
        """Those that had another roster and have the coordinator's now."""
        stale = {site for site, answer in self._held.items() if answer.word == OTHER_ROSTER}
        stale = {site for site in stale if self._rosters[site] < _MOST_ROSTERS}
        self._rosters.update(stale)
        return self._surveyed(stale)

    def _surveyed(self, sites: set[str]) -> dict[str, int]:
        """Those of ``sites``, all of them held, that would work now; what the others say is kept."""
        ready: dict[str, int] = {}
        if not sites:
            return ready
        roster = self.link.roster()
        task = protocol.Task(self.request.task.study, roster=roster.hash, anchors=self.link.all_anchors)
        sealed = protocol.seal(protocol.SurveyRequest(task, roster.signed))
        for answer in ask(self.link, sealed, {site: self.sites[site] for site in sorted(sites)}, _SURVEY_S):
            if isinstance(answer.reply, protocol.SurveyReply) and answer.reply.site == answer.site:
                ready[answer.site] = self.sites[answer.site]
            else:
                self._held[answer.site] = replace(answer, reason=answer.reason or "wrong kind of reply")
        return ready

    def _reopened(self) -> dict[str, int]:
        """Wait until a site that the quorum needs may work again; empty where there is none, or none is needed.

        Once it waits it waits for those too who cannot be reached: a closed hospital may switch its machines off.
        """
        link, pause_s, said = self.link, self.link.pause_s, dict[str, str]()
        ends = link.clock() + self.request.task.study.federation.wait_s
        try:
            while link.clock() < ends:
                waited = {site for site, answer in self._held.items() if may_yet(answer.word)}
                closed = any(answer.word in NOT_NOW for answer in self._held.values())
                if not (closed or said) or not 0 < self.lacking() <= len(waited):
                    return {}
                now = {site: self._held[site].word for site in sorted(waited)}
                if now != said:
                    self._tell(waited)
                    said, pause_s = now, link.pause_s
                link.check_stop()
                link.sleep(pause_s)
                link.check_stop()
                pause_s = min(2 * pause_s, _MOST_PAUSES * link.pause_s)
                ready = self._surveyed(waited)
                if ready:
                    return ready
            return {}
        finally:
            if said:
                link.watch.waits({})

    def _tell(self, waited: set[str]) -> None:
        task = self.request.task
        sites = {site: {"answer": self._held[site].word, "until": self._held[site].until} for site in sorted(waited)}
        self.link.watch.waits(sites)
        self.link.events.emit("waits", arm=task.arm, repeat=task.repeat, round=task.round, sites=sites)
