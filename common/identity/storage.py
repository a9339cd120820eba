"""Reading files that strangers wrote or that hold keys, and one change at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import IdentityError
from common.files import take_lock


def read_file(path: Path, what: str, *, most: int, private: bool = False) -> bytes:
    """The bytes of ``path``, at most ``most``; ``what`` is for errors, which never quote content.

    ``private``: refuse it where others may read or write it. What is checked is the file that was opened.
    Raises :class:`IdentityError`.
    """
    try:
        # O_NONBLOCK: a named pipe in the file's place must not make us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise IdentityError(f"{path} is not a file; name the {what} itself")
            if private and status.st_mode & 0o077:
                raise IdentityError(f"others on this machine may read the {what} {path}; run: chmod 600 {path}")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise IdentityError(f"there is no {what} at {path}; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (error.strerror or "not readable") if isinstance(error, OSError) else "not a file's name"
        raise IdentityError(f"cannot read the {what} {path}: {reason}; check the path and its permissions") from None
    if len(content) > most:
        raise IdentityError(f"{path} is longer than any {what} ({most} bytes); ask its sender for another")
    return content


def make_private_folder(path: Path) -> None:
    """Make ``path``, for its owner alone; one that is there is used as it is. Raises :class:`IdentityError`."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise IdentityError(
            f"cannot make {path}: {error.strerror}; check who owns its folder, and its permissions"
        ) from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One changing command at a time in ``directory``. Raises :class:`IdentityError` where another is at work."""
    try:
        file = take_lock(directory / ".lock")
    except BlockingIOError:
        raise IdentityError(f"another command is changing {directory}; let that finish first") from None
    except OSError as error:
        raise IdentityError(
            f"cannot write in {directory}: {error.strerror}; check who owns it and its permissions"
        ) from None
    try:
        yield
    finally:
        os.close(file)
