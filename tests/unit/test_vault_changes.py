"""A vault after it was filled: compression, erasure, new labels, new keys, older formats."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.vault.keys import KeyProvider, create_key_file, provider
from client.vault.records import Box
from client.vault.store import Record, Vault
from common.errors import DataError, KeyUnavailable, VaultError

VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture
def keys(tmp_path: Path) -> KeyProvider:
    create_key_file(tmp_path / "vault.key")
    return provider("file:vault.key", base=tmp_path)


def smooth(seed: int, shape: tuple[int, ...] = (40, 50), dtype: str = "uint8") -> np.ndarray:
    """Pixels that compress."""
    steps = np.random.default_rng(seed).integers(0, 3, shape)
    return np.cumsum(steps, axis=1).astype(dtype)


def record(seed: int, **changes: object) -> Record:
    fields = {"pixels": smooth(seed), "patient": f"p{seed % 3}", "labels": {"label": ("normal",)}, "split": "train"}
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def vault(tmp_path: Path, keys: KeyProvider) -> Iterator[Vault]:
    with Vault.create(tmp_path / "v.sqlite", keys, synthetic=True, source="test") as made:
        made.add(record(seed) for seed in range(6))
        yield made


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_compressed_pixels_come_back_as_they_were(vault: Vault, dtype: str) -> None:
    pixels = smooth(9, dtype=dtype) - (30 if dtype == "int16" else 0)
    pixels = pixels.astype(dtype)
    vault.add([record(9, pixels=pixels)], codec="jpeg-ls")
    (row,) = [row for row in vault.rows() if row.generation == vault.generation]
    assert row.codec == "jpeg-ls"
    np.testing.assert_array_equal(vault.read(row.id), pixels)
    assert vault.read(row.id).flags.writeable
    plain, stored = vault.stored_bytes()
    assert stored < plain
    vault.verify()


def test_colour_compresses_too(vault: Vault) -> None:
    pixels = np.stack([smooth(1), smooth(2), smooth(3)], axis=2)
    vault.add([record(9, pixels=pixels)], codec="jpeg-ls")
    row = list(vault.each())[-1]
    assert row.codec == "jpeg-ls"
    np.testing.assert_array_equal(vault.read(row.id), pixels)


def test_what_does_not_compress_is_stored_raw(vault: Vault) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    vault.add([record(9, pixels=noise), record(10, pixels=np.ones((1, 1), np.uint8))], codec="jpeg-ls")
    assert [row.codec for row in list(vault.each())[-2:]] == ["raw", "raw"]
    np.testing.assert_array_equal(vault.read(7), noise)


def test_keys_boxes_and_measures_are_kept(vault: Vault) -> None:
    box = Box("opacity", 1.5, 2.0, 10.0, 4.0)
    vault.add([record(9, keys={"file": "ab"}, boxes=(box,), measures={"mean": 0.25})])
    row = list(vault.each())[-1]
    assert (row.keys, row.boxes, row.measures) == ({"file": "ab"}, (box,), {"mean": 0.25})
    with pytest.raises(DataError, match="finite"):
        vault.add([record(9, measures={"mean": float("nan")})])
    with pytest.raises(DataError, match="finite"):
        vault.add([record(9, boxes=(Box("x", float("inf"), 0, 1, 1),))])


def test_erased_patients_are_gone_from_the_file(vault: Vault, keys: KeyProvider) -> None:
    """Not only from the tables: SQLite would leave the bytes in free pages."""
    with sqlite3.connect(vault.path) as other:
        gone = [other.execute("SELECT data FROM pixels WHERE id = ?", (row_id,)).fetchone()[0] for row_id in (2, 5)]
        kept = other.execute("SELECT data FROM pixels WHERE id = 1").fetchone()[0]
    other.close()
    pieces = [data[start : start + 64] for data in gone for start in range(0, len(data) - 64, 64)]
    assert sum(piece in vault.path.read_bytes() for piece in pieces) == len(pieces)
    assert vault.erase(["p1"]) == 2
    content = vault.path.read_bytes()
    assert not any(piece in content for piece in pieces)
    assert kept[:64] in content
    assert {stone for stone in vault.tombstones if not stone.startswith("pixels:")} == {"p1"}
    assert len(vault.tombstones) == 3, "and one for each image"
    assert {row.patient for row in vault.each()} == {"p0", "p2"}
    vault.verify()
    with Vault.open(vault.path, keys) as again:
        assert (again.tombstones, len(again)) == (vault.tombstones, 4)


def test_ids_of_erased_images_are_not_given_again(vault: Vault) -> None:
    vault.erase(["p2"])
    vault.add([record(9)])
    assert [row.id for row in vault.each()] == [1, 2, 4, 5, 7]


def test_erasing_nobody_leaves_a_tombstone(vault: Vault) -> None:
    before = vault.generation
    assert vault.erase(["stranger"]) == 0
    assert (vault.tombstones, vault.generation) == ({"stranger"}, before + 1)
    assert vault.erase(["stranger"]) == 0
    assert vault.generation == before + 1, "nothing has changed"


def test_new_labels_and_a_mask(vault: Vault, keys: KeyProvider) -> None:
    row = next(vault.each())
    mask = np.zeros((40, 50), np.uint8)
    mask[3:9, 4:8] = 1
    with vault.changing() as change:
        change.replace(replace(row, labels={"label": ("pneumonia",)}, split="test"), mask)
    with Vault.open(vault.path, keys) as again:
        after = next(again.each())
        assert (after.labels, after.split, after.has_mask) == ({"label": ("pneumonia",)}, "test", True)
        np.testing.assert_array_equal(again.read_mask(row.id), mask)
        np.testing.assert_array_equal(again.read(row.id), smooth(0))
        with again.changing() as change:  # a mask stays when only labels change
            change.replace(replace(after, labels={}))
        np.testing.assert_array_equal(again.read_mask(row.id), mask)
        again.verify()


@pytest.mark.parametrize("mask", [np.ones((40, 51), np.uint8), np.full((40, 50), 2, np.uint8), np.ones((40, 50))])
def test_a_mask_that_does_not_fit_changes_nothing(vault: Vault, mask: np.ndarray) -> None:
    before = vault.path.read_bytes()
    with pytest.raises(VaultError, match="mask for image 1"), vault.changing() as change:
        change.replace(next(vault.each()), mask)
    assert vault.path.read_bytes() == before
    vault.verify()


def test_another_key_opens_it_and_the_old_one_does_not(vault: Vault, keys: KeyProvider, tmp_path: Path) -> None:
    create_key_file(tmp_path / "other.key")
    other = provider("file:other.key", base=tmp_path)
    data = vault.read(1)
    vault.rewrap(keys, other)
    vault.verify()
    with pytest.raises(KeyUnavailable):
        Vault.open(vault.path, keys)
    with Vault.open(vault.path, other) as again:
        np.testing.assert_array_equal(again.read(1), data)
        assert again.generation == vault.generation


def test_everything_anew_under_a_new_data_key(vault: Vault, keys: KeyProvider, tmp_path: Path) -> None:
    mask = np.ones((40, 50), np.uint8)
    vault.add([record(8, mask=mask, pixels=smooth(8, dtype="uint16"))], codec="jpeg-ls")
    vault.erase(["p1"])
    rows, secret, generation, stones = list(vault.each()), vault.secret, vault.generation, vault.tombstones
    pixels = [vault.read(row.id) for row in rows]
    old = vault.path.read_bytes()
    vault.reencrypt(keys)
    with pytest.raises(VaultError, match="closed"):
        vault.read(1)
    with Vault.open(vault.path, keys) as again:
        assert list(again.each()) == rows
        for row, data in zip(rows, pixels, strict=True):
            np.testing.assert_array_equal(again.read(row.id), data)
        np.testing.assert_array_equal(again.read_mask(rows[-1].id), mask)
        assert (again.secret, again.tombstones, again.generation) == (secret, stones, generation + 1)
        again.verify()
        again.add([record(9)])
        assert max(row.id for row in again.each()) == 8, "ids go on"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    chunks = {old[start : start + 32] for start in range(4096, len(old) - 32, 32)} - {bytes(32)}
    new = vault.path.read_bytes()
    assert sum(new.find(chunk) >= 0 for chunk in list(chunks)[:200]) < 10, "ciphertext was carried over"


def test_a_vault_open_elsewhere_notices_the_change(vault: Vault, keys: KeyProvider) -> None:
    with Vault.open(vault.path, keys) as other:
        vault.add([record(7)])
        other.add([record(8)])
        assert len(other) == 8
    vault.add([record(9)])
    assert len(vault) == 9
    vault.verify()


def test_read_only_writes_nothing(vault: Vault, keys: KeyProvider) -> None:
    vault.close()
    vault.path.chmod(0o400)
    before = (vault.path.stat().st_mtime_ns, vault.path.read_bytes())
    with Vault.open(vault.path, keys, read_only=True) as again:
        again.verify()
        again.read(1)
        size, mac = again.file_mac(bytes(32))
        assert (size, mac) == (len(before[1]), again.file_mac(bytes(32))[1])
        assert mac != again.file_mac(b"x" * 32)[1]
        with pytest.raises(VaultError, match="may not be written"):
            again.erase(["p1"])
    assert (vault.path.stat().st_mtime_ns, vault.path.read_bytes()) == before


@pytest.fixture
def older(tmp_path: Path) -> tuple[Path, KeyProvider]:
    """A vault that fedward 0.1's first format wrote; see tests/vectors/README.md."""
    for name in ("vault.sqlite", "vault.key"):
        shutil.copy(VECTORS / "format-1" / name, tmp_path / f"old-{name}")
    (tmp_path / "old-vault.key").chmod(0o600)
    return tmp_path / "old-vault.sqlite", provider("file:old-vault.key", base=tmp_path)


