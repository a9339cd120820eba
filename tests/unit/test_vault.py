"""The vault does what it says, and says in one line what it cannot do."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client.vault import database
from client.vault.keys import FileKey, KeyProvider, create_key_file, provider
from client.vault.store import Record, Vault, pixel_digest
from common.errors import DataError, KeyUnavailable, VaultError
from common.randomness import generator

ROOT = Path(__file__).parents[2]


def image(number: int, side: int = 16) -> Record:
    pixels = generator("vault test", number).integers(0, 256, (side, side), dtype=np.uint8)
    return Record(
        pixels,
        patient=f"patient-{number}",
        labels={"label": ("normal",), "finding": ("a", "b")},
        split="train",
        attributes={"sex": "F", "view": "PA"},
        mask=(pixels > 128).astype(np.uint8) if number % 2 else None,
    )


def images(count: int, side: int = 16) -> Iterator[Record]:
    return (image(number, side) for number in range(count))


@pytest.fixture
def keys(tmp_path: Path) -> KeyProvider:
    create_key_file(tmp_path / "vault.key")
    return provider("file:vault.key", base=tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "vault.sqlite"


@pytest.fixture
def filled(path: Path, keys: KeyProvider) -> Path:
    with Vault.create(path, keys, synthetic=True, source="phantoms (synthetic)") as vault:
        assert vault.add(images(5)) == 5
    return path


def refused(action: Callable[[], object], *words: str, kind: type[Exception] = VaultError) -> None:
    """``action`` fails with one line that holds ``words``."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


# --- what goes in comes out -------------------------------------------------------------------------


def test_a_new_vault_is_empty_and_private(path: Path, keys: KeyProvider) -> None:
    with Vault.create(path, keys, synthetic=False, source="ward 7") as vault:
        assert (vault.rows(), vault.generation, vault.synthetic, vault.source) == ([], 1, False, "ward 7")
        assert len(vault.id) == 32
        vault.verify()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["vault.sqlite"]


def test_rows_and_pixels_come_back(filled: Path, keys: KeyProvider) -> None:
    with Vault.open(filled, keys) as vault:
        rows = vault.rows()
        assert [row.digest for row in rows] == sorted(pixel_digest(record.pixels) for record in images(5))
        for row in rows:
            record = image(int(row.patient.removeprefix("patient-")))
            assert row.digest == pixel_digest(record.pixels)
            assert (row.labels, row.split, row.attributes) == (record.labels, "train", record.attributes)
            assert (row.shape, row.dtype, row.has_mask) == ((16, 16), "uint8", record.mask is not None)
            np.testing.assert_array_equal(vault.read(row.id), record.pixels)
            if record.mask is not None:
                np.testing.assert_array_equal(vault.read_mask(row.id), record.mask)
        assert vault.read(rows[0].id).flags.writeable
        vault.verify()


def test_read_many_keeps_the_order_asked_and_needs_no_rows_first(filled: Path, keys: KeyProvider) -> None:
    asked = [4, 1, 1, 5, 2] * 40  # several batches
    with Vault.open(filled, keys) as vault:
        for row_id, pixels in zip(asked, vault.read_many(asked), strict=True):
            np.testing.assert_array_equal(pixels, image(row_id - 1).pixels)
        assert list(vault.read_many([])) == []


def test_adding_counts_generations_and_never_reuses_ids(filled: Path, keys: KeyProvider) -> None:
    with Vault.open(filled, keys) as vault:
        assert vault.generation == 2
        assert vault.add([]) == 0
        assert vault.generation == 2
        assert vault.add(images(2)) == 2
        assert vault.generation == 3
        assert sorted(row.id for row in vault.rows()) == [1, 2, 3, 4, 5, 6, 7]
    with Vault.open(filled, keys) as vault:
        assert vault.generation == 3
        assert len(vault.rows()) == 7


def test_equal_images_come_in_the_order_of_their_ids(path: Path, keys: KeyProvider) -> None:
    with Vault.create(path, keys, synthetic=True, source="") as vault:
        vault.add([image(3), image(3), image(3)])
        assert [row.id for row in vault.rows()] == [1, 2, 3]


def test_adding_streams(path: Path, keys: KeyProvider) -> None:
    def many() -> Iterator[Record]:
        for number in range(160):
            yield Record(np.full((512, 512), number, np.uint8), f"p{number}", {})

    with Vault.create(path, keys, synthetic=True, source="") as vault:
        tracemalloc.start()
        vault.add(many())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.stat().st_size > 160 * 512 * 512
    assert peak < 8 * 2**20


def test_records_and_rows_do_not_show_the_patient(filled: Path, keys: KeyProvider) -> None:
    with Vault.open(filled, keys) as vault:
        shown = repr(vault.rows()) + repr(image(1)) + repr(vault)
    assert "patient-" not in shown
    assert "normal" not in shown


