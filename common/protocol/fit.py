"""One local fit: the weights that go out, and what comes back in full or in fewer bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.compression import TYPES, Update
from common.errors import ProtocolError
from common.packing import pack, unpack
from common.protocol import secure
from common.protocol.records import Fields, Record, Written, get, record_of, seconds_in
from common.protocol.task import Task
from common.weights import DTYPES, Weights, all_finite

TRAIN = "train.fit"
_VARIATES = ("float32",)
_SCALES = ("float32",)
_COUNTED_CHARACTERS = 1 << 17


@dataclass(frozen=True)
class Variates:
    """What SCAFFOLD sends with the weights."""

    all_sites: Weights = field(default_factory=dict)
    """c, by trained name; empty before any fit: zeros."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """Alias -> the last round whose fit of that site is in c. A later one was refused, or lost on its way."""


@dataclass(frozen=True)
class TrainRequest:
    task: Task
    weights: Weights
    secured: secure.Secured | None = None
    """Where the task is ``summed``: the reply is a :class:`~common.protocol.secure.MaskedReply`."""
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


def write_request(request: TrainRequest) -> Written:
    fields: Fields = {}
    records: dict[str, Record] = {"weights": pack(request.weights, DTYPES)}
    if request.secured is not None:
        records["secure"] = ConfigRecord(secure.secured_fields(request.secured))
    if request.variates.counted:
        records["variates"] = pack(request.variates.all_sites, _VARIATES)
        fields["counted"] = json.dumps(dict(request.variates.counted))
    return Written(TRAIN, fields, records)


def read_request(content: RecordDict, head: Mapping[str, Any], task: Task) -> TrainRequest:
    """Raises :class:`ProtocolError`."""
    weights = unpack(record_of(content, "weights", ArrayRecord), DTYPES)
    if task.summed is None:
        return TrainRequest(task, weights, variates=_variates(content, head, task))
    return TrainRequest(task, weights, secure.open_secured(record_of(content, "secure", ConfigRecord)))


def write_reply(reply: TrainReply | UpdateReply) -> Written:
    facts = MetricRecord({"examples": reply.examples, "seconds": reply.seconds})
    if reply.loss is not None:
        facts["loss"] = reply.loss
    records: dict[str, Record]
    if isinstance(reply, TrainReply):
        kind, records = "train", {"weights": pack(reply.weights, DTYPES)}
        if reply.pace is not None:
            facts["pace"] = reply.pace
    else:
        kind, records = "update", {"update": pack(reply.update.arrays, TYPES)}
        records["scales"] = pack({"scales": reply.update.scales}, _SCALES)
    return Written(kind, {"round": reply.round}, records | {"facts": facts})


def read_reply(content: RecordDict, head: Mapping[str, Any], site: str) -> TrainReply | UpdateReply:
    """Raises :class:`ProtocolError`."""
    round_ = get(head, "round", int)
    facts = record_of(content, "facts", MetricRecord)
    seconds = seconds_in(facts, site)
    examples, loss = get(facts, "examples", int), get(facts, "loss", float) if "loss" in facts else None
    if get(head, "kind", str) == "update":
        return UpdateReply(site, round_, _update(content), examples, loss, seconds)
    weights = unpack(record_of(content, "weights", ArrayRecord), DTYPES)
    pace = get(facts, "pace", float) if "pace" in facts else None
    if pace is not None and not 0.0 < pace < math.inf:
        raise ProtocolError(f"{site} says that its steps add up to {pace}; upgrade that site")
    return TrainReply(site, round_, weights, examples, loss, seconds, pace)


def _update(content: RecordDict) -> Update:
    """A compressed update; whether it is of the study's model is for the coordinator to see."""
    arrays = unpack(record_of(content, "update", ArrayRecord), TYPES)
    found = unpack(record_of(content, "scales", ArrayRecord), _SCALES)
    scales = found.get("scales")
    if len(found) != 1 or scales is None or scales.ndim != 1:
        raise ProtocolError("a compressed update has no row of scales; upgrade that site")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ProtocolError("a compressed update has a scale that is no size; upgrade that site")
    return Update(arrays, scales)


def _variates(content: RecordDict, head: Mapping[str, Any], task: Task) -> Variates:
    """SCAFFOLD's, where they came. Whether they are of the study's model is for the fit to see."""
    if "variates" not in content:
        return Variates()
    if task.personal is None or task.personal.method != "scaffold":
        raise ProtocolError("control variates came with a study that has none; upgrade the coordinator")
    text = get(head, "counted", str)
    try:
        counted = json.loads(text) if len(text) <= _COUNTED_CHARACTERS else None
    except (ValueError, RecursionError):
        counted = None
    last = task.round - 1
    if not isinstance(counted, dict) or not all(type(n) is int and 1 <= n <= last for n in counted.values()):
        raise ProtocolError("control variates came without the rounds that are in them; upgrade the coordinator")
    arrays = unpack(record_of(content, "variates", ArrayRecord), _VARIATES)
    if not all_finite(arrays):
        raise ProtocolError("control variates came that are not finite; the coordinator must go back a round")
    return Variates(arrays, counted)
