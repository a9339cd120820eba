"""Who may still be asked: a site whose replies are refused time and again is set aside for the rest of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SET_ASIDE = "set aside"
_BAD = ("refused: ", "unreadable reply", "wrong kind of reply")


class Standing:
    """Rounds in a row in which a site sent something that was refused.

    A site that is away, closed or declines loses nothing and gains nothing; one good round makes it good again. It
    follows from the replies alone, so that a run gives the same sites each time it is played.
    """

    def __init__(self, most: int) -> None:
        """``most``: so many refused rounds in a row set a site aside; 0: never."""
        self._most = most
        self._strikes: dict[str, int] = {}

    @property
    def aside(self) -> frozenset[str]:
        """Who is not asked any more."""
        return frozenset(site for site, strikes in self._strikes.items() if self._most and strikes >= self._most)

    def asked(self, sites: Mapping[str, int]) -> dict[str, int]:
        """Those of ``sites`` who are asked."""
        aside = self.aside
        return {site: node for site, node in sites.items() if site not in aside}

    def judge(self, answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Count a round's ``answers`` (alias -> ``status`` and ``evaluation``); who is set aside by it."""
        before = self.aside
        for site, facts in answers.items():
            said = [str(facts[kind]) for kind in ("status", "evaluation") if facts.get(kind) is not None]
            if any(word.startswith(_BAD) for word in said):
                self._strikes[site] = self._strikes.get(site, 0) + 1
            elif all(word == "ok" for word in said):
                self._strikes.pop(site, None)
        return sorted(self.aside - before)

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return dict(sorted(self._strikes.items()))

    def restore(self, state: Mapping[str, int]) -> None:
        self._strikes = dict(state)
