"""Who has the file reads nothing; who writes to it is found out; a read never returns what was not put in."""

from __future__ import annotations

import base64
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from client.vault import records
from client.vault.keys import KeyProvider, create_key_file, provider
from client.vault.records import Form, pixel_digest
from client.vault.sealing import AuthenticationError, Kind, Sealer, row_seal
from client.vault.store import Record, Vault
from common.errors import VaultError
from common.randomness import generator


def image(number: int, side: int = 12) -> Record:
    pixels = generator("hostile", number).integers(0, 2**16, (side, side), dtype=np.uint16)
    mask = (pixels > 2**15).astype(np.uint8) if number % 2 == 0 else None
    return Record(pixels, f"patient-{number}", {"label": (f"class-{number}",)}, "test", {"age": str(number)}, mask)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a key, a vault of four images, and what it was two images earlier."""
    base = tmp_path_factory.mktemp("original")
    create_key_file(base / "key")
    with Vault.create(base / "vault", provider("file:key", base=base), synthetic=False, source="ward") as vault:
        vault.add([image(0), image(1)])
        shutil.copy(base / "vault", base / "older")
        vault.add([image(2), image(3)])
    return base


@pytest.fixture
def site(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def keys(site: Path) -> KeyProvider:
    return provider("file:key", base=site)


def altered(path: Path, script: str) -> None:
    """Do to the file what somebody with SQLite and no key can do."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


# --- reading without the key ------------------------------------------------------------------------


def spelled(marker: bytes) -> Iterator[bytes]:
    """Ways to write it, of five bytes at least: four stand by chance in one of a hundred vaults of megabytes."""
    text = marker.decode("latin-1")
    forms = (marker, marker[::-1], marker.hex().encode(), base64.b64encode(marker)[:-4], text.encode("utf-16-le"))
    yield from (form for form in forms if len(form) >= 5)


