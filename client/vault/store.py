"""``Vault``: create, open, add, read, verify. What protects it is argued in the files it uses."""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from client.vault import database
from client.vault.keys import KeyProvider
from client.vault.manifest import Header, Manifest, rows_digest
from client.vault.records import (
    Form,
    Record,
    Row,
    checked,
    decode_meta,
    encode_meta,
    form_of,
    pixel_bytes,
    pixel_digest,
)
from client.vault.sealing import (
    DATA_KEY_BYTES,
    FORMAT,
    LARGEST_ROW_ID,
    SEAL_BYTES,
    VAULT_ID_BYTES,
    AuthenticationError,
    Kind,
    Sealer,
    has_mask,
    row_seal,
)
from common.errors import KeyUnavailable, VaultError

__all__ = ["Record", "Row", "Vault", "pixel_digest"]

_BATCH_BYTES = 4 * 2**20
_BATCH_ROWS = 64
_QUERIES = {
    "labels": "SELECT meta FROM image WHERE id = ?",
    "pixels": "SELECT data FROM pixels WHERE id = ?",
    "mask": "SELECT data FROM mask WHERE id = ?",
}
_CONTEXT = b"fedward vault data key\0"


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
        self._header = header
        self._sealer = sealer
        self._seals: dict[int, bytes] = {}
        self._forms: dict[int, Form] = {}
        self._manifest: Manifest | None = None

    @classmethod
    def create(cls, path: Path, provider: KeyProvider, *, synthetic: bool, source: str) -> Vault:
        """A new, empty vault at ``path`` with a data key of its own, wrapped by ``provider``.

        ``synthetic`` says whether no image is of a person; ``source`` where they come from. Both are
        encrypted and cannot be changed. Raises :class:`VaultError` where ``path`` exists or cannot be written,
        :class:`KeyUnavailable` where the provider has no key; then nothing is left behind.
        """
        vault_id, data_key = os.urandom(VAULT_ID_BYTES), os.urandom(DATA_KEY_BYTES)
        sealer = Sealer(data_key, vault_id)
        header = Header(
            vault_id=vault_id,
            scheme=provider.uri.partition(":")[0],
            wrapped=provider.wrap(data_key, _CONTEXT + vault_id),
            commitment=sealer.commitment,
        )
        manifest = Manifest(synthetic, source, generation=1, rows=0, last_id=0, digest=rows_digest(()))
        database.create(path, FORMAT, header, sealer.seal_manifest(manifest.encoded, header.encoded))
        return cls._connected(path, database.connect(path, FORMAT), header, sealer)

    @classmethod
    def open(cls, path: Path, provider: KeyProvider) -> Vault:
        """Open the vault at ``path`` for reading and adding; checks the manifest against all rows.

        Raises :class:`VaultError` (missing, no vault, newer format, in use, damaged or altered) or
        :class:`KeyUnavailable` (wrong or missing key). Never creates anything.
        """
        connection = database.connect(path, FORMAT)
        try:
            with database.reported(path):
                header, _ = _read_header(path, connection)
            scheme = provider.uri.partition(":")[0]
            if header.scheme != scheme:
                raise KeyUnavailable(
                    f"the key of vault {path} is kept by {header.scheme}:, not {scheme}:; name the {header.scheme}: key"
                )
            data_key = provider.unwrap(header.wrapped, _CONTEXT + header.vault_id)
            sealer = Sealer(data_key, header.vault_id)
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

    def add(self, records: Iterable[Record]) -> int:
        """Add all of ``records`` in one transaction, or none of them; returns how many.

        Takes them one at a time and keeps none in memory. On any failure, one of ``records``' own
        included, on Ctrl-C and on SIGKILL the vault is what it was before. Raises :class:`DataError` for a
        record that a vault does not hold, :class:`VaultError` for a disk that is full and the like.
        """
        connection = self._idle_connection
        added: dict[int, bytes] = {}
        with database.transaction(self.path, connection, "IMMEDIATE"):
            self._load(connection)  # another process may have added since
            state = self._state
            for number, record in enumerate(records, start=1):
                row_id = state.last_id + number
                if row_id > LARGEST_ROW_ID:
                    raise VaultError(f"vault {self.path} is full ({LARGEST_ROW_ID} images); start another vault")
                added[row_id] = self._insert(connection, row_id, record, number)
            if not added:
                return 0
            seals = self._seals | added
            state = Manifest(
                synthetic=state.synthetic,
                source=state.source,
                generation=state.generation + 1,
                rows=len(seals),
                last_id=state.last_id + len(added),
                digest=rows_digest(seals.items()),
            )
            sealed = self._sealer.seal_manifest(state.encoded, self._header.encoded)
            with database.reported(self.path):
                connection.execute("UPDATE header SET manifest_seal = ?, manifest = ?", sealed)
        self._seals, self._manifest = seals, state
        return len(added)

    def rows(self) -> list[Row]:
        """Everything but pixels and masks, of all images; ordered by (digest, id), the same in any copy."""
        found = []
        with database.reported(self.path):
            for row_id, meta in self._connection.execute("SELECT id, meta FROM image"):
                if row_id in self._seals:  # or added by another process since
                    found.append(self._meta(row_id, meta))
        if len({row.id for row in found}) != len(found) or len(found) != len(self._seals):
            raise database.damaged(self.path, f"it lists {len(found)} of {len(self._seals)} images")
        return sorted(found, key=lambda row: (row.digest, row.id))

    def read(self, row_id: int) -> NDArray[Any]:
        """The pixels of one image as they were added: ``(H, W)`` or ``(H, W, 3)``, writable, little-endian."""
        form = self._form(row_id)
        return self._array(Kind.PIXELS, row_id, self._fetch("pixels", row_id), form)

    def read_many(self, ids: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The pixels of several images, in the order of ``ids``; the quick way to read an epoch.

        Fetches some 4 MiB of ciphertext at a time; no lock is held while an image is with the caller.
        """
        position = 0
        while position < len(ids):
            fetched: list[tuple[int, Form, bytes]] = []
            size = 0
            connection = self._connection
            # While adding, the transaction is the one that is open.
            adding = connection.in_transaction
            with nullcontext() if adding else database.transaction(self.path, connection, "DEFERRED"):
                while position < len(ids) and size < _BATCH_BYTES and len(fetched) < _BATCH_ROWS:
                    row_id = ids[position]
                    fetched.append((row_id, self._form(row_id), self._fetch("pixels", row_id)))
                    size += len(fetched[-1][2])
                    position += 1
            for row_id, form, data in fetched:
                yield self._array(Kind.PIXELS, row_id, data, form)

    def read_mask(self, row_id: int) -> NDArray[Any]:
        """The mask of one image: ``(H, W)`` uint8, 0 or 1. Raises :class:`VaultError` where it has none."""
        if row_id in self._seals and not has_mask(self._seals[row_id]):
            raise VaultError(f"image {row_id} of vault {self.path} has no mask; ask its row's has_mask first")
        form = self._form(row_id).of_mask
        return self._array(Kind.MASK, row_id, self._fetch("mask", row_id), form)

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
        for row_id, seal in self._seals.items():
            row = self._meta(row_id, self._fetch("labels", row_id))
            if pixel_digest(self.read(row_id)) != row.digest:
                raise database.damaged(self.path, f"the pixels of image {row_id} are not those of its digest")
            if has_mask(seal):
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
        self._seals, self._manifest = dict(seals), manifest

    def _insert(self, connection: sqlite3.Connection, row_id: int, record: Record, number: int) -> bytes:
        """Seal one record and insert it; returns its seal."""
        form = checked(record, number)
        meta_seal, meta = self._sealer.seal(Kind.META, row_id, None, encode_meta(record, form, number))
        pixels_seal, pixels = self._sealer.seal(Kind.PIXELS, row_id, form, pixel_bytes(record.pixels))
        mask_seal, mask = None, b""
        if record.mask is not None:
            mask_seal, mask = self._sealer.seal(Kind.MASK, row_id, form.of_mask, pixel_bytes(record.mask))
        seal = row_seal(meta_seal, pixels_seal, mask_seal)
        with database.reported(self.path):
            connection.execute("INSERT INTO image VALUES (?, ?, ?)", (row_id, seal, meta))
            connection.execute("INSERT INTO pixels VALUES (?, ?)", (row_id, pixels))
            if mask_seal is not None:
                connection.execute("INSERT INTO mask VALUES (?, ?)", (row_id, mask))
        return seal

    def _fetch(self, part: str, row_id: int) -> bytes:
        """One ciphertext of a row: its labels (meta), pixels or mask."""
        connection = self._connection
        if row_id not in self._seals:
            raise VaultError(f"vault {self.path} has no image {row_id}; rows() lists those it has")
        with database.reported(self.path):
            found = connection.execute(_QUERIES[part], (row_id,)).fetchone()
        if found is None or not isinstance(found[0], bytes):
            raise database.damaged(self.path, f"image {row_id} has lost its {part}")
        return found[0]

    def _form(self, row_id: int) -> Form:
        """Type and shape of an image's pixels, out of its authenticated meta; kept."""
        if row_id not in self._forms:
            self._meta(row_id, self._fetch("labels", row_id))
        return self._forms[row_id]

    def _meta(self, row_id: int, meta: Any) -> Row:
        if not isinstance(meta, bytes):
            raise database.damaged(self.path, f"the labels of image {row_id} are gone")
        try:
            row = decode_meta(row_id, self._sealer.open(Kind.META, row_id, self._seals[row_id], meta))
        except AuthenticationError:
            raise database.damaged(self.path, f"the labels of image {row_id} fail authentication") from None
        self._forms[row_id] = form_of(row.dtype, row.shape)
        return row

    def _array(self, kind: Kind, row_id: int, data: bytes, form: Form) -> NDArray[Any]:
        try:
            return self._sealer.open_array(kind, row_id, self._seals[row_id], data, form)
        except AuthenticationError:
            what = kind.name.lower()
            raise database.damaged(self.path, f"the {what} of image {row_id} fail authentication") from None


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
