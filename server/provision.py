"""A coordinator's directory: its own authority, its roster, and the kits it hands out.

::

    coordinator.yaml   name, address, where to listen     roster.json   who takes part, signed, with a version
    identity.key       signs roster and kits              audit.jsonl   who was admitted and revoked, hash-chained
    pki/               ca.key, ca.crt: the authority; server.key, server.crt: what sites see when they connect
    runs/              one folder a run

Nothing here listens. A running coordinator reads ``roster.json`` again after every change.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.audit import AuditLog
from common.clock import Clock, now
from common.errors import IdentityError
from common.files import sweep, write_atomically
from common.identity import (
    Address,
    Authority,
    Entry,
    Kit,
    PublicKey,
    Request,
    Roster,
    SiteKey,
    covers,
    days_left,
    locked,
    lookalike,
    make_private_folder,
    read_file,
)
from server.coordinator_config import CONFIG, CoordinatorConfig, not_usable

IDENTITY, ROSTER, AUDIT, RUNS, PKI = "identity.key", "roster.json", "audit.jsonl", "runs", "pki"
_MOST_REQUEST = 1 << 16
_MOST_FILE = 1 << 20


@dataclass(frozen=True)
class Expiry:
    """A certificate and how long it has left."""

    what: str
    days: int
    """Whole days; negative when it has expired."""
    remedy: str


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's directory. Raises :class:`IdentityError` with the remedy."""

    directory: Path
    config: CoordinatorConfig
    clock: Clock = now

    @classmethod
    def open(cls, directory: Path, *, clock: Clock = now) -> Coordinator:
        """The coordinator in ``directory``; keys are read only where they are needed."""
        return cls(directory, CoordinatorConfig.load(directory), clock)

    @classmethod
    def init(
        cls,
        directory: Path,
        *,
        name: str,
        address: str,
        listen: str | None = None,
        also: Sequence[str] = (),
        site_certificates: bool = False,
        clock: Clock = now,
    ) -> Coordinator:
        """Make a coordinator in ``directory``, which must not exist or be empty: complete, or not at all.

        ``listen``: host:port; without it every interface, and the port of ``address``.
        """
        try:
            if listen is None:
                listen = f"0.0.0.0:{Address.parse(address).port}"
            config = CoordinatorConfig(
                name=name, address=address, listen=listen, also=tuple(also), site_certificates=site_certificates
            )
        except ValidationError as error:
            raise not_usable("the coordinator", error) from None
        directory = directory.resolve()  # "." can be filled, not replaced
        try:
            if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
                raise IdentityError(f"{directory} exists and is not empty; choose another name")
            directory.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.new-"))
        except OSError as error:
            raise IdentityError(
                f"cannot make a coordinator in {directory}: {error.strerror}; check the path and its permissions"
            ) from None
        try:
            cls(made, config, clock)._fill()
            os.replace(made, directory)  # noqa: PTH105
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        folder = os.open(directory.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(directory, config, clock)

    def _fill(self) -> None:
        at = self.clock()
        make_private_folder(self.directory / PKI)
        make_private_folder(self.directory / RUNS)
        self.config.save(self.directory)
        key, server = SiteKey.generate(), SiteKey.generate()
        authority = Authority.make(self.config.name, at)
        key.save(self.directory / IDENTITY)
        write_atomically(self._authority_key_path, authority.key.pem, mode=0o600)
        write_atomically(self.authority_path, authority.certificate)
        write_atomically(self.server_key_path, server.pem, mode=0o600)
        write_atomically(self.certificate_path, authority.certify_server(server.public, self.config.hosts, at))
        self.audit.create()
        roster = Roster(federation=self.config.name, version=1, issued=at)
        write_atomically(self.directory / ROSTER, roster.sign(key))
        self._record("coordinator-made", {"name": self.config.name, "fingerprint": key.public.fingerprint})

    @property
    def authority_path(self) -> Path:
        return self.directory / PKI / "ca.crt"

    @property
    def _authority_key_path(self) -> Path:
        return self.directory / PKI / "ca.key"

    @property
    def certificate_path(self) -> Path:
        """The server's certificate."""
        return self.directory / PKI / "server.crt"

    @property
    def server_key_path(self) -> Path:
        """The server's private key, PKCS #8."""
        return self.directory / PKI / "server.key"

    @property
    def runs(self) -> Path:
        return self.directory / RUNS

    @property
    def key(self) -> SiteKey:
        """The identity: signs roster, kits and whatever else sites must know to be the coordinator's."""
        return SiteKey.load(self.directory / IDENTITY)

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.directory / AUDIT)

    @property
    def signed_roster(self) -> bytes:
        """``roster.json`` as it is now: what sites are sent after a change."""
        return read_file(self.directory / ROSTER, "roster", most=_MOST_FILE)

    @property
    def roster(self) -> Roster:
        """Who takes part, as it stands on the disk now, its signature checked."""
        found, _ = Roster.open(self.signed_roster, self.key.public)
        if found.federation != self.config.name:
            raise IdentityError(
                f"{CONFIG} names {self.config.name}, the roster {found.federation}; put the name back as it was"
            )
        return found

    def read_request(self, data: bytes) -> tuple[Request, PublicKey]:
        """What a request asks, and the key that signed it; nothing is decided. Raises :class:`IdentityError`."""
        if len(data) > _MOST_REQUEST:
            raise IdentityError(f"this is longer than any join-request ({_MOST_REQUEST} bytes); name another file")
        request, key = Request.open(data)
        request.predecessor(key)
        if key == self.key.public:
            raise IdentityError("this request is signed with the coordinator's own key; a site makes its own")
        return request, key

    def admit(self, data: bytes, *, again: bool = False) -> bytes:
        """Take the site whose request this is into the roster; its kit. The same request again gives a kit again.

        Whoever calls this has compared the key's fingerprint with the site by phone (:func:`common.identity.compare`).
        ``again`` lets a key come back that was revoked. Raises :class:`IdentityError`.
        """
        with self._changing():
            request, key = self.read_request(data)
            self._check_certificates()
            roster = self.roster
            listed, known = roster.of_key(key), roster.of_alias(request.alias)
            if listed is not None and listed.status == "active" and listed.alias == request.alias:
                return self._kit(request, key, roster)
            if listed is not None and listed.status == "active":
                raise IdentityError(f"this key is {listed.alias}'s; a second site makes a key of its own")
            if listed is not None and not again:
                raise IdentityError(
                    f"this key was {listed.alias}'s and is revoked; let the site make a new one "
                    "(`fedward site new-identity`), or say --again if you are sure that nobody else has it"
                )
            if known is not None and known.public_key != key:
                raise IdentityError(
                    f"{request.alias} is known by another key; a new one comes in with `fedward coordinator replace`"
                )
            others = {entry.alias for entry in roster.entries if entry is not listed} - {request.alias}
            for other in others:
                if lookalike(other) == lookalike(request.alias):
                    raise IdentityError(f"{request.alias} is too much like {other}; let the site take another alias")
            kept = [entry for entry in roster.entries if entry is not listed]
            return self._kit(request, key, self._changed("admit", roster, kept, self._entry(request.alias, key)))

    def replace(self, data: bytes) -> bytes:
        """Give a known site the new key of its request, revoke its old one; its kit. Raises :class:`IdentityError`."""
        with self._changing():
            request, key = self.read_request(data)
            self._check_certificates()
            roster = self.roster
            listed, known = roster.of_key(key), roster.of_alias(request.alias)
            if known is None:
                raise IdentityError(
                    f"there is no {request.alias} whose key could be replaced; `admit` takes in new sites"
                )
            if listed is not None and listed.status == "active" and listed.alias == request.alias:
                return self._kit(request, key, roster)
            if listed is not None:
                raise IdentityError(
                    f"this key is known as {listed.alias}'s, {listed.status}; let the site make a new one "
                    "with `fedward site new-identity`"
                )
            new = self._entry(request.alias, key)
            return self._kit(request, key, self._changed("replace", roster, self._without(roster, request.alias), new))

    def revoke(self, alias: str, *, why: str = "") -> Roster:
        """Take ``alias`` out of the roster; a running coordinator refuses its next connection."""
        with self._changing():
            roster = self.roster
            known = roster.of_alias(alias)
            if known is None:
                raise IdentityError(f"there is no site {alias}; see `fedward coordinator roster`")
            if known.status == "revoked":
                return roster
            return self._changed("revoke", roster, self._without(roster, alias), None, alias=alias, why=why)

    def renew(self, *, authority: bool = False) -> None:
        """A new certificate for the server, for another year and for the addresses of ``coordinator.yaml``.

        Its key and the authority stay, so sites notice nothing. ``authority``: renew the root's certificate too, for
        ten years, with the same key; sites need a new kit before the old one expires.
        """
        with self._changing():
            at, server = self.clock(), SiteKey.load(self.server_key_path)
            root = self._authority
            if authority:
                root = Authority.make(self.config.name, at, root.key)
            certificate = root.certify_server(server.public, self.config.hosts, at)
            self._record("renew", {"authority": authority, "hosts": self.config.hosts})
            if authority:
                write_atomically(self.authority_path, root.certificate)
            write_atomically(self.certificate_path, certificate)

    def expiries(self) -> list[Expiry]:
        """All certificates with the days they have left."""
        at = self.clock()
        found = [
            Expiry(
                "authority", days_left(self._read(self.authority_path), at), "fedward coordinator renew --authority"
            ),
            Expiry("server", days_left(self._read(self.certificate_path), at), "fedward coordinator renew"),
        ]
        for alias in self.roster.keys if self.config.site_certificates else ():
            path = self._site_certificate_path(alias)
            if path.exists():
                found.append(Expiry(alias, days_left(self._read(path), at), "fedward coordinator admit REQUEST, again"))
        return found

    def expiring(self, days: int = 30) -> list[Expiry]:
        """Certificates with no more than ``days`` left."""
        return [expiry for expiry in self.expiries() if expiry.days <= days]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with locked(self.directory):
            for path in (self.directory / ROSTER, self.certificate_path, self.authority_path):
                sweep(path)
            yield

    @property
    def _authority(self) -> Authority:
        found = Authority(SiteKey.load(self._authority_key_path), self._read(self.authority_path))
        if not found.whole:
            raise IdentityError(f"{self.authority_path} is not for the key beside it; restore {PKI}/ from a backup")
        return found

    def _read(self, path: Path) -> bytes:
        return read_file(path, "certificate", most=_MOST_FILE)

    def _site_certificate_path(self, alias: str) -> Path:
        return self.directory / PKI / "sites" / f"{alias}.crt"

    def _entry(self, alias: str, key: PublicKey) -> Entry:
        return Entry(alias=alias, public_key=key, status="active", since=self.clock())

    def _without(self, roster: Roster, alias: str) -> list[Entry]:
        gone = {"status": "revoked", "since": self.clock().astimezone(UTC).replace(microsecond=0)}
        return [
            entry.model_copy(update=gone) if entry.alias == alias and entry.status == "active" else entry
            for entry in roster.entries
        ]

    def _changed(self, event: str, roster: Roster, kept: list[Entry], new: Entry | None, **facts: Any) -> Roster:
        entries = (*kept, *([new] if new else ()))
        try:
            changed = Roster(
                federation=roster.federation, version=roster.version + 1, issued=self.clock(), entries=entries
            )
        except ValidationError as error:
            raise not_usable("the roster", error) from None
        if new is not None:
            facts = {**facts, "alias": new.alias, "fingerprint": new.public_key.fingerprint}
        # First told, then done: nobody is in the roster of whom the log does not know.
        self._record(event, {**facts, "version": changed.version, "roster": changed.hash})
        write_atomically(self.directory / ROSTER, changed.sign(self.key))
        return changed

    def _check_certificates(self) -> None:
        """Before anything is changed: a kit can be made, and sites can connect with it."""
        at, server = self.clock(), self._read(self.certificate_path)
        if days_left(self._read(self.authority_path), at) < 0:
            raise IdentityError(
                "the coordinator's authority has expired; run `fedward coordinator renew --authority`, then this again"
            )
        if days_left(server, at) < 0 or not covers(server, self.config.hosts):
            raise IdentityError(
                "the server's certificate has expired or is not for the address in coordinator.yaml; "
                "run `fedward coordinator renew`, then this command again"
            )

    def _kit(self, request: Request, key: PublicKey, roster: Roster) -> bytes:
        at, certificate = self.clock(), None
        if self.config.site_certificates:
            certificate = self._authority.certify_site(key, request.alias, at)
            path = self._site_certificate_path(request.alias)
            make_private_folder(path.parent)
            write_atomically(path, certificate)
        kit = Kit(
            federation=self.config.name,
            alias=request.alias,
            public_key=key,
            nonce=request.nonce,
            address=self.config.address,
            authority=self._read(self.authority_path).decode(),
            roster=self.signed_roster.decode(),
            certificate=None if certificate is None else certificate.decode(),
            issued=at,
        )
        kit.check(self.key.public, alias=request.alias, key=key, nonce=request.nonce, at=at)
        return kit.sign(self.key)

    def _record(self, event: str, facts: dict[str, Any]) -> None:
        self.audit.append(event, facts, self.clock())
