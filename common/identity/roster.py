"""The roster: who is in a federation, signed by its coordinator, with a version that only grows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from common.errors import IdentityError
from common.identity.documents import canonical, open_document, sign_document
from common.identity.keys import PublicKey, SiteKey

_STAMP = "%Y-%m-%dT%H:%M:%SZ"


def _moment(value: object) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(microsecond=0)
    if isinstance(value, str):
        moment = datetime.strptime(value, _STAMP).replace(tzinfo=UTC)
        if stamp(moment) == value:
            return moment
    raise ValueError("a moment is written as 2026-05-06T07:08:09Z")


def stamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _key(value: object) -> PublicKey:
    return value if isinstance(value, PublicKey) else PublicKey.parse(value)


def _printable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("a name is one line of printable characters")
    return value


Moment = Annotated[datetime, PlainValidator(_moment), PlainSerializer(stamp)]
Key = Annotated[PublicKey, PlainValidator(_key), PlainSerializer(lambda key: key.openssh)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]
"""As in ``site.yaml``."""
Name = Annotated[str, Field(min_length=1, max_length=64), BeforeValidator(_printable)]


def lookalike(alias: str) -> str:
    """The same for two aliases that are taken for each other on a screen or by phone."""
    return alias.lower().translate(str.maketrans("oil._", "011--"))


class Paper(BaseModel):
    """What a document says, checked. Each sort has its ``kind``, which its signature covers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    kind: ClassVar[str]

    def sign(self, key: SiteKey) -> bytes:
        """As a signed document."""
        return sign_document(self.kind, self.model_dump(mode="json"), key)

    @classmethod
    def open(cls, data: bytes, by: PublicKey | None = None) -> tuple[Self, PublicKey]:
        """What a document says, and whose key signed it; see :func:`open_document`. Raises :class:`IdentityError`."""
        opened = open_document(cls.kind, data, by)
        try:
            return cls.model_validate_json(canonical(opened.body)), opened.by
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, found["loc"])) or "the whole"
            raise IdentityError(
                f"this {cls.kind} is signed but not usable: {place}: {found['msg']}; upgrade fedward on both sides"
            ) from None


class Entry(BaseModel):
    """One site's key. A key that was replaced or revoked stays, so that it does not come back unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    alias: Alias
    public_key: Key
    status: Literal["active", "revoked"]
    since: Moment


class Roster(Paper):
    """All sites of a federation, present and past, as its coordinator signs it."""

    kind: ClassVar[str] = "roster"

    federation: Name
    version: Annotated[int, Field(ge=1)]
    """Grows with every change; a site refuses an older one."""
    issued: Moment
    entries: Annotated[tuple[Entry, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _unmistakable(self) -> Self:
        if len({entry.public_key for entry in self.entries}) < len(self.entries):
            raise ValueError("a key is listed twice")
        active = [entry.alias for entry in self.entries if entry.status == "active"]
        if len(set(active)) < len(active):
            raise ValueError("an alias has two active keys")
        aliases = {entry.alias for entry in self.entries}
        if len({lookalike(alias) for alias in aliases}) < len(aliases):
            raise ValueError("two aliases look alike")
        return self

    @property
    def active(self) -> tuple[Entry, ...]:
        """Those who take part, by alias."""
        return tuple(sorted((e for e in self.entries if e.status == "active"), key=lambda entry: entry.alias))

    @property
    def keys(self) -> dict[str, PublicKey]:
        """The key of every active site, by alias."""
        return {entry.alias: entry.public_key for entry in self.active}

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every active site, by alias."""
        return {alias: key.fingerprint for alias, key in self.keys.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of who takes part, in hexadecimal: aliases and keys, and nothing that changes without them."""
        listed = [[entry.alias, entry.public_key.openssh] for entry in self.active]
        return hashlib.sha256(b"fedward roster\0" + canonical(listed)).hexdigest()

    def of_alias(self, alias: str) -> Entry | None:
        """The active entry of ``alias``, else its last one, else ``None``."""
        found = [entry for entry in self.entries if entry.alias == alias]
        return max(found, key=lambda entry: (entry.status == "active", entry.since), default=None)

    def of_key(self, key: PublicKey) -> Entry | None:
        """Where ``key`` is listed, active or not."""
        return next((entry for entry in self.entries if entry.public_key == key), None)

    def added_or_changed(self, confirmed: Mapping[str, str]) -> list[str]:
        """Aliases that take part with another fingerprint than in ``confirmed``, or are not in it.

        Who is gone does not count: a smaller company needs no new consent.
        """
        return [alias for alias, found in self.fingerprints.items() if confirmed.get(alias) != found]
