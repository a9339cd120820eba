"""What there is to import: found in order, read safely."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from client.ingest.kinds import Refused, Rules
from client.ingest.sources import discover
from common.errors import DataError

RULES = Rules(largest_bytes=2**20)


def read(*sources: Path, ignored: tuple[Path, ...] = ()) -> dict[str, bytes | str]:
    """Name -> content, or the code of the refusal."""
    result: dict[str, bytes | str] = {}
    for found in discover(sources, RULES, ignored=ignored):
        assert found.name not in result
        try:
            result[found.name] = found.read()
        except Refused as refused:
            result[found.name] = refused.reason.code
    return result


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", "c/d/e.png", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert list(read(tmp_path)) == ["a.png", "b/1.png", "b/2.png", "c/d/e.png"]
    assert list(read(tmp_path / "DICOMDIR")) == ["a.png", "b/1.png", "b/2.png", "c/d/e.png"]
    assert list(read(tmp_path / "b" / "2.png", tmp_path / "a.png")) == ["2.png", "a.png"]
    assert "a.png" not in read(tmp_path, ignored=(tmp_path / "b" / ".." / "a.png",))


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(discover([tmp_path / "nowhere"], RULES))


def test_links_stay_inside(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "real.png").write_bytes(b"real")
    (source / "out.png").symlink_to(tmp_path / "secret")
    (source / "in.png").symlink_to(source / "real.png")
    (source / "gone.png").symlink_to(source / "nothing")
    (source / "round").symlink_to(source)
    found = read(source)
    assert found == {
        "real.png": b"real",
        "out.png": "outside-source",
        "in.png": b"real",
        "gone.png": "unreadable",
    }


def test_a_pipe_does_not_hang_and_large_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    (tmp_path / "empty.png").write_bytes(b"")
    assert read(tmp_path) == {"empty.png": b"", "large.png": "too-large", "pipe.png": "not-a-file"}


def pack(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[arg-type]
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zips_are_read_without_unpacking(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", {"x/1.png": b"one", "../../etc/passwd": b"two", "/abs.png": b"three", "DICOMDIR": b""})
    found = read(tmp_path)
    assert found == {"a.zip/../../etc/passwd": b"two", "a.zip//abs.png": b"three", "a.zip/x/1.png": b"one"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_bombs_and_nested_zips_are_refused(tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner.zip", {"1.png": b"x"}).read_bytes()
    (tmp_path / "inner.zip").unlink()
    members = {"bomb.png": bytes(2**20 + 1), "inner.zip": inner, "small.png": b"x"}
    pack(tmp_path / "a.zip", members, compression=zipfile.ZIP_DEFLATED)
    assert read(tmp_path) == {
        "a.zip/bomb.png": "too-large",
        "a.zip/inner.zip": "nested-zip",
        "a.zip/small.png": b"x",
    }


def test_damaged_and_locked_zips_are_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.zip", {"1.png": b"pixels" * 100, "2.png": b"more"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:-30])
    assert read(tmp_path) == {"a.zip": "bad-zip"}
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF  # inside the first member: its CRC no longer fits
    (tmp_path / "a.zip").write_bytes(flipped)
    assert read(tmp_path) == {"a.zip/1.png": "bad-zip", "a.zip/2.png": b"more"}
    locked = bytearray(whole)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[whole.index(signature) + place] |= 1
    (tmp_path / "a.zip").write_bytes(locked)
    assert read(tmp_path) == {"a.zip/1.png": "encrypted-zip", "a.zip/2.png": b"more"}


def test_array_files_are_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8), np.uint8))
    found = read(tmp_path)
    assert list(found) == ["images.npz"]
    assert isinstance(found["images.npz"], bytes)


def test_a_file_with_a_zip_at_its_end_is_no_zip(tmp_path: Path) -> None:
    """A file may be two things at once; what it starts as is what it is."""
    end = pack(tmp_path / "a.zip", {"1.png": b"x"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(b"\x89PNG" + end)
    assert list(read(tmp_path)) == ["a.zip"]


@pytest.mark.parametrize("properties", [b"\xff\xff", b"\x01\x00", b""])
def test_whatever_a_decompressor_raises_is_a_damaged_zip(tmp_path: Path, properties: bytes) -> None:
    path = pack(tmp_path / "a.zip", {"1.png": os.urandom(3000)}, compression=zipfile.ZIP_LZMA)
    whole = bytearray(path.read_bytes())
    start = 30 + len("1.png")
    if properties:
        whole[start + 2 : start + 4] = properties
    else:
        whole[start + 200 : start + 400] = b"\xff" * 200
    path.write_bytes(whole)
    (tmp_path / "b.png").write_bytes(b"good")
    assert read(tmp_path) == {"a.zip/1.png": "bad-zip", "b.png": b"good"}


def directory(path: Path, names: Iterable[bytes], said: int | None = None) -> None:
    """A ZIP of one empty member without a name, and a list of ``names``; its end says ``said`` of their number."""
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    entries = [
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(20, 20, 0, 0, 0, 0), 0, 0, 0, len(name), *(0,) * 6) + name
        for name in names
    ]
    listed = b"".join(entries)
    number = min(len(entries) if said is None else said, 0xFFFF)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, number, number, len(listed), len(local), 0)
    path.write_bytes(local + listed + end)


def test_a_member_without_a_name_is_no_end_of_the_import(tmp_path: Path) -> None:
    directory(tmp_path / "a.zip", [b""])
    (tmp_path / "b.png").write_bytes(b"good")
    assert read(tmp_path) == {"a.zip": "bad-zip", "b.png": b"good"}


def test_a_list_of_members_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few its end claims."""
    directory(tmp_path / "a.zip", (b"%0200d" % number for number in range(150_000)), said=1)
    (tmp_path / "b.png").write_bytes(b"good")
    tracemalloc.start()
    try:
        assert read(tmp_path) == {"a.zip": "zip-too-large", "b.png": b"good"}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    monkeypatch.setattr("client.ingest.sources._MOST_MEMBERS", 2)
    pack(tmp_path / "a.zip", {f"{number}.png": b"x" for number in range(3)})
    assert read(tmp_path) == {"a.zip": "zip-too-large", "b.png": b"good"}


def test_a_folder_that_cannot_be_listed_is_one_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "DOE^JOHN").mkdir()
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "1.png").write_bytes(b"good")
    scan = os.scandir

    def scandir(path: str) -> object:
        if "DOE" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert read(tmp_path) == {"ok/1.png": b"good", "DOE^JOHN": "unreadable"}
    with pytest.raises(DataError, match="cannot be listed"):
        read(tmp_path / "DOE^JOHN")


def test_a_name_that_becomes_a_link_meanwhile_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    (source / "1.png").write_bytes(b"mine")
    (tmp_path / "secret").write_bytes(b"secret")
    found = list(discover([source], RULES))
    opened = os.open

    def swapped(path: str, flags: int) -> int:
        (source / "1.png").unlink()
        (source / "1.png").symlink_to(tmp_path / "secret")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(Refused) as caught:
        found[0].read()
    assert caught.value.reason.code == "outside-source"


def test_links_that_lead_round_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").write_bytes(b"good")
    assert read(tmp_path) == {"a.png": "unreadable", "b.png": "unreadable", "c.png": b"good"}


def test_folders_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "masks/a.png", "masks/deep/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(read(tmp_path, ignored=(tmp_path / "masks",))) == ["a.png"]
