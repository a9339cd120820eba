"""Who holds the key: providers that wrap and unwrap a vault's data key, named by URI.

========================  =======================================================================
``file:PATH``             32 random bytes as 64 hexadecimal digits in a file only its owner reads;
                          also a systemd credential or a container's secret
``env:NAME``              the same digits in a variable, which is emptied as it is read
``passphrase:``           Argon2id (RFC 9106) of what an operator types; never from argv or the
                          environment, a callable asks for it
``vault:URL``             the transit engine of HashiCorp Vault or OpenBao
``awskms:ARN``            AWS Key Management Service
``pkcs11:…``              a hardware security module, by RFC 7512 URI
========================  =======================================================================

The first three derive a key-encryption key of their own for every wrap (HKDF-SHA256 or Argon2id with a
fresh 128-bit salt) and seal the data key with AES-256-GCM; the others are envelopes
(``client.vault.keys.service``). The ``context`` (the vault's id) goes into derivation and associated data, so a
wrapped key taken from another vault does not unwrap. A URI names where a key is and never holds a secret.

AES-GCM does not commit to its key; the vault's header does (``sealing.Sealer.commitment``).
What each protects against, and how to set it up: ``docs/keys.md``.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from client.vault.keys.base import KEY_BYTES, KeyProvider
from client.vault.keys.local import EnvironmentKey, FileKey, create_key_file, take_from_environment
from client.vault.keys.passphrase import PassphraseKey
from client.vault.keys.secret_files import secret_path
from common.errors import KeyUnavailable

__all__ = [
    "KEY_BYTES",
    "EnvironmentKey",
    "FileKey",
    "KeyProvider",
    "PassphraseKey",
    "create_key_file",
    "prepare",
    "probe",
    "provider",
]

_A_KEY = re.compile(r"\s*[0-9A-Fa-f]{64}\s*")
_KNOWN = "file:PATH, env:NAME, passphrase:, vault:URL, awskms:ARN, pkcs11:…"
_PROBE = b"fedward probe\0"


def provider(uri: str, *, base: Path, passphrase: Callable[[], str] | None = None) -> KeyProvider:
    """The provider that ``uri`` names; relative paths of files are taken from ``base``.

    ``passphrase`` asks the operator for a passphrase, or for an HSM's PIN where no file holds it; it is
    called when a key is wrapped or unwrapped, not before. No service is asked here either.
    Raises :class:`KeyUnavailable` for a URI that names no provider, and never quotes it.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and _A_KEY.fullmatch(rest):
        raise KeyUnavailable(
            "a key's URI says where the key is and never holds it; take that key as lost, make another"
        )
    # Libraries of services are imported only where they are used: httpx alone takes 0.2 s.
    match scheme if colon else "":
        case "file":
            if not rest:
                raise KeyUnavailable("file: needs the path of a key file, e.g. file:keys/vault.key")
            return FileKey(uri=uri, path=secret_path(rest, base))
        case "env":
            return take_from_environment(uri, rest)
        case "passphrase":
            if rest:
                raise KeyUnavailable("passphrase: takes nothing after the colon; it is asked for, never written down")
            if passphrase is None:
                raise KeyUnavailable("passphrase: needs an operator to type it; use a file: key where nobody is there")
            return PassphraseKey(ask=passphrase)
        case "vault":
            from client.vault.keys.transit import transit_key

            return transit_key(uri, base)
        case "awskms":
            from client.vault.keys.kms import kms_key

            return kms_key(uri)
        case "pkcs11":
            from client.vault.keys.hsm import hsm_key

            return hsm_key(uri, base, passphrase)
    raise KeyUnavailable(f"the key provider is not one of {_KNOWN} (in small letters); correct its URI")


def prepare(uri: str, *, base: Path, passphrase: Callable[[], str] | None = None) -> KeyProvider:
    """The provider for a new vault, known to work: a missing ``file:`` key is made, any other has to be there.

    A key file that exists is used, so that setting up can be repeated. Raises :class:`KeyUnavailable`.
    """
    keys = provider(uri, base=base, passphrase=passphrase)
    if isinstance(keys, FileKey) and not os.path.lexists(keys.path):
        create_key_file(keys.path)
    probe(keys)
    return keys


def probe(keys: KeyProvider) -> float | None:
    """Wrap and unwrap a random key, of no vault; returns the seconds that took.

    ``None`` for ``passphrase:``, where nothing can be known without asking. Raises :class:`KeyUnavailable`.
    An HSM whose PIN no file holds is asked for it, once for each verb.
    """
    if isinstance(keys, PassphraseKey):
        return None
    started = time.perf_counter()
    data_key = os.urandom(KEY_BYTES)
    if not hmac.compare_digest(keys.unwrap(keys.wrap(data_key, _PROBE), _PROBE), data_key):
        raise KeyUnavailable("the key provider gave back another key than it was given; do not use it")
    return time.perf_counter() - started
