"""What travels between coordinator and site: typed requests and replies <-> Flower messages.

The only file that knows record keys. A message is decoded once, at the edge, into one
of the frozen classes below; whatever is missing, of the wrong type or of another
protocol version is a :class:`ProtocolError`, never a ``KeyError`` further in. A site's
error leaves it as a :class:`Refusal`: a code, never a text.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from numpy.typing import NDArray

from common import anchors
from common import secure_messages as secure
from common.basis import Basis, check_given
from common.compression import TYPES, Compression, Update
from common.errors import ProtocolError, StudyError, VersionMismatch
from common.packing import pack, unpack
from common.study import PersonalisationSpec, SecureAggregationSpec, Study
from common.study_examined import LEVELS
from common.survey import SPLITS
from common.weights import DTYPES, FILES, STATISTICS, Weights, all_finite

VERSION = 2
"""Raised whenever a message changes meaning; both sides must speak the same."""

SURVEY, TRAIN, EVALUATE, MOMENTS = "query.survey", "train.fit", "evaluate.scores", "evaluate.moments"
DELIVER = "query.model"
CHOICES = ("global", "personal")
"""Models of which a site chooses one on its own validation images (``client.choice``)."""
EVALUATED = ("val", "test")
"""Splits that may be asked for: what a model was trained on says nothing of it, and much of patients."""

Statistics = Mapping[str, NDArray[Any]]
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ARM = re.compile(r"[a-z][a-z-]{0,31}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_CODE = re.compile(r"[a-z][a-z0-9-]{0,39}")
_ROSTER = re.compile(r"[0-9a-f]{64}")
_PROGRAM = re.compile(r"[0-9A-Za-z.+-]{0,32}")
_MOST = (1 << 31) - 1
_MOST_SECONDS = 1 << 37
_ROSTER_BYTES = 1 << 20
_SURVEY_CHARACTERS = 1000
_COUNTED_CHARACTERS = 1 << 17
_MANIFEST_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCALES = ("float32",)
_MOST_SITES = 1000
"""As on a roster."""


@dataclass(frozen=True)
class Task:
    """What every request says: whose work this is. The study travels whole; a site checks its hash."""

    study: Study
    arm: str = "federated"
    repeat: int = 0
    round: int = 0
    roster: str = ""
    """In a real federation: the hash of the coordinator's roster, so that a site notices that it has another."""
    basis: Basis | None = None
    """What training takes from the survey, where the study asks for it; in every request but a survey's."""
    anchors: tuple[bytes, ...] = ()
    """Newest anchors of all sites' privacy ledgers, as they signed them (``common.anchors``)."""

    @property
    def compression(self) -> Compression:
        """How a fit is told: of a single hospital and of pooled images, which nobody sends, as it is."""
        return self.study.federation.compression if self.arm == "federated" else "none"

    @property
    def summed(self) -> SecureAggregationSpec | None:
        """How fits are summed under masks; a single hospital's and pooled images' are not."""
        return self.study.federation.secure_aggregation if self.arm == "federated" else None

    @property
    def personal(self) -> PersonalisationSpec | None:
        """What sites have of their own; a single hospital and pooled images are trained as if there were no others."""
        return self.study.personalisation if self.arm == "federated" else None


@dataclass(frozen=True)
class Variates:
    """What SCAFFOLD sends with the weights."""

    all_sites: Weights = field(default_factory=dict)
    """c, by trained name; empty before any fit: zeros."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """Alias -> the last round whose fit of that site is in c. A later one was refused, or lost on its way."""


@dataclass(frozen=True)
class SurveyRequest:
    """Who are you, and how many images have you for this study?"""

    task: Task
    roster: bytes = b""
    """In a real federation: the newest roster, signed by the coordinator (``common.identity``)."""
    program: str = ""
    """Version of fedward at the coordinator."""
    measure: bool = False
    """Also count by class and sum pixels, as the study's ``surveyed`` says."""


