"""The file of a prepared view that is larger than memory: encrypted records of one size.

::

    header   magic, format, salt (32 random bytes), vault id, generation, view key, split, content, count, size; seal
    record   nonce (12) ‖ AES-256-GCM ciphertext (size) ‖ tag (16), count times

**Key.** ``Vault.view_key(salt)``: another for every file, lost with the vault's data key. Nonces are 96 random bits;
a file holds fewer than 2^32 records (``client.vault.sealing`` argues both).

**Associated data.** The header's seal is the nonce and tag of an empty text with the header's fields; a record's is
bound to the SHA-256 of the whole header and to its number. So no record can be moved, and no header be changed.
*Content* is a digest of the rows that the view was made of and of the code that made it: a file of a vault that was
put back and went another way, or of an older fedward, is not taken for this one's.

**Files.** A view is built under a partial name, locked meanwhile, and renamed when it is whole and on the disk. What
a killed build left is taken up again: each of its records is authenticated, and the first that fails ends it.
A file that is not exactly what is asked for is removed and built anew; records are checked when they are read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import struct
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.vault.database import sync_directory
from client.vault.private_memory import private_tensor
from common.errors import FedwardError, VaultError

FORMAT = 1
UNUSED = timedelta(days=30)
"""A view that nobody opened for so long is removed."""

_MAGIC = b"FDWVIEW\n"
_FIELDS = struct.Struct(">8sH32s16sQ32s8s32sQQ")
_NONCE_BYTES, _TAG_BYTES, _SALT_BYTES = 12, 16, 32
_SEAL_BYTES = _NONCE_BYTES + _TAG_BYTES
HEADER_BYTES = _FIELDS.size + _SEAL_BYTES
_HEADER_PLACE, _RECORD_PLACE = b"fedward view 1 header\0", b"fedward view 1 record\0"
_MOST_RECORDS = 2**32
_BUFFER_BYTES = 1 << 20
_NAME = re.compile(r"\.?(?P<vault>[0-9a-f]{32})-(?P<generation>\d+)-[0-9a-f]{16}-[a-z]+\.view(?P<partial>\.partial)?")

Seal = Callable[[int, bytes], bytes]
"""(number, plain text) -> the record."""


@dataclass(frozen=True)
class ViewName:
    """What a file must hold to be the view that is asked for; ``size`` is that of one record's plain text."""

    vault_id: str
    generation: int
    key: str
    split: str | None
    content: bytes
    count: int
    size: int

    @property
    def file(self) -> str:
        return f"{self.vault_id}-{self.generation}-{self.key[:16]}-{self.split or 'all'}.view"

    @property
    def stride(self) -> int:
        """Bytes of a record in the file."""
        return self.size + _SEAL_BYTES

    @property
    def file_bytes(self) -> int:
        return HEADER_BYTES + self.count * self.stride

    def fields(self, salt: bytes) -> bytes:
        """The header without its seal."""
        if self.count > _MOST_RECORDS:
            raise VaultError(f"a view holds at most {_MOST_RECORDS} images, not {self.count}; divide the vault")
        split = (self.split or "").encode()
        vault, key = bytes.fromhex(self.vault_id), bytes.fromhex(self.key)
        return _FIELDS.pack(
            _MAGIC, FORMAT, salt, vault, self.generation, key, split, self.content, self.count, self.size
        )