def test_no_marker_is_found_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for name in ("TMPDIR", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    site = tmp_path / "site"
    create_key_file(tmp_path / "key")
    pattern = np.frombuffer(b"PIXEL-MARKER-ROW", np.uint8)
    marked = [
        Record(
            np.tile(pattern, (256, 16)) ^ np.uint8(number),
            f"MARKER-NAME-{number}",
            {"MARKER-COLUMN": ("MARKER-LABEL",)},
            "train",
            {"MARKER-KEY": "MARKER-ATTRIBUTE"},
            mask=np.ones((256, 256), np.uint8),
        )
        for number in range(40)
    ]
    markers = [b"MARKER-NAME-", b"MARKER-COLUMN", b"MARKER-LABEL", b"MARKER-KEY", b"MARKER-ATTRIBUTE", b"MARKER-SOURCE"]
    markers += [b"PIXEL-MARKER", b"\1" * 16, b"train", b"uint8", b"synthetic", b"generation", b"digest"]
    markers += [(pattern ^ np.uint8(1)).tobytes(), bytes.fromhex(pixel_digest(marked[0].pixels))]
    markers += [(tmp_path / "key").read_bytes().strip(), bytes.fromhex((tmp_path / "key").read_text())]
    seen: set[str] = set()

    def look() -> None:
        for path in (*site.iterdir(), *temporary.iterdir()):
            seen.add(path.name)
            content = path.read_bytes()
            for marker in markers:
                for form in spelled(marker):
                    assert form not in content, f"{marker!r} in {path.name}"

    def watched() -> Iterator[Record]:
        yield from marked
        look()  # in the middle of the transaction, the page cache having overflowed

    with Vault.create(
        site / "vault", provider("file:key", base=tmp_path), synthetic=True, source="MARKER-SOURCE"
    ) as vault:
        vault.add(marked[:1])
        vault.add(watched())
        look()
        vault.verify()
        look()
    look()
    assert seen == {"vault", "vault-journal"}
    assert (site / "vault").stat().st_size > 40 * 2 * 256 * 256


def test_equal_images_look_different_and_constant_ones_random(site: Path, keys: KeyProvider) -> None:
    blank = Record(np.zeros((256, 256), np.uint8), "p", {})
    with Vault.create(site / "blank", keys, synthetic=True, source="") as vault:
        vault.add([blank, blank])
    with closing(sqlite3.connect(site / "blank")) as connection:
        (first,), (second,) = connection.execute("SELECT data FROM pixels").fetchall()
    assert first != second
    blocks = [data[at : at + 16] for data in (first, second) for at in range(0, len(data), 16)]
    assert len(set(blocks)) == len(blocks)
    counts = np.bincount(np.frombuffer(first, np.uint8), minlength=256)
    assert 100 < ((counts - 256.0) ** 2 / 256).sum() < 450  # χ² with 255 degrees of freedom


def test_label_lengths_do_not_show(site: Path, keys: KeyProvider) -> None:
    short, long = (
        Record(np.zeros((4, 4), np.uint8), "p", {"label": (word,)}) for word in ("normal", "bacterial pneumonia")
    )
    with Vault.create(site / "lengths", keys, synthetic=True, source="") as vault:
        vault.add([short, long])
    with closing(sqlite3.connect(site / "lengths")) as connection:
        assert connection.execute("SELECT DISTINCT length(meta) FROM image").fetchall() == [(512,)]


def test_no_nonce_comes_twice(site: Path, keys: KeyProvider) -> None:
    """Not after a failed import either, nor after going back to an older copy: the traps of a counter."""
    nonces: list[bytes] = []

    def collect(path: Path, after: int) -> None:
        with closing(sqlite3.connect(path)) as connection:
            for (seal,) in connection.execute("SELECT seal FROM image WHERE id > ?", (after,)):
                nonces.extend(seal[at : at + 12] for at in (0, 28, 56) if any(seal[at : at + 28]))
            nonces.extend(seal[:12] for (seal,) in connection.execute("SELECT manifest_seal FROM header"))

    def failing() -> Iterator[Record]:
        yield image(5)
        raise RuntimeError

    collect(site / "vault", 2)
    with Vault.open(site / "older", keys) as vault:
        with pytest.raises(RuntimeError):
            vault.add(failing())
        vault.add([image(2), image(3)])
    collect(site / "older", 2)
    assert len(nonces) == 2 * (2 + 2 + 1 + 1)
    assert len(set(nonces)) == len(nonces)


# --- writing without the key ------------------------------------------------------------------------

ON_OPEN = {
    "a removed row": "DELETE FROM image WHERE id = 2",
    "a removed image": "DELETE FROM image WHERE id = 4; DELETE FROM pixels WHERE id = 4",
    "swapped rows": "UPDATE image SET id = -id; UPDATE image SET id = 3 + id WHERE id IN (-1, -2);"
    "UPDATE image SET id = -id WHERE id < 0; UPDATE pixels SET id = -id; "
    "UPDATE pixels SET id = 3 + id WHERE id IN (-1, -2); UPDATE pixels SET id = -id WHERE id < 0",
    "a duplicated row": "INSERT INTO image SELECT 9, seal, meta FROM image WHERE id = 1; "
    "INSERT INTO pixels SELECT 9, data FROM pixels WHERE id = 1",
    "a renumbered row": "UPDATE image SET id = 9 WHERE id = 2; UPDATE pixels SET id = 9 WHERE id = 2",
    "one row put over another": "UPDATE image SET seal = (SELECT seal FROM image WHERE id = 1) WHERE id = 2",
    "a seal cut short": "UPDATE image SET seal = substr(seal, 1, 56) WHERE id = 2",
    "a seal of another type": "UPDATE image SET seal = 5 WHERE id = 2",
    "no rows": "DELETE FROM image; DELETE FROM pixels; DELETE FROM mask",
    "no header": "DELETE FROM header",
    "an exchanged vault id": "UPDATE header SET vault_id = randomblob(16)",
    "a short vault id": "UPDATE header SET vault_id = x'00'",
    "another key provider": "UPDATE header SET scheme = CAST('passphrase' AS BLOB)",
    "an unprintable key provider": "UPDATE header SET scheme = x'0a0aff'",
    "an exchanged wrapped key": "UPDATE header SET wrapped = randomblob(76)",
    "no wrapped key": "UPDATE header SET wrapped = NULL",
    "an exchanged commitment": "UPDATE header SET commitment = randomblob(32)",
    "an exchanged manifest": "UPDATE header SET manifest = randomblob(512)",
    "a manifest cut short": "UPDATE header SET manifest = x'', manifest_seal = x''",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON image BEGIN DELETE FROM pixels; END",
    "a view in a table's place": "DROP TABLE mask; CREATE VIEW mask AS SELECT 1 AS id, x'00' AS data",
    "a further table": "CREATE TABLE notes (text)",
    "another journal mode": "PRAGMA journal_mode = WAL",
    "another format": "PRAGMA user_version = 7",
    "another program": "PRAGMA application_id = 0",
}
ON_READ = {
    "removed pixels": ("DELETE FROM pixels WHERE id = 2", {2}),
    "swapped pixels": (
        "UPDATE pixels SET id = -id; UPDATE pixels SET id = 3 + id WHERE id IN (-1, -2);"
        "UPDATE pixels SET id = -id WHERE id < 0",
        {1, 2},
    ),
    "exchanged pixels": ("UPDATE pixels SET data = randomblob(288) WHERE id = 3", {3}),
    "pixels cut short": ("UPDATE pixels SET data = substr(data, 1, 200) WHERE id = 3", {3}),
    "pixels of another type": ("UPDATE pixels SET data = 'text' WHERE id = 3", {3}),
    "pixels made longer": ("UPDATE pixels SET data = CAST(data || x'00' AS BLOB) WHERE id = 3", {3}),
}
ON_VERIFY = {
    "pixels too many": "INSERT INTO pixels VALUES (9, x'00')",
    "a mask too many": "INSERT INTO mask SELECT 2, data FROM mask WHERE id = 1",
    "a removed mask": "DELETE FROM mask WHERE id = 3",
    "swapped masks": "UPDATE mask SET id = -id; UPDATE mask SET id = 4 + id",
    "exchanged labels": "UPDATE image SET meta = randomblob(512) WHERE id = 2",
    "labels of another image": "UPDATE image SET meta = (SELECT meta FROM image WHERE id = 1) WHERE id = 2",
}


@pytest.mark.parametrize("script", ON_OPEN.values(), ids=ON_OPEN)
def test_found_on_opening(site: Path, keys: KeyProvider, script: str) -> None:
    altered(site / "vault", script)
    with pytest.raises(VaultError) as caught:
        Vault.open(site / "vault", keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("script", "rows"), ON_READ.values(), ids=ON_READ)
def test_found_on_reading(site: Path, keys: KeyProvider, script: str, rows: set[int]) -> None:
    altered(site / "vault", script)
    with Vault.open(site / "vault", keys) as vault:
        for row_id in range(1, 5):
            if row_id in rows:
                with pytest.raises(VaultError, match=f"image {row_id}"):
                    vault.read(row_id)
                with pytest.raises(VaultError, match=f"image {row_id}"):
                    list(vault.read_many([row_id]))
            else:
                np.testing.assert_array_equal(vault.read(row_id), image(row_id - 1).pixels)
        with pytest.raises(VaultError):
            vault.verify()


@pytest.mark.parametrize("script", ON_VERIFY.values(), ids=ON_VERIFY)
def test_found_on_verifying(site: Path, keys: KeyProvider, script: str) -> None:
    altered(site / "vault", script)
    with Vault.open(site / "vault", keys) as vault:
        before = (site / "vault").read_bytes()
        with pytest.raises(VaultError):
            vault.verify()
        assert (site / "vault").read_bytes() == before
        labels_changed = "meta" in script
        for row_id in (1, 3, 4) if labels_changed else (1, 2, 3, 4):
            np.testing.assert_array_equal(vault.read(row_id), image(row_id - 1).pixels)
        if labels_changed:
            for action in (vault.rows, lambda: vault.read(2)):
                with pytest.raises(VaultError, match="labels of image 2"):
                    action()


@pytest.mark.parametrize("parts", ["manifest", "rows", "both but the newest rows"])
def test_a_mixture_of_two_generations_is_found(site: Path, keys: KeyProvider, parts: str) -> None:
    manifest = "UPDATE header SET (manifest_seal, manifest) = (SELECT manifest_seal, manifest FROM old.header)"
    scripts = {
        "manifest": manifest,
        "rows": "DELETE FROM image WHERE id > 2; DELETE FROM pixels WHERE id > 2; DELETE FROM mask WHERE id > 2",
        "both but the newest rows": f"{manifest}; DELETE FROM image WHERE id = 3",
    }
    altered(site / "vault", f"ATTACH '{site / 'older'}' AS old; {scripts[parts]}")
    with pytest.raises(VaultError, match="damaged or was altered"):
        Vault.open(site / "vault", keys)


def test_rows_of_another_vault_under_the_same_key_do_not_fit(site: Path, keys: KeyProvider) -> None:
    with Vault.create(site / "other", keys, synthetic=True, source="") as vault:
        vault.add(image(number) for number in range(4))
    for table in ("image", "pixels", "header"):
        shutil.copy(site / "vault", site / "mixed")
        altered(
            site / "mixed",
            f"ATTACH '{site / 'other'}' AS other; DELETE FROM {table}; INSERT INTO {table} SELECT * FROM other.{table}",
        )
        with pytest.raises(VaultError), Vault.open(site / "mixed", keys) as vault:
            vault.read(1)


def test_pixels_that_are_not_those_of_their_digest(
    site: Path, keys: KeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a faulty writer that has the key can do."""
    with Vault.open(site / "vault", keys) as vault:
        with monkeypatch.context() as faulty:
            faulty.setattr(records, "pixel_digest", lambda pixels: "0" * 64)
            vault.add([image(5)])
        with pytest.raises(VaultError, match="pixels of image 5 are not those of its digest"):
            vault.verify()


def test_changed_while_it_is_open(site: Path, keys: KeyProvider) -> None:
    """Rows of a rolled-back import have ids that come again; an open vault knows them by their seals."""
    with Vault.open(site / "vault", keys) as vault, Vault.open(site / "older", keys) as fork:
        fork.add([image(7), image(8)])  # rows 3 and 4, sealed with the same data key
        altered(
            site / "vault",
            f"ATTACH '{site / 'older'}' AS fork; DELETE FROM image WHERE id > 2; DELETE FROM pixels WHERE id > 2;"
            "INSERT INTO image SELECT * FROM fork.image WHERE id > 2;"
            "INSERT INTO pixels SELECT * FROM fork.pixels WHERE id > 2",
        )
        for action in (lambda: vault.read(3), vault.rows, vault.verify, lambda: vault.add([image(9)])):
            with pytest.raises(VaultError):
                action()


# --- every single byte ------------------------------------------------------------------------------


def judge(path: Path, keys: KeyProvider) -> bool:
    """Whether the file passes everything; asserts that whatever it does return is right."""
    try:
        vault = Vault.open(path, keys)
    except VaultError:
        return False
    sound = True
    with vault:
        assert (vault.generation, vault.synthetic, vault.source) == (3, False, "ward")
        try:
            rows = vault.rows()
        except VaultError:
            sound = False
        else:
            assert sorted(row.id for row in rows) == [1, 2, 3, 4]
            for row in rows:
                record = image(row.id - 1)
                assert (row.patient, row.labels, row.split) == (record.patient, record.labels, record.split)
                assert (row.digest, row.attributes) == (pixel_digest(record.pixels), record.attributes)
        for row_id in range(1, 5):
            record = image(row_id - 1)
            try:
                np.testing.assert_array_equal(vault.read(row_id), record.pixels)
                if record.mask is not None:
                    np.testing.assert_array_equal(vault.read_mask(row_id), record.mask)
            except VaultError:
                sound = False
        try:
            vault.verify()
        except VaultError:
            return False
    return sound


def test_a_flipped_byte_is_found_or_carries_nothing(site: Path, keys: KeyProvider) -> None:
    path = site / "vault"
    good = path.read_bytes()
    names = {entry.name for entry in site.iterdir()}
    assert judge(path, keys)
    random = generator("flipped bytes")
    used = [at for at, byte in enumerate(good) if byte]
    chosen = {*range(100), *random.choice(used, 450, replace=False).tolist()}
    chosen |= set(random.integers(0, len(good), 100).tolist())
    passed = []
    for at in sorted(chosen):
        changed = bytearray(good)
        changed[at] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        if judge(path, keys):
            passed.append(at)
        assert {entry.name for entry in site.iterdir()} == names
    # What passes is SQLite's own: counters and reserved fields of its header, and free space, which is zero.
    assert [at for at in passed if at >= 100 and good[at]] == []
    assert len([at for at in chosen if at >= 100 and good[at]]) > 350


@pytest.mark.parametrize("keep", [0, 50, 99, 100, 101, 4096, 5000, 12288])
def test_a_file_cut_short(site: Path, keys: KeyProvider, keep: int) -> None:
    path = site / "vault"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(VaultError):
        Vault.open(path, keys)


def test_the_end_cut_off(site: Path, keys: KeyProvider) -> None:
    path = site / "vault"
    good = path.read_bytes()
    for keep in (len(good) - 1, len(good) - 4096):
        path.write_bytes(good[:keep])
        assert not judge(path, keys)


# --- sealing ----------------------------------------------------------------------------------------


def test_a_part_opens_in_its_own_place_only() -> None:
    key, vault_id = bytes(32), bytes(16)
    sealer = Sealer(key, vault_id)
    meta_seal, meta = sealer.seal(Kind.META, 1, None, b"text")
    seal = row_seal(meta_seal, meta_seal, meta_seal)
    assert sealer.open(Kind.META, 1, seal, meta) == b"text"
    others = [
        (sealer, Kind.META, 2),
        (sealer, Kind.PIXELS, 1),
        (Sealer(key, b"x" * 16), Kind.META, 1),
        (Sealer(b"x" * 32, vault_id), Kind.META, 1),
    ]
    for other, kind, row_id in others:
        with pytest.raises(AuthenticationError):
            other.open(kind, row_id, seal, meta)
    with pytest.raises(AuthenticationError):
        sealer.open_manifest(meta_seal, meta, b"")


def test_pixels_open_in_their_own_form_only() -> None:
    sealer = Sealer(bytes(32), bytes(16))
    part, data = sealer.seal(Kind.PIXELS, 1, Form("uint16", (4, 6)), bytes(48))
    seal = row_seal(part, part, None)
    assert sealer.open_array(Kind.PIXELS, 1, seal, data, Form("uint16", (4, 6))).shape == (4, 6)
    for other in (Form("int16", (4, 6)), Form("uint16", (6, 4)), Form("uint8", (4, 4, 3)), Form("uint8", (4, 6))):
        with pytest.raises(AuthenticationError):
            sealer.open_array(Kind.PIXELS, 1, seal, data, other)


def test_a_manifest_opens_under_its_own_header_only() -> None:
    sealer = Sealer(bytes(32), bytes(16))
    sealed = sealer.seal_manifest(b"text", b"header")
    assert sealer.open_manifest(*sealed, b"header") == b"text"
    with pytest.raises(AuthenticationError):
        sealer.open_manifest(*sealed, b"headex")


def test_the_commitment_tells_keys_and_vaults_apart() -> None:
    pairs = [(bytes(32), bytes(16)), (b"x" * 32, bytes(16)), (bytes(32), b"x" * 16)]
    assert len({Sealer(key, vault_id).commitment for key, vault_id in pairs}) == 3