@dataclass(frozen=True)
class SurveyReply:
    site: str
    images: Mapping[str, int]
    program: str = ""
    """Version of fedward at the site."""
    statistics: Statistics | None = None
    """``common.survey``, where the request asks to measure."""


@dataclass(frozen=True)
class TrainRequest:
    task: Task
    weights: Weights
    secured: secure.Secured | None = None
    """Where the task is ``summed``: the reply is a :class:`~common.secure_messages.MaskedReply`."""
    variates: Variates = field(default_factory=Variates)


@dataclass(frozen=True)
class TrainReply:
    """One local fit: weights after it, ``examples`` trained on, mean loss, seconds it took.

    Under FedBN the weights are those that are shared. Of a private fit neither images nor loss nor time leave:
    ``examples`` is 1, ``loss`` ``None``, ``seconds`` 0.
    """

    site: str
    round: int
    weights: Weights
    examples: int
    loss: float | None
    seconds: float
    pace: float | None = None
    """Of SCAFFOLD: the sum of the learning rates of its steps (``common.variates``)."""


@dataclass(frozen=True)
class UpdateReply:
    """One local fit, where the task has a ``compression``: what it changed in the weights that came."""

    site: str
    round: int
    update: Update
    examples: int
    loss: float | None
    seconds: float


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
class DeliveryRequest:
    """Here is the study's finished model: to be checked and kept (``common.package``)."""

    task: Task
    manifest: bytes
    """Signed by the coordinator."""
    files: Weights
    """Name -> the file's bytes, ``(n,)`` uint8."""


@dataclass(frozen=True)
class StatisticsReply:
    """Answer to both evaluation requests."""

    site: str
    round: int
    statistics: Statistics
    seconds: float
    chosen: str = ""
    """Of :data:`CHOICES`, where the site's own model was scored on validation images beside that of all."""


@dataclass(frozen=True)
class Receipt:
    """The finished model is kept at ``site``; ``digest`` is the SHA-256 of its weights file there."""

    site: str
    digest: str


@dataclass(frozen=True)
class Refusal:
    """A site that could not do what was asked; ``code`` is all that leaves it."""

    site: str
    code: str
    until: int = 0
    """When the site opens, in seconds of the epoch, where the code is ``outside-hours``; 0: not known."""
    program: str = ""
    """Version of fedward at the site."""


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
    task = request.task
    head: dict[str, Any] = {
        "protocol": VERSION,
        "study": task.study.canonical().decode(),
        "arm": task.arm,
        "repeat": task.repeat,
        "round": task.round,
    }
    if task.roster:
        head["roster_hash"] = task.roster
    if task.anchors:
        head["anchors"] = list(task.anchors)
    if isinstance(request, SurveyRequest):
        head |= {key: value for key, value in (("roster", request.roster), ("program", request.program)) if value}
    if isinstance(request, DeliveryRequest):
        head["manifest"] = request.manifest
    if isinstance(request, SurveyRequest) and request.measure:
        head["measure"] = 1
    if task.basis is not None:
        head |= {f"basis-{name}": numbers for name, numbers in task.basis.json().items() if numbers}
    content = RecordDict({"head": ConfigRecord(head)})
    kind = SURVEY
    if isinstance(request, DeliveryRequest):
        content["files"] = pack(request.files, FILES)
        kind = DELIVER
    if isinstance(request, TrainRequest | EvaluateRequest | MomentsRequest):
        content["weights"] = pack(request.weights, DTYPES)
        kind = TRAIN
    if isinstance(request, TrainRequest) and request.secured is not None:
        content["secure"] = ConfigRecord(secure.secured_fields(request.secured))
    if isinstance(request, TrainRequest) and request.variates.counted:
        content["variates"] = pack(request.variates.all_sites, ("float32",))
        head["counted"] = json.dumps(dict(request.variates.counted))
        content["head"] = ConfigRecord(head)
    if isinstance(request, EvaluateRequest | MomentsRequest):
        head["split"] = request.split
        head |= {key: value for key, value in (("by", request.by), ("condition", request.condition)) if value}
        if request.personal is not None:
            head["personal"] = request.personal
        content["head"] = ConfigRecord(head)
        kind = EVALUATE
    if isinstance(request, EvaluateRequest | MomentsRequest) and request.beside is not None:
        content["beside"] = pack(request.beside.given, STATISTICS)
        if request.beside.weights is not None:
            content["second"] = pack(request.beside.weights, DTYPES)
    if isinstance(request, MomentsRequest):
        content["statistics"] = pack(request.reference, STATISTICS)
        kind = MOMENTS
    if isinstance(request, secure.PhaseRequest):
        content["secure"] = ConfigRecord(secure.request_fields(request))
        kind = secure.KINDS[type(request)]
    return Sealed(kind, task.round, content, size(content), task)


