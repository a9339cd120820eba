"""Who may sign approvals here: ``people.json``, names and roles with public keys.

A key counts while the file lists it *and* the audit log says that it was added, in these roles, and not removed since:
neither alone is enough. Where the file, and ``policy.yaml``, belong to somebody else than the user the agent runs as,
that user cannot make itself a signer. A person who is removed has signed nothing: what they approved waits for somebody
else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.home import Home
from client.policy import Role
from common.errors import ApprovalError, IdentityError, PolicyError
from common.files import sweep, write_atomically
from common.identity import PublicKey, locked, make_private_folder, read_file
from common.identity.roster import Key, Moment, Name

PEOPLE_FILE = "people.json"
"""In a site's directory."""
ADDED, REMOVED = "person-added", "person-removed"
_MOST_FILE = 1 << 20
_MOST_KEY = 4096


class Person(BaseModel):
    """Somebody whose signature counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    public_key: Key
    since: Moment


class _People(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    people: tuple[Person, ...] = ()


def read(home: Home) -> tuple[Person, ...]:
    """Everybody in the file; nobody where there is none. Raises :class:`PolicyError` for one that cannot be read."""
    return decode(content(home))


def content(home: Home) -> bytes:
    """The file's bytes; empty where there is none. Raises :class:`PolicyError`."""
    path = home.directory / PEOPLE_FILE
    try:
        return read_file(path, "list of people", most=_MOST_FILE) if path.exists() else b""
    except (IdentityError, OSError) as error:
        raise PolicyError(str(error)) from None


def decode(data: bytes) -> tuple[Person, ...]:
    """The people in a file's bytes. Raises :class:`PolicyError`."""
    if not data:
        return ()
    try:
        found = _People.model_validate_json(data).people
    except (ValidationError, IdentityError):
        raise PolicyError(f"{PEOPLE_FILE} is damaged, so no signature counts; restore it from a backup") from None
    if len({one.public_key for one in found}) < len(found) or len({one.name.casefold() for one in found}) < len(found):
        raise PolicyError(f"{PEOPLE_FILE} lists a name or a key twice, so no signature counts; restore it") from None
    return found


def known(people: Iterable[Person], logged: Iterable[tuple[str, str, frozenset[str]]]) -> tuple[Person, ...]:
    """Those whom the audit log knows by this name, fingerprint and roles."""
    there = frozenset(logged)
    return tuple(one for one in people if (one.name, one.public_key.fingerprint, frozenset(one.roles)) in there)


def add(home: Home, name: str, roles: Sequence[Role], key: PublicKey, *, by: str) -> Person:
    """Let ``key`` sign as ``name`` in ``roles``. Raises :class:`ApprovalError` for a name or key that is there."""
    try:
        person = Person(name=name, roles=tuple(dict.fromkeys(roles)), public_key=key, since=home.clock())
    except ValidationError:
        raise ApprovalError("a name is one line of 1 to 64 printable characters") from None
    folder = home.directory / "federation"
    make_private_folder(folder)
    with locked(folder):
        before = read(home)
        if any(one.name.casefold() == name.casefold() for one in before):
            raise ApprovalError(f"{name} is there already; `fedward site person remove` first, for another key or role")
        owner = next((one.name for one in before if one.public_key == key), None)
        if owner is not None:
            raise ApprovalError(f"this key is {owner}'s; each person makes their own")
        _write(home, (*before, person))
        # On record last: a key that is listed and not on record signs nothing, and is added again.
        home.record(ADDED, {"name": name, "roles": list(person.roles), "fingerprint": key.fingerprint, "by": by})
    return person


def remove(home: Home, name: str, *, by: str, why: str = "") -> Person:
    """Let ``name`` sign no more; nothing that they signed counts from now on. Raises :class:`ApprovalError`."""
    folder = home.directory / "federation"
    make_private_folder(folder)
    with locked(folder):
        before = read(home)
        gone = next((one for one in before if one.name.casefold() == name.casefold()), None)
        if gone is None:
            raise ApprovalError(f"there is no {name[:64]}; `fedward site person list` lists those who are")
        facts = {"name": gone.name, "fingerprint": gone.public_key.fingerprint, "by": by, "why": why}
        home.record(REMOVED, facts)  # first: from here on the key counts for nothing
        _write(home, tuple(one for one in before if one is not gone))
    return gone


def read_public_key(path: Path) -> PublicKey:
    """A P-384 public key from an OpenSSH or a PEM file. Raises :class:`IdentityError`."""
    data = read_file(path, "public key", most=_MOST_KEY)
    if data.startswith(b"-----BEGIN PUBLIC KEY"):
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError(f"{path} holds no P-384 public key; `fedward site person new-key` makes one")
        return PublicKey.of(key)
    line = data.decode("ascii", "replace").strip()
    return PublicKey.parse(" ".join(re.split(r"\s+", line)[:2]))  # behind the key stands a comment


def _write(home: Home, people: tuple[Person, ...]) -> None:
    path = home.directory / PEOPLE_FILE
    sweep(path)
    listed = [one.model_dump(mode="json") for one in sorted(people, key=lambda one: one.name)]
    write_atomically(path, json.dumps({"people": listed}, indent=1, ensure_ascii=False).encode(), mode=0o600)
