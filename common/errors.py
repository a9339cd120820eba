"""Every error a user can meet. Each says what is wrong and what to do about it.

``code`` is the only part of an error that may cross the network: texts can hold
paths, file names or patients' numbers, so they stay in the log of the machine
that wrote them (DESIGN, a round's walk).
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """``text`` with line breaks and control characters written as escapes: keys and file names may hold them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FedwardError(Exception):
    """An expected failure: one line, with its remedy; shown without a traceback."""

    code = "error"
    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class StudyError(FedwardError):
    """The study file is not usable."""

    code = "study-invalid"
    exit_code = 2


class DataError(FedwardError):
    """Images or labels are missing, unreadable or contradict each other."""

    code = "data-invalid"
    exit_code = 3


class ImportRefused(DataError):
    """An import is through, and some of what should have come in did not."""

    code = "import-refused"
    exit_code = 9


class PartitionError(DataError):
    """The images cannot be dealt out to hospitals as the study asks."""

    code = "partition-impossible"


class VaultError(FedwardError):
    """A vault is missing, locked, damaged or has been tampered with."""

    code = "vault-unusable"
    exit_code = 4


class KeyUnavailable(VaultError):
    """A key provider has no usable key."""

    code = "key-unavailable"


class AuditError(FedwardError):
    """An audit log was altered, cut, lost, or cannot be written."""

    code = "audit-unusable"
    exit_code = 4


class IdentityError(FedwardError):
    """A key, certificate, roster, request or kit is missing, wrong, expired or not signed by whom it should be."""

    code = "identity-invalid"
    exit_code = 4


class ModelError(FedwardError):
    """A model cannot be built or weights do not fit it."""

    code = "model-invalid"
    exit_code = 2


class DeviceError(FedwardError):
    """The device the study or the user asks for is not there."""

    code = "device-unavailable"
    exit_code = 5


class ProtocolError(FedwardError):
    """A message does not hold what this version expects."""

    code = "protocol-mismatch"
    exit_code = 6


class VersionMismatch(ProtocolError):
    """The other side speaks another version of the protocol; the text says who must upgrade."""

    code = "version-mismatch"


class ReplyRefused(FedwardError):
    """A site's reply may not touch the model."""

    code = "reply-refused"
    exit_code = 6


class QuorumError(FedwardError):
    """Too few sites answered; the run has failed."""

    code = "quorum-missed"
    exit_code = 7


class PolicyError(FedwardError):
    """The site's policy is missing or not usable, and so allows nothing."""

    code = "policy-unusable"
    exit_code = 2


class PolicyObjects(PolicyError):
    """The site's policy does not allow this."""

    code = "policy-objects"


class ApprovalError(FedwardError):
    """A study cannot be approved, refused or withdrawn as asked."""

    code = "approval-invalid"
    exit_code = 2


class StoreError(FedwardError):
    """A file in which a site remembers its part of a federation is damaged, in use, or cannot be written."""

    code = "site-store-unusable"
    exit_code = 4


class PackageError(FedwardError):
    """A finished model is not what its coordinator signed, or not one that this site takes."""

    code = "model-refused"
    exit_code = 6


class PrivacyError(FedwardError):
    """The differential privacy that a study asks for cannot be given here."""

    code = "privacy-impossible"
    exit_code = 2


class LedgerError(FedwardError):
    """A site's privacy ledger is missing, altered, older than what was seen, or cannot be written."""

    code = "ledger-unusable"
    exit_code = 4


class BudgetExhausted(FedwardError):
    """What is left of a site's privacy budget does not pay for this."""

    code = "budget-exhausted"
    exit_code = 6


class AnchorError(FedwardError):
    """An anchor of a site's privacy ledger is not signed by that site, or is none."""

    code = "anchor-refused"
    exit_code = 6


class LedgerRolledBack(FedwardError):
    """Others have a head of this site's privacy ledger that is not in it: it is an older copy."""

    code = "ledger-rolled-back"
    exit_code = 4


class RoundSpent(FedwardError):
    """A training round was already done from other weights."""

    code = "round-spent"
    exit_code = 6


class SettledOtherwise(FedwardError):
    """A run's test was asked of another model, or at other thresholds, than when it was first asked."""

    code = "settled-otherwise"
    exit_code = 6


class AggregationRefused(FedwardError):
    """A secure sum was asked for in a way that could tell of one site, or with what is not signed or not whole."""

    code = "aggregation-refused"
    exit_code = 6


class AttemptOver(AggregationRefused):
    """This site does not know of the attempt, or has left it: its agent was started anew, or another has begun."""

    code = "attempt-over"


class RoundReleased(AggregationRefused):
    """The round's sum was unmasked for other survivors before."""

    code = "round-released"


class FleetError(FedwardError):
    """The coordinator cannot listen."""

    code = "fleet-unusable"
    exit_code = 8


class RunError(FedwardError):
    """A run's folder cannot be used as asked."""

    code = "run-invalid"
    exit_code = 8


class Unhealthy(FedwardError):
    """A program that should be at work is not, or cannot do its work."""

    code = "unhealthy"


class Interrupted(FedwardError):
    """The user stopped the run; its last checkpoint is kept."""

    code = "interrupted"
    exit_code = 130