def open_request(message: Message) -> Request:
    """Decode a request at the site. Raises :class:`ProtocolError`."""
    content = _content(message)
    head = _record(content, "head", ConfigRecord)
    _same_version(head, here="this site", there="the coordinator")
    kind = message.metadata.message_type
    task = _task(head, kind)
    if kind == SURVEY:
        roster = _get(head, "roster", bytes) if "roster" in head else b""
        if len(roster) > _ROSTER_BYTES:
            raise ProtocolError(f"a roster of {len(roster)} bytes; the most is {_ROSTER_BYTES}")
        measure = "measure" in head and _get(head, "measure", int) == 1
        if measure and not task.study.surveyed:
            raise ProtocolError("a survey asks for statistics that its study does not name")
        return SurveyRequest(task, roster, _program(head, "the coordinator"), measure)
    if kind == DELIVER:
        manifest = _get(head, "manifest", bytes)
        if len(manifest) > _MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {len(manifest)} bytes; the most is {_MANIFEST_BYTES}")
        files = unpack(_record(content, "files", ArrayRecord), FILES)
        if any(file.ndim != 1 for file in files.values()):
            raise ProtocolError("a file in a delivery is not a row of bytes")
        return DeliveryRequest(task, manifest, files)
    if kind in secure.KINDS.values():
        _require_secure(task)
        return secure.open_request(kind, task, _record(content, "secure", ConfigRecord))
    weights = unpack(_record(content, "weights", ArrayRecord), DTYPES)
    if kind == TRAIN:
        if task.summed is None:
            return TrainRequest(task, weights, variates=_variates(content, head, task))
        return TrainRequest(task, weights, secure.open_secured(_record(content, "secure", ConfigRecord)))
    split = _get(head, "split", str)
    if split not in EVALUATED:
        raise ProtocolError(f"a request names the split {split[:20]!r}; known: {', '.join(EVALUATED)}")
    personal = _personal(head, task)
    by, condition = _examined(head, task.study, split)
    beside = _beside(content, task, split, by, condition)
    if kind == EVALUATE:
        return EvaluateRequest(task, split, weights, by, condition, personal, beside)
    if kind == MOMENTS:
        reference = unpack(_record(content, "statistics", ArrayRecord), STATISTICS)
        return MomentsRequest(task, split, weights, reference, by, condition, personal, beside)
    raise ProtocolError(f"unknown kind of request {kind[:40]!r}; upgrade this site")


