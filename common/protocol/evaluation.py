"""Evaluations: a model's statistics in two passes, and what compares it with another or with readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.packing import pack, unpack
from common.protocol.records import Fields, Statistics, Written, get, record_of, seconds_in
from common.protocol.task import Task
from common.study import Study
from common.study_examined import LEVELS
from common.weights import DTYPES, STATISTICS, Weights

EVALUATE, MOMENTS = "evaluate.scores", "evaluate.moments"
CHOICES = ("global", "personal")
"""Models of which a site chooses one on its own validation images (``client.choice``)."""
EVALUATED = ("val", "test")
"""Splits that may be asked for: what a model was trained on says nothing of it, and much of patients."""


@dataclass(frozen=True)
class Beside:
    """What the model is compared with on the same test images (``common.metrics.paired``).

    A second model, or, without ``weights``, the readers that the study names.
    """

    given: Statistics
    """First pass: thresholds; second pass: all sites' joint tables, and of a second model its reference."""
    weights: Weights | None = None


@dataclass(frozen=True)
class EvaluateRequest:
    """Score ``split`` with ``weights`` and send mergeable statistics (``common.metrics``, first pass).

    With ``beside`` only what compares both.
    """

    task: Task
    split: str
    weights: Weights
    by: str = ""
    """Count by the values of this, which the study names (``common.metrics.subgroups``); the test only."""
    condition: str = ""
    """Do this to the images first (``common.corruptions``), which the study names; the test only."""
    personal: int | None = None
    """The round whose own model of the site, made with these weights, is meant; ``None``: the weights as they are."""
    beside: Beside | None = None

    @property
    def about(self) -> str:
        """The split, and what is asked of it: ``test``, ``test by sex``, ``test under blur 2``, ``val own``.

        The same for the own models of all rounds: as kinds of their own, each could be asked for as often as a site
        answers one kind (``client.replies.MOST_EVALUATIONS``).
        """
        return _about(self.split, self.by, self.condition, self.personal) + _against(self.beside)


@dataclass(frozen=True)
class MomentsRequest:
    """Second pass: per-patient placement sums against everybody's merged histogram; or of a comparison (``beside``)."""

    task: Task
    split: str
    weights: Weights
    reference: Statistics
    by: str = ""
    condition: str = ""
    personal: int | None = None
    """As of :class:`EvaluateRequest`."""
    beside: Beside | None = None

    @property
    def about(self) -> str:
        """As :attr:`EvaluateRequest.about`."""
        return _about(self.split, self.by, self.condition, self.personal) + _against(self.beside)


@dataclass(frozen=True)
class StatisticsReply:
    """Answer to both evaluation requests."""

    site: str
    round: int
    statistics: Statistics
    seconds: float
    chosen: str = ""
    """Of :data:`CHOICES`, where the site's own model was scored on validation images beside that of all."""


def write_request(request: EvaluateRequest | MomentsRequest) -> Written:
    fields: Fields = {"split": request.split}
    fields |= {key: value for key, value in (("by", request.by), ("condition", request.condition)) if value}
    if request.personal is not None:
        fields["personal"] = request.personal
    records = {"weights": pack(request.weights, DTYPES)}
    if request.beside is not None:
        records["beside"] = pack(request.beside.given, STATISTICS)
        if request.beside.weights is not None:
            records["second"] = pack(request.beside.weights, DTYPES)
    if isinstance(request, EvaluateRequest):
        return Written(EVALUATE, fields, records)
    return Written(MOMENTS, fields, records | {"statistics": pack(request.reference, STATISTICS)})


def read_evaluate(content: RecordDict, head: Mapping[str, Any], task: Task) -> EvaluateRequest:
    """The first pass. Raises :class:`ProtocolError`."""
    weights = unpack(record_of(content, "weights", ArrayRecord), DTYPES)
    split = get(head, "split", str)
    if split not in EVALUATED:
        raise ProtocolError(f"a request names the split {split[:20]!r}; known: {', '.join(EVALUATED)}")
    personal = _personal(head, task)
    by, condition = _examined(head, task.study, split)
    beside = _beside(content, task, split, by, condition)
    return EvaluateRequest(task, split, weights, by, condition, personal, beside)