# --- what a vault does not hold ---------------------------------------------------------------------

GOOD = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record(np.zeros((4, 4), np.float32), "p", {}), "float32"),
        (Record(np.zeros((4, 4), np.bool_), "p", {}), "bool"),
        (Record([[1]], "p", {}), "list"),  # type: ignore[arg-type]
        (Record(np.zeros(4, np.uint8), "p", {}), "shape"),
        (Record(np.zeros((4, 4, 4), np.uint8), "p", {}), "shape"),
        (Record(np.zeros((0, 4), np.uint8), "p", {}), "shape"),
        (Record(np.broadcast_to(np.uint16(0), (2**15, 2**15)), "p", {}), "bytes"),
        (Record(GOOD, "p", {}, mask=np.zeros((4, 5), np.uint8)), "mask"),
        (Record(GOOD, "p", {}, mask=np.full((4, 4), 255, np.uint8)), "0 and 1"),
        (Record(GOOD, "", {}), "no patient"),
        (Record(GOOD, "p", {}, split="validation"), "split"),
        (Record(GOOD, "p", {"label": "pneumonia"}), "tuples"),  # type: ignore[dict-item]
        (Record(GOOD, "p", {"label": (1,)}), "text"),  # type: ignore[dict-item]
        (Record(GOOD, "p", None), "mapping"),  # type: ignore[arg-type]
        (Record(GOOD, "p", {}, attributes={"age": 50}), "text"),  # type: ignore[dict-item]
        (Record(GOOD, "p", {"label": ("x" * 70_000,)}), "shorten"),
    ],
)
def test_a_bad_record_adds_nothing(filled: Path, keys: KeyProvider, record: Record, words: str) -> None:
    before = filled.read_bytes()
    with Vault.open(filled, keys) as vault:
        refused(lambda: vault.add([image(8), record]), "image 2 of those to add", words, kind=DataError)
        assert len(vault.rows()) == 5
        assert vault.generation == 2
    assert filled.read_bytes() == before


@pytest.mark.parametrize("failure", [RuntimeError("unreadable"), KeyboardInterrupt()])
def test_a_source_that_fails_adds_nothing(filled: Path, keys: KeyProvider, failure: BaseException) -> None:
    def broken() -> Iterator[Record]:
        yield from images(3)
        raise failure

    with Vault.open(filled, keys) as vault:
        with pytest.raises(type(failure)):
            vault.add(broken())
        assert len(vault.rows()) == 5
        vault.verify()
        assert vault.add(images(1)) == 1
        vault.verify()


# --- opening ----------------------------------------------------------------------------------------


def test_nothing_is_made_where_nothing_is(path: Path, keys: KeyProvider) -> None:
    refused(lambda: Vault.open(path, keys), "no vault at")
    assert not path.exists()


def test_what_is_not_a_vault(tmp_path: Path, keys: KeyProvider) -> None:
    path = tmp_path / "vault.sqlite"
    for content in (b"", b"hello\n", b"SQLite format 3\0", os.urandom(8192)):
        path.write_bytes(content)
        refused(lambda: Vault.open(path, keys), "not a vault")
        assert path.read_bytes() == content
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE header (one)")
    other.close()
    refused(lambda: Vault.open(path, keys), "not a vault")
    refused(lambda: Vault.open(tmp_path, keys), "cannot read")


def test_a_newer_format(filled: Path, keys: KeyProvider) -> None:
    with sqlite3.connect(filled) as other:
        other.execute("PRAGMA user_version=3")
    other.close()
    refused(lambda: Vault.open(filled, keys), "format 3", "upgrade fedward")


def test_create_overwrites_nothing(filled: Path, keys: KeyProvider) -> None:
    before = filled.read_bytes()
    refused(lambda: Vault.create(filled, keys, synthetic=True, source=""), "exists")
    assert filled.read_bytes() == before
    journal = filled.with_name("other.sqlite-journal")
    journal.write_bytes(b"of a vault that was deleted")
    refused(lambda: Vault.create(filled.with_name("other.sqlite"), keys, synthetic=True, source=""), "-journal exists")
    assert sorted(entry.name for entry in filled.parent.iterdir()) == ["other.sqlite-journal", "vault.sqlite"]


def test_create_without_a_key_leaves_nothing(path: Path, tmp_path: Path) -> None:
    missing = provider("file:none.key", base=tmp_path)
    refused(lambda: Vault.create(path, missing, synthetic=True, source=""), "none.key", kind=KeyUnavailable)
    assert not path.exists()


def test_create_where_no_file_can_be(tmp_path: Path, keys: KeyProvider) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: Vault.create(tmp_path / "file" / "v", keys, synthetic=True, source=""), "cannot create")


