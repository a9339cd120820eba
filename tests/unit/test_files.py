"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from common.errors import RunError
from common.files import sweep, sweep_folder, write_atomically


def test_written_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_full_disk_is_one_line_and_the_old_file_stays(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(RunError, match=r"cannot write .*a\.bin: No space left on device; free some space") as caught:
        write_atomically(path, b"new")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*: No such file or directory"):
        write_atomically(tmp_path / "none" / "a.bin", b"x")


def test_what_a_kill_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"whole")
    left = tmp_path / ".a.bin.new-k3j2"
    left.write_bytes(b"ha")
    others = [tmp_path / name for name in ("b.bin", ".b.bin.new-k3j2", "a.bin.new-1", ".a.bin")]
    for other in others:
        other.write_bytes(b"other")
    sweep(path)
    assert not left.exists()
    assert path.read_bytes() == b"whole"
    assert all(other.exists() for other in others)
    sweep(tmp_path / "none" / "a.bin")
    sweep_folder(tmp_path)
    assert {found.name for found in tmp_path.iterdir()} == {"a.bin", "b.bin", "a.bin.new-1", ".a.bin"}
