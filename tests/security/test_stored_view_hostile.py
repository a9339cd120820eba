"""Who can write to a stored view can make it be built anew, or a read fail; no read returns what was not put in."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.vault import record_file
from client.vault.keys import KeyProvider, create_key_file, provider
from client.vault.store import Record, Vault
from client.vault.view import ViewCache, prepare_view
from common.errors import VaultError
from common.study import Study

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COUNT, SIZE = 12, 8
STRIDE = SIZE * SIZE + 28
HEADER = record_file.HEADER_BYTES
FIELDS = {
    "magic": (0, 8),
    "format": (8, 2),
    "salt": (10, 32),
    "vault id": (42, 16),
    "generation": (58, 8),
    "view key": (66, 32),
    "split": (98, 8),
    "content": (106, 32),
    "count": (138, 8),
    "size": (146, 8),
    "nonce": (154, 12),
    "tag": (166, 16),
}


def study(**changes: Any) -> Study:
    return Study.model_validate(
        {"name": "v", "task": "binary", "classes": ["a", "b"], "image": {"size": SIZE}} | changes
    )


OTHER = study(preprocess={"gaussian_sigma": 0.5})


def record(number: int) -> Record:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
    return Record(pixels, f"p{number}", {"label": ("ab"[number % 2],)}, "train")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("original")
    create_key_file(base / "key")
    with Vault.create(base / "vault", keys_of(base), synthetic=True, source="ward") as vault:
        vault.add(record(number) for number in range(COUNT))
        cache().get(vault, study(), "train")
        cache().get(vault, OTHER, "train")
    return base


def keys_of(base: Path) -> KeyProvider:
    return provider("file:key", base=base)


def cache() -> ViewCache:
    return ViewCache(0, lambda: NOW)


@pytest.fixture
def site(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def path_of(base: Path, vault: Vault, of: Study) -> Path:
    from client.vault.view import view_key

    (found,) = (base / "views").glob(f"{vault.id}-*-{view_key(of)[:16]}-train.view")
    return found


def change(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    change(path, offset, bytes([path.read_bytes()[offset] ^ (1 << bit)]))


def rebuilt(vault: Vault, path: Path) -> bool:
    """Whether asking for the view gives the right one, out of another file."""
    before = path.lstat().st_ino, path.lstat().st_ctime_ns
    view = cache().get(vault, study(), "train")
    rows = torch.arange(COUNT)
    assert torch.equal(view.floats(rows), prepare_view(vault, study(), "train").floats(rows))
    assert path.is_file() and not path.is_symlink()
    assert not list(path.parent.glob(".*"))
    return path.read_bytes() != b"" and (path.lstat().st_ino, path.lstat().st_ctime_ns) != before


def test_the_header_is_its_fields() -> None:
    assert sum(length for _, length in FIELDS.values()) == HEADER


@pytest.mark.parametrize("field", FIELDS)
def test_a_damaged_header_is_built_anew(site: Path, field: str) -> None:
    start, length = FIELDS[field]
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        for offset in {start, start + length // 2, start + length - 1}:
            content = path.read_bytes()
            flip(path, offset, offset % 8)
            altered = path.read_bytes()
            assert altered != content
            assert rebuilt(vault, path)
            assert path.read_bytes() != altered


def resealed(path: Path, number: int) -> None:
    """A record from the same file in another place."""
    content = path.read_bytes()
    other = (number + 1) % COUNT
    change(path, HEADER + number * STRIDE, content[HEADER + other * STRIDE : HEADER + (other + 1) * STRIDE])


RECORDS: dict[str, Callable[[Path, int], None]] = {
    "nonce": lambda path, number: flip(path, HEADER + number * STRIDE + 3),
    "first pixel": lambda path, number: flip(path, HEADER + number * STRIDE + 12),
    "last pixel": lambda path, number: flip(path, HEADER + number * STRIDE + 12 + SIZE * SIZE - 1, 7),
    "tag": lambda path, number: flip(path, HEADER + (number + 1) * STRIDE - 1),
    "zeros": lambda path, number: change(path, HEADER + number * STRIDE, bytes(STRIDE)),
    "another's": resealed,
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("number", [0, 5, COUNT - 1])
def test_a_damaged_record_fails_the_read_that_meets_it(site: Path, what: str, number: int) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        RECORDS[what](path, number)
        view = cache().get(vault, study(), "train")
        others = torch.tensor([index for index in range(COUNT) if index != number])
        whole = prepare_view(vault, study(), "train")
        assert torch.equal(view.floats(others), whole.floats(others))
        for rows in ([number], [number, 0], list(range(COUNT))):
            with pytest.raises(
                VaultError, match=rf"damaged or was altered: record {number} fails .*remove that file, and it is made"
            ) as caught:
                view.floats(torch.tensor(rows))
            assert "\n" not in str(caught.value)
        path.unlink()  # the remedy
        rows = torch.arange(COUNT)
        assert torch.equal(cache().get(vault, study(), "train").floats(rows), whole.floats(rows))


def test_two_records_in_each_others_place_both_fail(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        content = path.read_bytes()
        change(path, HEADER, content[HEADER + STRIDE : HEADER + 2 * STRIDE] + content[HEADER : HEADER + STRIDE])
        view = cache().get(vault, study(), "train")
        for number in (0, 1):
            with pytest.raises(VaultError, match=f"record {number} fails"):
                view.floats(torch.tensor([number]))


def test_a_record_of_another_study_fails_here(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        mine, other = path_of(site, vault, study()), path_of(site, vault, OTHER)
        change(mine, HEADER, other.read_bytes()[HEADER : HEADER + STRIDE])
        with pytest.raises(VaultError, match="record 0 fails"):
            cache().get(vault, study(), "train").floats(torch.tensor([0]))


@pytest.mark.parametrize("length", [0, 1, HEADER - 1, HEADER, HEADER + 1, HEADER + 5 * STRIDE, -STRIDE, -1])
def test_a_file_that_was_cut_is_built_anew(site: Path, length: int) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)
        assert rebuilt(vault, path)


@pytest.mark.parametrize("more", [1, STRIDE])
def test_a_file_with_something_after_it_is_built_anew(site: Path, more: int) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        with path.open("ab") as file:
            file.write(path.read_bytes()[-more:])
        assert rebuilt(vault, path)


def test_a_file_that_is_cut_while_it_is_read_fails(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        view = cache().get(vault, study(), "train")
        os.truncate(path_of(site, vault, study()), HEADER + 5 * STRIDE + 7)
        assert len(view.floats(torch.arange(5))) == 5
        for rows in ([5], [4, 5, 6], [11], list(range(COUNT))):
            with pytest.raises(VaultError, match=rf"record {max(5, rows[0])} fails"):
                view.floats(torch.tensor(rows))


def test_the_files_of_two_studies_in_each_others_place_are_built_anew(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        mine, other = path_of(site, vault, study()), path_of(site, vault, OTHER)
        third = mine.with_name("third")
        mine.rename(third), other.rename(mine), third.rename(other)
        assert rebuilt(vault, mine)


def test_an_older_generations_file_put_back_is_not_taken(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        older = path_of(site, vault, study())
        shutil.copy(older, site / "older")
        vault.add([record(50)])
        assert len(cache().get(vault, study(), "train")) == COUNT + 1
        newer = path_of(site, vault, study())
        assert newer != older
        assert not older.exists()
        shutil.copy(site / "older", older)  # under its own name: removed
        shutil.copy(site / "older", newer)  # under the newer one's: built anew
        view = cache().get(vault, study(), "train")
        assert not older.exists()
        rows = torch.arange(COUNT + 1)
        assert torch.equal(view.floats(rows), prepare_view(vault, study(), "train").floats(rows))


def test_a_vault_that_went_another_way_does_not_take_the_first_ways_view(site: Path) -> None:
    shutil.copy(site / "vault", site / "backup")
    with Vault.open(site / "vault", keys_of(site)) as vault:
        vault.add([record(50)])
        first = cache().get(vault, study(), "train").floats(torch.arange(COUNT + 1))
        generation = vault.generation
    shutil.copy(site / "backup", site / "vault")
    with Vault.open(site / "vault", keys_of(site)) as vault:
        vault.add([record(51)])
        assert vault.generation == generation
        again = cache().get(vault, study(), "train").floats(torch.arange(COUNT + 1))
        assert torch.equal(again, prepare_view(vault, study(), "train").floats(torch.arange(COUNT + 1)))
        assert not torch.equal(first, again)


def test_a_new_data_key_takes_the_views_keys_with_it(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        salt = path.read_bytes()[FIELDS["salt"][0] :][:32]
        before = vault.view_key(salt)
        vault.reencrypt(keys_of(site))
    with Vault.open(site / "vault", keys_of(site)) as vault:
        assert vault.view_key(salt) != before
        assert len(cache().get(vault, study(), "train")) == COUNT
        assert not path.exists()


@pytest.mark.parametrize("cut", ["header", "torn", "foreign", "other study", "swapped", "longer"])
def test_a_partial_file_is_believed_record_by_record(site: Path, cut: str) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        partial = path.with_name(f".{path.name}.partial")
        whole = path.read_bytes()
        path.unlink()
        left = {
            "header": whole[: HEADER - 3],
            "torn": whole[: HEADER + 4 * STRIDE + 9],
            "foreign": b"x" * (HEADER + 700),
            "other study": path_of(site, vault, OTHER).read_bytes()[:-50],
            "swapped": whole[:HEADER] + whole[HEADER + STRIDE : HEADER + 2 * STRIDE] + whole[HEADER : HEADER + STRIDE],
            "longer": whole + whole[-STRIDE:],
        }[cut]
        partial.write_bytes(left)
        view = cache().get(vault, study(), "train")
        rows = torch.arange(COUNT)
        assert torch.equal(view.floats(rows), prepare_view(vault, study(), "train").floats(rows))
        assert path.stat().st_size == HEADER + COUNT * STRIDE
        assert not partial.exists()
        kept = path.read_bytes()[: HEADER + 4 * STRIDE] == whole[: HEADER + 4 * STRIDE]
        assert kept == (cut in ("torn", "longer"))


@pytest.mark.parametrize("place", ["view", "partial"])
@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_what_is_no_file_is_never_followed(site: Path, place: str, what: str) -> None:
    victim = site / "victim"
    victim.write_bytes(b"precious")
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        path.unlink()
        at = path if place == "view" else path.with_name(f".{path.name}.partial")
        if what == "link":
            at.symlink_to(victim)
        elif what == "fifo":
            os.mkfifo(at)
        else:
            at.mkdir()
        try:
            view = cache().get(vault, study(), "train")
        except VaultError as error:
            assert "cannot be used" in str(error)
        else:
            assert place == "view"
            assert path.is_file()
            rows = torch.arange(COUNT)
            assert torch.equal(view.floats(rows), prepare_view(vault, study(), "train").floats(rows))
        assert victim.read_bytes() == b"precious"


def test_absurd_sizes_in_a_header_take_no_memory(site: Path) -> None:
    with Vault.open(site / "vault", keys_of(site)) as vault:
        path = path_of(site, vault, study())
        change(path, FIELDS["count"][0], struct.pack(">QQ", 2**63, 2**63))
        assert rebuilt(vault, path)