def answer(reply: Reply, request: Message) -> Message:
    """Encode a reply to ``request``."""
    head: dict[str, Any] = {"protocol": VERSION, "site": reply.site}
    content = RecordDict()
    if isinstance(reply, Refusal):
        head |= {"kind": "refusal", "code": reply.code}
        head |= {key: value for key, value in (("until", reply.until), ("program", reply.program)) if value}
    elif isinstance(reply, SurveyReply):
        head |= {"kind": "survey", "images": json.dumps(dict(reply.images)), "program": reply.program}
        if reply.statistics is not None:
            content["statistics"] = pack(reply.statistics, STATISTICS)
    elif isinstance(reply, Receipt):
        head |= {"kind": "receipt", "digest": reply.digest}
    elif isinstance(reply, TrainReply | UpdateReply):
        if isinstance(reply, TrainReply):
            head |= {"kind": "train", "round": reply.round}
            content["weights"] = pack(reply.weights, DTYPES)
        else:
            head |= {"kind": "update", "round": reply.round}
            content["update"] = pack(reply.update.arrays, TYPES)
            content["scales"] = pack({"scales": reply.update.scales}, _SCALES)
        told = {"loss": reply.loss, "pace": reply.pace if isinstance(reply, TrainReply) else None}
        facts: dict[str, int | float] = {name: value for name, value in told.items() if value is not None}
        content["facts"] = MetricRecord({"examples": reply.examples, "seconds": reply.seconds, **facts})
    elif isinstance(reply, secure.MaskedReply):
        head |= {"kind": "masked", "round": reply.round}
        content["row"] = pack({"row": reply.row}, secure.ROW)
    elif isinstance(reply, secure.PhaseReply):
        head |= {"kind": secure.REPLIES[type(reply)]}
        content["secure"] = ConfigRecord(secure.reply_fields(reply))
    else:
        head |= {"kind": "statistics", "round": reply.round}
        head |= {"chosen": reply.chosen} if reply.chosen else {}
        content["statistics"] = pack(reply.statistics, STATISTICS)
        content["facts"] = MetricRecord({"seconds": reply.seconds})
    content["head"] = ConfigRecord(head)
    return Message(content, reply_to=request)


def open_reply(message: Message) -> Reply:
    """Decode a reply at the coordinator. Raises :class:`ProtocolError`: a site may send anything."""
    content = _content(message)
    head = _record(content, "head", ConfigRecord)
    _same_version(head, here="this coordinator", there="that site")
    site = _get(head, "site", str)
    if not _ALIAS.fullmatch(site):
        raise ProtocolError("a reply names a site with characters that are not allowed")
    kind = _get(head, "kind", str)
    if kind == "refusal":
        code = _get(head, "code", str)
        if not _CODE.fullmatch(code):
            raise ProtocolError(f"{site} refused with a malformed code")
        until = _get(head, "until", int) if "until" in head else 0
        if not 0 <= until <= _MOST_SECONDS:
            raise ProtocolError(f"{site} says that it opens at no time there is; upgrade that site")
        return Refusal(site, code, until, _program(head, site))
    if kind == "survey":
        statistics = None
        if "statistics" in content:
            statistics = unpack(_record(content, "statistics", ArrayRecord), STATISTICS)
        return SurveyReply(site, _counts(_get(head, "images", str)), _program(head, site), statistics)
    if kind == "receipt":
        digest = _get(head, "digest", str)
        if not _DIGEST.fullmatch(digest):
            raise ProtocolError(f"{site} sent a receipt without a digest")
        return Receipt(site, digest)
    if kind in secure.REPLIES.values():
        return secure.open_reply(kind, site, _record(content, "secure", ConfigRecord))
    if kind not in ("train", "update", "masked", "statistics"):
        raise ProtocolError(f"{site} sent an unknown kind of reply")
    round_ = _get(head, "round", int)
    if kind == "masked":
        return secure.MaskedReply(site, round_, _row(content))
    facts = _record(content, "facts", MetricRecord)
    seconds = _get(facts, "seconds", float)
    if not 0.0 <= seconds < math.inf:
        raise ProtocolError(f"{site} says it took {seconds} seconds; upgrade that site")
    if kind == "statistics":
        chosen = _get(head, "chosen", str) if "chosen" in head else ""
        if chosen and chosen not in CHOICES:
            raise ProtocolError(f"{site} chose a model that there is not; upgrade that site")
        statistics = unpack(_record(content, "statistics", ArrayRecord), STATISTICS)
        return StatisticsReply(site, round_, statistics, seconds, chosen)
    examples, loss = _get(facts, "examples", int), _get(facts, "loss", float) if "loss" in facts else None
    if kind == "update":
        return UpdateReply(site, round_, _update(content), examples, loss, seconds)
    weights = unpack(_record(content, "weights", ArrayRecord), DTYPES)
    pace = _get(facts, "pace", float) if "pace" in facts else None
    if pace is not None and not 0.0 < pace < math.inf:
        raise ProtocolError(f"{site} says that its steps add up to {pace}; upgrade that site")
    return TrainReply(site, round_, weights, examples, loss, seconds, pace)


