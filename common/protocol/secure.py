"""The phases of a secure sum (``common.secagg``). Everything is held to its size here; what it means, the receiver
checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.masking import KEY_BYTES, TAG_BYTES
from common.packing import pack, unpack
from common.protocol.records import ALIAS, MOST_SITES, Fields, Written, get, record_of
from common.protocol.task import Task
from common.secagg import Bundle
from common.shamir import SHARE_BYTES

KEYS, SHARES, SURVIVORS, UNMASK = "query.keys", "query.shares", "query.survivors", "query.unmask"
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Of two shares, a seed's and a mask key's, sealed."""
_ROW = ("uint64",)
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_WEIGHTS = re.compile(r"([0-9a-f]{64}){1,2}")
_MOST_SHARES = 500_000
_SIGNATURE_BYTES = 128
Envelopes = Mapping[str, Mapping[str, bytes]]
"""Sender -> receiver -> a share, sealed."""


@dataclass(frozen=True)
class Secured:
    """In a request to train: the attempt, and everybody's sealed shares."""

    attempt: str
    envelopes: Envelopes


@dataclass(frozen=True)
class KeysRequest:
    """Make keys for a new attempt to train from weights with this digest (``common.secagg.incoming``)."""

    task: Task
    attempt: str
    weights: str


@dataclass(frozen=True)
class SharesRequest:
    """These are everybody's keys: seal your shares to your neighbours."""

    task: Task
    attempt: str
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class SurvivorsRequest:
    """The masked rows of these sites have come: sign that."""

    task: Task
    attempt: str
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class UnmaskRequest:
    """These sites have signed the survivors: give your shares."""

    task: Task
    attempt: str
    survivors: tuple[str, ...]
    signatures: Mapping[str, bytes]


@dataclass(frozen=True)
class KeysReply:
    site: str
    bundle: Bundle


@dataclass(frozen=True)
class SharesReply:
    site: str
    envelopes: Mapping[str, bytes]
    """Receiver -> its share, sealed."""


@dataclass(frozen=True)
class MaskedReply:
    """One local fit, masked: of itself it tells nothing, neither weights nor examples, loss or time."""

    site: str
    round: int
    row: NDArray[np.uint64]


@dataclass(frozen=True)
class SurvivorsReply:
    site: str
    signature: bytes


@dataclass(frozen=True)
class UnmaskReply:
    site: str
    seeds: Mapping[str, bytes]
    """Survivor -> the share of its seed that this site holds."""
    keys: Mapping[str, bytes]
    """Who has dropped out -> the share of its mask key that this site holds."""


PhaseRequest = KeysRequest | SharesRequest | SurvivorsRequest | UnmaskRequest
PhaseReply = KeysReply | SharesReply | SurvivorsReply | UnmaskReply
_KINDS: Mapping[type[PhaseRequest], str] = {
    KeysRequest: KEYS,
    SharesRequest: SHARES,
    SurvivorsRequest: SURVIVORS,
    UnmaskRequest: UNMASK,
}
_REPLIES: Mapping[type[PhaseReply], str] = {
    KeysReply: "keys",
    SharesReply: "shares",
    SurvivorsReply: "survivors",
    UnmaskReply: "unmask",
}


def write_request(request: PhaseRequest) -> Written:
    return Written(_KINDS[type(request)], records={"secure": ConfigRecord(_request_fields(request))})


def _request_fields(request: PhaseRequest) -> Fields:
    """What a request holds beside its task, flat."""
    fields: Fields = {"attempt": request.attempt}
    if isinstance(request, KeysRequest):
        return fields | {"weights": request.weights}
    if isinstance(request, SharesRequest):
        return fields | _bundles(request.bundles)
    fields["survivors"] = list(request.survivors)
    if isinstance(request, UnmaskRequest):
        fields |= _table("signature", request.signatures)
    return fields


def _read_request(kind: str, content: RecordDict, _: Mapping[str, Any], task: Task) -> PhaseRequest:
    if task.summed is None:
        raise ProtocolError("keys for a secure sum are asked for, and the study has none; upgrade the coordinator")
    fields = record_of(content, "secure", ConfigRecord)
    attempt = _word(fields, "attempt", _ATTEMPT)
    if kind == KEYS:
        return KeysRequest(task, attempt, _word(fields, "weights", _WEIGHTS))
    if kind == SHARES:
        return SharesRequest(task, attempt, _open_bundles(fields))
    survivors = tuple(_aliases(fields, "survivors"))
    if kind == SURVIVORS:
        return SurvivorsRequest(task, attempt, survivors)
    return UnmaskRequest(task, attempt, survivors, _open_table(fields, "signature", 1, _SIGNATURE_BYTES))


READ_REQUESTS: Mapping[str, Callable[[RecordDict, Mapping[str, Any], Task], PhaseRequest]] = {
    kind: partial(_read_request, kind) for kind in _KINDS.values()
}
"""By kind; raise :class:`ProtocolError`."""


def write_reply(reply: PhaseReply) -> Written:
    return Written(_REPLIES[type(reply)], records={"secure": ConfigRecord(_reply_fields(reply))})


def _reply_fields(reply: PhaseReply) -> Fields:
    """What a reply holds beside the site's name, flat."""
    if isinstance(reply, KeysReply):
        return _bundles([reply.bundle])
    if isinstance(reply, SharesReply):
        return _table("share", reply.envelopes)
    if isinstance(reply, SurvivorsReply):
        return {"signature": reply.signature}
    return _table("seed", reply.seeds) | _table("key", reply.keys)


