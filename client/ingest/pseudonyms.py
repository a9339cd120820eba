"""Keyed pseudonyms: one patient is the same 32 digits in every import, and only the secret can tell whose.

HMAC-SHA256 (RFC 2104) under the vault's secret, cut to 128 bits. A plain hash would not do: a hospital's numbers can be
counted through in seconds. The secret lies encrypted in the vault and never leaves the site, so the same patient has
other pseudonyms in two hospitals.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import PurePosixPath

from client.ingest.labels import folded, normal, normal_id

_DIGITS = 32
_SPLITS = ("train", "val", "test")


class Pseudonyms:
    """Makes pseudonyms under ``secret`` (32 bytes); each kind of thing has its own space of them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, kind: str, text: str | bytes) -> str:
        """The pseudonym (32 hexadecimal digits) of ``text``; empty for an empty one."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return self._mac(kind, raw)[:_DIGITS] if raw else ""

    def patient(self, number: str) -> str:
        """The pseudonym of a hospital's patient number; ``0012`` and ``12``, ``ab`` and ``AB`` are one patient."""
        return self.identifier("patient", number)

    def identifier(self, kind: str, text: str) -> str:
        """The pseudonym of a ``patient``, ``accession``, ``study``, ``series`` or ``sop`` as the hospital writes it."""
        return self.of(kind, folded(text) if kind in ("patient", "accession") else normal_id(text))

    def names(self, file: str) -> dict[str, str]:
        """Pseudonyms of a file's name: ``file`` with its folders, ``base`` without."""
        name = normal(file)
        return {"file": self.of("file", name), "base": self.of("base", PurePosixPath(name).name)}

    def reference(self, file: str) -> str:
        """How a file is called in lists: 12 digits that only this site can trace back to the name."""
        return self.of("reference", file)[:12]

    def split(self, patient: str, shares: Sequence[float]) -> str:
        """``train``, ``val`` or ``test`` for a patient's pseudonym: the same whatever else is imported."""
        drawn = int(self._mac("split", patient.encode())[:16], 16) / 2**64
        for name, limit in zip(_SPLITS, (shares[0], shares[0] + shares[1]), strict=False):
            if drawn < limit:
                return name
        return _SPLITS[2]

    def _mac(self, kind: str, raw: bytes) -> str:
        return hmac.digest(self._secret, kind.encode() + b"\0" + raw, "sha256").hex()
