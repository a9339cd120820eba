"""Makes the vectors of format 2 again, and ``vectors.json``: ``python -m tests.vectors.make DIRECTORY``.

Chance is replaced by a fixed stream, so that the same code and SQLite make the same bytes. ``format-1`` is taken as it
is: no code that writes it is left. What each broken vault must be refused with is written here, by hand.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from client.vault.keys import KeyProvider, provider
from client.vault.records import Box, Record, Row, pixel_bytes
from client.vault.store import Vault
from client.vault.witness import Witness

PASSPHRASE = "un cafe\u0301 cre\u0300me"
"""As typed, letters and combining accents apart: a reader has to bring it to NFC."""
KEYS = {"vault.key": "11" * 32, "other.key": "22" * 32}
ERASED = "2f" * 16
DAMAGED = "vault {vault} is damaged or was altered: %s; restore it from a backup or import it again"
NO_VAULT = "{vault} is not a vault; check the path, or restore the vault from a backup"
WRONG_KEY = (
    "the key in {key} does not open this vault: name the key file the vault was made with, or restore the vault's "
    "file if its header was damaged"
)
SWAP = "UPDATE {0} SET id = -id WHERE id IN ({1}, {2}); UPDATE {0} SET id = {1} + {2} + id WHERE id < 0;"


@dataclass(frozen=True)
class Broken:
    """One way in which a vault can be broken."""

    name: str
    edit: str | Callable[[bytes], bytes] | Callable[[Vault], None]
    """SQL (the vault two generations earlier is attached as ``older``), or what is done to the file's bytes."""
    error: str
    """What refuses it; after ``damaged:``, the finding."""
    on: str = "open"
    """``open``, ``verify`` (also finds everything that the others find), ``read 3`` or ``mask 3``."""
    by: str = "anybody"
    """``key``: could be made only by who has the key."""