class Records:
    """The records of one file, open for reading."""

    def __init__(self, path: Path, name: ViewName, file: int, cipher: AESGCM, header: bytes) -> None:
        """``file`` is a descriptor; it is closed when this object goes."""
        self.path, self.name = path, name
        self._file = file
        self._cipher = cipher
        self._place = _RECORD_PLACE + hashlib.sha256(header).digest()
        self._sealed: memoryview | None = None
        weakref.finalize(self, os.close, file)

    @property
    def file_bytes(self) -> int:
        """Size of the file as it is now."""
        return os.fstat(self._file).st_size

    @property
    def at_once(self) -> int:
        """How many records one call of :meth:`read` takes."""
        return max(1, _BUFFER_BYTES // self.name.stride)

    def seal(self, number: int, plain: bytes) -> bytes:
        """The record of that number; may be called in any thread."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, self._associated(number))

    def read(self, numbers: Sequence[int], plain: memoryview) -> None:
        """Decrypt at most ``at_once`` records into ``plain``; neighbours in the file are fetched in one call.

        Raises :class:`VaultError` for a record that is not what was written.
        """
        failed = self.first_bad(numbers, plain)
        if failed is not None:
            raise VaultError(
                f"prepared view {self.path} is damaged or was altered: record {numbers[failed]} fails authentication; "
                "remove that file, and it is made anew from the vault"
            )

    def first_bad(self, numbers: Sequence[int], plain: memoryview) -> int | None:
        """Like :meth:`read`, but returns the position in ``numbers`` of the first that fails, or ``None``."""
        stride, size = self.name.stride, self.name.size
        if self._sealed is None:
            self._sealed = memoryview(bytearray(self.at_once * stride))
        sealed, present = self._sealed, len(numbers)
        cuts = [at for at, number in enumerate(numbers) if at == 0 or number != numbers[at - 1] + 1]
        runs = [
            (sealed[start * stride : end * stride], HEADER_BYTES + numbers[start] * stride)
            for start, end in zip(cuts, [*cuts[1:], len(numbers)], strict=True)
        ]
        if len(runs) > 1 and hasattr(os, "posix_fadvise"):
            # Told of all of them first, the disk fetches them side by side: a cold batch comes three times sooner.
            with suppress(OSError):
                for into, offset in runs:
                    os.posix_fadvise(self._file, offset, len(into), os.POSIX_FADV_WILLNEED)
        for start, (into, offset) in zip(cuts, runs, strict=True):
            got = self._fetch(into, offset)
            if got < len(into):
                present = start + got // stride
                break
        for position, number in enumerate(numbers[:present]):
            record = sealed[position * stride : (position + 1) * stride]
            into = plain[position * size : (position + 1) * size]
            try:
                self._cipher.decrypt_into(record[:_NONCE_BYTES], record[_NONCE_BYTES:], self._associated(number), into)
            except InvalidTag:
                return position
        return present if present < len(numbers) else None

    def _fetch(self, into: memoryview, offset: int) -> int:
        """Fill ``into`` from the file; how many bytes there were."""
        got = 0
        try:
            while got < len(into) and (read := os.preadv(self._file, [into[got:]], offset + got)):
                got += read
        except OSError as error:
            raise _unusable(self.path, error) from None
        return got

    def _associated(self, number: int) -> bytes:
        return self._place + number.to_bytes(8, "big")


def find(folder: Path, name: ViewName, key_of: Callable[[bytes], bytes], now: datetime) -> Records | None:
    """The view's records, where its file is there and exactly the one that is asked for; it then counts as used."""
    found = _opened(folder / name.file, name, key_of)
    if found is None or found.file_bytes != name.file_bytes:
        return None
    with suppress(OSError):  # somebody else's file, which may not be touched but can be read
        os.utime(found.path, (now.timestamp(), now.timestamp()))
    return found


def build(
    folder: Path,
    name: ViewName,
    key_of: Callable[[bytes], bytes],
    now: datetime,
    records: Callable[[Seal, int], Generator[bytes]],
) -> Records:
    """Make the view's file, or finish it. ``records(seal, n)`` gives the records from number ``n`` on, some at a time.

    Where another process is at it, waits for that. A kill or Ctrl-C leaves what the next call goes on from; any
    other failure leaves nothing. Raises :class:`VaultError` where the disk is full or cannot be written.
    """
    path = folder / name.file
    partial = folder / f".{name.file}.partial"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(partial) as file:
            try:
                found = find(folder, name, key_of, now)
                if found is not None:  # made by the process that was waited for
                    partial.unlink()
                    return found
                path.unlink(missing_ok=True)  # not the one that is asked for; its room may be needed
                made, whole = _begun(partial, name, file, key_of)
                _check_room(folder, name, os.fstat(file).st_size)
                with closing(records(made.seal, whole)) as rest:
                    for some in rest:
                        _write(file, some)
                if os.fstat(file).st_size != name.file_bytes:
                    raise VaultError(f"prepared view {path} came out incomplete; try again")
                os.utime(file, (now.timestamp(), now.timestamp()))
                os.fsync(file)
                if not _is(file, partial):
                    raise VaultError(f"prepared view {path} was removed while it was made (an erasure); try again")
                made.path = path
                partial.rename(path)
            except (OSError, FedwardError):
                partial.unlink(missing_ok=True)
                raise
        sync_directory(folder)
    except OSError as error:
        raise _unusable(path, error, name) from None
    return made


def sweep(folder: Path, vault_id: str, generation: int | None, now: datetime) -> None:
    """Remove the views of other generations of a vault (``None``: of all), and whosever nobody used for 30 days.

    A partial file that a process works on stays. Raises :class:`VaultError` where one cannot be removed.
    """
    try:
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            known = _NAME.fullmatch(path.name)
            if known is None:
                continue
            stale = known["vault"] == vault_id and known["generation"] != str(generation)
            with suppress(FileNotFoundError):  # another process is as quick
                if stale or now.timestamp() - path.lstat().st_mtime > UNUSED.total_seconds():
                    _remove(path, locked=known["partial"] is not None)
    except OSError as error:
        raise VaultError(
            f"cannot remove old prepared views in {folder}: {error.strerror}; remove them, or mend its permissions"
        ) from None


def _remove(path: Path, *, locked: bool) -> None:
    if not locked or path.is_symlink():
        path.unlink()
        return
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, path):
                path.unlink()
    finally:
        os.close(file)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file of that name, made if need be, that no other process works on."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is(file, path):
                yield file
                return
            # It was renamed or removed while it was waited for: what has the name now is another file.
        finally:
            os.close(file)


