"""``Change``: one transaction on a vault. It is committed as a whole, with a new manifest, or it never was."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from client.vault import database
from client.vault.codecs import RAW, pack
from client.vault.manifest import Header, Manifest, rows_digest
from client.vault.records import Form, Record, Row, checked, decode_meta, encode_meta, form_of, pixel_bytes, row_of
from client.vault.sealing import FORMAT, LARGEST_ROW_ID, AuthenticationError, Kind, Sealer, part_of, row_seal
from common.errors import VaultError

SECRET_BYTES = 32


class Change:
    """What a transaction does to rows, tombstones and header; see ``Vault.changing``."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        sealer: Sealer,
        header: Header,
        manifest: Manifest,
        seals: dict[int, bytes],
    ) -> None:
        self._path, self._connection, self._sealer = path, connection, sealer
        self._before = manifest
        self._dirty = not manifest.secret  # of format 1: any change migrates it
        self._header_before = self.header = header
        self.seals = seals
        """Of all rows as they will be; a copy that this change owns."""
        self.last_id = manifest.last_id
        self.tombstones = frozenset(manifest.tombstones)

    @property
    def generation(self) -> int:
        """The generation that this change makes."""
        return self._before.generation + 1

    def insert(self, record: Record, number: int, codec: str = RAW) -> Row:
        """Add one image; ``number`` names it in errors. Raises :class:`DataError` for what a vault does not hold."""
        form = checked(record, number)
        row_id = self.last_id + 1
        if row_id > LARGEST_ROW_ID:
            raise VaultError(f"vault {self._path} is full ({LARGEST_ROW_ID} images); start another vault")
        used, packed = pack(record.pixels, codec)
        row = row_of(row_id, record, form, used, self.generation)
        mask = None if record.mask is None else pixel_bytes(record.mask)
        self._write(row_id, form, encode_meta(row, number), packed, mask)
        return row

    def copy(self, row_id: int, seal: bytes, old: Sealer, fetch: Callable[[str], bytes]) -> None:
        """Take over an image from a vault sealed by ``old``: ``seal`` and ``fetch(part)`` are that vault's."""
        try:
            meta = old.open(Kind.META, row_id, seal, fetch("labels"))
            row = decode_meta(row_id, meta)
            form = form_of(row.dtype, row.shape)
            packed = old.open_packed(Kind.PIXELS, row_id, seal, fetch("pixels"), form)
            mask = old.open_packed(Kind.MASK, row_id, seal, fetch("mask"), form.of_mask) if row.has_mask else None
        except AuthenticationError:
            raise database.damaged(self._path, f"image {row_id} fails authentication") from None
        self._write(row_id, form, meta, packed.data, None if mask is None else mask.data)

    def _write(
        self, row_id: int, form: Form, meta: bytes, packed: bytes | memoryview, mask: bytes | memoryview | None
    ) -> None:
        """Seal the parts of an image and insert them."""
        meta_seal, meta = self._sealer.seal(Kind.META, row_id, None, meta)
        pixels_seal, pixels = self._sealer.seal(Kind.PIXELS, row_id, form, packed)
        mask_seal, sealed = None, b""
        if mask is not None:
            mask_seal, sealed = self._sealer.seal(Kind.MASK, row_id, form.of_mask, mask)
        seal = row_seal(meta_seal, pixels_seal, mask_seal)
        with database.reported(self._path):
            self._connection.execute("INSERT INTO image VALUES (?, ?, ?)", (row_id, seal, meta))
            self._connection.execute("INSERT INTO pixels VALUES (?, ?)", (row_id, pixels))
            if mask_seal is not None:
                self._connection.execute("INSERT INTO mask VALUES (?, ?)", (row_id, sealed))
        self.seals[row_id] = seal
        self.last_id = row_id
        self._dirty = True

    def replace(self, row: Row, mask: NDArray[Any] | None = None) -> None:
        """Give image ``row.id`` the labels, split, attributes and boxes of ``row``, and ``mask`` where there is one.

        The pixels stay. ``mask`` is ``(H, W)`` uint8, 0 or 1.
        """
        seal = self.seals[row.id]
        mask_seal = part_of(seal, Kind.MASK) if row.has_mask else None
        if mask is not None:
            form = form_of("uint8", row.shape[:2])
            if mask.dtype.name != form.dtype or mask.shape != form.shape or mask.max(initial=0) > 1:
                raise VaultError(
                    f"the mask for image {row.id} is not uint8 {form.shape} of 0 and 1; draw it on the image"
                )
            mask_seal, sealed = self._sealer.seal(Kind.MASK, row.id, form, pixel_bytes(mask))
            row = replace(row, has_mask=True)
            with database.reported(self._path):
                self._connection.execute("INSERT OR REPLACE INTO mask VALUES (?, ?)", (row.id, sealed))
        meta_seal, meta = self._sealer.seal(Kind.META, row.id, None, encode_meta(row, row.id))
        self.seals[row.id] = row_seal(meta_seal, part_of(seal, Kind.PIXELS), mask_seal)
        with database.reported(self._path):
            self._connection.execute(
                "UPDATE image SET seal = ?, meta = ? WHERE id = ?", (self.seals[row.id], meta, row.id)
            )
        self._dirty = True

    def remove(self, row_id: int) -> None:
        """Remove one image; SQLite overwrites its pages with zeros."""
        del self.seals[row_id]
        with database.reported(self._path):
            for statement in (
                "DELETE FROM image WHERE id = ?",
                "DELETE FROM pixels WHERE id = ?",
                "DELETE FROM mask WHERE id = ?",
            ):
                self._connection.execute(statement, (row_id,))
        self._dirty = True

    def touch(self) -> None:
        """Make a new generation even where nothing else changes."""
        self._dirty = True

    def finish(self) -> Manifest | None:
        """Write the manifest of what is now, inside the transaction; ``None`` where nothing has changed."""
        before = self._before
        same = self.tombstones == frozenset(before.tombstones) and self.header == self._header_before
        if same and not self._dirty:
            return None
        manifest = Manifest(
            synthetic=before.synthetic,
            source=before.source,
            generation=self.generation,
            rows=len(self.seals),
            last_id=self.last_id,
            digest=rows_digest(sorted(self.seals.items())),
            secret=before.secret or secrets.token_hex(SECRET_BYTES),
            tombstones=tuple(sorted(self.tombstones)),
        )
        write_header(self._path, self._connection, self._sealer, self.header, manifest)
        return manifest


def write_header(
    path: Path, connection: sqlite3.Connection, sealer: Sealer, header: Header, manifest: Manifest
) -> None:
    """Write header, sealed manifest and format; inside a transaction."""
    sealed = sealer.seal_manifest(manifest.encoded, header.encoded)
    with database.reported(path):
        connection.execute(
            "UPDATE header SET scheme = ?, wrapped = ?, commitment = ?, manifest_seal = ?, manifest = ?",
            (header.scheme.encode(), header.wrapped, header.commitment, *sealed),
        )
        connection.execute(f"PRAGMA user_version={FORMAT}")