def test_format_1_is_read_as_it_is(older: tuple[Path, KeyProvider]) -> None:
    path, keys = older
    before = path.read_bytes()
    with Vault.open(path, keys) as vault:
        vault.verify()
        rows = list(vault.each())
        assert [(row.patient, row.labels, row.dtype, row.generation) for row in rows] == [
            ("p1", {"label": ("normal",)}, "uint8", 0),
            ("p2", {"label": ("pneumonia",)}, "uint16", 0),
            ("p3", {}, "int16", 0),
        ]
        np.testing.assert_array_equal(vault.read(3), np.arange(-6, 6, dtype=np.int16).reshape(3, 4))
        np.testing.assert_array_equal(vault.read_mask(2), np.eye(4, 5, dtype=np.uint8))
        with pytest.raises(VaultError, match="migrate"):
            _ = vault.secret
    assert path.read_bytes() == before


def test_format_1_migrates_with_its_first_change(older: tuple[Path, KeyProvider]) -> None:
    path, keys = older
    with Vault.open(path, keys) as vault:
        vault.migrate()
        secret, generation = vault.secret, vault.generation
        vault.migrate()
        assert (vault.secret, vault.generation) == (secret, generation)
        vault.add([record(1)])
    with Vault.open(path, keys) as vault:
        vault.verify()
        assert (vault.secret, len(vault), len(secret)) == (secret, 4, 32)
    assert path.read_bytes()[60:64] == (2).to_bytes(4, "big")
