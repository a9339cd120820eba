"""What there is to import, and how to read it safely: files, folders, ZIPs.

Nothing is parsed here but ZIP directories, and nothing is ever unpacked to the disk: a member named
``../../etc/passwd`` is only a name. Links are followed as long as they end inside the folder that was named. A
DICOMDIR is an index; the files it lists lie in its folder and are found there, so naming it means naming the folder.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from client.ingest.kinds import Reason, Refused, Rules
from client.ingest.reasons import LARGE, UNREADABLE
from common.errors import DataError

OUTSIDE = Reason("outside-source", "source", "a link that leads out of the folder", "copy the file into the folder")
NOT_A_FILE = Reason("not-a-file", "source", "a pipe, socket or device, not a file", "leave it out")
BAD_ZIP = Reason("bad-zip", "source", "a damaged ZIP", "make the archive again")
ENCRYPTED_ZIP = Reason("encrypted-zip", "source", "a ZIP member with a password", "unpack it and import the folder")
NESTED_ZIP = Reason("nested-zip", "source", "a ZIP inside a ZIP", "unpack the outer one and import the folder")

_MOST_MEMBERS = 1_000_000
_ZIP = b"PK\x03\x04"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, RuntimeError)
"""What ``zipfile`` raises for archives that are damaged or lie."""
_INDEX = "DICOMDIR"


@dataclass(frozen=True)
class Found:
    """One file to import. ``repr`` shows nothing: names of files hold names of patients."""

    name: str = field(repr=False)
    """Path inside the source with ``/``: what a label sheet calls the file."""
    read: Callable[[], bytes] = field(repr=False)
    """Raises :class:`Refused`."""
    named: bool = True
    """Whether ``name`` is a file's, which a label sheet may know; not for what comes from a PACS."""


def discover(sources: Sequence[Path], rules: Rules, *, ignored: Sequence[Path] = ()) -> Iterator[Found]:
    """All files of ``sources`` in a fixed order: the order given, then by name.

    ``ignored`` are files that lie among the images but are none: label sheets, lists. What turns out to be unreadable
    is found out by reading it. Raises :class:`DataError` for a source that is not there.
    """
    skipped = {(status.st_dev, status.st_ino) for status in (path.stat() for path in ignored)}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; check the path")
        folder = source.parent if source.name == _INDEX else source
        if folder.is_dir():
            yield from _folder(folder, rules, skipped)
        else:
            yield from _file(folder, source.name, source.parent.resolve(), rules, skipped)


def _folder(folder: Path, rules: Rules, skipped: set[tuple[int, int]]) -> Iterator[Found]:
    root = folder.resolve()

    def complain(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}; check its permissions") from None

    # Links to folders are not followed: they may lead round in circles.
    for place, folders, files in os.walk(folder, onerror=complain):
        folders.sort()
        for name in sorted(files):
            path = Path(place) / name
            if name != _INDEX:
                yield from _file(path, path.relative_to(folder).as_posix(), root, rules, skipped)


def _file(path: Path, name: str, root: Path, rules: Rules, skipped: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        status = path.stat()
    except OSError:
        status = None
    if status is not None and (status.st_dev, status.st_ino) in skipped:
        return
    if status is not None and stat.S_ISREG(status.st_mode) and _inside(path, root) and _starts_as_zip(path):
        try:
            members = _members(_opened(path))
        except _BROKEN:
            yield Found(name, partial(_refuse, BAD_ZIP))
            return
        if members:
            yield from (Found(f"{name}/{member}", partial(_read_member, path, member, rules)) for member in members)
            return
    yield Found(name, partial(_read_file, path, root, rules))


def _starts_as_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZIP
    except OSError:
        return False


def _opened(path: Path) -> zipfile.ZipFile:
    """The archive, kept open while its members are read one after another."""
    status = path.stat()
    return _kept_open(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2)
def _kept_open(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Names of the files in a ZIP, sorted; none for an array file of NumPy, which is a ZIP too."""
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    if len(names) > _MOST_MEMBERS or len(set(names)) != len(names):
        raise zipfile.BadZipFile
    if names and all(name.endswith(".npy") for name in names):
        return []
    return [name for name in names if not name.endswith(f"/{_INDEX}") and name != _INDEX and "__MACOSX/" not in name]


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _refuse(reason: Reason) -> bytes:
    raise Refused(reason)


def _read_file(path: Path, root: Path, rules: Rules) -> bytes:
    if not _inside(path, root):
        raise Refused(OUTSIDE)
    try:
        # O_NONBLOCK: a pipe would wait for ever for somebody to write.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(NOT_A_FILE)
            if status.st_size > rules.largest_bytes:
                raise Refused(LARGE)
            return file.read()
    except OSError:
        special = path.exists() and not path.is_file()
        raise Refused(NOT_A_FILE if special else UNREADABLE) from None


def _read_member(path: Path, member: str, rules: Rules) -> bytes:
    try:
        archive = _opened(path)
        if archive.getinfo(member).flag_bits & 0x1:
            raise Refused(ENCRYPTED_ZIP)
        with archive.open(member) as file:
            # What the directory says of the size may be a lie: reading is what is limited.
            content = file.read(rules.largest_bytes + 1)
    except _BROKEN:
        raise Refused(BAD_ZIP) from None
    if len(content) > rules.largest_bytes:
        raise Refused(LARGE)
    if content.startswith(_ZIP) and not member.endswith(".npz"):
        raise Refused(NESTED_ZIP)
    return content
