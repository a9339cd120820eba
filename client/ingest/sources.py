"""What there is to import, and how to read it safely: files, folders, ZIPs.

Nothing is parsed here but ZIP directories, and nothing is ever unpacked to the disk: a member named
``../../etc/passwd`` is only a name. Links are followed as long as they end inside the folder that was named. A
DICOMDIR is an index; the files it lists lie in its folder and are found there, so naming it means naming the folder.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
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
LARGE_ZIP = Reason(
    "zip-too-large", "source", "a ZIP with too many members", "split it, or unpack it and import the folder"
)
NESTED_ZIP = Reason("nested-zip", "source", "a ZIP inside a ZIP", "unpack the outer one and import the folder")

_MOST_MEMBERS = 250_000
_LARGEST_DIRECTORY = 2**25  # bytes of a ZIP's list of members; in memory it takes some eight times as much
_ZIP = b"PK\x03\x04"
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

    ``ignored`` are files and folders that lie among the images but are none: label sheets, lists, masks. What turns out
    to be unreadable is found out by reading it. Raises :class:`DataError` for a source that is not there.
    """
    skipped = {(status.st_dev, status.st_ino) for status in (path.stat() for path in ignored)}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; check the path")
        folder = source.parent if source.name == _INDEX else source
        if folder.is_dir():
            yield from _folder(folder, rules, skipped)
        else:
            yield from _file(folder, source.name, _real(source.parent), rules, skipped)


def _folder(folder: Path, rules: Rules, skipped: set[tuple[int, int]]) -> Iterator[Found]:
    root = _real(folder)
    unlisted: list[str] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise DataError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from None
        unlisted.append(Path(error.filename).relative_to(folder).as_posix())

    # Links to folders are not followed: they may lead round in circles.
    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not _is_skipped(Path(place) / name, skipped))
        for name in sorted(files):
            path = Path(place) / name
            if name != _INDEX:
                yield from _file(path, path.relative_to(folder).as_posix(), root, rules, skipped)
    # Their names may be patients' names: they are listed as files are, by a pseudonym.
    yield from (Found(name, partial(_refuse, UNREADABLE), named=False) for name in unlisted)


def _file(path: Path, name: str, root: Path, rules: Rules, skipped: set[tuple[int, int]]) -> Iterator[Found]:
    if _is_skipped(path, skipped):
        return
    if _starts_as_zip(path, root):
        try:
            members = _members(_opened(path, root))
        except Refused as refused:
            yield Found(name, partial(_refuse, refused.reason))
            return
        except Exception:  # ``zipfile`` and its decompressors raise whatever comes of bytes that lie
            yield Found(name, partial(_refuse, BAD_ZIP))
            return
        if members:
            yield from (Found(f"{name}/{one}", partial(_read_member, path, one, root, rules)) for one in members)
            return
    yield Found(name, partial(_read_file, path, root, rules))


def _is_skipped(path: Path, skipped: set[tuple[int, int]]) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in skipped


def _starts_as_zip(path: Path, root: Path) -> bool:
    try:
        with _open(path, root) as file:
            return file.read(4) == _ZIP
    except (OSError, Refused):
        return False


class _Archive(zipfile.ZipFile):
    """A ZIP whose list of members is bounded before it is read; what its end says of their number may be a lie."""

    def __init__(self, file: _Bounded) -> None:
        self._file = file
        try:
            super().__init__(file)
        except BaseException:
            file.close()
            raise
        file.most = None

    def close(self) -> None:
        super().close()
        self._file.close()


class _Bounded(io.BufferedReader):
    """Reads no more than ``most`` bytes at a time; ``zipfile`` reads a directory at once."""

    most: int | None = _LARGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise Refused(LARGE_ZIP)
        return super().read(size)


def _opened(path: Path, root: Path) -> _Archive:
    """The archive, kept open while its members are read one after another."""
    status = path.stat()
    return _kept_open(path, root, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2)
def _kept_open(path: Path, root: Path, state: tuple[int, ...]) -> _Archive:
    return _Archive(_open(path, root))


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Names of the files in a ZIP, sorted; none for an array file of NumPy, which is a ZIP too."""
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    if len(names) > _MOST_MEMBERS:
        raise Refused(LARGE_ZIP)
    if len(set(names)) != len(names):
        raise zipfile.BadZipFile
    if names and all(name.endswith(".npy") for name in names):
        return []
    return [name for name in names if not name.endswith(f"/{_INDEX}") and name != _INDEX and "__MACOSX/" not in name]


def _real(path: Path) -> Path:
    """Where ``path`` leads; one that leads round in a circle to nowhere."""
    return Path(os.path.realpath(path))


def _open(path: Path, root: Path) -> _Bounded:
    """Open a file inside ``root``. Raises :class:`Refused` for what lies outside or is none, or ``OSError``."""
    if not _real(path).is_relative_to(root):
        raise Refused(OUTSIDE)
    # O_NONBLOCK: a pipe would wait for ever for somebody to write.
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused(NOT_A_FILE)
        # What was opened, not what the name meant a moment ago.
        if not _real(Path(f"/proc/self/fd/{file.fileno()}")).is_relative_to(root):
            raise Refused(OUTSIDE)
        return _Bounded(file)
    except BaseException:
        file.close()
        raise


def _refuse(reason: Reason) -> bytes:
    raise Refused(reason)


def _read_file(path: Path, root: Path, rules: Rules) -> bytes:
    try:
        with _open(path, root) as file:
            if os.fstat(file.fileno()).st_size > rules.largest_bytes:
                raise Refused(LARGE)
            return file.read()
    except OSError:
        special = path.exists() and not path.is_file()
        raise Refused(NOT_A_FILE if special else UNREADABLE) from None


def _read_member(path: Path, member: str, root: Path, rules: Rules) -> bytes:
    try:
        archive = _opened(path, root)
        if archive.getinfo(member).flag_bits & 0x1:
            raise Refused(ENCRYPTED_ZIP)
        with archive.open(member) as file:
            # What the directory says of the size may be a lie: reading is what is limited.
            content = file.read(rules.largest_bytes + 1)
    except Refused:
        raise
    except Exception:
        raise Refused(BAD_ZIP) from None
    if len(content) > rules.largest_bytes:
        raise Refused(LARGE)
    if content.startswith(_ZIP) and not member.endswith(".npz"):
        raise Refused(NESTED_ZIP)
    return content
