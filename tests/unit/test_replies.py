"""Kept replies: the same bytes again, no round twice from other weights, whole or absent after any kill."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.replies import A_ROUND, MOST_EVALUATIONS, TRAIN, Identity, Replies, RoundSpent, StoreError
from client.vault.keys import prepare
from client.vault.store import Vault
from tests.conftest import SOAK

ROOT = Path(__file__).parents[2]
FIRST = Identity("a" * 64, "federated", 0, TRAIN, 1, "d1")
PATIENT = b"weights that must not lie about in the clear "


def opened(folder: Path) -> Vault:
    keys = prepare("file:key", base=folder)
    path = folder / "vault.sqlite"
    return Vault.open(path, keys) if path.exists() else Vault.create(path, keys, synthetic=True, source="a test")


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    return opened(tmp_path_factory.mktemp("vault"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "federation" / "replies.sqlite"


def test_the_kind_that_spends_a_round_is_the_protocols() -> None:
    from common import protocol  # Flower and torch, which the child processes below need not load

    assert TRAIN == protocol.TRAIN


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_500_000])
def test_asked_again_the_same_bytes_come_also_after_a_restart(path: Path, vault: Vault, size: int) -> None:
    reply = random.Random(size).randbytes(size)
    replies = Replies(path, vault)
    assert replies.kept(FIRST) is None
    replies.keep(FIRST, reply)
    assert replies.kept(FIRST) == reply
    replies.keep(FIRST, b"made twice by mistake")  # the first may have been sent
    replies.close()
    again = Replies(path, vault)
    assert again.kept(FIRST) == reply
    assert again.spent(FIRST.study, "federated", 0, 1) == "d1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again.close()
    assert [found.name for found in path.parent.iterdir()] == ["replies.sqlite"]


def test_other_weights_for_a_spent_round_are_refused(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    replies.keep(FIRST, b"one")
    other = replace(FIRST, digest="d2")
    with pytest.raises(RoundSpent, match=r"round 1 of study aaaaaaaaaaaa was trained from other weights; ") as caught:
        replies.kept(other)
    assert caught.value.code == "round-spent"
    with pytest.raises(RoundSpent):
        replies.keep(other, b"two")
    for free in (
        replace(other, repeat=1),
        replace(other, arm="local:north"),
        replace(other, study="b" * 64),
        replace(other, round=2),
        replace(other, kind="evaluate.scores val"),
    ):
        assert replies.kept(free) is None
        replies.keep(free, b"free")
    assert replies.spent(FIRST.study, "federated", 0, 1) == "d1"
    assert replies.spent(FIRST.study, "federated", 2, 1) is None


def test_of_earlier_rounds_only_the_digest_stays(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    for number in range(1, 6):
        replies.keep(replace(FIRST, round=number, digest=f"d{number}"), b"x" * 500_000)
        replies.keep(replace(FIRST, round=number, kind="evaluate.scores val"), b"y")
    replies.keep(replace(FIRST, repeat=1), b"another repeat")
    assert replies.kept(FIRST) is None
    assert [replies.spent(FIRST.study, "federated", 0, number) for number in range(1, 7)] == [
        *("d1", "d2", "d3", "d4", "d5"),
        None,
    ]
    assert replies.kept(replace(FIRST, round=5, digest="d5")) == b"x" * 500_000
    assert replies.kept(replace(FIRST, round=5, kind="evaluate.scores val")) == b"y"
    assert replies.kept(replace(FIRST, round=4, kind="evaluate.scores val")) is None
    assert replies.kept(replace(FIRST, repeat=1)) == b"another repeat"
    assert path.stat().st_size < 2_500_000
    replies.keep(FIRST, b"made anew for a coordinator that went back to its checkpoint")
    assert replies.kept(FIRST) == b"made anew for a coordinator that went back to its checkpoint"
    assert replies.kept(replace(FIRST, round=5, digest="d5")) is None
    assert replies.spent(FIRST.study, "federated", 0, 5) == "d5"


def test_evaluations_without_end_and_repeats_without_end_are_bounded(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault, limit_bytes=100_000)
    replies.keep(FIRST, b"trained")
    asked = [
        replace(FIRST, kind=f"evaluate.{kind}", digest=f"e{number}")
        for kind in ("scores val", "scores test", "moments test")
        for number in range(MOST_EVALUATIONS)
    ]
    for identity in asked:
        replies.keep(identity, b"scores")
    kept = [identity for identity in asked if replies.kept(identity) is not None]
    assert kept == asked[-A_ROUND:]
    for kind in ("scores val", "moments test"):
        with pytest.raises(RoundSpent, match="8 times with other weights"):
            replies.kept(replace(FIRST, kind=f"evaluate.{kind}", digest="one more"))
    replies.keep(replace(FIRST, round=2), b"trained")
    with pytest.raises(RoundSpent, match="8 times"):  # nor after another round, nor by the way of keeping
        replies.keep(replace(asked[0], digest="one more"), b"scores")
    assert replies.kept(replace(asked[0], round=2)) is None
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM reply").fetchone() == (2 + len(asked),)
    connection.close()
    for repeat in range(20):
        replies.keep(replace(FIRST, repeat=repeat, round=3), b"z" * 30_000)
    assert [replies.kept(replace(FIRST, repeat=repeat, round=3)) is None for repeat in range(20)] == [True] * 17 + [
        False
    ] * 3
    assert replies.spent(FIRST.study, "federated", 0, 3) == "d1"
    replies.keep(replace(FIRST, repeat=99), b"z" * 200_000)  # larger than all that is kept: kept alone
    assert replies.kept(replace(FIRST, repeat=99)) == b"z" * 200_000


def test_a_study_that_ended_is_forgotten_and_the_disk_is_given_back(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    replies.keep(FIRST, b"x" * 5_000_000)
    replies.keep(replace(FIRST, study="b" * 64), b"stays")
    assert replies.studies() == [FIRST.study, "b" * 64]
    assert replies.forget(FIRST.study) == 1
    assert path.stat().st_size < 1_500_000
    assert replies.kept(FIRST) is None
    assert replies.spent(FIRST.study, "federated", 0, 1) == FIRST.digest, "approved anew it is trained once still"
    assert replies.studies() == ["b" * 64]
    assert replies.kept(replace(FIRST, study="b" * 64)) == b"stays"
    assert replies.forget(FIRST.study) == 0


def test_nothing_lies_in_the_clear_and_nonces_differ(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    for number in range(2):
        replies.keep(replace(FIRST, repeat=number), PATIENT * 50_000)
    assert PATIENT[:16] not in path.read_bytes()
    with sqlite3.connect(path) as connection:
        pieces = [data for (data,) in connection.execute("SELECT data FROM piece")]
    assert len({data[:12] for data in pieces}) == len(pieces) == 6
    connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE piece SET data = CAST(substr(data, 1, 20) || x'00' || substr(data, 22) AS BLOB) WHERE number = 1",
        "UPDATE piece SET data = x'' WHERE number = 1",
        "UPDATE piece SET number = number + 10 WHERE number = 0",
        "DELETE FROM piece WHERE number = 2",
        "UPDATE reply SET size = size - 1",
        "UPDATE reply SET mark = x'00'",
        "UPDATE reply SET round = 2",
        "UPDATE reply SET digest = 'd9'",
        "UPDATE reply SET study = 'bb'",
    ],
)
def test_an_altered_reply_is_never_sent(path: Path, vault: Vault, change: str) -> None:
    replies = Replies(path, vault)
    replies.keep(FIRST, random.Random(1).randbytes(2_500_000))
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    meant = FIRST
    for word, field in (
        ("round = 2", {"round": 2}),
        ("digest = 'd9'", {"digest": "d9"}),
        ("study = 'bb'", {"study": "bb"}),
    ):
        meant = replace(meant, **field) if word in change else meant
    with pytest.raises(StoreError, match=r"is not as it was written; restore"):
        replies.kept(meant)


def test_under_a_new_key_replies_are_gone_and_spent_rounds_stay(path: Path, vault: Vault, tmp_path: Path) -> None:
    replies = Replies(path, vault)
    replies.keep(FIRST, b"one")
    replies.keep(replace(FIRST, kind="evaluate.scores val"), b"two")
    (tmp_path / "other").mkdir()
    after = Replies(path, opened(tmp_path / "other"))
    assert after.kept(FIRST) is None
    assert after.spent(FIRST.study, "federated", 0, 1) == "d1"
    with pytest.raises(RoundSpent):
        after.keep(replace(FIRST, digest="d2"), b"")
    after.keep(FIRST, b"made anew")
    assert after.kept(FIRST) == b"made anew"
    with pytest.raises(StoreError, match="was exchanged meanwhile"):
        replies.kept(FIRST)


def test_a_file_that_is_none_a_newer_one_and_a_full_disk_are_one_line(path: Path, vault: Vault) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"^federation/replies\.sqlite is damaged; restore it from a backup$"):
        Replies(path, vault)
    path.unlink()
    Replies(path, vault).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreError, match="has format 9, this fedward 1: upgrade fedward"):
        Replies(path, vault)
    path.unlink()
    replies = Replies(path, vault)
    replies.keep(replace(FIRST, repeat=7), b"whole")
    replies._database._connection().execute("PRAGMA max_page_count = 20")
    with pytest.raises(StoreError, match="check the disk's space"):
        replies.keep(FIRST, b"x" * 5_000_000)
    assert replies.kept(FIRST) is None
    assert replies.spent(FIRST.study, "federated", 0, 1) is None
    assert replies.kept(replace(FIRST, repeat=7)) == b"whole"


def test_a_file_that_was_taken_away_is_made_anew(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    replies.keep(FIRST, b"one")
    path.unlink()
    with pytest.raises(StoreError, match="start the site's agent again"):
        replies.kept(FIRST)
    assert Replies(path, vault).kept(FIRST) is None


def test_threads_share_one_store(path: Path, vault: Vault) -> None:
    replies = Replies(path, vault)
    outcomes: list[bool] = []

    def work(repeat: int) -> None:
        for number in range(1, 6):
            identity = replace(FIRST, repeat=repeat, round=number)
            replies.keep(identity, b"%d %d" % (repeat, number))
            outcomes.append(replies.kept(identity) == b"%d %d" % (repeat, number))

    threads = [threading.Thread(target=work, args=(repeat,)) for repeat in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 30


def reply_of(number: int) -> bytes:
    """Some 300 KB to 3 MB, told by its number."""
    return hashlib.sha256(b"%d" % number).digest() * (10_000 * (1 + number % 9))


WORK = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.unit.test_replies import FIRST, Replies, opened, reply_of
replies = Replies(Path(sys.argv[1]) / "replies.sqlite", opened(Path(sys.argv[1])))
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    replies.keep(replace(FIRST, round=number, digest=f"d{number}"), reply_of(number))
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_replies_or_none(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    rng, done, torn = random.Random(4), 0, 0
    for _ in range(100 if SOAK else 5):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path), str(done)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        torn += (tmp_path / "replies.sqlite-journal").exists()
        replies = Replies(tmp_path / "replies.sqlite", vault)
        last = max([done, *told])
        while (spent := replies.spent(FIRST.study, "federated", 0, last + 1)) is not None:
            assert spent == f"d{last + 1}"  # committed, and killed before it was told
            last += 1
        for number in range(max(1, last - 2), last + 2):
            found = replies.kept(replace(FIRST, round=number, digest=f"d{number}"))
            assert found == (reply_of(number) if number == last else None)
            assert (replies.spent(FIRST.study, "federated", 0, number) is None) == (number > last)
        done = last
        replies.close()
    assert done > 0
    assert torn or not SOAK


@pytest.mark.slow
def test_the_largest_reply_takes_its_size_in_memory_once(tmp_path: Path) -> None:
    """1 GiB kept and read back by a process that may map 1.25 GiB above what it has with the reply in hand."""
    opened(tmp_path)
    code = """
import sys
from pathlib import Path
from tests.unit.test_replies import FIRST, Replies, opened
replies = Replies(Path(sys.argv[1]) / "replies.sqlite", opened(Path(sys.argv[1])))
reply = bytes(1 << 30)
replies.keep(FIRST, reply)
del reply
found = replies.kept(FIRST)
assert len(found) == 1 << 30 and not found.strip(b"\\0")
# Not ru_maxrss: that is the parent's where it was larger when it forked.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) >> 10)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 2048
    with pytest.raises(StoreError, match="the most is 1 GiB"):
        Replies(tmp_path / "replies.sqlite", opened(tmp_path)).keep(FIRST, bytes((1 << 30) + 1))
