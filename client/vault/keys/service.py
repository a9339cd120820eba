"""What ``vault:``, ``awskms:`` and ``pkcs11:`` share: envelope encryption.

A service never sees the data key. It gives a fresh 32-byte intermediate key and that key's own
ciphertext (the token); here the intermediate key seals the data key with AES-256-GCM, with token,
scheme and context as associated data::

    length of token (2 bytes, big-endian) | token | nonce (12) | sealed data key (32) | tag (16)

So the laws of the seam, that another context, another vault's blob or any changed byte fails, hold by
what is checked here and whatever a service makes of its token: base64 that decodes in several ways
(Vault's), a mode that does not authenticate, associated data it does not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from client.vault.keys.base import KEY_BYTES, SEALED_BYTES, seal, unseal
from common.errors import KeyUnavailable

_PURPOSE = b"fedward wrap 1: service\0"
_LENGTH_BYTES = 2
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that may be asked without TLS: nothing leaves this machine."""


class ServiceKey(ABC):
    """A key that stays in a service; opened by asking the service, at every use."""

    uri: str
    """Where the key is; holds no secret."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The key in words, for errors: ``the key KEY of SERVICE``."""

    @abstractmethod
    def issue(self, context: bytes) -> tuple[bytes, bytes]:
        """A fresh intermediate key (32 bytes) and its token, for ``context`` where the service can bind one."""

    @abstractmethod
    def redeem(self, token: bytes, context: bytes) -> bytes:
        """The intermediate key inside ``token``; may be anything where ``token`` is not of :meth:`issue`."""

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        key, token = self.issue(context)
        if len(key) != KEY_BYTES or not 0 < len(token) < 2 ** (8 * _LENGTH_BYTES):
            raise KeyUnavailable(f"{self.place} gave no {8 * KEY_BYTES}-bit key; name a symmetric key of 256 bits")
        header = len(token).to_bytes(_LENGTH_BYTES, "big") + token
        return header + seal(key, data_key, self._associated(header, context))

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        at = _LENGTH_BYTES + int.from_bytes(wrapped[:_LENGTH_BYTES], "big")
        header, sealed = wrapped[:at], wrapped[at:]
        if at == _LENGTH_BYTES or len(sealed) != SEALED_BYTES:
            raise KeyUnavailable("the vault's wrapped key is damaged; restore the vault's file from a backup")
        key = self.redeem(header[_LENGTH_BYTES:], context)
        data_key = unseal(key, sealed, self._associated(header, context)) if len(key) == KEY_BYTES else None
        if data_key is None:
            raise self.does_not_open()
        return data_key

    def does_not_open(self) -> KeyUnavailable:
        return KeyUnavailable(
            f"{self.place} does not open this vault: name the key the vault was made with, "
            "or restore the vault's file if its header was damaged"
        )

    def _associated(self, header: bytes, context: bytes) -> bytes:
        scheme = self.uri.partition(":")[0].encode()
        return _PURPOSE + scheme + b"\0" + header + context