def flipped(table: str, column: str, row: str, at: int) -> Callable[[bytes], bytes]:
    """Flips the lowest bit of byte ``at`` of one value."""

    def edit(content: bytes) -> bytes:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(content)
            (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {row}").fetchone()
            value = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {row}", (value,))
            connection.commit()
            return connection.serialize()

    return edit


def written(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """Puts ``value`` at byte ``at`` of the file."""
    return lambda content: content[:at] + value + content[at + len(value) :]


def changed(**fields: Any) -> Callable[[Vault], None]:
    """Seals image 1's meta anew with other ``fields``, as who has the key can."""

    def edit(vault: Vault) -> None:
        with vault.changing() as change:
            change.replace(replace(next(vault.each()), **fields))

    return edit


BROKEN = (
    Broken("cut inside of SQLite's header", lambda content: content[:60], NO_VAULT),
    Broken("truncated", lambda content: content[:8192], "damaged: database disk image is malformed"),
    Broken("wrong application id", written(68, b"SQLi"), NO_VAULT),
    Broken(
        "newer format",
        written(60, b"\0\0\0\3"),
        "vault {vault} has format 3, this fedward reads up to 2: upgrade fedward",
    ),
    Broken("format 0", written(60, bytes(4)), "damaged: its header is not that of a vault"),
    Broken("write-ahead log", written(18, b"\2\2"), "damaged: its header is not that of a vault"),
    Broken("extra table", "CREATE TABLE notes (text)", "damaged: its tables are not those of a vault"),
    Broken(
        "extra trigger",
        "CREATE TRIGGER t AFTER INSERT ON image BEGIN DELETE FROM pixels; END",
        "damaged: its tables are not those of a vault",
    ),
    Broken("extra view", "CREATE VIEW v AS SELECT * FROM pixels", "damaged: its tables are not those of a vault"),
    Broken("extra index", "CREATE INDEX i ON image (seal)", "damaged: its tables are not those of a vault"),
    Broken("no header", "DELETE FROM header", "damaged: its header is not readable"),
    Broken(
        "exchanged header",
        "UPDATE header SET (vault_id, wrapped, commitment) = "
        "(SELECT vault_id, wrapped, commitment FROM stranger.header)",
        "damaged: its manifest or header fails authentication",
    ),
    Broken("exchanged vault id", flipped("header", "vault_id", "one = 1", 0), WRONG_KEY),
    Broken(
        "exchanged scheme",
        "UPDATE header SET scheme = CAST('passphrase' AS BLOB)",
        "the key of vault {vault} is kept by passphrase:, not file:; name the passphrase: key",
    ),
    Broken("wrapped key truncated", "UPDATE header SET wrapped = substr(wrapped, 1, 40)", WRONG_KEY),
    Broken("wrapped key flipped", flipped("header", "wrapped", "one = 1", 40), WRONG_KEY),
    Broken(
        "wrapped key of another vault", "UPDATE header SET wrapped = (SELECT wrapped FROM stranger.header)", WRONG_KEY
    ),
    Broken(
        "wrong commitment",
        flipped("header", "commitment", "one = 1", 31),
        "damaged: its key commitment is not that of its key",
    ),
    Broken(
        "flipped manifest",
        flipped("header", "manifest", "one = 1", 0),
        "damaged: its manifest or header fails authentication",
    ),
    Broken(
        "stale manifest",
        "UPDATE header SET (manifest_seal, manifest) = (SELECT manifest_seal, manifest FROM older.header)",
        "damaged: it has 5 images where its manifest says 6",
    ),
    Broken(
        "missing row",
        "DELETE FROM image WHERE id = 2; DELETE FROM pixels WHERE id = 2",
        "damaged: it has 4 images where its manifest says 5",
    ),
    Broken(
        "erased row put back",
        "INSERT INTO image SELECT * FROM older.image WHERE id = 4; "
        "INSERT INTO pixels SELECT * FROM older.pixels WHERE id = 4",
        "damaged: it has 6 images where its manifest says 5",
    ),
    Broken(
        "swapped rows",
        SWAP.format("image", 1, 2) + SWAP.format("pixels", 1, 2),
        "damaged: its images are not those of its manifest",
    ),
    Broken(
        "row from an older generation",
        "UPDATE image SET (seal, meta) = (SELECT seal, meta FROM older.image WHERE id = 1) WHERE id = 1",
        "damaged: its images are not those of its manifest",
    ),
    Broken(
        "flipped pixel tag", flipped("image", "seal", "id = 1", 55), "damaged: its images are not those of its manifest"
    ),
    Broken(
        "seal too short", "UPDATE image SET seal = substr(seal, 1, 56) WHERE id = 1", "damaged: an image has no seal"
    ),
    Broken(
        "pixels flipped",
        flipped("pixels", "data", "id = 1", 0),
        "damaged: the pixels of image 1 fail authentication",
        "read 1",
    ),
    Broken(
        "compressed bytes flipped",
        flipped("pixels", "data", "id = 2", 40),
        "damaged: the pixels of image 2 fail authentication",
        "read 2",
    ),
    Broken(
        "pixels truncated",
        "UPDATE pixels SET data = substr(data, 1, 47) WHERE id = 1",
        "damaged: the pixels of image 1 fail authentication",
        "read 1",
    ),
    Broken(
        "swapped pixels", SWAP.format("pixels", 1, 3), "damaged: the pixels of image 1 fail authentication", "read 1"
    ),
    Broken(
        "labels flipped",
        flipped("image", "meta", "id = 2", 0),
        "damaged: the labels of image 2 fail authentication",
        "read 2",
    ),
    Broken(
        "mask flipped",
        flipped("mask", "data", "id = 3", 0),
        "damaged: the mask of image 3 fails authentication",
        "mask 3",
    ),
    Broken("missing pixels", "DELETE FROM pixels WHERE id = 3", "damaged: image 3 has lost its pixels", "read 3"),
    Broken(
        "pixels of no row",
        "INSERT INTO pixels VALUES (9, x'00')",
        "damaged: its pixels are not those of its images",
        "verify",
    ),
    Broken(
        "pixels for another shape",
        changed(shape=(8, 6)),
        "damaged: the pixels of image 1 fail authentication",
        "read 1",
        "key",
    ),
    Broken(
        "digest of other pixels",
        changed(digest="00" * 32),
        "damaged: the pixels of image 1 are not those of its digest",
        "verify",
        "key",
    ),
)


@contextmanager
def no_chance() -> Iterator[None]:
    """Salts, nonces and keys from a fixed stream. For test vectors only: a vault made so protects nothing."""
    drawn = 0

    def draw(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"fedward vectors {drawn}".encode()).digest(size)

    with mock.patch("os.urandom", draw), mock.patch("secrets.token_hex", lambda size: draw(size).hex()):
        yield


def ramp(shape: tuple[int, ...], dtype: str, start: int = 0) -> NDArray[Any]:
    """Pixels that count upwards."""
    return (np.arange(np.prod(shape)).reshape(shape) + start).astype(dtype)


def records() -> Iterator[tuple[Record, str]]:
    """The images of ``full``, each with its codec; ids from 1."""
    slope = np.minimum.outer(np.arange(16), np.arange(24)).astype("int16") * 100
    mask = np.eye(6, 8, dtype=np.uint8)
    boxes = (Box("opacity", 1.0, 2.0, 3.5, 2.0),)
    keys = {"file": "c3" * 16, "sop": "d4" * 16}
    yield Record(ramp((6, 8), "uint8"), "a1" * 16, {"label": ("normal",)}, "train", {"sex": "F"}), "raw"
    yield Record(slope.astype("uint16"), "b2" * 16, {"label": ("effusion", "mass")}, measures={"mean": 0.25}), "jpeg-ls"
    yield Record(ramp((6, 8), "int16", -24), "b2" * 16, {}, "", mask=mask, boxes=boxes), "raw"
    yield Record(ramp((6, 8), "uint8", 99), ERASED, {}, "test"), "raw"
    yield Record(ramp((4, 5, 3), "uint8", 7), "e5" * 16, {"label": ()}, "val", keys=keys), "raw"
    yield Record(slope - 700, "e5" * 16, {"label": ("normal",)}, "val"), "jpeg-ls"


def make_full(path: Path, keys: KeyProvider) -> bytes:
    """Generation 4 of a vault that once had another image and another label; its bytes as of generation 2."""
    with Vault.create(path, keys, synthetic=True, source="test vector") as vault:
        with vault.changing() as change:
            for number, (record, codec) in enumerate(records(), start=1):
                change.insert(record, number, codec)
        older = path.read_bytes()
        with vault.changing() as change:
            change.replace(replace(next(vault.each()), labels={"label": ("pneumonia",)}))
        vault.erase([ERASED])
        witness = Witness(path.with_name("full.vault.json"))
        witness.start(vault)
        witness.seal(vault, entries=3, head="ab" * 32)
    return older


def content(path: Path, keys: KeyProvider) -> dict[str, Any]:
    """What a reader must find in the vault at ``path``."""
    with closing(sqlite3.connect(path)) as connection:
        vault_id, wrapped = connection.execute("SELECT vault_id, wrapped FROM header").fetchone()
    with Vault.open(path, keys, read_only=True) as vault:
        return {
            "data_key": keys.unwrap(wrapped, b"fedward vault data key\0" + vault_id).hex(),
            "id": vault.id,
            "synthetic": vault.synthetic,
            "source": vault.source,
            "generation": vault.generation,
            "secret": vault.secret.hex() if path.parent.name != "format-1" else "",
            "tombstones": sorted(vault.tombstones),
            "rows": [image(vault, row) for row in vault.each()],
        }


def image(vault: Vault, row: Row) -> dict[str, Any]:
    """A row with its pixels and mask, as hexadecimal little-endian bytes."""
    found = asdict(row) | {"pixels": pixel_bytes(vault.read(row.id)).hex()}
    return found | ({"mask": pixel_bytes(vault.read_mask(row.id)).hex()} if row.has_mask else {})


def broken(one: Broken, good: bytes, others: dict[str, bytes], keys: KeyProvider) -> bytes:
    """``good`` with one thing wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vault.sqlite"
        path.write_bytes(good)
        if one.by == "key":
            with Vault.open(path, keys) as vault:
                one.edit(vault)  # type: ignore[arg-type, operator]
            return path.read_bytes()
        if not isinstance(one.edit, str):
            return one.edit(good)  # type: ignore[arg-type, return-value]
        with closing(sqlite3.connect(path)) as connection:
            for name, other in others.items():
                (path.parent / name).write_bytes(other)
                connection.execute(f"ATTACH '{path.parent / name}' AS {name}")
            connection.execute("PRAGMA main.secure_delete = ON")
            connection.executescript(one.edit)
        return path.read_bytes()


def difference(good: bytes, bad: bytes) -> dict[str, Any]:
    """How to make ``bad``: cut or fill ``good`` with zeros to ``size`` bytes, then write each piece at its offset."""
    start = good[: len(bad)].ljust(len(bad), b"\0")
    places = [at for at in range(len(bad)) if start[at] != bad[at]]
    pieces: dict[int, int] = {}  # first byte -> end
    first = end = -9
    for at in places:
        if at - end > 8:
            first = at
        end = pieces[first] = at + 1
    return {"size": len(bad), "bytes": {str(first): bad[first:end].hex() for first, end in pieces.items()}}


def make(directory: Path) -> None:
    """Write ``format-2/`` and ``vectors.json`` into ``directory``, which holds ``format-1/``."""
    home = directory / "format-2"
    home.mkdir(exist_ok=True)
    for name, digits in KEYS.items():
        (home / name).write_text(digits + "\n")
        (home / name).chmod(0o600)
    for path in home.glob("*.sqlite"):
        path.unlink()
    first, keys = (provider("file:vault.key", base=base) for base in (directory / "format-1", home))
    typed = provider("passphrase:", base=home, passphrase=lambda: PASSPHRASE)
    with no_chance():
        Vault.create(home / "empty.sqlite", keys, synthetic=True, source="test vector").close()
        Vault.create(home / "passphrase.sqlite", typed, synthetic=True, source="test vector").close()
        older = make_full(home / "full.sqlite", keys)
        good = (home / "full.sqlite").read_bytes()
        others = {"older": older, "stranger": (home / "empty.sqlite").read_bytes()}
        made = {one.name: broken(one, good, others, keys) for one in BROKEN}
    valid = {
        "format 1": {"vault": "format-1/vault.sqlite", "key": "format-1/vault.key"},
        "empty": {"vault": "format-2/empty.sqlite", "key": "format-2/vault.key"},
        "full": {"vault": "format-2/full.sqlite", "key": "format-2/vault.key", "memory": "format-2/full.vault.json"},
        "passphrase": {"vault": "format-2/passphrase.sqlite", "passphrase": PASSPHRASE},
    }
    for name, kept in valid.items():
        opener = first if name == "format 1" else typed if name == "passphrase" else keys
        valid[name] = kept | content(directory / kept["vault"], opener)
    refused = {
        one.name: {
            "vault": "format-2/full.sqlite",
            "key": "format-2/vault.key",
            **difference(good, made[one.name]),
            "on": one.on,
            "error": DAMAGED % one.error.removeprefix("damaged: ") if one.error.startswith("damaged: ") else one.error,
            "by": one.by,
        }
        for one in BROKEN
    }
    refused["key of another vault"] = {
        "vault": "format-2/full.sqlite",
        "key": "format-2/other.key",
        **difference(good, good),
        "on": "open",
        "error": WRONG_KEY,
        "by": "anybody",
    }
    text = json.dumps({"valid": valid, "broken": refused}, indent=1)
    (directory / "vectors.json").write_text(text + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
