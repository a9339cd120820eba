"""The audit log shows every change to it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.audit import START, AuditLog
from common.errors import AuditError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path / "audit.jsonl")
    made.create()
    for number in range(5):
        made.append("import", {"images": number}, NOW)
    return made


def test_entries_follow_one_another(log: AuditLog) -> None:
    entries = list(log.entries())
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0].before == START
    assert [entry.before for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert log.end() == (5, entries[-1].hash)
    assert log.verify(3, entries[2].hash) == 5
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_an_empty_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for call in (log.verify, log.end, lambda: log.append("import", {}, NOW)):
        with pytest.raises(AuditError, match="missing"):
            call()
    log.create()
    with pytest.raises(AuditError, match="cannot be written"):
        log.create()
    assert log.end() == (0, START)
    assert log.verify() == 0


def changed(log: AuditLog, place: int, **fields: object) -> None:
    lines = log.path.read_text().splitlines()
    lines[place - 1] = json.dumps({**json.loads(lines[place - 1]), **fields})
    log.path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "fields",
    [
        {"facts": {"images": 9}},
        {"event": "erase"},
        {"at": "x"},
        {"number": 7},
        {"before": START},
        {"hash": START},
        {"x": 1},
    ],
)
def test_a_changed_entry_shows(log: AuditLog, fields: dict[str, object]) -> None:
    changed(log, 3, **fields)
    with pytest.raises(AuditError, match="altered at entry 3"):
        log.verify()


def test_a_changed_last_entry_stops_the_next(log: AuditLog) -> None:
    changed(log, 5, facts={})
    with pytest.raises(AuditError, match="altered at its end"):
        log.append("import", {}, NOW)


def test_removed_inserted_and_swapped_entries_show(log: AuditLog) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    for other in (
        lines[1:],
        lines[:2] + lines[3:],
        [lines[1], lines[0], *lines[2:]],
        [*lines[:3], lines[2], *lines[3:]],
    ):
        log.path.write_text("".join(other))
        with pytest.raises(AuditError, match="altered at entry"):
            log.verify()


def test_a_cut_or_rewritten_log_shows_by_its_end(log: AuditLog, tmp_path: Path) -> None:
    number, head = log.end()
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:3]))
    assert log.verify() == 3, "in itself it is consistent"
    with pytest.raises(AuditError, match="was cut: 3 entries where there were 5"):
        log.verify(number, head)
    other = AuditLog(tmp_path / "other.jsonl")
    other.create()
    for _ in range(6):
        other.append("import", {"images": 7}, NOW)
    with pytest.raises(AuditError, match="rewritten"):
        other.verify(number, head)


def test_half_a_line_of_a_killed_writer_is_cut_off(log: AuditLog) -> None:
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"number": 6, "at"')
    assert log.verify() == 5
    log.append("import", {}, NOW)
    assert log.verify() == 6
    assert log.path.read_bytes().startswith(whole)


def _write(path: Path) -> None:
    for _ in range(25):
        AuditLog(path).append("import", {}, NOW)


def test_several_processes_write_one_chain(log: AuditLog) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(log.path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert log.verify() == 5 + 75


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(tmp_path / "audit.jsonl").append("import", {}, NOW)


def test_an_entry_that_is_too_long_is_refused(log: AuditLog) -> None:
    before = log.path.read_bytes()
    with pytest.raises(AuditError, match="say less"):
        log.append("import", {"x": "y" * 40_000}, NOW)
    assert log.path.read_bytes() == before
    log.append("import", {"x": "y" * 30_000}, NOW)
    log.append("import", {"x": "y" * 30_000}, NOW)
    assert log.verify() == 7


def test_a_full_disk_leaves_the_log_as_it_was(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = log.path.read_bytes(), os.write

    def some(file: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", some)
        with pytest.raises(AuditError, match="cannot be written"):
            log.append("import", {}, NOW)
    assert log.path.read_bytes() == before
    log.append("import", {}, NOW)
    assert log.verify() == 6