def add_anchors(reply: Message, anchored: anchors.Anchored) -> None:
    """Add anchors to a reply that is about to leave: those of now, whenever the reply was made."""
    head = _record(reply.content, "head", ConfigRecord)
    head["anchor"], head["anchors"] = anchored.own, list(anchored.others)


def anchors_of(message: Message) -> anchors.Anchored:
    """The anchors that came with a reply. Raises :class:`ProtocolError`."""
    head = _record(_content(message), "head", ConfigRecord)
    own = _get(head, "anchor", bytes) if "anchor" in head else b""
    if len(own) > anchors.MOST_BYTES:
        raise ProtocolError(f"a reply's anchor has {len(own)} bytes; the most is {anchors.MOST_BYTES}")
    return anchors.Anchored(own, _anchors(head, anchors.WITNESSED))


def freeze(message: Message) -> bytes:
    """The content of a reply as bytes, to be kept and sent again; arrays are copied once."""
    hollow, parts = RecordDict(), []
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            parts += [array.data for array in record.values()]
            record = ArrayRecord({key: Array(a.dtype, a.shape, a.stype, b"") for key, a in record.items()})
        hollow[name] = record
    head = recorddict_to_proto(hollow).SerializeToString()
    lengths = struct.pack(f">{len(parts) + 1}Q", len(head), *map(len, parts))
    return b"".join([struct.pack(">H", len(parts)), lengths, head, *parts])


def thaw(content: bytes, request: Message) -> Message:
    """The reply to ``request`` that :func:`freeze` was given. Raises :class:`ProtocolError`."""
    try:
        (count,) = struct.unpack_from(">H", content)
        first, *rest = struct.unpack_from(f">{count + 1}Q", content, 2)
        start = 2 + 8 * (count + 1)
        records = recorddict_from_proto(RecordDictProto.FromString(content[start : start + first]))
        start += first
        arrays = [array for record in records.array_records.values() for array in record.values()]
        for array, length in zip(arrays, rest, strict=True):
            array.data = content[start : start + length]
            start += length
        if start != len(content):
            raise ValueError("of another length")
        return Message(records, reply_to=request)
    except Exception as error:
        kind = type(error).__name__
        raise ProtocolError(f"a kept reply cannot be read ({kind}): it is of another version of fedward") from None


def size(content: RecordDict) -> int:
    """Bytes of the packed arrays in ``content``, and of the keys and shares of a secure sum: what a link carries,
    envelopes aside."""
    packed = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    lists = [v for record in content.config_records.values() for v in record.values() if isinstance(v, list)]
    return packed + sum(len(part) for values in lists for part in values if isinstance(part, bytes))


T = TypeVar("T")


@lru_cache(maxsize=64)
def _study(text: str) -> Study:
    """Parsed once per process: every request of a run carries the same text."""
    try:
        return Study.parse(text, "received study")
    except StudyError as error:
        raise ProtocolError(f"{error}; the coordinator runs another version of fedward?") from None


