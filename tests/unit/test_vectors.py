"""docs/vault-format.md, held to its word: a second reader written from it, and a vector a way of being broken."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import struct
import unicodedata
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305

from client.vault.keys import KeyProvider, provider
from client.vault.store import Vault
from client.vault.witness import Witness
from common.errors import VaultError
from tests.vectors.make import make

VECTORS = Path(__file__).parents[1] / "vectors"
TOLD = json.loads((VECTORS / "vectors.json").read_text())
VALID, BROKEN = TOLD["valid"], TOLD["broken"]
LARGEST_FILE, LARGEST_SUM = 24 * 1024, 600 * 1024

# --- a reader of its own: the standard library and AES-GCM, HKDF, Argon2id; nothing of client.vault ---


def unlocked(vector: dict[str, Any], wrapped: bytes, context: bytes) -> bytes:
    """The data key inside ``wrapped``, for ``file:`` and ``passphrase:``."""
    if "key" in vector:
        purpose, length = b"fedward wrap 1: key file\0", 16
        secret = bytes.fromhex((VECTORS / vector["key"]).read_text().strip())
    else:
        purpose, length = b"fedward wrap 1: passphrase\0", 28
        memory, passes, lanes = struct.unpack(">III", wrapped[:12])
        typed = unicodedata.normalize("NFC", vector["passphrase"]).encode()
        secret = Argon2id(salt=wrapped[12:28], length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(
            typed
        )
    head, nonce, sealed = wrapped[:length], wrapped[length : length + 12], wrapped[length + 12 :]
    key = HKDF(SHA256(), 32, head[-16:], purpose + context).derive(secret)
    return AESGCM(key).decrypt(nonce, sealed, purpose + head + context)


class Reader:
    """A vault's file, decrypted by the document's words; fails with AssertionError or InvalidTag."""

    def __init__(self, path: Path, vector: dict[str, Any]) -> None:
        self.raw = path.read_bytes()
        assert self.raw[:16] == b"SQLite format 3\0"
        assert self.raw[68:72] == b"FDWV"
        self.format = int.from_bytes(self.raw[60:64], "big")
        assert self.format in (1, 2)
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
            (header,) = file.execute(
                "SELECT vault_id, scheme, wrapped, commitment, manifest_seal, manifest FROM header"
            ).fetchall()
            self.images = file.execute("SELECT id, seal, meta FROM image ORDER BY id").fetchall()
            self.pixels = dict(file.execute("SELECT id, data FROM pixels"))
            self.masks = dict(file.execute("SELECT id, data FROM mask"))
        self.id, wrapped, commitment = header[0], header[2], header[3]
        self.data_key = unlocked(vector, wrapped, b"fedward vault data key\0" + self.id)
        assert hmac.compare_digest(self.derived(b"commitment"), commitment)
        fields = b"".join(len(field).to_bytes(4, "big") + field for field in header[:4])
        self.manifest = json.loads(
            self.opened(b"manifest", header[4], header[5], b"fedward vault 1 manifest\0" + fields)
        )
        seals = b"".join(struct.pack(">Q", row_id) + seal for row_id, seal, _ in self.images)
        assert self.manifest["digest"] == hashlib.sha256(seals).hexdigest()
        assert self.manifest["rows"] == len(self.images)
        assert all(len(seal) == 84 and row_id <= self.manifest["last_id"] for row_id, seal, _ in self.images)

    def derived(self, purpose: bytes) -> bytes:
        return HKDF(SHA256(), 32, self.id, b"fedward vault 1: " + purpose).derive(self.data_key)

    def opened(self, key: bytes, seal: bytes, cipher: bytes, associated: bytes) -> bytes:
        assert len(seal) == 28
        return AESGCM(self.derived(key)).decrypt(seal[:12], cipher + seal[12:], associated)

    def part(self, kind: int, row_id: int, seal: bytes, cipher: bytes, form: bytes = b"") -> bytes:
        place = self.id + bytes([kind]) + row_id.to_bytes(8, "big")
        return self.opened(b"rows", seal[28 * kind : 28 * kind + 28], cipher, b"fedward vault 1 row\0" + place + form)

    def rows(self) -> list[dict[str, Any]]:
        """Each image as ``vectors.json`` tells it."""
        found = []
        for row_id, seal, cipher in self.images:
            meta = json.loads(self.part(0, row_id, seal, cipher))
            meta["has_mask"] = meta.pop("mask") if self.format == 1 else meta["has_mask"]
            shape, codec = meta["shape"], meta.get("codec", "raw")
            pixels = self.part(1, row_id, seal, self.pixels[row_id], form_of(meta["dtype"], shape))
            if codec == "jpeg-ls":
                pixels = decompressed(pixels, meta["dtype"])
            start = f"{meta['dtype']} {tuple(shape)}\n".encode()
            assert hashlib.sha256(start + pixels).hexdigest() == meta["digest"]
            defaults = {"codec": "raw", "generation": 0, "keys": {}, "boxes": [], "measures": {}}
            row = {"id": row_id, **defaults, **meta, "pixels": pixels.hex()}
            assert meta["has_mask"] == (row_id in self.masks) == any(seal[56:])
            if meta["has_mask"]:
                row["mask"] = self.part(2, row_id, seal, self.masks[row_id], form_of("uint8", shape[:2])).hex()
            found.append(row)
        assert len(self.pixels) == len(found)
        return found


def form_of(dtype: str, shape: list[int]) -> bytes:
    sides = (*shape, 0, 0)[:3]
    return struct.pack(">BBIII", ("uint8", "uint16", "int16").index(dtype), len(shape), *sides)


def decompressed(packed: bytes, dtype: str) -> bytes:
    import jpeg_ls  # type: ignore[import-untyped]

    plain, _ = jpeg_ls.decode_buffer(packed)
    if dtype != "int16":
        return bytes(plain)
    return (np.frombuffer(plain, "<u2") ^ np.uint16(0x8000)).tobytes()


@pytest.mark.parametrize("name", VALID)
def test_the_document_suffices_to_read_a_vault(name: str) -> None:
    told = VALID[name]
    reader = Reader(VECTORS / told["vault"], told)
    assert reader.data_key.hex() == told["data_key"]
    assert reader.rows() == told["rows"]
    manifest = {"secret": "", "tombstones": [], **reader.manifest}
    for key in ("synthetic", "source", "generation", "secret", "tombstones"):
        assert manifest[key] == told[key], key
    if "memory" in told:
        kept = json.loads((VECTORS / told["memory"]).read_text())
        assert kept["size"] == len(reader.raw)
        salt = bytes.fromhex(kept["salt"])
        key = HKDF(SHA256(), 32, salt, b"fedward vault 1: file").derive(reader.derived(b"file"))
        assert kept["file_mac"] == Poly1305.generate_tag(key, reader.raw).hex()
        mac, secret = kept.pop("mac"), bytes.fromhex(manifest["secret"])
        text = json.dumps(kept, sort_keys=True).encode()
        assert mac == hmac.new(secret, b"memory\0" + text, "sha256").hexdigest()


SEEN_BY_READING = [
    # The others are matters of schema, journal and scheme, which the small reader above does not look at.
    name
    for name, told in BROKEN.items()
    if told["on"] != "verify" and not name.startswith(("extra", "write-ahead", "exchanged scheme"))
]


@pytest.mark.parametrize("name", SEEN_BY_READING)
def test_that_reader_is_not_taken_in_either(name: str, tmp_path: Path) -> None:
    """What reading must find, a reader finds that does no more than the document asks of reading."""
    path = damaged(name, tmp_path)
    with pytest.raises((AssertionError, InvalidTag, KeyError, ValueError, sqlite3.Error)):
        Reader(path, BROKEN[name]).rows()


# --- this implementation ---------------------------------------------------------------------------


def copied(source: str, folder: Path) -> Path:
    """A copy of one file of the vectors, its owner's alone: git does not keep the mode."""
    path = folder / Path(source).name
    path.write_bytes((VECTORS / source).read_bytes())
    path.chmod(0o600)
    return path


