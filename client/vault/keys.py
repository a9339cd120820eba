"""Who holds the key: providers that wrap and unwrap a vault's data key, named by URI.

========================  =======================================================================
``file:PATH``             32 random bytes as 64 hexadecimal digits in a file only its owner reads
``passphrase:``           Argon2id (RFC 9106) of what an operator types; never from argv or the
                          environment, a callable asks for it
========================  =======================================================================

Both derive a key-encryption key of their own for every wrap (HKDF-SHA256 or Argon2id with a
fresh 128-bit salt) and seal the data key with AES-256-GCM. The ``context`` (the vault's id) goes
into derivation and associated data, so a wrapped key taken from another vault does not unwrap.

AES-GCM does not commit to its key; the vault's header does (``sealing.Sealer.commitment``).
"""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import KeyUnavailable

KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
_FILE_PURPOSE = b"fedward wrap 1: key file\0"
_PASSPHRASE_PURPOSE = b"fedward wrap 1: passphrase\0"
_LEAST_PASSPHRASE = 8  # characters; NIST SP 800-63B's minimum

_ARGON2_COST = struct.Struct(">III")
_ARGON2_WRITTEN = (65_536, 3, 4)  # memory in KiB, passes, lanes: RFC 9106's second recommended option
_ARGON2_MOST = (1_048_576, 16, 16)  # a file asking for more is refused before any memory is taken


class KeyProvider(Protocol):
    """One key outside the vault that locks the vault's own. Both verbs raise ``KeyUnavailable``."""

    @property
    def uri(self) -> str:
        """Where the key is, e.g. ``file:keys/vault.key``; never the key."""

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """``data_key`` (32 bytes) sealed for ``context``; a fresh blob on every call."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The data key inside ``wrapped``; fails for any other key, context or changed byte."""


def provider(uri: str, *, base: Path, passphrase: Callable[[], str] | None = None) -> KeyProvider:
    """The provider that ``uri`` names; a relative ``file:`` path is taken from ``base``.

    ``passphrase`` asks the operator; it is called when a key is wrapped or unwrapped, not before.
    Raises :class:`KeyUnavailable` for a URI that names no provider.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "file":
        if not rest:
            raise KeyUnavailable("file: needs the path of a key file, e.g. file:keys/vault.key")
        return FileKey(uri=uri, path=base / rest)
    if colon and scheme == "passphrase":
        if rest:
            raise KeyUnavailable("passphrase: takes nothing after the colon; it is asked for, never written down")
        if passphrase is None:
            raise KeyUnavailable("passphrase: needs an operator to type it; use a file: key where nobody is there")
        return PassphraseKey(ask=passphrase)
    raise KeyUnavailable("the key provider is not one of file:PATH, passphrase:; correct its URI")


def create_key_file(path: Path) -> None:
    """Write 32 bytes of the system's entropy to ``path``, as hexadecimal, mode 0600.

    The directory is made (0700) if it is missing. Raises :class:`KeyUnavailable` when the file
    exists (a key written over is every vault it locked, lost) or cannot be written.
    """
    if os.path.lexists(path):
        raise KeyUnavailable(f"{path} exists and is not overwritten; use it, or name another key file")
    created = False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        created = True
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(os.urandom(KEY_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if created:
            path.unlink(missing_ok=True)
        raise KeyUnavailable(f"cannot write the key file {path}: {error.strerror}; mend that and try again") from None


@dataclass(frozen=True)
class FileKey:
    """A key-encryption key derived from a file; the file is read at every use and not kept.

    Links are followed (container secrets are links): what is checked is the file that was opened.
    """

    uri: str
    path: Path

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        salt = os.urandom(_SALT_BYTES)
        return salt + _seal(self._derive(salt, context), data_key, _FILE_PURPOSE + salt + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        salt = wrapped[:_SALT_BYTES]
        data_key = _open(self._derive(salt, context), wrapped[_SALT_BYTES:], _FILE_PURPOSE + salt + context)
        if data_key is None:
            raise KeyUnavailable(
                f"the key in {self.path} does not open this vault: name the key file the vault was made with, "
                "or restore the vault's file if its header was damaged"
            )
        return data_key

    def _derive(self, salt: bytes, context: bytes) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt, _FILE_PURPOSE + context).derive(self._read())

    def _read(self) -> bytes:
        try:
            # O_NONBLOCK: a named pipe in the key's place must not make us wait for ever.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise KeyUnavailable(f"{self.path} is not a file; name the key file itself")
                if status.st_mode & 0o077:
                    raise KeyUnavailable(f"others may read the key file {self.path}; run: chmod 600 {self.path}")
                text = file.read(2 * KEY_BYTES + 3)
        except OSError as error:
            raise KeyUnavailable(
                f"cannot read the key file {self.path}: {error.strerror}; put the vault's key file there"
            ) from None
        digits = text.strip()
        try:
            key = bytes.fromhex(digits.decode("ascii")) if len(digits) == 2 * KEY_BYTES else b""
        except ValueError:  # its message could quote the key
            key = b""
        if len(key) != KEY_BYTES:
            raise KeyUnavailable(
                f"{self.path} does not hold {2 * KEY_BYTES} hexadecimal digits; name the vault's key file"
            )
        return key


@dataclass(frozen=True)
class PassphraseKey:
    """A key-encryption key stretched from a passphrase: 64 MiB, 3 passes, 4 lanes of Argon2id.

    Salt and cost travel in the wrapped blob, bound as associated data, so that a later version
    may raise the cost and still read older vaults; unwrapping bounds them.
    """

    ask: Callable[[], str]
    uri: str = "passphrase:"

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        typed = self._typed()
        if len(typed) < _LEAST_PASSPHRASE:
            raise KeyUnavailable(f"the passphrase is too short; choose one of at least {_LEAST_PASSPHRASE} characters")
        salt = os.urandom(_SALT_BYTES)
        header = _ARGON2_COST.pack(*_ARGON2_WRITTEN) + salt
        return header + _seal(
            _stretch(typed, salt, _ARGON2_WRITTEN, context), data_key, _PASSPHRASE_PURPOSE + header + context
        )

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        length = _ARGON2_COST.size + _SALT_BYTES
        header, sealed = wrapped[:length], wrapped[length:]
        damaged = KeyUnavailable("the vault's wrapped key is damaged; restore the vault's file from a backup")
        if len(header) != length:
            raise damaged
        cost = _ARGON2_COST.unpack_from(header)
        memory_kib, passes, lanes = cost
        bounded = all(1 <= asked <= most for asked, most in zip(cost, _ARGON2_MOST, strict=True))
        if not bounded or memory_kib < 8 * lanes:
            raise damaged
        key = _stretch(self._typed(), header[_ARGON2_COST.size :], (memory_kib, passes, lanes), context)
        data_key = _open(key, sealed, _PASSPHRASE_PURPOSE + header + context)
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
    return HKDF(SHA256(), KEY_BYTES, salt, _PASSPHRASE_PURPOSE + context).derive(secret)


def _seal(key: bytes, data_key: bytes, associated: bytes) -> bytes:
    if len(data_key) != KEY_BYTES:
        raise KeyUnavailable(f"a data key has {KEY_BYTES} bytes, this one {len(data_key)}; make the vault anew")
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data_key, associated)


def _open(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The data key, or ``None`` where anything does not fit."""
    if len(sealed) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES:
        return None
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
    except InvalidTag:
        return None