def _task(head: Mapping[str, Any], kind: str) -> Task:
    """A request's task. Its round and repeat go into schedules and seeds, so they are held to the study's range."""
    study = _study(_get(head, "study", str))
    arm, repeat, round_ = _get(head, "arm", str), _get(head, "repeat", int), _get(head, "round", int)
    if not _ARM.fullmatch(arm):
        raise ProtocolError("a request names an arm with characters that are not allowed")
    if not 0 <= repeat <= _MOST:
        raise ProtocolError(f"a request names repeat {repeat}; repeats count from 0")
    first, last = int(kind == TRAIN or kind in secure.KINDS.values()), study.federation.rounds
    if not first <= round_ <= last:
        raise ProtocolError(f"a request names round {round_}; the study has rounds {first} to {last}")
    roster = _get(head, "roster_hash", str) if "roster_hash" in head else ""
    if roster and not _ROSTER.fullmatch(roster):
        raise ProtocolError("a request names a roster by what is no hash; upgrade the coordinator")
    trains = kind in (TRAIN, EVALUATE, MOMENTS)
    return Task(
        study, arm, repeat, round_, roster, _basis(head, study) if trains else None, _anchors(head, _MOST_SITES)
    )


def _anchors(head: Mapping[str, Any], most: int) -> tuple[bytes, ...]:
    """Anchors in a message, held to their number and size; what they are is for :mod:`common.anchors` to see."""
    found = _get(head, "anchors", list) if "anchors" in head else []
    if len(found) > most or not all(isinstance(one, bytes) and 0 < len(one) <= anchors.MOST_BYTES for one in found):
        raise ProtocolError(f"a message's anchors are more than {most}, or not of their size; upgrade the other side")
    return tuple(found)


def _examined(head: Mapping[str, Any], study: Study, split: str) -> tuple[str, str]:
    """By what an evaluation counts, and what it does to the images: only what the hospital has approved."""
    by = _get(head, "by", str) if "by" in head else ""
    condition = _get(head, "condition", str) if "condition" in head else ""
    if (by and condition) or ((by or condition) and split != "test"):
        raise ProtocolError("an evaluation counts by groups, or alters images, of the test and one at a time")
    if by and by not in study.evaluation.by:
        raise ProtocolError(f"an evaluation asks by {by[:40]!r}, which its study does not name")
    name, _, level = condition.partition(" ")
    if condition and (name not in study.evaluation.robustness or level not in map(str, LEVELS)):
        raise ProtocolError(f"an evaluation asks for images under {condition[:40]!r}, which its study does not name")
    return by, condition


def _against(beside: Beside | None) -> str:
    return "" if beside is None else " against readers" if beside.weights is None else " against another model"


def _about(split: str, by: str, condition: str, personal: int | None) -> str:
    text = f"{split} by {by}" if by else f"{split} under {condition}" if condition else split
    return text if personal is None else f"{text} own"


def _basis(head: Mapping[str, Any], study: Study) -> Basis | None:
    """The pooled numbers of a request, held to their range."""
    numbers = [_reals(head, f"basis-{name}") for name in ("mean", "deviation", "class_weights")]
    basis = Basis(*numbers) if any(numbers) else None
    check_given(basis, study)
    return basis