def _is(file: int, path: Path) -> bool:
    """Whether the name still stands for the file that was opened."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _opened(path: Path, name: ViewName, key_of: Callable[[bytes], bytes]) -> Records | None:
    """What has that name, open for reading; ``None`` where it is no regular file or its header not the one wanted."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with ExitStack() as failed:
        failed.callback(os.close, file)
        header = os.pread(file, HEADER_BYTES, 0) if stat.S_ISREG(os.fstat(file).st_mode) else b""
        if len(header) != HEADER_BYTES:
            return None
        fields, seal = header[: _FIELDS.size], header[_FIELDS.size :]
        salt = _FIELDS.unpack(fields)[2]
        if fields != name.fields(salt):
            return None
        cipher = AESGCM(key_of(salt))
        try:
            cipher.decrypt(seal[:_NONCE_BYTES], seal[_NONCE_BYTES:], _HEADER_PLACE + fields)
        except InvalidTag:
            return None
        failed.pop_all()
        return Records(path, name, file, cipher, header)


def _begun(path: Path, name: ViewName, file: int, key_of: Callable[[bytes], bytes]) -> tuple[Records, int]:
    """A partial file ready to be written to at its end, and how many of its records are whole."""
    made, whole = _opened(path, name, key_of), 0
    if made is None:
        os.ftruncate(file, 0)
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        fields, cipher = name.fields(salt), AESGCM(key_of(salt))
        header = fields + nonce + cipher.encrypt(nonce, b"", _HEADER_PLACE + fields)
        _write(file, header)
        return Records(path, name, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), cipher, header), 0
    plain = private_tensor((made.at_once, name.size)).numpy().data.cast("B")
    bad = None
    while whole < name.count and bad is None:
        some = range(whole, min(whole + made.at_once, name.count))
        bad = made.first_bad(some, plain)
        whole += len(some) if bad is None else bad
    os.ftruncate(file, HEADER_BYTES + whole * name.stride)
    os.lseek(file, 0, os.SEEK_END)
    return made, whole


def _check_room(folder: Path, name: ViewName, there: int) -> None:
    """Tell a disk that is too small before an hour of work, not after."""
    if shutil.disk_usage(folder).free < name.file_bytes - there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _unusable(path: Path, error: OSError, name: ViewName | None = None) -> VaultError:
    if name is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return VaultError(
            f"no room for the prepared view {path}: it takes {name.file_bytes} bytes ({error.strerror}); "
            "free disk space and try again"
        )
    return VaultError(
        f"prepared view {path} cannot be used: {error.strerror}; check the disk, and who may write in its folder"
    )
