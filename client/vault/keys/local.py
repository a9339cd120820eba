"""``file:`` and ``env:``: 32 random bytes, as 64 hexadecimal digits, that this machine holds itself."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.vault.keys.base import KEY_BYTES, SALT_BYTES, seal, unseal
from client.vault.keys.secret_files import read_secret
from common.errors import KeyUnavailable

_FILE_PURPOSE = b"fedward wrap 1: key file\0"
_ENVIRONMENT_PURPOSE = b"fedward wrap 1: environment\0"
_DIGITS = re.compile(rb"[0-9A-Fa-f]{%d}" % (2 * KEY_BYTES))
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_taken: dict[str, bytes] = {}
"""Keys that came by the environment, by variable: read once, then removed from it."""


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
    """A key-encryption key derived from a file; the file is read at every use and not kept."""

    uri: str
    path: Path

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        return _wrap(self._read(), _FILE_PURPOSE, data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        data_key = _unwrap(self._read(), _FILE_PURPOSE, wrapped, context)
        if data_key is None:
            raise KeyUnavailable(
                f"the key in {self.path} does not open this vault: name the key file the vault was made with, "
                "or restore the vault's file if its header was damaged"
            )
        return data_key

    def _read(self) -> bytes:
        content = read_secret(self.path, "key file", remedy="put the vault's key file there")
        key = _parsed(content)
        if key is None:
            raise KeyUnavailable(
                f"{self.path} does not hold {2 * KEY_BYTES} hexadecimal digits; name the vault's key file"
            )
        return key


@dataclass(frozen=True)
class EnvironmentKey:
    """A key-encryption key derived from a variable that :func:`take_from_environment` has emptied.

    Holds the variable's name only, so that no repr or copy of a provider holds the key.
    """

    uri: str
    variable: str

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        return _wrap(_taken[self.variable], _ENVIRONMENT_PURPOSE, data_key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        data_key = _unwrap(_taken[self.variable], _ENVIRONMENT_PURPOSE, wrapped, context)
        if data_key is None:
            raise KeyUnavailable(
                f"the key in {self.variable} does not open this vault: set the one the vault was made with, "
                "or restore the vault's file if its header was damaged"
            )
        return data_key


def take_from_environment(uri: str, variable: str) -> EnvironmentKey:
    """Move the key in ``variable`` out of the environment, so that no child process inherits it.

    Taken before and not set again: the key taken then. A value that is no key is removed as well.
    """
    if not _VARIABLE.fullmatch(variable):
        raise KeyUnavailable("env: needs the name of a variable, e.g. env:FEDWARD_KEY")
    text = os.environ.pop(variable, None)
    if text is not None:
        key = _parsed(os.fsencode(text))
        if key is None:
            raise KeyUnavailable(f"{variable} does not hold {2 * KEY_BYTES} hexadecimal digits; set the vault's key")
        _taken[variable] = key
    if variable not in _taken:
        raise KeyUnavailable(f"the environment variable {variable} is not set; set it to the vault's key")
    return EnvironmentKey(uri, variable)


def _parsed(content: bytes) -> bytes | None:
    digits = content.strip()
    return bytes.fromhex(digits.decode("ascii")) if _DIGITS.fullmatch(digits) else None


def _wrap(key: bytes, purpose: bytes, data_key: bytes, context: bytes) -> bytes:
    salt = os.urandom(SALT_BYTES)
    return salt + seal(_derived(key, purpose, salt, context), data_key, purpose + salt + context)


def _unwrap(key: bytes, purpose: bytes, wrapped: bytes, context: bytes) -> bytes | None:
    salt, sealed = wrapped[:SALT_BYTES], wrapped[SALT_BYTES:]
    return unseal(_derived(key, purpose, salt, context), sealed, purpose + salt + context)


def _derived(key: bytes, purpose: bytes, salt: bytes, context: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, purpose + context).derive(key)
