"""SQLite underneath a vault: schema, opening, locking, durability, and its errors in plain words.

*Durability.* A rollback journal with ``synchronous=EXTRA``: when ``add`` returns, data and directory
are on the disk; a process killed before that leaves a journal with which the next opening restores
the file. Nothing but the one file remains after a commit (a WAL would leave two more beside it,
and write every image twice). Journal and page cache hold the file's own pages, which are ciphertext;
``temp_store=MEMORY`` rules out temporary files altogether.

*Locking.* One writer at a time; whoever cannot get a lock within two seconds is told so.

*A hostile file.* It may be any SQLite database: before its first use the header bytes are
checked and the schema must be, word for word, ours (no views, triggers or virtual tables).
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from client.vault.manifest import Header
from common.errors import VaultError

APPLICATION_ID = 0x46445756  # "FDWV", in SQLite's header at byte 68
LOCK_TIMEOUT_S = 2.0
_CACHE_KIB = 1024
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_ROLLBACK_JOURNAL = b"\x01\x01"

# ``image`` stays small, so that opening reads all seals without touching the pixels' pages.
_TABLES = {
    "header": "CREATE TABLE header (one INTEGER PRIMARY KEY CHECK (one = 1), vault_id BLOB, scheme BLOB, "
    "wrapped BLOB, commitment BLOB, manifest_seal BLOB, manifest BLOB)",
    "image": "CREATE TABLE image (id INTEGER PRIMARY KEY, seal BLOB NOT NULL, meta BLOB NOT NULL)",
    "pixels": "CREATE TABLE pixels (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "mask": "CREATE TABLE mask (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
}


def connect(path: Path, oldest: int, newest: int, *, read_only: bool = False) -> sqlite3.Connection:
    """Open an existing vault file of a format from ``oldest`` to ``newest``; never creates one.

    ``read_only`` cannot finish what a killed writer left (:func:`interrupted`). Raises :class:`VaultError` where
    the file is missing, unreadable, no vault, or of a newer format.
    """
    _check_header(path, oldest, newest)
    with reported(path):
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            timeout=LOCK_TIMEOUT_S,
        )
        try:
            for setting in (
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "temp_store=MEMORY",
                "secure_delete=ON",
                "synchronous=EXTRA",
                f"cache_size=-{_CACHE_KIB}",
            ):
                connection.execute(f"PRAGMA {setting}")
            schema = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid").fetchall()
            if schema != [("table", name, sql) for name, sql in _TABLES.items()]:
                raise damaged(path, "its tables are not those of a vault")
        except BaseException:
            connection.close()
            raise
    return connection


def interrupted(path: Path) -> bool:
    """Whether a killed writer left a journal, from which the next opening for writing restores the file."""
    journal = path.with_name(path.name + "-journal")
    try:
        return journal.stat().st_size > 0
    except OSError:
        return False


def beside(path: Path) -> list[Path]:
    """What SQLite may leave beside a vault's file."""
    return [path.with_name(path.name + suffix) for suffix in ("-journal", "-wal", "-shm")]


def discard(path: Path) -> None:
    """Remove a file that was to become a vault, and what SQLite left beside it."""
    for remains in (path, *beside(path)):
        remains.unlink(missing_ok=True)


def create(path: Path, version: int, header: Header, manifest: tuple[bytes, bytes]) -> None:
    """Write a vault without rows: complete under its name, mode 0600, or not there at all.

    ``manifest`` is its seal and ciphertext. The file is put together in memory, written beside
    ``path`` and then linked to it, which fails where ``path`` exists. The directory is made (0700)
    if it is missing. Raises :class:`VaultError`.
    """
    with reported(path), closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={version}")
        for sql in _TABLES.values():
            connection.execute(sql)
        connection.execute(
            "INSERT INTO header VALUES (1, ?, ?, ?, ?, ?, ?)",
            (header.vault_id, header.scheme.encode(), header.wrapped, header.commitment, *manifest),
        )
        connection.commit()
        content = connection.serialize()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for remains in (path, *beside(path)):
            # A journal left by a vault that was deleted would be played back into the new one.
            if os.path.lexists(remains):
                raise VaultError(f"{remains} exists and is not overwritten; open it, or choose another name")
        _write_new(path, content)
    except OSError as error:
        raise VaultError(f"cannot create the vault {path}: {error.strerror}; mend that and try again") from None


def _write_new(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            raise VaultError(f"{path} exists and is not overwritten; open it, or choose another name") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            partial.rename(path)  # a file system without links; that ``path`` is free was checked just now
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def transaction(path: Path, connection: sqlite3.Connection, mode: str) -> Iterator[None]:
    """All or nothing, also for Ctrl-C. ``mode``: ``DEFERRED`` to read one state, ``IMMEDIATE`` to write."""
    with reported(path):
        connection.execute(f"BEGIN {mode}")
    try:
        yield
        with reported(path):
            connection.execute("COMMIT")
    except BaseException:
        # After a full disk SQLite may have rolled back by itself; the first error is the one to tell.
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turns every error of SQLite into a :class:`VaultError` with its remedy. Keep other people's code out of it."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explained(path, error) from None
    except UnicodeDecodeError:  # SQLite quotes a damaged schema in its message
        raise damaged(path, "its tables are not readable") from None
    except MemoryError:
        raise VaultError(f"vault {path}: not enough memory to read it; free some and try again") from None


def damaged(path: Path, finding: str) -> VaultError:
    """The error for a file that is not what was written."""
    return VaultError(f"vault {path} is damaged or was altered: {finding}; restore it from a backup or import it again")


def _explained(path: Path, error: sqlite3.Error) -> VaultError:
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):  # Python's module: other thread …
        return VaultError(f"vault {path} cannot be used like this ({error}); open it again where it is used")
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return VaultError(f"vault {path} is in use by another process; try again when that has finished")
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return VaultError(
            f"vault {path} could not be read or written ({error}); it is unchanged: free disk space, "
            "check the disk, and try again"
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return VaultError(f"vault {path} may not be written or opened ({error}); check who owns it and its directory")
    return damaged(path, str(error))


def _check_header(path: Path, oldest: int, newest: int) -> None:
    """Read SQLite's own header first: SQLite would create what is missing and play back what is not ours."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise VaultError(f"there is no vault at {path}; check the path, or create it") from None
    except OSError as error:
        raise VaultError(f"cannot read the vault {path}: {error.strerror}; check its path and permissions") from None
    if len(raw) < _HEADER_BYTES or raw[:16] != _MAGIC or raw[68:72] != APPLICATION_ID.to_bytes(4, "big"):
        raise VaultError(f"{path} is not a vault; check the path, or restore the vault from a backup")
    found = int.from_bytes(raw[60:64], "big")
    if found > newest:
        raise VaultError(f"vault {path} has format {found}, this fedward reads up to {newest}: upgrade fedward")
    if found < oldest or raw[18:20] != _ROLLBACK_JOURNAL:
        raise damaged(path, "its header is not that of a vault")
