"""What a vault's file says of itself: a public header and an encrypted, authenticated manifest.

A row's own tag proves the row, not that no row is missing. So the manifest, rewritten in the same
transaction as every change, holds how many rows there are and a SHA-256 over all row ids and
seals, in order; a row's seal is the nonces and tags of its parts, hence fixes their content. A
row that was removed, added, swapped, duplicated, renumbered or put back from an older copy changes
that digest, and the vault does not open. Opening reads the seals only, no pixels. The manifest's
associated data is the header, so that no field of the header can be exchanged either.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from client.vault.records import padded

_ROW_ID = struct.Struct(">Q")


@dataclass(frozen=True)
class Header:
    """The only fields of a vault that are not encrypted."""

    vault_id: bytes
    """16 random bytes."""
    scheme: str
    """Scheme of the key provider's URI, e.g. ``file``; where the key lies is not written."""
    wrapped: bytes
    """The data key, wrapped by the key provider."""
    commitment: bytes
    """32 bytes that fix the data key without telling it (``Sealer.commitment``)."""

    @property
    def encoded(self) -> bytes:
        """One byte string for one header: every field with its length before it."""
        fields = (self.vault_id, self.scheme.encode(), self.wrapped, self.commitment)
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


@dataclass(frozen=True)
class Manifest:
    """What the rows must be. Encrypted: ``source`` may name a hospital's collection."""

    synthetic: bool
    source: str
    generation: int
    """1 for a new vault, one more with every transaction."""
    rows: int
    last_id: int
    """The largest row id ever given; ids are never given again."""
    digest: str
    """:func:`rows_digest`."""
    secret: str = ""
    """64 hexadecimal digits under which the site makes pseudonyms; empty in format 1. Survives every change of keys."""
    tombstones: tuple[str, ...] = ()
    """Pseudonyms of erased patients, sorted: no import brings them back."""

    @property
    def encoded(self) -> bytes:
        """The manifest as padded JSON."""
        return padded(json.dumps(asdict(self), separators=(",", ":")))

    @classmethod
    def decode(cls, plain: bytes) -> Manifest:
        """The inverse of ``encoded``, for bytes that were authenticated."""
        fields = json.loads(plain)
        return cls(**{**fields, "tombstones": tuple(fields.get("tombstones", ()))})


def rows_digest(seals: Iterable[tuple[int, bytes]]) -> str:
    """SHA-256 (hex) over (row id, seal) of all rows, in the order of ids; both have a fixed length."""
    return hashlib.sha256(b"".join(_ROW_ID.pack(row_id) + seal for row_id, seal in seals)).hexdigest()
