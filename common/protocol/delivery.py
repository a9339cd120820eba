"""The finished model goes to the sites, and each says that it keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from common.errors import ProtocolError
from common.packing import pack, unpack
from common.protocol.records import DIGEST, Written, get, record_of
from common.protocol.task import Task
from common.weights import FILES, Weights

DELIVER = "query.model"
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class DeliveryRequest:
    """Here is the study's finished model: to be checked and kept (``common.package``)."""

    task: Task
    manifest: bytes
    """Signed by the coordinator."""
    files: Weights
    """Name -> the file's bytes, ``(n,)`` uint8."""


@dataclass(frozen=True)
class Receipt:
    """The finished model is kept at ``site``; ``digest`` is the SHA-256 of its weights file there."""

    site: str
    digest: str


def write_request(request: DeliveryRequest) -> Written:
    return Written(DELIVER, {"manifest": request.manifest}, {"files": pack(request.files, FILES)})


def read_request(content: RecordDict, head: Mapping[str, Any], task: Task) -> DeliveryRequest:
    """Raises :class:`ProtocolError`."""
    manifest = get(head, "manifest", bytes)
    if len(manifest) > _MANIFEST_BYTES:
        raise ProtocolError(f"a manifest of {len(manifest)} bytes; the most is {_MANIFEST_BYTES}")
    files = unpack(record_of(content, "files", ArrayRecord), FILES)
    if any(file.ndim != 1 for file in files.values()):
        raise ProtocolError("a file in a delivery is not a row of bytes")
    return DeliveryRequest(task, manifest, files)


def write_receipt(receipt: Receipt) -> Written:
    return Written("receipt", {"digest": receipt.digest})


def read_receipt(_: RecordDict, head: Mapping[str, Any], site: str) -> Receipt:
    """Raises :class:`ProtocolError`."""
    digest = get(head, "digest", str)
    if not DIGEST.fullmatch(digest):
        raise ProtocolError(f"{site} sent a receipt without a digest")
    return Receipt(site, digest)
