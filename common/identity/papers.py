"""The two papers of joining: a site's request, and the coordinator's kit in answer to it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from common.errors import IdentityError
from common.identity.addresses import Address
from common.identity.certificates import check_authority, check_site_certificate
from common.identity.keys import PublicKey
from common.identity.roster import Alias, Key, Moment, Name, Paper, Roster

_CLOCKS_DIFFER = timedelta(days=1)

Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
Pem = Annotated[str, Field(max_length=8192)]


class Handover(Paper):
    """An old key's word for the new one: it helps, but decides nothing, as a thief of the old key can give it too."""

    kind: ClassVar[str] = "key-handover"

    alias: Alias
    public_key: Key
    nonce: Nonce


class Request(Paper):
    """A site asks to join. Its signature proves that it holds the key that stands in it."""

    kind: ClassVar[str] = "join-request"

    alias: Alias
    nonce: Nonce
    """Random, 128 bits: the kit repeats it, so that it answers this request."""
    made: Moment
    handover: Annotated[str, Field(max_length=4096)] | None = None

    def predecessor(self, key: PublicKey) -> PublicKey | None:
        """The old key that vouches for ``key``, which signed this request. Raises :class:`IdentityError`."""
        if self.handover is None:
            return None
        handover, old = Handover.open(self.handover.encode())
        if (handover.alias, handover.public_key, handover.nonce) != (self.alias, key, self.nonce) or old == key:
            raise IdentityError("the old key vouches for another request; ask the site for a new one")
        return old


class Kit(Paper):
    """The coordinator's answer: all that a site needs, made for one request. It holds no secret."""

    kind: ClassVar[str] = "join-kit"

    federation: Name
    alias: Alias
    public_key: Key
    nonce: Nonce
    address: str
    authority: Pem
    """Certificate of the coordinator's own authority."""
    roster: Annotated[str, Field(max_length=1 << 19)]
    """The signed roster, as text."""
    certificate: Pem | None = None
    """The site's own certificate, where the coordinator asks for one (mutual TLS)."""
    issued: Moment

    @model_validator(mode="after")
    def _address(self) -> Self:
        if str(Address.parse(self.address)) != self.address:
            raise ValueError("the address is not in its usual spelling")
        return self

    def check(self, coordinator: PublicKey, *, alias: str, key: PublicKey, nonce: str | None, at: datetime) -> Roster:
        """The roster, if this kit, signed by ``coordinator``, is whole and for this very site and request.

        Raises :class:`IdentityError`. Whether ``coordinator`` is who it should be is for the caller to know.
        """
        if self.alias != alias:
            raise IdentityError(f"this join-kit is for the site {self.alias}, not for {alias}; ask for your own")
        if self.public_key != key:
            raise IdentityError(
                f"this join-kit is for the key {self.public_key.fingerprint}, and this site's is {key.fingerprint}; "
                "send the coordinator the present federation/request.json"
            )
        if nonce is not None and self.nonce != nonce:
            raise IdentityError(
                "this join-kit answers another request; send the coordinator the present federation/request.json"
            )
        if self.issued > at + _CLOCKS_DIFFER:
            raise IdentityError("this join-kit is from the future; set the clock of this machine, or the coordinator's")
        check_authority(self.authority, at)
        if self.certificate is not None:
            check_site_certificate(self.certificate, self.authority, key, at)
        roster, _ = Roster.open(self.roster.encode(), coordinator)
        if roster.federation != self.federation:
            raise IdentityError("this join-kit names another federation than its roster; ask for another")
        if roster.keys.get(alias) != key:
            raise IdentityError(f"this join-kit's roster does not list {alias} with this site's key; ask for another")
        return roster
