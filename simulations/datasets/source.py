"""What every source of images has in common: items that are listed first and read one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from common.errors import DataError
from common.labels import Labels


class UnreadableImage(DataError):
    """One image (or its mask) cannot be used; the caller counts it and goes on.

    ``key`` names the item, ``reason`` is one line without paths.
    """

    code = "image-unreadable"

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = one_line(reason)
        super().__init__(f"{key}: {self.reason}")


@dataclass(frozen=True)
class Item:
    """One image of a source, not yet read.

    ``key`` is unique and stable within the source, for example the file's name
    relative to its folder. Where the patient is unknown, ``patient`` is the key
    and ``patient_known`` is false.
    """

    key: str
    patient: str
    patient_known: bool
    labels: Labels
    split: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Images with labels. ``name`` never holds a whole path; ``notes`` are facts a report should show."""

    @property
    def name(self) -> str: ...

    @property
    def synthetic(self) -> bool: ...

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Pixels ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16, and the mask ``(H, W)`` uint8 in {0, 1} or ``None``.

        Raises :class:`UnreadableImage`.
        """


def patients_unknown(items: Sequence[Item]) -> int:
    """Number of images that count as their own patient because none is named."""
    return sum(not item.patient_known for item in items)


def owner(patient: str, key: str) -> tuple[str, bool]:
    """The pair ``(patient, patient_known)`` of an :class:`Item`."""
    return (patient, True) if patient else (key, False)


def one_line(text: str, limit: int = 200) -> str:
    """``text`` on one line without control characters, at most ``limit`` characters."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shown(text: str) -> str:
    """``text`` quoted for an error message: one line, not a whole cell of a hostile sheet."""
    return repr(one_line(text, 80))


class Inside:
    """Paths that stay inside one folder: no ``..``, no absolute path, no link that leads out.

    Folders are resolved once each, so checking a hundred thousand files stays cheap.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._folders: dict[str, bool] = {"": True}

    def key(self, name: str) -> str:
        """The normal form of a relative name, ``/`` between steps.

        Names that Windows wrote (``images\\1.png``) are taken as meant. Raises
        :class:`ValueError` with a reason for a name that does not stay inside.
        """
        steps = [step for step in name.replace("\\", "/").split("/") if step not in ("", ".")]
        if name.startswith(("/", "\\")) or any(re.match(r"[A-Za-z]:", step) for step in steps[:1]):
            raise ValueError("is an absolute path")
        if ".." in steps:
            raise ValueError("leads out of the folder with '..'")
        if not steps:
            raise ValueError("names no file")
        folder, key = "/".join(steps[:-1]), "/".join(steps)
        if folder not in self._folders:
            self._folders[folder] = self._holds(os.path.join(self._root, folder))  # noqa: PTH118
        full = os.path.join(self._root, key)  # noqa: PTH118 - Path is ten times slower here
        if not self._folders[folder] or (os.path.islink(full) and not self._holds(full)):  # noqa: PTH114
            raise ValueError("is a link that leads out of the folder")
        return key

    def path(self, key: str) -> Path:
        """The real file behind ``key``, checked again: it may have changed since it was listed."""
        full = os.path.realpath(os.path.join(self._root, key))  # noqa: PTH118
        if not self._holds(full):
            raise ValueError("is a link that leads out of the folder")
        return Path(full)

    def _holds(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(os.path.join(self._root, ""))  # noqa: PTH118