def _reals(head: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = _get(head, key, list) if key in head else []
    if not all(isinstance(value, float) for value in values):
        raise ProtocolError(f"the message's field {key!r} holds something else than numbers; upgrade the older side")
    return tuple(values)


def _beside(content: RecordDict, task: Task, split: str, by: str, condition: str) -> Beside | None:
    """A comparison, which the study must have named: its sites have approved no other."""
    if "beside" not in content:
        return None
    second = unpack(_record(content, "second", ArrayRecord), DTYPES) if "second" in content else None
    evaluation = task.study.evaluation
    named = evaluation.readers if second is None else evaluation.compare
    if split != "test" or by or condition or not named:
        raise ProtocolError("a request asks for a comparison that its study does not name; upgrade the coordinator")
    return Beside(unpack(_record(content, "beside", ArrayRecord), STATISTICS), second)


def _update(content: RecordDict) -> Update:
    """A compressed update; whether it is of the study's model is for the coordinator to see."""
    arrays = unpack(_record(content, "update", ArrayRecord), TYPES)
    found = unpack(_record(content, "scales", ArrayRecord), _SCALES)
    scales = found.get("scales")
    if len(found) != 1 or scales is None or scales.ndim != 1:
        raise ProtocolError("a compressed update has no row of scales; upgrade that site")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ProtocolError("a compressed update has a scale that is no size; upgrade that site")
    return Update(arrays, scales)


def _row(content: RecordDict) -> NDArray[np.uint64]:
    """A masked row; whether it is of the study's length is for the coordinator to see."""
    found = unpack(_record(content, "row", ArrayRecord), secure.ROW)
    row = found.get("row")
    if len(found) != 1 or row is None or row.ndim != 1:
        raise ProtocolError("a masked reply is not one row of numbers; upgrade that site")
    return row


def _variates(content: RecordDict, head: Mapping[str, Any], task: Task) -> Variates:
    """SCAFFOLD's, where they came. Whether they are of the study's model is for the fit to see."""
    if "variates" not in content:
        return Variates()
    if task.personal is None or task.personal.method != "scaffold":
        raise ProtocolError("control variates came with a study that has none; upgrade the coordinator")
    text = _get(head, "counted", str)
    try:
        counted = json.loads(text) if len(text) <= _COUNTED_CHARACTERS else None
    except (ValueError, RecursionError):
        counted = None
    last = task.round - 1
    if not isinstance(counted, dict) or not all(type(n) is int and 1 <= n <= last for n in counted.values()):
        raise ProtocolError("control variates came without the rounds that are in them; upgrade the coordinator")
    arrays = unpack(_record(content, "variates", ArrayRecord), ("float32",))
    if not all_finite(arrays):
        raise ProtocolError("control variates came that are not finite; the coordinator must go back a round")
    return Variates(arrays, counted)


def _personal(head: Mapping[str, Any], task: Task) -> int | None:
    """The round whose own model of the site is meant."""
    if "personal" not in head:
        return None
    round_ = _get(head, "personal", int)
    if task.personal is None or not task.personal.own_models:
        raise ProtocolError("a site's own model is asked for, and its study has none; upgrade the coordinator")
    if not 0 <= round_ <= task.study.federation.rounds:
        raise ProtocolError(f"the own model of round {round_} is asked for, which the study does not have")
    return round_


def _require_secure(task: Task) -> None:
    if task.summed is None:
        raise ProtocolError("keys for a secure sum are asked for, and the study has none; upgrade the coordinator")


def _content(message: Message) -> RecordDict:
    if not message.has_content():
        raise ProtocolError("the message is empty; the other side failed before it could answer")
    return message.content


def _record(content: RecordDict, key: str, kind: type[T]) -> T:
    record = content.get(key)
    if not isinstance(record, kind):
        raise ProtocolError(
            f"the message has no {kind.__name__} named {key!r}; both sides need the same fedward version"
        )
    return record


def _get(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ProtocolError(f"the message's field {key!r} is missing or not {kind.__name__}; upgrade the older side")
    return value


def _same_version(head: Mapping[str, Any], *, here: str, there: str) -> None:
    theirs = _get(head, "protocol", int)
    if theirs != VERSION:
        older = there if theirs < VERSION else here
        raise VersionMismatch(f"{there} speaks protocol {theirs}, {here} protocol {VERSION}: upgrade {older}")


def _program(head: Mapping[str, Any], whose: str) -> str:
    program = _get(head, "program", str) if "program" in head else ""
    if not _PROGRAM.fullmatch(program):
        raise ProtocolError(f"{whose} names a version of its program that is none")
    return program


def _counts(text: str) -> dict[str, int]:
    try:
        # Cut before it is parsed: deep nesting would exhaust the parser's stack.
        counts = json.loads(text) if len(text) <= _SURVEY_CHARACTERS else None
    except (ValueError, RecursionError):
        raise ProtocolError("a survey's counts are not JSON; upgrade that site") from None
    if not isinstance(counts, dict) or not set(counts) <= set(SPLITS):
        raise ProtocolError("a survey's counts are not a table of splits; upgrade that site")
    if not all(type(n) is int and 0 <= n <= _MOST for n in counts.values()):
        raise ProtocolError("a survey's counts are not whole numbers from 0; upgrade that site")
    return counts