def _read_reply(kind: str, content: RecordDict, _: Mapping[str, Any], site: str) -> PhaseReply:
    fields = record_of(content, "secure", ConfigRecord)
    if kind == "keys":
        bundles = _open_bundles(fields)
        if [bundle.site for bundle in bundles] != [site]:
            raise ProtocolError(f"{site} sent keys of another site")
        return KeysReply(site, bundles[0])
    if kind == "shares":
        return SharesReply(site, _open_table(fields, "share", SEALED_BYTES, SEALED_BYTES))
    if kind == "survivors":
        (signature,) = _blobs({"signature": [fields.get("signature")]}, "signature", 1, _SIGNATURE_BYTES)
        return SurvivorsReply(site, signature)
    shares = (_open_table(fields, name, SHARE_BYTES, SHARE_BYTES) for name in ("seed", "key"))
    return UnmaskReply(site, *shares)


READ_REPLIES: Mapping[str, Callable[[RecordDict, Mapping[str, Any], str], PhaseReply]] = {
    kind: partial(_read_reply, kind) for kind in _REPLIES.values()
}
"""By kind; raise :class:`ProtocolError`."""


def write_masked(reply: MaskedReply) -> Written:
    return Written("masked", {"round": reply.round}, {"row": pack({"row": reply.row}, _ROW)})


def read_masked(content: RecordDict, head: Mapping[str, Any], site: str) -> MaskedReply:
    """Whether the row is of the study's length is for the coordinator to see. Raises :class:`ProtocolError`."""
    round_ = get(head, "round", int)
    found = unpack(record_of(content, "row", ArrayRecord), _ROW)
    row = found.get("row")
    if len(found) != 1 or row is None or row.ndim != 1:
        raise ProtocolError("a masked reply is not one row of numbers; upgrade that site")
    return MaskedReply(site, round_, row)


def secured_fields(secured: Secured) -> Fields:
    """Of a request to train."""
    rows = [(one, other, sealed) for one, row in secured.envelopes.items() for other, sealed in row.items()]
    return {
        "attempt": secured.attempt,
        "from": [one for one, _, _ in rows],
        "to": [other for _, other, _ in rows],
        "sealed": [sealed for _, _, sealed in rows],
    }


def open_secured(fields: Mapping[str, Any]) -> Secured:
    """Raises :class:`ProtocolError`."""
    senders, receivers = (_names(fields, key, _MOST_SHARES) for key in ("from", "to"))
    sealed = _blobs(fields, "sealed", SEALED_BYTES, SEALED_BYTES)
    if not len(senders) == len(receivers) == len(sealed) == len(set(zip(senders, receivers, strict=False))):
        raise ProtocolError("the shares of a request to train are not a sender and a receiver each, once")
    envelopes: dict[str, dict[str, bytes]] = {}
    for sender, receiver, share in zip(senders, receivers, sealed, strict=True):
        envelopes.setdefault(sender, {})[receiver] = share
    return Secured(_word(fields, "attempt", _ATTEMPT), envelopes)


def _bundles(bundles: Sequence[Bundle]) -> Fields:
    parts = ("mask", "seal", "seed", "signature")
    return {"sites": [one.site for one in bundles]} | {part: [getattr(one, part) for one in bundles] for part in parts}


def _open_bundles(fields: Mapping[str, Any]) -> tuple[Bundle, ...]:
    sites = _aliases(fields, "sites")
    keys = [_blobs(fields, part, KEY_BYTES, KEY_BYTES) for part in ("mask", "seal", "seed")]
    signatures = _blobs(fields, "signature", 1, _SIGNATURE_BYTES)
    if {len(sites), len(signatures), *map(len, keys)} != {len(sites)}:
        raise ProtocolError("a message's keys are not as many of each kind as sites")
    return tuple(Bundle(*row) for row in zip(sites, *keys, signatures, strict=True))


def _table(name: str, values: Mapping[str, bytes]) -> Fields:
    return {f"{name}-sites": list(values), f"{name}s": list(values.values())}


def _open_table(fields: Mapping[str, Any], name: str, least: int, most: int) -> dict[str, bytes]:
    sites, values = _aliases(fields, f"{name}-sites"), _blobs(fields, f"{name}s", least, most)
    if len(sites) != len(values):
        raise ProtocolError(f"a message's {name}s are not one for each site it names")
    return dict(zip(sites, values, strict=True))


def _word(fields: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ProtocolError(f"the message's field {key!r} is missing or malformed; upgrade the older side")
    return value


def _aliases(fields: Mapping[str, Any], key: str) -> list[str]:
    names = _names(fields, key, MOST_SITES)
    if len(set(names)) != len(names):
        raise ProtocolError(f"the message's field {key!r} names a site twice")
    return names


def _names(fields: Mapping[str, Any], key: str, most: int) -> list[str]:
    values = fields.get(key)
    if not isinstance(values, list) or len(values) > most:
        raise ProtocolError(f"the message's field {key!r} is no list of at most {most}; upgrade the older side")
    if not all(isinstance(value, str) and ALIAS.fullmatch(value) for value in values):
        raise ProtocolError(f"the message's field {key!r} holds what is no site's name")
    return values


def _blobs(fields: Mapping[str, Any], key: str, least: int, most: int) -> list[bytes]:
    values = fields.get(key)
    if not isinstance(values, list) or len(values) > _MOST_SHARES:
        raise ProtocolError(f"the message's field {key!r} is no list; upgrade the older side")
    if not all(isinstance(value, bytes) and least <= len(value) <= most for value in values):
        raise ProtocolError(f"the message's field {key!r} holds what is not {least} to {most} bytes")
    return values