def test_one_writer_at_a_time(filled: Path, keys: KeyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    with Vault.open(filled, keys) as first, Vault.open(filled, keys) as second:

        def meanwhile() -> Iterator[Record]:
            yield image(7)
            refused(lambda: second.add(images(1)), "in use by another process", "try again")
            refused(lambda: first.add(images(1)), "is adding")
            refused(lambda: first.verify(), "is adding")
            np.testing.assert_array_equal(first.read(1), image(0).pixels)
            assert len(list(first.read_many([1, 2]))) == 2

        assert first.add(meanwhile()) == 1
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    refused(lambda: Vault.open(filled, keys), "in use by another process")
    other.close()


def test_a_vault_is_a_snapshot_until_it_adds(filled: Path, keys: KeyProvider) -> None:
    with Vault.open(filled, keys) as first, Vault.open(filled, keys) as second:
        second.add(images(2))
        assert len(first.rows()) == 5
        refused(lambda: first.read(6), "no image 6")
        first.add(images(1))
        assert (first.generation, len(first.rows())) == (4, 8)
        first.verify()


def test_an_older_copy_is_seen_by_who_knows_the_newer(filled: Path, keys: KeyProvider) -> None:
    older = filled.read_bytes()
    with Vault.open(filled, keys) as vault:
        vault.add(images(2))
        filled.write_bytes(older)
        refused(vault.verify, "went back from generation 3 to 2")
    with Vault.open(filled, keys) as vault:  # the file alone cannot tell; its generation can
        assert vault.generation == 2


def test_a_closed_vault_and_missing_parts(filled: Path, keys: KeyProvider) -> None:
    vault = Vault.open(filled, keys)
    refused(lambda: vault.read(99), "no image 99")
    refused(lambda: vault.read_mask(99), "no image 99")
    refused(lambda: vault.read_mask(1), "no mask")
    with pytest.raises(TypeError):
        pickle.dumps(vault)
    vault.close()
    vault.close()
    for action in (vault.rows, lambda: vault.read(1), lambda: vault.read_mask(2), lambda: vault.add([]), vault.verify):
        refused(action, "closed")


def test_a_fork_opens_its_own(filled: Path, keys: KeyProvider) -> None:
    with Vault.open(filled, keys) as vault:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads
            child = os.fork()
        if child == 0:
            try:
                vault.read(1)
            except VaultError as error:
                os._exit(7 if "opened by another process" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        vault.verify()


# --- crashes and full disks -------------------------------------------------------------------------


def test_a_full_disk_changes_nothing(filled: Path, keys: KeyProvider) -> None:
    before = filled.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Vault.open(filled, keys) as vault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, limits[1]))
        try:
            refused(lambda: vault.add(images(200, side=256)), "free disk space")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        vault.verify()
        assert len(vault.rows()) == 5
    assert filled.read_bytes()[: len(before)] == before
    assert [entry.name for entry in filled.parent.iterdir()] == ["vault.sqlite"]


KILLED = """
import sys, numpy as np
from pathlib import Path
from client.vault.keys import provider
from client.vault.store import Record, Vault
path, key, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def many():
    for number in range(last):
        yield Record(np.full((256, 256), number % 256, np.uint8), f"p{number}", {})
    print("ready", flush=True)
    if sys.argv[4] == "before":
        sys.stdin.read()  # killed here, inside the transaction
with Vault.open(path, provider("file:" + str(key), base=path)) as vault:
    vault.add(many())
"""


@pytest.mark.parametrize(
    ("last", "moment", "delay_s"),
    [(1, "before", 0.0), (120, "before", 0.0), (60, "commit", 0.001), (60, "commit", 0.01)],
)
def test_sigkill_leaves_all_or_nothing(
    filled: Path, keys: KeyProvider, tmp_path: Path, last: int, moment: str, delay_s: float
) -> None:
    command = [sys.executable, "-c", KILLED, str(filled), str(tmp_path / "vault.key"), str(last), moment]
    size = filled.stat().st_size
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
    if last == 120:  # the page cache overflowed: the file itself was half-written
        assert filled.stat().st_size > size + 2**20
        assert filled.with_name("vault.sqlite-journal").exists()
    with Vault.open(filled, keys) as vault:
        assert len(vault.rows()) == (5 if vault.generation == 2 else 5 + last)
        assert vault.generation == 2 or moment == "commit"
        vault.verify()
        assert vault.add(images(1)) == 1
    assert [entry.name for entry in filled.parent.iterdir()] == ["vault.sqlite"]


# --- keys -------------------------------------------------------------------------------------------

DATA_KEY = bytes(range(32))


def test_a_key_file_is_private_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "vault.key"
    create_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(path.read_text())) == 32
    refused(lambda: create_key_file(path), "not overwritten", kind=KeyUnavailable)
    refused(lambda: create_key_file(path / "below"), "cannot write", kind=KeyUnavailable)


