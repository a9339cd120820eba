"""The seam between a vault and who holds its key, and the one way in which data keys are sealed."""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import KeyUnavailable

KEY_BYTES = 32
SALT_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
SEALED_BYTES = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES


class KeyProvider(Protocol):
    """One key outside the vault that locks the vault's own. Both verbs raise ``KeyUnavailable``."""

    @property
    def uri(self) -> str:
        """Where the key is, e.g. ``file:keys/vault.key``; never the key."""

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """``data_key`` (32 bytes) sealed for ``context``; a fresh blob on every call."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The data key inside ``wrapped``; fails for any other key, context or changed byte."""


def seal(key: bytes, data_key: bytes, associated: bytes) -> bytes:
    """``data_key`` under AES-256-GCM: nonce, ciphertext, tag; ``key`` and ``data_key`` have 32 bytes."""
    if len(data_key) != KEY_BYTES:
        raise KeyUnavailable(f"a data key has {KEY_BYTES} bytes, this one {len(data_key)}; make the vault anew")
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data_key, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The data key, or ``None`` where anything does not fit."""
    if len(sealed) != SEALED_BYTES:
        return None
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
    except InvalidTag:
        return None
