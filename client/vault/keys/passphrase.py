"""``passphrase:``: Argon2id (RFC 9106) of what an operator types."""

from __future__ import annotations

import os
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.vault.keys.base import KEY_BYTES, SALT_BYTES, seal, unseal
from common.errors import KeyUnavailable

_PURPOSE = b"fedward wrap 1: passphrase\0"
_LEAST = 8  # characters; NIST SP 800-63B's minimum

_COST = struct.Struct(">III")
_COST_WRITTEN = (65_536, 3, 4)  # memory in KiB, passes, lanes: RFC 9106's second recommended option
_COST_MOST = (1_048_576, 16, 16)  # a file asking for more is refused before any memory is taken


@dataclass(frozen=True)
class PassphraseKey:
    """A key-encryption key stretched from a passphrase: 64 MiB, 3 passes, 4 lanes of Argon2id.

    Salt and cost travel in the wrapped blob, bound as associated data, so that a later version
    may raise the cost and still read older vaults; unwrapping bounds them.
    """

    ask: Callable[[], str] = field(repr=False)
    uri: str = "passphrase:"

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        typed = self._typed()
        if len(typed) < _LEAST:
            raise KeyUnavailable(f"the passphrase is too short; choose one of at least {_LEAST} characters")
        salt = os.urandom(SALT_BYTES)
        header = _COST.pack(*_COST_WRITTEN) + salt
        return header + seal(_stretch(typed, salt, _COST_WRITTEN, context), data_key, _PURPOSE + header + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        length = _COST.size + SALT_BYTES
        header, sealed = wrapped[:length], wrapped[length:]
        damaged = KeyUnavailable("the vault's wrapped key is damaged; restore the vault's file from a backup")
        if len(header) != length:
            raise damaged
        cost = _COST.unpack_from(header)
        memory_kib, passes, lanes = cost
        bounded = all(1 <= asked <= most for asked, most in zip(cost, _COST_MOST, strict=True))
        if not bounded or memory_kib < 8 * lanes:
            raise damaged
        key = _stretch(self._typed(), header[_COST.size :], (memory_kib, passes, lanes), context)
        data_key = unseal(key, sealed, _PURPOSE + header + context)
        if data_key is None:
            raise KeyUnavailable(
                "the passphrase does not open this vault: type the one it was made with, "
                "or restore the vault's file if its header was damaged"
            )
        return data_key

    def _typed(self) -> str:
        # One spelling for one passphrase, whatever the keyboard composes (RFC 8265 asks for NFC).
        try:
            typed = unicodedata.normalize("NFC", self.ask())
            typed.encode()
        except UnicodeError:  # its message would quote the passphrase
            raise KeyUnavailable("the passphrase is not valid text; type it again") from None
        return typed


def _stretch(typed: str, salt: bytes, cost: tuple[int, int, int], context: bytes) -> bytes:
    memory_kib, passes, lanes = cost
    try:
        secret = Argon2id(salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib).derive(
            typed.encode()
        )
    except MemoryError:
        raise KeyUnavailable(
            f"stretching the passphrase needs {memory_kib // 1024} MiB of memory; free some and try again"
        ) from None
    return HKDF(SHA256(), KEY_BYTES, salt, _PURPOSE + context).derive(secret)