def read_moments(content: RecordDict, head: Mapping[str, Any], task: Task) -> MomentsRequest:
    """The second pass. Raises :class:`ProtocolError`."""
    asked = read_evaluate(content, head, task)
    reference = unpack(record_of(content, "statistics", ArrayRecord), STATISTICS)
    return MomentsRequest(
        task, asked.split, asked.weights, reference, asked.by, asked.condition, asked.personal, asked.beside
    )


def write_reply(reply: StatisticsReply) -> Written:
    fields: Fields = {"round": reply.round} | ({"chosen": reply.chosen} if reply.chosen else {})
    facts = MetricRecord({"seconds": reply.seconds})
    return Written("statistics", fields, {"statistics": pack(reply.statistics, STATISTICS), "facts": facts})


def read_reply(content: RecordDict, head: Mapping[str, Any], site: str) -> StatisticsReply:
    """Raises :class:`ProtocolError`."""
    round_ = get(head, "round", int)
    seconds = seconds_in(record_of(content, "facts", MetricRecord), site)
    chosen = get(head, "chosen", str) if "chosen" in head else ""
    if chosen and chosen not in CHOICES:
        raise ProtocolError(f"{site} chose a model that there is not; upgrade that site")
    statistics = unpack(record_of(content, "statistics", ArrayRecord), STATISTICS)
    return StatisticsReply(site, round_, statistics, seconds, chosen)


def _about(split: str, by: str, condition: str, personal: int | None) -> str:
    text = f"{split} by {by}" if by else f"{split} under {condition}" if condition else split
    return text if personal is None else f"{text} own"


def _against(beside: Beside | None) -> str:
    return "" if beside is None else " against readers" if beside.weights is None else " against another model"


def _examined(head: Mapping[str, Any], study: Study, split: str) -> tuple[str, str]:
    """By what an evaluation counts, and what it does to the images: only what the hospital has approved."""
    by = get(head, "by", str) if "by" in head else ""
    condition = get(head, "condition", str) if "condition" in head else ""
    if (by and condition) or ((by or condition) and split != "test"):
        raise ProtocolError("an evaluation counts by groups, or alters images, of the test and one at a time")
    if by and by not in study.evaluation.by:
        raise ProtocolError(f"an evaluation asks by {by[:40]!r}, which its study does not name")
    name, _, level = condition.partition(" ")
    if condition and (name not in study.evaluation.robustness or level not in map(str, LEVELS)):
        raise ProtocolError(f"an evaluation asks for images under {condition[:40]!r}, which its study does not name")
    return by, condition


def _beside(content: RecordDict, task: Task, split: str, by: str, condition: str) -> Beside | None:
    """A comparison, which the study must have named: its sites have approved no other."""
    if "beside" not in content:
        return None
    second = unpack(record_of(content, "second", ArrayRecord), DTYPES) if "second" in content else None
    evaluation = task.study.evaluation
    named = evaluation.readers if second is None else evaluation.compare
    if split != "test" or by or condition or not named:
        raise ProtocolError("a request asks for a comparison that its study does not name; upgrade the coordinator")
    return Beside(unpack(record_of(content, "beside", ArrayRecord), STATISTICS), second)


def _personal(head: Mapping[str, Any], task: Task) -> int | None:
    """The round whose own model of the site is meant."""
    if "personal" not in head:
        return None
    round_ = get(head, "personal", int)
    if task.personal is None or not task.personal.own_models:
        raise ProtocolError("a site's own model is asked for, and its study has none; upgrade the coordinator")
    if not 0 <= round_ <= task.study.federation.rounds:
        raise ProtocolError(f"the own model of round {round_} is asked for, which the study does not have")
    return round_