def test_key_files_that_are_refused_never_show_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    keys = provider("file:vault.key", base=tmp_path)
    refused(lambda: keys.wrap(DATA_KEY, b""), "cannot read the key file", kind=KeyUnavailable)
    good = "c0ffee" + "5a" * 29
    for text in (good[:-2], good + "00", good[:-1] + "x", "0x" + good[:-2], good[:30] + " " + good[31:], "", "é" * 32):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(KeyUnavailable, match="hexadecimal digits") as caught:
            keys.wrap(DATA_KEY, b"")
        assert "c0ffee" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    path.write_text(good + "\n")
    assert keys.unwrap(keys.wrap(DATA_KEY, b"v"), b"v") == DATA_KEY
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        refused(lambda: keys.wrap(DATA_KEY, b""), f"chmod 600 {path}", kind=KeyUnavailable)
    path.unlink()
    os.mkfifo(path, 0o600)
    refused(lambda: keys.wrap(DATA_KEY, b""), "not a file", kind=KeyUnavailable)
    assert "c0ffee" not in repr(keys)


def test_a_wrapped_key_opens_for_its_own_key_and_vault_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_key_file(tmp_path / name)
    first, second = (FileKey(f"file:{name}", tmp_path / name) for name in ("a", "b"))
    wrapped = first.wrap(DATA_KEY, b"vault 1")
    assert wrapped != first.wrap(DATA_KEY, b"vault 1")
    assert DATA_KEY not in wrapped
    assert first.unwrap(wrapped, b"vault 1") == DATA_KEY
    refused(lambda: second.unwrap(wrapped, b"vault 1"), "does not open", kind=KeyUnavailable)
    refused(lambda: first.unwrap(wrapped, b"vault 2"), "does not open", kind=KeyUnavailable)
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        refused(lambda: first.unwrap(bytes(changed), b"vault 1"), "does not open", kind=KeyUnavailable)  # noqa: B023
        refused(lambda: first.unwrap(wrapped[:position], b"vault 1"), "does not open", kind=KeyUnavailable)  # noqa: B023


def test_a_vault_opens_with_its_passphrase_only(path: Path, tmp_path: Path, keys: KeyProvider) -> None:
    typed = ["cafe\u0301 au lait", "caf\u00e9 au lait", "cafe au lait"]  # two spellings of é, then another word
    asked = iter(typed)
    person = provider("passphrase:", base=tmp_path, passphrase=lambda: next(asked))
    Vault.create(path, person, synthetic=True, source="").close()
    Vault.open(path, person).close()
    refused(lambda: Vault.open(path, person), "passphrase does not open this vault", kind=KeyUnavailable)
    refused(lambda: Vault.open(path, keys), "passphrase:", "not file:", kind=KeyUnavailable)
    for word in typed:
        assert word.encode() not in path.read_bytes()


def test_a_hostile_wrapped_key_cannot_ask_for_a_terabyte(tmp_path: Path) -> None:
    def never() -> str:
        raise AssertionError("the passphrase was asked for")

    person = provider("passphrase:", base=tmp_path, passphrase=never)
    rest = bytes(16 + 12 + 32 + 16)
    for cost in (
        (2**30, 3, 4),
        (65_536, 2**31, 4),
        (65_536, 3, 2**20),
        (0, 3, 4),
        (65_536, 0, 4),
        (65_536, 3, 0),
        (8, 3, 4),
    ):
        wrapped = b"".join(number.to_bytes(4, "big") for number in cost) + rest
        refused(lambda: person.unwrap(wrapped, b""), "damaged", kind=KeyUnavailable)  # noqa: B023
    refused(lambda: person.unwrap(b"short", b""), "damaged", kind=KeyUnavailable)


def test_passphrases_that_are_refused(tmp_path: Path) -> None:
    for word, finding in (("", "too short"), ("sieben7", "too short"), ("half\udc80open", "not valid text")):
        person = provider("passphrase:", base=tmp_path, passphrase=lambda: word)  # noqa: B023
        with pytest.raises(KeyUnavailable, match=finding) as caught:
            person.wrap(DATA_KEY, b"")
        assert not word or word not in str(caught.value)


@pytest.mark.parametrize("uri", ["", "hunter2", "file:", "env:KEY", "passphrase:hunter2", "passphrase:"])
def test_uris_that_name_no_provider(tmp_path: Path, uri: str) -> None:
    with pytest.raises(KeyUnavailable) as caught:
        provider(uri, base=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_key_file(filled: Path, tmp_path: Path) -> None:
    create_key_file(tmp_path / "other.key")
    wrong = provider("file:other.key", base=tmp_path)
    refused(lambda: Vault.open(filled, wrong), "other.key does not open this vault", kind=KeyUnavailable)
