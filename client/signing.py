"""Decisions signed with personal keys: a paper that says who decided what, for whom, and when.

The paper is a signed document as those of ``common.identity``, so it can be made on another machine and carried here.
It is about a study; a change of policy or of a privacy budget can be the same sort of paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import BaseModel, ConfigDict, Field

from client.people import Person
from client.policy import Role
from common.errors import IdentityError
from common.files import write_atomically
from common.identity import PublicKey, SiteKey, read_file
from common.identity.roster import Alias, Moment, Name, Paper
from common.package import Digest

SHORTEST_PASSPHRASE = 12
_MOST_FILE = 8192


class Company(BaseModel):
    """The federation that a decision is for: its coordinator's key, and the sites with theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    coordinator: Annotated[str, Field(max_length=64)]
    name: Annotated[str, Field(max_length=64)]
    sites: Mapping[str, str]
    roster: Annotated[str, Field(max_length=64)]


class Statement(Paper):
    """What a person signs."""

    kind: ClassVar[str] = "decision"

    about: Literal["study", "policy", "budget"]
    subject: Digest
    """The study's hash; of a policy or budget, the SHA-256 of what is decided."""
    verdict: Literal["approve", "refuse", "withdraw"]
    site: Alias
    federation: Company | None
    role: Role
    by: Name
    at: Moment


class _Federation(Protocol):
    @property
    def coordinator(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def sites(self) -> Mapping[str, str]: ...
    @property
    def roster(self) -> str: ...


def approval(study: str, site: str, federation: _Federation, *, role: str, by: str, at: datetime) -> Statement:
    """The statement that approves ``study`` (its hash) at ``site``. Raises :class:`ValueError` for a malformed part."""
    company = Company(
        coordinator=federation.coordinator,
        name=federation.name,
        sites=dict(sorted(federation.sites.items())),
        roster=federation.roster,
    )
    return Statement.model_validate(
        {"about": "study", "subject": study, "verdict": "approve", "site": site, "federation": company}
        | {"role": role, "by": by, "at": at}
    )


@lru_cache(maxsize=256)
def opened(signed: str) -> tuple[Statement, PublicKey] | None:
    """A signed statement and its signer; ``None`` where the signature is wrong. Asked at every request."""
    try:
        return Statement.open(signed.encode())
    except IdentityError:
        return None


def genuine(signed: str, statement: Statement, people: Iterable[Person]) -> bool:
    """Whether ``signed`` is this very ``statement``, by the person it names, who holds the role."""
    found = opened(signed)
    if found is None or found[0] != statement:
        return False
    person = next((one for one in people if one.public_key == found[1]), None)
    return person is not None and person.name == statement.by and statement.role in person.roles


def new_key(path: Path, passphrase: str) -> PublicKey:
    """Make a personal key: ``path`` (PKCS #8, encrypted, mode 0600) and ``path.pub`` (OpenSSH) beside it.

    Raises :class:`IdentityError` where either file exists or the passphrase is short.
    """
    public = path.with_name(f"{path.name}.pub")
    if path.exists() or public.exists():
        raise IdentityError(f"{path} or {public.name} exists and is not overwritten; choose another name")
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise IdentityError(f"a passphrase has at least {SHORTEST_PASSPHRASE} characters; four words will do")
    key = SiteKey.generate()
    kept = key.raw.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))
    write_atomically(path, kept, mode=0o600)
    write_atomically(public, f"{key.public.openssh}\n".encode())
    return key.public


def load_key(path: Path, passphrase: Callable[[], str]) -> SiteKey:
    """A personal key, PKCS #8 or OpenSSH; ``passphrase`` is asked where it has one. Raises :class:`IdentityError`."""
    content = read_file(path, "personal key", most=_MOST_FILE, private=True)
    openssh = content.startswith(b"-----BEGIN OPENSSH ")
    load = load_ssh_private_key if openssh else load_pem_private_key
    key = None
    try:
        try:
            key = load(content, None)
        except (TypeError, ValueError):  # it has a passphrase: the two loaders say so differently
            key = load(content, passphrase().encode())
    except UnsupportedAlgorithm:
        if openssh:
            raise IdentityError(
                f"{path} is locked in OpenSSH's own way; convert it: ssh-keygen -p -m PKCS8 -f {path.name}"
            ) from None
    except (ValueError, TypeError):
        pass
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path} holds no P-384 private key that this passphrase opens; try again")
    return SiteKey(key)
