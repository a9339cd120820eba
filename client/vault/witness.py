"""What a site remembers of its vault outside of it, so that an older copy put in its place shows.

A vault proves that its rows belong together, not that they are the latest: yesterday's file is consistent
in itself. So after every change the site writes down the generation it has seen and, when a command is
through with its changes, a MAC over the whole file (SQLite's free space is authenticated by nothing else).
Both stand in ``state/vault.json``, under a MAC of the vault's own key: nobody else can write one.

What this cannot reveal: a whole site directory put back, vault and memory together. Only somebody outside
can have seen the newer generation: the receipts of coordinator and peers, and a reader who wrote down
what ``fedward site info`` showed.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.vault.database import damaged
from client.vault.store import Vault
from common.errors import VaultError
from common.files import write_atomically

_SALT_BYTES = 32


@dataclass(frozen=True)
class Seen:
    """The last state of a vault that this site has seen."""

    vault: str
    """The vault's id."""
    generation: int
    sealed: int = 0
    """Generation of which size and MAC of the file were taken; 0 for none."""
    size: int = 0
    salt: str = ""
    file_mac: str = ""
    """``Vault.file_mac`` under ``salt``; both hexadecimal."""
    entries: int = 0
    """Length of the audit log at that time, and its last hash: a log that was cut shows."""
    head: str = ""


class Witness:
    """Keeps :class:`Seen` in ``path``. A missing file is an error: somebody removed the memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, vault: Vault) -> None:
        """Begin to remember ``vault``; replaces what was remembered of another one."""
        self._write(vault, Seen(vault.id, vault.generation))

    def seen(self, vault: Vault) -> Seen:
        """What was remembered, checked. Raises :class:`VaultError` where that was lost, altered or of another vault."""
        try:
            kept: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            mac = str(kept.pop("mac"))
            seen = Seen(**kept)
        except FileNotFoundError:
            raise VaultError(
                f"{self.path} is missing, so nobody here knows whether the vault is the latest: restore the site from "
                "a backup, or, when you are sure, run `fedward site verify --accept`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise self._altered() from None
        if not hmac.compare_digest(mac, vault.mac(_text(seen))):
            raise self._altered()
        if seen.vault != vault.id:
            raise VaultError(f"{vault.path} is not the vault that this site had: put the right file back")
        return seen

    def authentic(self, vault: Vault) -> bool:
        """Whether what was remembered of ``vault`` is there and was not altered."""
        try:
            self.seen(vault)
        except VaultError:
            return False
        return True

    def check(self, vault: Vault) -> Seen:
        """Raise :class:`VaultError` where ``vault`` is older than what was seen; returns what was seen.

        A newer one is right: a process that was killed after its commit could not write it down.
        """
        seen = self.seen(vault)
        if vault.generation < seen.generation:
            raise VaultError(
                f"vault {vault.path} is an older copy: generation {vault.generation}, this site has seen "
                f"{seen.generation}; put the latest file back, or restore a backup with `fedward site restore`"
            )
        return seen

    def note(self, vault: Vault) -> None:
        """Remember the vault's generation. Cheap; after every transaction."""
        seen = self.check(vault)
        if vault.generation != seen.generation:
            self._write(vault, replace(seen, generation=vault.generation))

    def seal(self, vault: Vault, *, entries: int, head: str) -> None:
        """Remember the file as it is now, and the audit log's end. Reads all of the file."""
        seen = self.check(vault)
        if seen.sealed == vault.generation:
            if vault.file_mac(bytes.fromhex(seen.salt)) != (seen.size, seen.file_mac):
                raise damaged(vault.path, "its file was changed without a new generation")
        else:
            salt = os.urandom(_SALT_BYTES)
            size, mac = vault.file_mac(salt)
            seen = replace(
                seen, generation=vault.generation, sealed=vault.generation, size=size, salt=salt.hex(), file_mac=mac
            )
        self._write(vault, replace(seen, entries=entries, head=head))

    def check_file(self, vault: Vault) -> bool:
        """Compare the whole file with what was sealed; ``False`` where its generation was not (a killed import).

        Raises :class:`VaultError` where a byte differs.
        """
        seen = self.check(vault)
        if seen.sealed != vault.generation:
            return False
        size, mac = vault.file_mac(bytes.fromhex(seen.salt))
        if size != seen.size:
            raise damaged(vault.path, f"its file has {size} bytes where {seen.size} were written")
        if not hmac.compare_digest(mac, seen.file_mac):
            raise damaged(vault.path, "a byte of its file that belongs to no image was changed")
        return True

    def _write(self, vault: Vault, seen: Seen) -> None:
        kept = {**asdict(seen), "mac": vault.mac(_text(seen))}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(kept, indent=1).encode(), mode=0o600)

    def _altered(self) -> VaultError:
        return VaultError(
            f"{self.path} was altered or damaged: restore the site from a backup, or, when you are sure that the "
            "vault is the latest, run `fedward site verify --accept`"
        )


def _text(seen: Seen) -> bytes:
    return json.dumps(asdict(seen), sort_keys=True).encode()
