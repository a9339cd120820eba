"""What a site's answer means, in words: for status pages, and for a run's report."""

from __future__ import annotations

from collections.abc import Mapping

DECLINED = "declined: "
"""Before a site's code, where a reason says who gave it."""
ANSWERS: Mapping[str, str] = {
    "": "",
    "ready": "has approved",
    "offline": "is offline",
    "not reachable": "is offline",
    "no answer before the deadline": "has not answered in time",
    "approval-pending": "waits for its people's approval",
    "approval-refused": "has refused",
    "policy-objects": "its policy does not allow this study",
    "study-withdrawn": "has withdrawn",
    "study-finished": "has its model already",
    "study-expired": "its approval has expired",
    "site-paused": "is paused",
    "outside-hours": "is closed at this hour",
    "roster-changed": "asks its people about the new roster",
    "roster-differs": "has another roster, and is sent this one",
    "roster-refused": "does not trust this coordinator's roster: call them",
    "protocol-mismatch": "cannot read the study: another version of fedward",
    "no training images": "has no training images for this study",
    "budget-exhausted": "has used up its privacy budget",
    "ledger-unusable": "cannot use its privacy ledger: its log says what to mend",
    "busy": "works on something else",
    "internal-error": "failed: its log says why",
    "policy-unusable": "cannot read its policy.yaml",
    "key-unavailable": "cannot get at its vault's key",
    "vault-unusable": "cannot use its vault",
    "audit-unusable": "cannot write its audit log",
    "ledger-rolled-back": "has an older copy of its privacy ledger: its people must restore the newer one",
    "anchor-refused": "does not believe an anchor that it was sent: call them",
    "settled-otherwise": "was asked for another test than at first: resume the run that it was first asked by",
    "site-store-unusable": "cannot keep its replies: its disk is full or damaged",
}
"""What a site's answer means, for those that need words."""


def in_words(reason: str) -> str:
    """A site's code, or the reason why there is no reply, as one reads it."""
    code = reason.removeprefix(DECLINED)
    return ANSWERS.get(code, code)
