"""A site in one file, and back: vault, policy, memory, audit log and ledger together; keys by reference only.

A backup is a plain tar of files that are encrypted or harmless, with a list of their digests under a MAC of the vault's
secret: who cannot open the vault can neither read nor alter one. The key itself is not in it. Where it is a file,
keep that file elsewhere: a backup that holds its own key protects nothing.

Ledger and audit log grow while the agent works: they are copied as they are between two entries. What was trained after
the backup is not in it, so a restored site counts the rest of every private study as spent.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from client.config import SITE_FILE, SiteConfig
from client.home import Home, Passphrase
from client.ledger import LEDGER, Ledger
from client.ledger_mending import presume_since_backup
from client.vault import database
from client.vault.store import Vault
from common.clock import Clock, now
from common.errors import KeyUnavailable, RunError, VaultError

LIST = "backup.json"
FORMAT = 1
_CHUNK = 2**20
_OPTIONAL = (
    "policy.yaml",
    "people.json",
    *(
        f"federation/{name}"
        for name in ("kit.json", "roster.json", "confirmed.json", "ca.crt", "request.json", "anchors.json")
    ),
)
"""Identity keys never travel, in a backup either: a restored site makes a new identity. Nor do decisions about studies,
and replies, which are those of a state that has gone by: its people are asked again. Which private rounds were trained
the ledger knows."""
_LEFT_OUT = ("views", "replies.sqlite", "residuals.sqlite", "personal.sqlite")
_LARGEST_LIST = 2**24


def backup(home: Home, target: Path) -> int:
    """Write the site to ``target``, which must not exist: whole, or not there; its size in bytes."""
    if target.exists():
        raise VaultError(f"{target} exists and is not overwritten; choose another name")
    with home.exclusive(), home.vault() as vault:
        home.record("backup", {"generation": vault.generation})
        home.seal(vault)
        held = _held(home, vault)
        names = [SITE_FILE, home.config.vault, *held, *_present(home)]
        listed = {
            name: hashlib.sha256(held[name]).hexdigest() if name in held else _digest(home.directory / name)
            for name in names
        }
        content = {"format": FORMAT, "vault": vault.id, "generation": vault.generation, "files": listed}
        kept = json.dumps({**content, "mac": vault.mac(_text(content))}, indent=1).encode()
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    _put(archive, LIST, len(kept), io.BytesIO(kept))
                    for name in names:
                        if name in held:
                            _put(archive, name, len(held[name]), io.BytesIO(held[name]))
                            continue
                        with (home.directory / name).open("rb") as part:
                            _put(archive, name, os.fstat(part.fileno()).st_size, part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)  # noqa: PTH105
            database.sync_directory(target.parent)
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror}; free some space or name another place") from None
        finally:
            partial.unlink(missing_ok=True)
    return target.stat().st_size


def restore(
    source: Path, directory: Path, *, key: str | None = None, passphrase: Passphrase | None = None, clock: Clock = now
) -> Home:
    """Make the site in ``source`` anew in ``directory``, which must not exist: checked and whole, or not at all.

    ``key`` says where the key is now, if elsewhere than before. That it is a restored one is recorded: whoever has seen
    a newer state (a coordinator's and peers' receipts) can tell.
    """
    if directory.exists():
        raise VaultError(f"{directory} exists and is not overwritten; move it away, or choose another name")
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.restored-"))
    try:
        kept = _unpack(source, made)
        config = _with_key(SiteConfig.load(made), key)
        home = Home(made, config, passphrase, clock)
        with home.vault() as vault:
            if not hmac.compare_digest(str(kept.pop("mac", "")), vault.mac(_text(kept))):
                raise _bad(source, "its list fails authentication")
            home.witness.check_file(vault)
            seen = home.witness.seen(vault)
            home.audit.verify(seen.entries, seen.head)
            home.record("restored", {"generation": vault.generation})
            presume_since_backup(home, vault)
            home.seal(vault)
        config.save(made)
        os.replace(made, directory)  # noqa: PTH105
    except OSError as error:
        raise RunError(f"cannot restore to {directory}: {error.strerror}; free some space and try again") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    database.sync_directory(directory.parent)
    return Home.open(directory, passphrase=passphrase, clock=clock)


def _held(home: Home, vault: Vault) -> dict[str, bytes]:
    """The ledger, then the log, which is written first: the copy of the log knows all that the ledger's has."""
    with closing(Ledger(home, lambda: vault)) as ledger:
        copy = ledger.copy()
    log = home.audit.path.read_bytes()
    return {**({LEDGER: copy} if copy is not None else {}), str(home.config.audit): log}


def _present(home: Home) -> Iterator[str]:
    """Parts that a site may or may not have: policy, everything remembered but prepared views."""
    yield from (name for name in _OPTIONAL if (home.directory / name).is_file())
    for path in sorted(home.state.rglob("*")):
        inside = path.relative_to(home.state).parts
        if path.is_file() and not path.name.startswith(".") and not any(inside[0].startswith(out) for out in _LEFT_OUT):
            yield path.relative_to(home.directory).as_posix()


def _put(archive: tarfile.TarFile, name: str, size: int, content: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, content)


def _unpack(source: Path, directory: Path) -> dict[str, Any]:
    """Write the files of a backup into ``directory`` and return its list; every digest checked."""
    try:
        with tarfile.open(source, mode="r:") as archive:
            first = archive.next()
            if first is None or first.name != LIST or first.size > _LARGEST_LIST:
                raise _bad(source, "it does not start with a list")
            kept: dict[str, Any] = json.loads(_reader(archive, first).read())
            if kept["format"] != FORMAT:
                raise VaultError(f"{source} is a backup of format {kept['format']}: upgrade fedward")
            left = dict(kept["files"])
            while (member := archive.next()) is not None:
                # Only listed names, and only plain files: a member may be named ../../x or be a link.
                if not member.isfile() or member.name not in left or ".." in Path(member.name).parts:
                    raise _bad(source, "it holds a file that is not on its list")
                if Path(member.name).is_absolute():
                    raise _bad(source, "it holds a file outside of the site")
                path = directory / member.name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    shutil.copyfileobj(_reader(archive, member), file, _CHUNK)
                    file.flush()
                    os.fsync(file.fileno())
                if not hmac.compare_digest(_digest(path), str(left.pop(member.name))):
                    raise _bad(source, f"{member.name} is not what was backed up")
            if left:
                raise _bad(source, f"{next(iter(left))} is missing")
            return kept
    except FileNotFoundError:
        raise VaultError(f"there is no backup at {source}; check the path") from None
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        raise _bad(source, "it cannot be read") from None


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    part = archive.extractfile(member)
    if part is None:
        raise tarfile.TarError
    return part


def _with_key(config: SiteConfig, key: str | None) -> SiteConfig:
    """``config`` with the key where it is now; a key file inside the old site did not come along."""
    scheme, _, path = (key or config.key).partition(":")
    if scheme != "file":
        return config.model_copy(update={"key": key or config.key})
    if key is None and not Path(path).is_absolute():
        raise KeyUnavailable(
            f"the key file {path} is not in a backup, on purpose; name where you keep it: --key file:PATH"
        )
    return config.model_copy(update={"key": f"file:{Path(path).absolute()}"})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _bad(source: Path, finding: str) -> VaultError:
    return VaultError(f"{source} is no whole backup: {finding}; use another one")
