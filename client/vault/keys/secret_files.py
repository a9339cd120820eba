"""Reading the small files that hold keys, tokens and PINs, and refusing those that others may read.

Elsewhere than in the two places below, a secret's file is its owner's alone (mode 0600 or 0400).
Service managers do otherwise, and rightly: systemd hands a credential to a service as 0440 with
an access control list, Kubernetes, Podman and Docker Swarm mount secrets as 0444, often as links.
What guards those is the directory, which only that service or container sees. So below
``$CREDENTIALS_DIRECTORY`` and ``/run/secrets`` others may read a file, but still not write it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common.errors import KeyUnavailable

_CREDENTIALS = "CREDENTIALS_DIRECTORY"  # systemd.exec(5)
_SECRETS = Path("/run/secrets")  # Docker, Podman; Kubernetes by convention


def secret_path(text: str, base: Path) -> Path:
    """The path that ``text`` names: relative to ``base``, or below ``$CREDENTIALS_DIRECTORY`` where it starts so.

    No other variable is replaced. Raises :class:`KeyUnavailable` where systemd has set none.
    """
    first, slash, rest = text.partition("/")
    if first != f"${_CREDENTIALS}":
        return base / text
    folder = os.environ.get(_CREDENTIALS)
    if not folder or not slash or not rest:
        raise KeyUnavailable(
            f"${_CREDENTIALS}/NAME is there only for a systemd service with LoadCredential=NAME:PATH; "
            "run fedward as one, or name the file itself"
        )
    return Path(folder) / rest


def read_secret(path: Path, what: str, *, remedy: str, most: int = 4096) -> bytes:
    """The bytes of ``path``, at most ``most``; ``what`` and ``remedy`` are for errors, which never quote content.

    Links are followed (container secrets are links): what is checked is the file that was opened.
    Raises :class:`KeyUnavailable` for what is missing, no file, too long, or open to others.
    """
    try:
        # O_NONBLOCK: a named pipe in the file's place must not make us wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyUnavailable(f"{path} is not a file; name the {what} itself")
            if status.st_mode & (0o022 if _is_handed_over(path) else 0o077):
                raise KeyUnavailable(
                    f"others may read or write the {what} {path}; run: chmod 600 {path}; "
                    "in a container, mount it as a secret below /run/secrets"
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(most + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (error.strerror or "not readable") if isinstance(error, OSError) else "not a file's name"
        raise KeyUnavailable(f"cannot read the {what} {path}: {reason}; {remedy}") from None
    if len(content) > most:
        raise KeyUnavailable(f"the {what} {path} is longer than {most} bytes; {remedy}")
    return content


def read_word(path: Path, what: str, *, remedy: str) -> str:
    """The one word (printable ASCII, no spaces) that ``path`` holds: a token, an id."""
    content = read_secret(path, what, remedy=remedy).strip()
    if not is_word(content):
        raise KeyUnavailable(f"the {what} {path} does not hold one word of printable characters; {remedy}")
    return content.decode("ascii")


def is_word(content: bytes) -> bool:
    """Whether ``content`` can be sent in a header: one or more printable ASCII characters, no spaces."""
    return bool(content) and all(0x21 <= byte <= 0x7E for byte in content)


def _is_handed_over(path: Path) -> bool:
    """Whether a service manager put the file there: judged by the directory, the file itself may be a link."""
    folders = [_SECRETS]
    if os.environ.get(_CREDENTIALS):
        folders.append(Path(os.environ[_CREDENTIALS]))
    here = Path(os.path.realpath(path.parent))
    return any(here.is_relative_to(os.path.realpath(folder)) for folder in folders)
