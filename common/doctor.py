"""What a look at an installation found: what is wrong, what soon will be, and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

from common.clock import Clock
from common.errors import DataError, FedwardError

Level = Literal["ok", "warn", "fail"]
LEAST_DISK = 2 * 2**30
LEAST_MEMORY = 4 * 2**30
_PACKAGES = ("fedward", "flwr", "torch", "torchvision", "cryptography", "pydicom")

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    about: str
    text: str
    remedy: str = ""


def failed(about: str, error: FedwardError) -> Finding:
    """``error`` as a finding; its remedy is what follows the last semicolon or colon."""
    text = str(error)
    for mark in ("; ", ": "):
        head, found, remedy = text.rpartition(mark)
        if found:
            return Finding("fail", about, head, remedy)
    return Finding("fail", about, text)


def looked(thing: T, looks: Sequence[Callable[[T], Iterator[Finding]]]) -> Iterator[Finding]:
    """What all of ``looks`` find; one that fails does not stop the others."""
    for look in looks:
        try:
            yield from look(thing)
        except FedwardError as error:
            yield failed(look.__name__.lstrip("_"), error)


def files(directory: Path, below: Iterable[Path]) -> Iterator[Finding]:
    """Whether others may read ``directory`` or what is ``below`` it, and its owner write there."""
    loose = [
        path for path in (directory, *below) if path.exists() and not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    if loose:
        names = ", ".join(path.relative_to(directory).as_posix() or "." for path in loose[:5])
        yield Finding("warn", "files", f"others on this machine may read: {names}", f"chmod -R go= {directory}")
    else:
        yield Finding("ok", "files", "only their owner may read them")
    if not os.access(directory, os.W_OK):
        yield Finding("fail", "files", "the directory cannot be written", "check who owns it and how it is mounted")


def disk(place: Path, needed: int, what_for: str) -> Finding:
    """Whether ``needed`` bytes are free where ``place`` is."""
    free = shutil.disk_usage(place).free
    if free >= needed:
        return Finding("ok", "disk", f"{free / 2**30:.1f} GiB free")
    text = f"{free / 2**30:.1f} GiB free; {what_for} {needed / 2**30:.1f} GiB"
    return Finding("warn", "disk", text, "free some, or move to a larger disk")


def behind(clock: Clock, last: str) -> Iterator[Finding]:
    """Whether this machine's clock is behind ``last``, when the audit log's newest entry was written (ISO 8601)."""
    if last and datetime.fromisoformat(last) > clock() + timedelta(minutes=1):
        text = f"this machine's clock is behind the audit log's last entry, {last}"
        yield Finding("fail", "clock", text, "set it (NTP)")


def memory(needed: int = LEAST_MEMORY) -> Finding:
    """Whether ``needed`` bytes of memory are available."""
    import psutil

    available = psutil.virtual_memory().available
    text = f"{available / 2**30:.1f} GiB available"
    if available >= needed:
        return Finding("ok", "memory", text)
    return Finding("warn", "memory", text, "end other programs, or add memory")


def versions() -> Finding:
    """Of Python and what counts most here."""
    installed = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return Finding("ok", "versions", f"Python {sys.version.split()[0]}, {installed}")


def tell(findings: Sequence[Finding], what: str, *, as_json: bool) -> None:
    """Print ``findings``. Raises :class:`DataError` where one of them keeps ``what`` from working."""
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:<5} {finding.about:<13} {finding.text}{remedy}")
    count = sum(finding.level == "fail" for finding in findings)
    if count:
        raise DataError(f"{count} findings must be mended before {what} can work")
