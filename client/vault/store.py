"""``Vault``: create, open, read, change, verify. What protects it is argued in the files it uses."""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from client.vault import database
from client.vault.change import SECRET_BYTES, Change
from client.vault.codecs import CODECS, RAW, unpack
from client.vault.keys import KeyProvider
from client.vault.manifest import Header, Manifest, rows_digest
from client.vault.records import Form, Record, Row, decode_meta, form_of, pixel_digest
from client.vault.sealing import (
    DATA_KEY_BYTES,
    FORMAT,
    OLDEST_FORMAT,
    SEAL_BYTES,
    VAULT_ID_BYTES,
    AuthenticationError,
    Kind,
    Sealer,
    has_mask,
)
from common.errors import KeyUnavailable, VaultError

__all__ = ["CODECS", "Record", "Row", "Vault", "pixel_digest"]
PIXELS = "pixels:"
"""Before the tombstone of an image."""

_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 64
_QUERIES = {
    "labels": "SELECT meta FROM image WHERE id = ?",
    "pixels": "SELECT data FROM pixels WHERE id = ?",
    "mask": "SELECT data FROM mask WHERE id = ?",
}
_CONTEXT = b"fedward vault data key\0"
_FILE_CHUNK_BYTES = 2**20


class Vault:
    """An open vault: a snapshot of the rows that its manifest authenticated when it was opened.

    The seals (nonce and tag of every part) stay in memory, 84 bytes an image, and every read is checked
    against them: whoever changes the file afterwards can make a read fail but not return anything
    else. Rows that another process adds are seen after opening again.

    Use it in the thread and process that opened it; after a fork, open again (SQLite's handles do not
    survive one). A context manager; every failure is a ``VaultError``.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, header: Header, sealer: Sealer) -> None:
        """Not called directly: :meth:`create` and :meth:`open`."""
        self.path = path
        self._open: sqlite3.Connection | None = connection
        self._process = os.getpid()
        self._inode = path.stat().st_ino
        self._header = header
        self._sealer = sealer
        self._seals: dict[int, bytes] = {}
        self._forms: dict[int, tuple[str, Form]] = {}
        self._manifest: Manifest | None = None
        self._version: int | None = None

    @classmethod
    def create(cls, path: Path, provider: KeyProvider, *, synthetic: bool, source: str) -> Vault:
        """A new, empty vault at ``path`` with a data key of its own, wrapped by ``provider``.

        ``synthetic`` says whether no image is of a person; ``source`` where they come from. Both are
        encrypted and cannot be changed. Raises :class:`VaultError` where ``path`` exists or cannot be written,
        :class:`KeyUnavailable` where the provider has no key; then nothing is left behind.
        """
        header, sealer = new_header(os.urandom(VAULT_ID_BYTES), provider)
        manifest = Manifest(
            synthetic=synthetic,
            source=source,
            generation=1,
            rows=0,
            last_id=0,
            digest=rows_digest(()),
            secret=secrets.token_hex(SECRET_BYTES),
        )
        database.create(path, FORMAT, header, sealer.seal_manifest(manifest.encoded, header.encoded))
        return cls._connected(path, database.connect(path, OLDEST_FORMAT, FORMAT), header, sealer)

    @classmethod
    def open(cls, path: Path, provider: KeyProvider, *, read_only: bool = False) -> Vault:
        """Open the vault at ``path`` for reading and changing; checks the manifest against all rows.

        ``read_only`` writes nothing to the disk at all, and so cannot restore the file that a killed writer left
        half-written: opening it once without does. Raises :class:`VaultError` (missing, no vault, newer format, in
        use, damaged or altered) or
        :class:`KeyUnavailable` (wrong or missing key). Never creates anything.
        """
        connection = database.connect(path, OLDEST_FORMAT, FORMAT, read_only=read_only)
        try:
            with database.reported(path):
                header, _ = _read_header(path, connection)
            scheme = _scheme(provider)
            if header.scheme != scheme:
                raise KeyUnavailable(
                    f"the key of vault {path} is kept by {header.scheme}:, not {scheme}:; name the {header.scheme}: key"
                )
            sealer = Sealer(_unwrapped(header, provider), header.vault_id)
            if not hmac.compare_digest(sealer.commitment, header.commitment):
                raise database.damaged(path, "its key commitment is not that of its key")
        except BaseException:
            connection.close()
            raise
        return cls._connected(path, connection, header, sealer)

    @classmethod
    def _connected(cls, path: Path, connection: sqlite3.Connection, header: Header, sealer: Sealer) -> Vault:
        vault = cls(path, connection, header, sealer)
        try:
            with database.transaction(path, connection, "DEFERRED"):
                vault._load(connection)
        except BaseException:
            vault.close()
            raise
        return vault

    @property
    def id(self) -> str:
        """The vault's random id, 32 hexadecimal digits."""
        return self._header.vault_id.hex()

    @property
    def synthetic(self) -> bool:
        """Whether the images are made by a program, of nobody."""
        return self._state.synthetic

    @property
    def source(self) -> str:
        """Where the images come from, in words."""
        return self._state.source

    @property
    def generation(self) -> int:
        """1 for a new vault, one more with every transaction.

        A complete older copy of the file is consistent in itself and opens. To notice it, keep the last
        generation seen somewhere else and compare.
        """
        return self._state.generation

    @property
    def scheme(self) -> str:
        """Scheme of the key provider that locks the vault, e.g. ``file``."""
        return self._header.scheme

    @property
    def secret(self) -> bytes:
        """32 bytes under which the site makes pseudonyms. Raises :class:`VaultError` for a vault of format 1."""
        if not self._state.secret:
            raise VaultError(f"vault {self.path} is of format 1 and has no secret for pseudonyms; migrate it first")
        return bytes.fromhex(self._state.secret)

    @property
    def tombstones(self) -> frozenset[str]:
        """Pseudonyms of erased patients, and :meth:`tombstone` of each of their images."""
        return frozenset(self._state.tombstones)

    def tombstone(self, digest: str) -> str:
        """What is remembered of an erased image with this pixel digest; nobody without the key can compare it."""
        return f"{PIXELS}{self.mac(b'erased ' + digest.encode())[:32]}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._seals)

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """One transaction: everything done to the :class:`Change`, or, on any failure and SIGKILL, nothing.

        Raises :class:`VaultError` for a disk that is full and the like.
        """
        connection = self._idle_connection
        with database.transaction(self.path, connection, "IMMEDIATE"):
            if self._version != self._data_version():  # another process has changed the vault
                self._load(connection)
            change = Change(self.path, connection, self._sealer, self._header, self._state, dict(self._seals))
            yield change
            manifest = change.finish()
        if manifest is not None:
            self._seals, self._manifest, self._header = change.seals, manifest, change.header
            self._forms = {}

    def add(self, records: Iterable[Record], codec: str = RAW) -> int:
        """Add all of ``records`` in one transaction, or none of them; returns how many.

        Takes them one at a time and keeps none in memory; ``codec`` is one of ``CODECS``, both lossless. On any
        failure, one of ``records``' own included, on Ctrl-C and on SIGKILL the vault is what it was before. Raises
        :class:`DataError` for a record that a vault does not hold, :class:`VaultError` for a disk that is full.
        """
        number = 0
        with self.changing() as change:
            for number, record in enumerate(records, start=1):
                change.insert(record, number, codec)
        return number

    def erase(self, patients: Iterable[str]) -> int:
        """Remove all images of ``patients`` and remember them as tombstones, in one transaction; returns how many.

        A patient's own pseudonym is one tombstone, a keyed digest of each image another: a copy of it under no name or
        another's shall not come back either.
        Freed pages are overwritten with zeros. What a file system, an SSD or a backup still holds of the old
        ciphertext becomes unreadable only with :func:`reencrypt` and the end of the old key.
        """
        wanted = frozenset(patients)
        with self.changing() as change:
            gone = [row for row in self.each() if row.patient in wanted]
            for row in gone:
                change.remove(row.id)
            change.tombstones |= wanted | {self.tombstone(row.digest) for row in gone}
        return len(gone)

    def migrate(self) -> None:
        """Bring a vault of an older format to the present one; nothing for one that has it."""
        if not self._state.secret:
            with self.changing():
                pass

    def rewrap(self, old: KeyProvider, new: KeyProvider) -> None:
        """Lock the vault's data key with ``new`` in place of ``old``; images stay as they are. One transaction."""
        data_key = _unwrapped(self._header, old)
        wrapped = new.wrap(data_key, _CONTEXT + self._header.vault_id)
        with self.changing() as change:
            change.header = replace(self._header, scheme=_scheme(new), wrapped=wrapped)

    def reencrypt(self, provider: KeyProvider) -> None:
        """Encrypt everything anew under a new data key, locked by ``provider``, and close this vault.

        A new file takes the old one's place when it is whole and on the disk; until then the old one is the vault.
        Needs as much free disk as the vault takes. Whoever reads the old file goes on reading it.
        """
        target = reencrypted(self.path)
        header, sealer = new_header(self._header.vault_id, provider)
        before = self._state
        empty = replace(before, rows=0, last_id=0, digest=rows_digest(()))
        with database.transaction(self.path, self._idle_connection, "IMMEDIATE"):
            if self._version != self._data_version():
                raise VaultError(f"vault {self.path} was changed meanwhile; try again")
            database.discard(target)  # of an attempt that was killed
            database.create(target, FORMAT, header, sealer.seal_manifest(empty.encoded, header.encoded))
            try:
                with (
                    closing(database.connect(target, FORMAT, FORMAT)) as connection,
                    database.transaction(target, connection, "IMMEDIATE"),
                ):
                    change = Change(target, connection, sealer, header, empty, {})
                    for row_id, seal in self._seals.items():
                        change.copy(row_id, seal, self._sealer, partial(self._fetch, row_id=row_id))
                    change.last_id = before.last_id
                    change.touch()
                    change.finish()
                os.replace(target, self.path)  # noqa: PTH105
            except BaseException:
                database.discard(target)
                raise
        database.sync_directory(self.path.parent)
        self.close()

    def opens_under(self, provider: KeyProvider) -> bool:
        """Whether ``provider`` is a key that this vault is locked by now."""
        try:
            return _scheme(provider) == self.scheme and bool(_unwrapped(self._header, provider))
        except KeyUnavailable:
            return False

    @property
    def replaced(self) -> bool:
        """Whether another file stands in this one's place since it was opened: open it again."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    @property
    def changed(self) -> bool:
        """Whether another process has changed the vault since it was opened, or last changed from here."""
        return not self._connection.in_transaction and self._version != self._data_version()

    def file_mac(self, salt: bytes) -> tuple[int, str]:
        """Size of the vault's file and Poly1305 tag (hex) over all its bytes, while nobody writes to it.

        ``salt`` is 32 random bytes: new ones for a new file, those of its making to compare.
        """
        connection = self._idle_connection
        mac, size = self._sealer.file_mac(salt), 0
        with database.transaction(self.path, connection, "DEFERRED"), self.path.open("rb", buffering=0) as file:
            self._load(connection)  # takes the lock that keeps writers out
            while chunk := file.read(_FILE_CHUNK_BYTES):
                mac.update(chunk)
                size += len(chunk)
        return size, mac.finalize().hex()

    def mac(self, text: bytes) -> str:
        """HMAC-SHA256 (hex) under the vault's secret, which survives new keys, over what the site remembers of it."""
        return hmac.new(self.secret, b"memory\0" + text, "sha256").hexdigest()

    def view_key(self, salt: bytes) -> bytes:
        """The key (32 bytes) of a prepared view on the disk; other under every ``salt``, lost with the data key."""
        return self._sealer.view_key(salt)

    def stored_bytes(self) -> tuple[int, int]:
        """Bytes of all pixels as arrays, and as stored."""
        with database.reported(self.path):
            stored = self._connection.execute("SELECT coalesce(sum(length(data)), 0) FROM pixels").fetchone()[0]
        return sum(form_of(row.dtype, row.shape).size for row in self.each()), int(stored)

    def each(self) -> Iterator[Row]:
        """Everything but pixels and masks, of all images, one at a time in the order they came."""
        for row_id in self._seals:
            yield self.row(row_id)

    def row(self, row_id: int) -> Row:
        """Everything but pixels and mask of one image."""
        return self._meta(row_id, self._fetch("labels", row_id))

    def rows(self) -> list[Row]:
        """Everything but pixels and masks, of all images; ordered by (digest, id), the same in any copy."""
        found = []
        with database.reported(self.path):
            for row_id, meta in self._connection.execute("SELECT id, meta FROM image"):
                if row_id in self._seals:  # or added by another process since
                    found.append(self._meta(row_id, meta))
        if len({row.id for row in found}) != len(found) or len(found) != len(self._seals):
            raise self._damaged(f"it lists {len(found)} of {len(self._seals)} images")
        return sorted(found, key=lambda row: (row.digest, row.id))

    def read(self, row_id: int) -> NDArray[Any]:
        """The pixels of one image as they were added: ``(H, W)`` or ``(H, W, 3)``, writable, little-endian."""
        codec, form = self._form(row_id)
        return self._pixels(row_id, self._fetch("pixels", row_id), codec, form)

    def read_many(self, ids: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The pixels of several images, in the order of ``ids``; the quick way to read an epoch.

        Fetches some 4 MiB of ciphertext at a time; no lock is held while an image is with the caller.
        """
        position = 0
        while position < len(ids):
            fetched: list[tuple[int, str, Form, bytes]] = []
            size = 0
            connection = self._connection
            # While adding, the transaction is the one that is open.
            adding = connection.in_transaction
            with nullcontext() if adding else database.transaction(self.path, connection, "DEFERRED"):
                while position < len(ids) and size < _BATCH_BYTES and len(fetched) < _BATCH_ROWS:
                    row_id = ids[position]
                    fetched.append((row_id, *self._form(row_id), self._fetch("pixels", row_id)))
                    size += len(fetched[-1][3])
                    position += 1
            for row_id, codec, form, data in fetched:
                yield self._pixels(row_id, data, codec, form)

    def read_mask(self, row_id: int) -> NDArray[Any]:
        """The mask of one image: ``(H, W)`` uint8, 0 or 1. Raises :class:`VaultError` where it has none."""
        if row_id in self._seals and not has_mask(self._seals[row_id]):
            raise VaultError(f"image {row_id} of vault {self.path} has no mask; ask its row's has_mask first")
        data, (_, form) = self._fetch("mask", row_id), self._form(row_id)
        try:
            return self._sealer.open_array(Kind.MASK, row_id, self._seals[row_id], data, form.of_mask)
        except AuthenticationError:
            raise self._damaged(f"the mask of image {row_id} fails authentication") from None

    def verify(self) -> None:
        """Check everything that can be checked with the key, without writing: the manifest against the file as it
        is now, SQLite's own structures, that every part belongs to a row, every tag, every digest.

        What no row uses (SQLite's free space and the like) carries no data and is not authenticated. Raises
        :class:`VaultError` naming the first finding.
        """
        connection = self._idle_connection
        with database.transaction(self.path, connection, "DEFERRED"), database.reported(self.path):
            self._load(connection)
            found = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if found != [("ok",)]:
                raise database.damaged(self.path, " ".join(str(found[0][0]).split()))
            expected = {
                "pixels": list(self._seals),
                "mask": [key for key, seal in self._seals.items() if has_mask(seal)],
            }
            for table, ids in expected.items():
                if [row_id for (row_id,) in connection.execute(f"SELECT id FROM {table} ORDER BY id")] != ids:  # noqa: S608 (the names above)
                    raise database.damaged(self.path, f"its {table} are not those of its images")
        ids = list(self._seals)
        for row_id, pixels in zip(ids, self.read_many(ids), strict=True):
            if pixel_digest(pixels) != self._meta(row_id, self._fetch("labels", row_id)).digest:
                raise database.damaged(self.path, f"the pixels of image {row_id} are not those of its digest")
            if has_mask(self._seals[row_id]):
                self.read_mask(row_id)

    def close(self) -> None:
        """Close the file and drop the keys. May be called twice."""
        if self._open is not None and self._process == os.getpid():
            with database.reported(self.path):
                self._open.close()
            self._open = None
            self._seals = {}
            del self._sealer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _state(self) -> Manifest:
        if self._manifest is None:
            raise VaultError(f"vault {self.path} was not opened; open it with Vault.open")
        return self._manifest

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            raise VaultError(f"vault {self.path} is closed; open it again")
        if self._process != os.getpid():
            raise VaultError(f"vault {self.path} was opened by another process; open it again in this one")
        return self._open

    @property
    def _idle_connection(self) -> sqlite3.Connection:
        if self._connection.in_transaction:
            raise VaultError(f"vault {self.path} is adding images; let that finish first")
        return self._connection

    def _load(self, connection: sqlite3.Connection) -> None:
        """Take the file's present state for this vault's, if header, manifest and rows agree. In a transaction."""
        with database.reported(self.path):
            header, (seal, sealed) = _read_header(self.path, connection)
            seals = connection.execute("SELECT id, seal FROM image ORDER BY id").fetchall()
        if header != self._header:
            raise database.damaged(self.path, "its header was exchanged")
        try:
            manifest = Manifest.decode(self._sealer.open_manifest(seal, sealed, header.encoded))
        except AuthenticationError:
            raise database.damaged(self.path, "its manifest or header fails authentication") from None
        if len(seals) != manifest.rows:
            raise database.damaged(self.path, f"it has {len(seals)} images where its manifest says {manifest.rows}")
        if any(not isinstance(value, bytes) or len(value) != SEAL_BYTES for _, value in seals):
            raise database.damaged(self.path, "an image has no seal")
        if rows_digest(seals) != manifest.digest:
            raise database.damaged(self.path, "its images are not those of its manifest")
        known = self._manifest
        if known is not None and manifest != known and manifest.generation <= known.generation:
            raise database.damaged(
                self.path, f"it went back from generation {known.generation} to {manifest.generation}"
            )
        self._seals, self._manifest, self._version = dict(seals), manifest, self._data_version()

    def _data_version(self) -> int:
        """Changes when another connection has changed the file."""
        with database.reported(self.path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _damaged(self, finding: str) -> VaultError:
        """The error for a part that is not what was written, unless another command has just changed the vault."""
        if not self._connection.in_transaction and self._version != self._data_version():
            return VaultError(f"vault {self.path} was changed by another command meanwhile; try again")
        return database.damaged(self.path, finding)

    def _fetch(self, part: str, row_id: int) -> bytes:
        """One ciphertext of a row: its labels (meta), pixels or mask."""
        connection = self._connection
        if row_id not in self._seals:
            raise VaultError(f"vault {self.path} has no image {row_id}; rows() lists those it has")
        with database.reported(self.path):
            found = connection.execute(_QUERIES[part], (row_id,)).fetchone()
        if found is None or not isinstance(found[0], bytes):
            raise self._damaged(f"image {row_id} has lost its {part}")
        return found[0]

    def _form(self, row_id: int) -> tuple[str, Form]:
        """Codec, type and shape of an image's pixels, out of its authenticated meta; kept."""
        if row_id not in self._forms:
            self._meta(row_id, self._fetch("labels", row_id))
        return self._forms[row_id]

    def _meta(self, row_id: int, meta: Any) -> Row:
        if not isinstance(meta, bytes):
            raise self._damaged(f"the labels of image {row_id} are gone")
        try:
            row = decode_meta(row_id, self._sealer.open(Kind.META, row_id, self._seals[row_id], meta))
        except AuthenticationError:
            raise self._damaged(f"the labels of image {row_id} fail authentication") from None
        self._forms[row_id] = row.codec, form_of(row.dtype, row.shape)
        return row

    def _pixels(self, row_id: int, data: bytes, codec: str, form: Form) -> NDArray[Any]:
        try:
            if codec == RAW:
                return self._sealer.open_array(Kind.PIXELS, row_id, self._seals[row_id], data, form)
            return unpack(self._sealer.open_packed(Kind.PIXELS, row_id, self._seals[row_id], data, form), form)
        except AuthenticationError:
            raise self._damaged(f"the pixels of image {row_id} fail authentication") from None


def reencrypted(path: Path) -> Path:
    """Where a vault is written anew before it takes its own place; a killed command may leave it."""
    return path.with_name(f".{path.name}.reencrypted")


def new_header(vault_id: bytes, provider: KeyProvider) -> tuple[Header, Sealer]:
    """A header with a new data key, wrapped by ``provider``, and what seals with it."""
    data_key = os.urandom(DATA_KEY_BYTES)
    sealer = Sealer(data_key, vault_id)
    wrapped = provider.wrap(data_key, _CONTEXT + vault_id)
    return Header(vault_id, _scheme(provider), wrapped, sealer.commitment), sealer


def _scheme(provider: KeyProvider) -> str:
    return provider.uri.partition(":")[0]


def _unwrapped(header: Header, provider: KeyProvider) -> bytes:
    return provider.unwrap(header.wrapped, _CONTEXT + header.vault_id)


def _read_header(path: Path, connection: sqlite3.Connection) -> tuple[Header, tuple[bytes, bytes]]:
    """The header, and the manifest's seal and ciphertext."""
    found = connection.execute(
        "SELECT vault_id, scheme, wrapped, commitment, manifest_seal, manifest FROM header"
    ).fetchall()
    if len(found) != 1 or not all(isinstance(value, bytes) for value in found[0]):
        raise database.damaged(path, "its header is not readable")
    vault_id, scheme, wrapped, commitment, seal, manifest = found[0]
    if len(vault_id) != VAULT_ID_BYTES or len(scheme) > 16 or not scheme.isalnum():
        raise database.damaged(path, "its header is not readable")
    return Header(vault_id, scheme.decode("ascii"), wrapped, commitment), (seal, manifest)
