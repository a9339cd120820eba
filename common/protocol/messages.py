"""The envelopes: a request is sealed once for many sites and opened at each, a reply opened at the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import ProtocolError, VersionMismatch
from common.protocol import delivery, evaluation, fit, refusal, secure, survey
from common.protocol.delivery import DELIVER, DeliveryRequest, Receipt
from common.protocol.evaluation import EVALUATE, MOMENTS, EvaluateRequest, MomentsRequest, StatisticsReply
from common.protocol.fit import TRAIN, TrainReply, TrainRequest, UpdateReply
from common.protocol.records import ALIAS, Fields, Written, content_of, get, record_of
from common.protocol.refusal import Refusal
from common.protocol.survey import SURVEY, SurveyReply, SurveyRequest
from common.protocol.task import Task, task_fields, task_in

VERSION = 2
"""Raised whenever a message changes meaning; both sides must speak the same."""

Request = SurveyRequest | TrainRequest | EvaluateRequest | MomentsRequest | DeliveryRequest | secure.PhaseRequest
Reply = (
    SurveyReply
    | TrainReply
    | UpdateReply
    | secure.MaskedReply
    | StatisticsReply
    | Receipt
    | Refusal
    | secure.PhaseReply
)

_REQUESTS: Mapping[str, Callable[[RecordDict, Mapping[str, Any], Task], Request]] = {
    SURVEY: survey.read_request,
    TRAIN: fit.read_request,
    EVALUATE: evaluation.read_evaluate,
    MOMENTS: evaluation.read_moments,
    DELIVER: delivery.read_request,
    **secure.READ_REQUESTS,
}
_REPLIES: Mapping[str, Callable[[RecordDict, Mapping[str, Any], str], Reply]] = {
    "refusal": refusal.read_refusal,
    "survey": survey.read_reply,
    "receipt": delivery.read_receipt,
    "train": fit.read_reply,
    "update": fit.read_reply,
    "masked": secure.read_masked,
    "statistics": evaluation.read_reply,
    **secure.READ_REPLIES,
}


@dataclass(frozen=True)
class Sealed:
    """A request encoded once and sent to many sites; the records are shared, never copied."""

    kind: str
    round: int
    content: RecordDict
    bytes: int
    task: Task

    def to(self, node_id: int, ttl_s: float) -> Message:
        """The message for one node."""
        return Message(self.content, node_id, self.kind, ttl=ttl_s, group_id=str(self.round))


def seal(request: Request) -> Sealed:
    """Encode a request once, for any number of sites."""
    task, written = request.task, _written_request(request)
    head: Fields = {"protocol": VERSION} | task_fields(task) | written.fields
    content = RecordDict({"head": ConfigRecord(head), **written.records})
    return Sealed(written.kind, task.round, content, size(content), task)


def open_request(message: Message) -> Request:
    """Decode a request at the site. Raises :class:`ProtocolError`."""
    content = content_of(message)
    head = record_of(content, "head", ConfigRecord)
    _same_version(head, here="this site", there="the coordinator")
    kind = message.metadata.message_type
    in_round = kind == TRAIN or kind in secure.READ_REQUESTS
    task = task_in(head, first=int(in_round), trains=kind in (TRAIN, EVALUATE, MOMENTS))
    if kind not in _REQUESTS:
        raise ProtocolError(f"unknown kind of request {kind[:40]!r}; upgrade this site")
    return _REQUESTS[kind](content, head, task)


def answer(reply: Reply, request: Message) -> Message:
    """Encode a reply to ``request``."""
    written = _written_reply(reply)
    head: Fields = {"protocol": VERSION, "site": reply.site, "kind": written.kind} | written.fields
    content = RecordDict({**written.records})
    content["head"] = ConfigRecord(head)
    return Message(content, reply_to=request)


def open_reply(message: Message) -> Reply:
    """Decode a reply at the coordinator. Raises :class:`ProtocolError`: a site may send anything."""
    content = content_of(message)
    head = record_of(content, "head", ConfigRecord)
    _same_version(head, here="this coordinator", there="that site")
    site = get(head, "site", str)
    if not ALIAS.fullmatch(site):
        raise ProtocolError("a reply names a site with characters that are not allowed")
    kind = get(head, "kind", str)
    if kind not in _REPLIES:
        raise ProtocolError(f"{site} sent an unknown kind of reply")
    return _REPLIES[kind](content, head, site)


def size(content: RecordDict) -> int:
    """Bytes of the packed arrays in ``content``, and of the keys and shares of a secure sum: what a link carries,
    envelopes aside."""
    packed = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    lists = [v for record in content.config_records.values() for v in record.values() if isinstance(v, list)]
    return packed + sum(len(part) for values in lists for part in values if isinstance(part, bytes))


def _written_request(request: Request) -> Written:
    match request:
        case SurveyRequest():
            return survey.write_request(request)
        case TrainRequest():
            return fit.write_request(request)
        case EvaluateRequest() | MomentsRequest():
            return evaluation.write_request(request)
        case DeliveryRequest():
            return delivery.write_request(request)
        case _:
            return secure.write_request(request)


def _written_reply(reply: Reply) -> Written:
    match reply:
        case Refusal():
            return refusal.write_refusal(reply)
        case SurveyReply():
            return survey.write_reply(reply)
        case Receipt():
            return delivery.write_receipt(reply)
        case TrainReply() | UpdateReply():
            return fit.write_reply(reply)
        case StatisticsReply():
            return evaluation.write_reply(reply)
        case secure.MaskedReply():
            return secure.write_masked(reply)
        case _:
            return secure.write_reply(reply)


def _same_version(head: Mapping[str, Any], *, here: str, there: str) -> None:
    theirs = get(head, "protocol", int)
    if theirs != VERSION:
        older = there if theirs < VERSION else here
        raise VersionMismatch(f"{there} speaks protocol {theirs}, {here} protocol {VERSION}: upgrade {older}")
