"""Signed JSON documents: what parties send each other by mail.

One line of canonical JSON: ``{"body": …, "by": KEY, "format": 1, "kind": …, "signature": …}``, keys sorted, no blanks,
ASCII, no fractions. The signature covers everything else, kind and signer included, behind a prefix that nothing else
signed with these keys starts with. A document that is not written exactly so is refused: each has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import IdentityError
from common.identity.keys import PublicKey, SiteKey

FORMAT = 1
MOST_BYTES = 1 << 20
_DEEPEST = 8
_PREFIX = b"fedward signed document\0"
_FIELDS = {"body", "by", "format", "kind", "signature"}


@dataclass(frozen=True)
class Opened:
    """A document whose signature is right."""

    body: dict[str, Any]
    by: PublicKey


def sign_document(kind: str, body: Mapping[str, Any], key: SiteKey) -> bytes:
    """``body`` (text, whole numbers, booleans, null, lists, mappings) as a document of this ``kind``."""
    envelope = {"body": dict(body), "by": key.public.openssh, "format": FORMAT, "kind": kind}
    signature = key.sign(_PREFIX + canonical(envelope))
    return canonical({**envelope, "signature": base64.b64encode(signature).decode("ascii")}) + b"\n"


def open_document(kind: str, data: bytes, by: PublicKey | None = None) -> Opened:
    """What ``data`` says, if it is a whole document of this ``kind``.

    ``by`` is who must have signed it. Without it the document proves only that its sender holds the key it names:
    who that is, the caller has to find out. Raises :class:`IdentityError`, which quotes nothing of it.
    """
    if len(data) > MOST_BYTES:
        raise IdentityError(f"a {kind} is longer than {MOST_BYTES >> 20} MiB; ask its sender for another")
    try:
        found = json.loads(data, parse_float=_fraction, parse_constant=_fraction)
        _shallow(found)
    except (ValueError, RecursionError):
        raise IdentityError(f"this is no {kind}; name the file as it was sent, unpacked and unopened") from None
    if not isinstance(found, dict) or set(found) != _FIELDS or not isinstance(found["kind"], str):
        raise IdentityError(f"this is no {kind}; name the file as it was sent, unpacked and unopened")
    if found["kind"] != kind:
        named = found["kind"] if found["kind"] in KINDS else "file of another kind"
        raise IdentityError(f"this is a {named} where a {kind} belongs; name the other file")
    if found["format"] != FORMAT or isinstance(found["format"], bool):
        raise IdentityError(f"this {kind} has a format that this version does not know; upgrade fedward on both sides")
    signer = PublicKey.parse(found["by"])
    if by is not None and signer != by:
        raise IdentityError(
            f"this {kind} is signed with the key {signer.fingerprint}, where {by.fingerprint} was expected; "
            "do not use it, and call its sender"
        )
    signed = {name: found[name] for name in _FIELDS - {"signature"}}
    try:
        signature = base64.b64decode(found["signature"], validate=True)
    except (binascii.Error, ValueError, TypeError):
        signature = b""
    if (
        not isinstance(found["body"], dict)
        or not signer.verify(signature, _PREFIX + canonical(signed))
        # One spelling: no second pair of the same name, no other blanks, no other way to write the same signature.
        or canonical({**signed, "signature": base64.b64encode(signature).decode("ascii")}) + b"\n" != data
    ):
        raise IdentityError(f"this {kind} was altered after it was signed; ask for it again, as an attachment")
    return Opened(found["body"], signer)


KINDS = frozenset(
    {"join-request", "join-kit", "roster", "key-handover", "model-package", "own-model", "decision", "ledger-anchor"}
)


def kind_of(data: bytes) -> str | None:
    """The kind that a document names, of :data:`KINDS`; nothing of it is checked, and opening it checks this too."""
    try:
        found = json.loads(data[:MOST_BYTES])
    except (ValueError, RecursionError):
        return None
    named = found.get("kind") if isinstance(found, dict) else None
    return named if isinstance(named, str) and named in KINDS else None


def canonical(value: object) -> bytes:
    """The one way to write ``value`` as JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _fraction(text: str) -> float:
    raise ValueError(text)


def _shallow(value: object, depth: int = 1) -> None:
    if depth > _DEEPEST:
        raise ValueError
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(child, depth + 1)
