"""Every use of a vault's data key is in this file.

**Keys.** The data key is 32 random bytes. It encrypts nothing itself: HKDF-SHA256 (RFC 5869),
salted with the vault's id, derives from it one key for rows, one for the manifest and a
public *commitment*. AES-GCM alone would let a file be made that opens under two keys to
different images; the commitment in the header (a collision-resistant function of the data key)
leaves one.

**Nonces** are 96 random bits from the system for every encryption. With at most 2^32 encryptions
under a key, two meet with a probability below 2^-33 (NIST SP 800-38D, 8.2.2 and 8.3); row ids
stop at 2^30, and an image takes at most three. A vault of ten million images stays below 2^-46.
A counter was considered and refused: it is unique only as long as the file never goes back, and
files go back (a restored backup, a copied site, a killed import whose ciphertext is still on the
disk), and a repeated GCM nonce gives away pixels and the authentication key.

**Associated data** of a part of a row binds the sealing's version, the vault, the row, the kind of
part and, for pixels and masks, the pixel type and shape. Nothing can be moved to another place.

**The file as a whole.** What no row uses (SQLite's free space) carries nothing that is ever read, but is
not authenticated by the above. Poly1305 (RFC 8439) over all bytes of the file is, under a key derived for a
random 256-bit salt and used for no other file; ten times as quick as a hash. The site keeps salt and tag outside
the vault (``witness``).

**Seals.** Nonce and tag of a part are kept apart from its ciphertext, in the row's *seal*; the
manifest authenticates all seals. See ``manifest``.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray

from client.vault.records import Form

FORMAT = 2
"""What this version writes. Format 1 lacks the manifest's ``secret`` and ``tombstones``; the sealing is the same."""
OLDEST_FORMAT = 1
DATA_KEY_BYTES = 32
VAULT_ID_BYTES = 16
LARGEST_ROW_ID = 2**30

_NONCE_BYTES = 12
_TAG_BYTES = 16
_PART_BYTES = _NONCE_BYTES + _TAG_BYTES
_NAME = b"fedward vault 1"  # of the sealing, not the format: it changes when keys or associated data do
_PLACE = struct.Struct(">16sBQ")


class Kind(IntEnum):
    """The parts of a row; the value is the part's position in the row's seal."""

    META = 0
    PIXELS = 1
    MASK = 2


SEAL_BYTES = len(Kind) * _PART_BYTES
_NO_PART = bytes(_PART_BYTES)


class AuthenticationError(Exception):
    """A ciphertext is not the one that was sealed here. The store turns it into a ``VaultError``."""


class Sealer:
    """Seals and opens the parts of one vault. Holds derived keys, not the data key."""

    def __init__(self, data_key: bytes, vault_id: bytes) -> None:
        if len(data_key) != DATA_KEY_BYTES or len(vault_id) != VAULT_ID_BYTES:
            raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes and a vault id {VAULT_ID_BYTES}")

        def derive(purpose: bytes) -> bytes:
            return HKDF(SHA256(), 32, vault_id, _NAME + b": " + purpose).derive(data_key)

        self._vault_id = vault_id
        self._rows = AESGCM(derive(b"rows"))
        self._manifest = AESGCM(derive(b"manifest"))
        self._file = derive(b"file")
        self._views = derive(b"views")
        self.commitment = derive(b"commitment")

    def file_mac(self, salt: bytes) -> Poly1305:
        """To be fed with a whole file; ``salt`` (32 random bytes) makes its key, which must serve one file only."""
        return Poly1305(HKDF(SHA256(), 32, salt, _NAME + b": file").derive(self._file))

    def view_key(self, salt: bytes) -> bytes:
        """The key (32 bytes) of one prepared view on the disk; ``salt`` is random and stands in that file."""
        return HKDF(SHA256(), 32, salt, _NAME + b": view").derive(self._views)

    def seal(self, kind: Kind, row_id: int, form: Form | None, plain: bytes | memoryview) -> tuple[bytes, bytes]:
        """Encrypt one part. Returns its seal (28 bytes: nonce, tag) and its ciphertext."""
        return _encrypt(self._rows, plain, self._associated(kind, row_id, form))

    def open(self, kind: Kind, row_id: int, seal: bytes, cipher: bytes) -> bytes:
        """Decrypt one part that has no form. ``seal`` is the whole row's."""
        return _decrypt(self._rows, part_of(seal, kind), cipher, self._associated(kind, row_id, None))

    def open_array(self, kind: Kind, row_id: int, seal: bytes, cipher: bytes, form: Form) -> NDArray[Any]:
        """Decrypt pixels or a mask into a new array of ``form``, without a further copy."""
        if len(cipher) != form.size:
            raise AuthenticationError
        return self.open_packed(kind, row_id, seal, cipher, form).view(form.stored).reshape(form.shape)

    def open_packed(self, kind: Kind, row_id: int, seal: bytes, cipher: bytes, form: Form) -> NDArray[np.uint8]:
        """Decrypt the bytes of pixels that a codec packed, ``form`` being that of the pixels themselves."""
        part = part_of(seal, kind)
        plain = np.empty(len(cipher), np.uint8)
        try:
            self._rows.decrypt_into(
                part[:_NONCE_BYTES], cipher + part[_NONCE_BYTES:], self._associated(kind, row_id, form), plain.data
            )
        except InvalidTag:
            raise AuthenticationError from None
        return plain

    def seal_manifest(self, plain: bytes, header: bytes) -> tuple[bytes, bytes]:
        """Encrypt the manifest, bound to the header's bytes. Returns seal and ciphertext."""
        return _encrypt(self._manifest, plain, _NAME + b" manifest\0" + header)

    def open_manifest(self, seal: bytes, cipher: bytes, header: bytes) -> bytes:
        """Decrypt the manifest; fails where the header is not the one it was sealed with."""
        return _decrypt(self._manifest, seal, cipher, _NAME + b" manifest\0" + header)

    def _associated(self, kind: Kind, row_id: int, form: Form | None) -> bytes:
        place = _PLACE.pack(self._vault_id, kind, row_id)
        return _NAME + b" row\0" + place + (form.encoded if form is not None else b"")


def row_seal(meta: bytes, pixels: bytes, mask: bytes | None) -> bytes:
    """A row's seal (84 bytes) from those of its parts; zeros stand for no mask."""
    return meta + pixels + (mask if mask is not None else _NO_PART)


def part_of(seal: bytes, kind: Kind) -> bytes:
    """The seal (28 bytes: nonce, tag) of one part of a row."""
    return seal[kind * _PART_BYTES : (kind + 1) * _PART_BYTES]


def has_mask(seal: bytes) -> bool:
    """Whether the row has a mask."""
    return part_of(seal, Kind.MASK) != _NO_PART


def _encrypt(cipher: AESGCM, plain: bytes | memoryview, associated: bytes) -> tuple[bytes, bytes]:
    nonce = os.urandom(_NONCE_BYTES)
    sealed = cipher.encrypt(nonce, plain, associated)
    return nonce + sealed[-_TAG_BYTES:], sealed[:-_TAG_BYTES]


def _decrypt(cipher: AESGCM, part: bytes, sealed: bytes, associated: bytes) -> bytes:
    if len(part) != _PART_BYTES:
        raise AuthenticationError
    try:
        return cipher.decrypt(part[:_NONCE_BYTES], sealed + part[_NONCE_BYTES:], associated)
    except InvalidTag:
        raise AuthenticationError from None
