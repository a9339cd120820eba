"""A round that too few sites have answered: told, and ended with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import BudgetExhausted, QuorumError
from server.answer_words import DECLINED
from server.asking import Link
from server.work import Work

_LISTED = 5
_UNPAID = f"{DECLINED}{BudgetExhausted.code}"


class Unpaid(QuorumError):
    """A round for which too few privacy budgets pay; ``sites``: whose do not."""

    def __init__(self, text: str, sites: Sequence[str]) -> None:
        super().__init__(text)
        self.sites = sites


def require_quorum(
    link: Link, work: Work, round_: int, accepted: int, record: Mapping[str, Any], field_: str, *, aside: bool
) -> None:
    """Raises :class:`QuorumError` naming the sites whose ``field_`` ("status", "evaluation") is not "ok".

    ``aside``: whether some sites are not asked any more.
    """
    if accepted >= work.quorum:
        return
    listed = failed(link, work, round_, accepted, record, field_)
    what = "replies" if field_ == "status" else "evaluations"
    raise quorum_lost(
        f"round {round_} of the {work.arm} arm has {accepted} of {work.quorum} {what} that the quorum "
        f"asks for ({listed}); mend these sites, then --resume, or start anew with a lower federation.quorum"
        + ("; who was set aside stays so in this run" if aside else ""),
        record,
    )


def failed(link: Link, work: Work, round_: int, accepted: int, record: Mapping[str, Any], field_: str) -> str:
    """Tell that a round has failed; the sites that are not "ok", and why, in words."""
    sites = {site: facts[field_] for site, facts in sorted(record["sites"].items()) if facts[field_] != "ok"}
    link.events.emit("failed", **work.named, round=round_, accepted=accepted, sites=sites)
    listed = "; ".join(f"{site}: {reason}" for site, reason in list(sites.items())[:_LISTED])
    return listed + (f"; and {len(sites) - _LISTED} more" if len(sites) > _LISTED else "")


def quorum_lost(text: str, record: Mapping[str, Any]) -> QuorumError:
    """That a round has failed, in ``text``; where a site it lacked has no privacy budget left, for that reason."""
    unpaid = sorted(site for site, facts in record["sites"].items() if facts["status"] == _UNPAID)
    return Unpaid(text, unpaid) if unpaid else QuorumError(text)
