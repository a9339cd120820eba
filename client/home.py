"""A hospital's site directory, for those who run it: make it, lock it, open its vault and remember what was seen.

::

    site.yaml       what the site is made of            policy.yaml    what it allows
    vault.sqlite    the encrypted images                audit.jsonl    what was done, hash-chained
    keys/           key files, where a file: key is used
    state/          the site's memory of its vault      reports/       what imports left: readiness, refusals
    people.json     who may sign approvals              models/        finished models that coordinators have brought
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.config import SITE_FILE, SiteConfig
from client.policy import POLICY_FILE, TEMPLATE
from client.vault import database
from client.vault.keys import KeyProvider, prepare, provider
from client.vault.store import Vault, reencrypted
from client.vault.witness import Seen, Witness
from common.audit import AuditLog
from common.clock import Clock, now
from common.errors import KeyUnavailable, VaultError
from common.files import sweep, take_lock, write_atomically

DEFAULT_KEY = "file:keys/vault.key"
WITNESS = "vault.json"
REPORTS, REJECTED, READINESS = "reports", "rejected.csv", "readiness.html"
STUDY_USED = "study-used"
_LOCK, _AGENT_LOCK = ".lock", ".agent.lock"

Passphrase = Callable[[], str]


def once(ask: Passphrase) -> Passphrase:
    """``ask``, asked once; later calls get the same answer. One command asks its operator once."""
    answers: list[str] = []

    def answer() -> str:
        if not answers:
            answers.append(ask())
        return answers[0]

    return answer


@dataclass(frozen=True)
class Home:
    """A site directory. Raises :class:`VaultError` and :class:`KeyUnavailable` with the remedy."""

    directory: Path
    config: SiteConfig
    passphrase: Passphrase | None = None
    clock: Clock = now

    @classmethod
    def open(cls, directory: Path, *, passphrase: Passphrase | None = None, clock: Clock = now) -> Home:
        """The site in ``directory``; nothing is decrypted yet."""
        config = SiteConfig.load(directory)
        if config.state is None or config.audit is None:
            raise VaultError(
                f"{directory} is a simulated site, without memory and log; make a real one with `fedward site init`"
            )
        return cls(directory, config, once(passphrase) if passphrase else None, clock)

    @classmethod
    def init(
        cls,
        directory: Path,
        *,
        alias: str,
        key: str = DEFAULT_KEY,
        synthetic: bool = False,
        compression: str = "none",
        passphrase: Passphrase | None = None,
        clock: Clock = now,
    ) -> Home:
        """Make a site in ``directory``, which must not exist or be empty: complete, or not at all.

        ``key`` is a key provider's URI; the key of a ``file:`` is made, any other must be there.
        """
        directory = directory.resolve()  # "." can be filled, not replaced
        passphrase = once(passphrase) if passphrase else None
        try:
            if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
                raise VaultError(f"{directory} exists and is not empty; choose another name, or `fedward site info`")
            directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.new-"))
        except OSError as error:
            raise VaultError(
                f"cannot make a site in {directory}: {error.strerror}; check the path and its permissions"
            ) from None
        try:
            config = SiteConfig.model_validate(
                {"alias": alias, "key": key, "state": "state", "audit": "audit.jsonl", "compression": compression}
            )
            config.save(made)
            write_atomically(made / POLICY_FILE, TEMPLATE.encode(), mode=0o600)
            home = cls(made, config, passphrase, clock)
            home.audit.create()
            keys = prepare(key, base=made, passphrase=passphrase)
            with Vault.create(made / config.vault, keys, synthetic=synthetic, source=f"site {alias}") as vault:
                home.witness.start(vault)
                home.record("site-made", {"alias": alias, "vault": vault.id, "key": vault.scheme})
                home.seal(vault)
            os.replace(made, directory)  # noqa: PTH105
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        database.sync_directory(directory.parent)
        return cls.open(directory, passphrase=passphrase, clock=clock)

    @property
    def vault_path(self) -> Path:
        return self.directory / self.config.vault

    @property
    def state(self) -> Path:
        return self.directory / str(self.config.state)

    @property
    def reports(self) -> Path:
        return self.directory / REPORTS

    @property
    def audit(self) -> AuditLog:
        return AuditLog(self.directory / str(self.config.audit))

    @property
    def witness(self) -> Witness:
        return Witness(self.state / WITNESS)

    @property
    def keys(self) -> KeyProvider:
        """Who holds the vault's key."""
        return provider(self.config.key, base=self.directory, passphrase=self.passphrase)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One changing command at a time. Raises :class:`VaultError` where another command is at work.

        What a killed command left half-made is removed first.
        """
        with self._locked(_LOCK):
            for path in (
                self.directory / SITE_FILE,
                self.witness.path,
                self.reports / REJECTED,
                self.reports / READINESS,
            ):
                sweep(path)
            database.discard(reencrypted(self.vault_path))
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """One agent at a time, beside the commands. Raises :class:`VaultError` where another one serves."""
        with self._locked(_AGENT_LOCK):
            yield

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """No changing command meanwhile; several that look may look together. Nothing is written."""
        try:
            file = take_lock(self.directory / _LOCK, fcntl.LOCK_SH)
        except BlockingIOError:
            raise self._busy() from None
        except OSError:  # no changing command has ever run here, or its owner lets nobody look
            yield
            return
        try:
            yield
        finally:
            os.close(file)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            file = take_lock(self.directory / name)
        except BlockingIOError:
            raise self._busy() from None
        except OSError as error:
            raise VaultError(
                f"cannot write in {self.directory}: {error.strerror}; check who owns it and its permissions"
            ) from None
        try:
            yield
        finally:
            os.close(file)

    def _busy(self) -> VaultError:
        return VaultError(f"another command is at work in {self.directory}; let that finish first")

    @contextmanager
    def vault(self, *, read_only: bool = False) -> Iterator[Vault]:
        """The site's vault, open, checked against what the site remembers of it and of the audit log.

        ``read_only`` writes nothing, unless a killed command left the file half-written: that is put right first.
        """
        with self.vault_and_key(read_only=read_only and not database.interrupted(self.vault_path)) as (vault, _):
            yield vault

    @contextmanager
    def vault_and_key(self, *, read_only: bool = False) -> Iterator[tuple[Vault, str]]:
        """As :meth:`vault`, with the URI of the key that opens it."""
        vault, key = self.unchecked(read_only=read_only)
        with vault:
            seen = self.witness.check(vault)
            if not read_only:
                # Before anything is added to it: sealing a log that was cut would hide that for good.
                self.audit.verify(seen.entries, seen.head)
            yield vault, key

    def unchecked(self, *, read_only: bool) -> tuple[Vault, str]:
        """The vault, not compared with the site's memory, and the URI of the key that opens it.

        That is the previous key where a killed ``rotate-key`` had not come to the new one.
        """
        key, before = self.config.key, self.config.previous_key
        try:
            return self._open(key, read_only=read_only), key
        except KeyUnavailable:
            if before is None:
                raise
        return self._open(before, read_only=read_only), before

    def _open(self, key: str, *, read_only: bool) -> Vault:
        keys = provider(key, base=self.directory, passphrase=self.passphrase)
        return Vault.open(self.vault_path, keys, read_only=read_only)

    def record(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write to the audit log."""
        self.audit.append(event, facts, self.clock())

    def seal(self, vault: Vault) -> Seen:
        """Remember the vault's file and the audit log's end as they are now; at the end of a changing command."""
        entries, head = self.audit.end()
        self.witness.seal(vault, entries=entries, head=head)
        return self.witness.seen(vault)