def damaged(name: str, folder: Path) -> Path:
    """The vault of a broken vector, put together as README.md says."""
    told = BROKEN[name]
    path = copied(told["vault"], folder)
    content = bytearray(path.read_bytes()[: told["size"]].ljust(told["size"], b"\0"))
    for at, piece in told["bytes"].items():
        content[int(at) : int(at) + len(piece) // 2] = bytes.fromhex(piece)
    path.write_bytes(content)
    return path


def opener(told: dict[str, Any], folder: Path) -> KeyProvider:
    if "passphrase" in told:
        return provider("passphrase:", base=folder, passphrase=lambda: told["passphrase"])
    return provider(f"file:{copied(told['key'], folder)}", base=folder)


@pytest.mark.parametrize("name", VALID)
def test_what_a_valid_vault_holds(name: str, tmp_path: Path) -> None:
    told = VALID[name]
    path = copied(told["vault"], tmp_path)
    before = path.read_bytes()
    with Vault.open(path, opener(told, tmp_path)) as vault:
        vault.verify()
        facts = (vault.id, vault.synthetic, vault.source, vault.generation, sorted(vault.tombstones))
        assert facts == tuple(told[key] for key in ("id", "synthetic", "source", "generation", "tombstones"))
        assert not told["secret"] or vault.secret.hex() == told["secret"]
        assert [row.id for row in vault.each()] == [row["id"] for row in told["rows"]]
        for row, expected in zip(vault.each(), told["rows"], strict=True):
            assert vault.read(row.id).tobytes().hex() == expected["pixels"]
            assert (vault.read_mask(row.id).tobytes().hex() if row.has_mask else None) == expected.get("mask")
            assert (row.patient, dict(row.keys), row.codec) == tuple(
                expected[key] for key in ("patient", "keys", "codec")
            )
        if "memory" in told:
            assert Witness(copied(told["memory"], tmp_path)).check_file(vault)
    assert path.read_bytes() == before, "reading writes nothing, and migrates nothing"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_vault_is_refused_by_name(name: str, tmp_path: Path) -> None:
    told = BROKEN[name]
    path, keys = damaged(name, tmp_path), opener(told, tmp_path)
    expected = told["error"].format(vault=path, key=tmp_path / Path(told["key"]).name)

    def fails(action: Callable[[], object]) -> bool:
        try:
            action()
        except VaultError as error:
            assert str(error) == expected
            return True
        return False

    before = path.read_bytes()
    if told["on"] == "open":
        assert fails(lambda: Vault.open(path, keys))
        assert fails(lambda: Vault.open(path, keys, read_only=True))
    else:
        with Vault.open(path, keys) as vault:
            reads: dict[str, Callable[[], object]] = {"verify": vault.verify, "mask 3": partial(vault.read_mask, 3)}
            reads |= {f"read {row_id}": partial(vault.read, row_id) for row_id in (1, 2, 3, 5, 6)}
            assert fails(reads[told["on"]])
            with pytest.raises(VaultError, match="damaged or was altered"):
                vault.verify()
            allowed = {told["on"], "verify", *(("read 3",) if name == "swapped pixels" else ())}
            for action in reads.keys() - allowed:
                reads[action]()  # the other images can still be read
    assert path.read_bytes() == before, "nothing is put right behind anybody's back"


def test_the_vectors_cover_what_they_should() -> None:
    rows = VALID["full"]["rows"]
    assert {(row["codec"], row["dtype"]) for row in rows} == {
        ("raw", "uint8"),
        ("raw", "int16"),
        ("jpeg-ls", "uint16"),
        ("jpeg-ls", "int16"),
    }
    assert [row["id"] for row in rows] == [1, 2, 3, 5, 6]
    assert VALID["full"]["tombstones"]
    assert any(row["boxes"] for row in rows)
    assert len(BROKEN) >= 30
    files = [path for path in VECTORS.rglob("*") if path.is_file() and path.suffix in (".sqlite", ".key", ".json")]
    sizes = {path.name: path.stat().st_size for path in files}
    assert max(size for name, size in sizes.items() if name.endswith(".sqlite")) <= LARGEST_FILE
    assert sum(path.stat().st_size for path in files) <= LARGEST_SUM


def test_the_document_has_the_schema_word_for_word() -> None:
    text = (VECTORS.parents[1] / "docs" / "vault-format.md").read_text(encoding="utf-8")
    for name in ("format-1/vault", "format-2/full"):
        with closing(sqlite3.connect(f"{(VECTORS / f'{name}.sqlite').as_uri()}?mode=ro", uri=True)) as file:
            schema = [sql for (sql,) in file.execute("SELECT sql FROM sqlite_schema ORDER BY rowid")]
        assert text.count("CREATE TABLE") == len(schema)
        assert "\n".join(schema) in text


def test_the_vectors_can_be_made_again(tmp_path: Path) -> None:
    """Byte for byte with the SQLite that made them; by content with another, which writes its version into the file."""
    (tmp_path / "format-1").mkdir()
    for name in ("vault.sqlite", "vault.key"):
        copied(f"format-1/{name}", tmp_path / "format-1")
    make(tmp_path)
    again = json.loads((tmp_path / "vectors.json").read_text())
    assert again["valid"] == VALID
    assert again["broken"].keys() == BROKEN.keys()
    for name in ("empty", "full", "passphrase"):
        assert tables(tmp_path / "format-2" / f"{name}.sqlite") == tables(VECTORS / "format-2" / f"{name}.sqlite")


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as file:
        return {
            name: file.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("header", "image", "pixels", "mask")
        }
