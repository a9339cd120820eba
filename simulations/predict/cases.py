"""Cases as a model meets them: files of a folder or patients of a vault, prepared as for training, some at a time.

Files are read as an import reads them: a stranger's bytes are parsed in a child process with limits
(``client.ingest.pool``). Nothing of them is kept but the model's small input, and that only until it is scored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.ingest.import_reasons import BLANK
from client.ingest.kinds import Refused, Rules
from client.ingest.pool import Job, Pool
from client.ingest.sources import Found, discover
from client.vault.store import Vault
from common.errors import DataError
from common.preprocess import prepare
from common.study import Study

LABELS = "labels.csv"
_NO_PICTURE = "holds no picture; a mask alone is not a case"


@dataclass(frozen=True)
class Image:
    """One picture of a case."""

    case: str
    number: int
    """From 1, within its case."""
    pixels: NDArray[np.uint8] = field(repr=False)
    """The model's input, ``(C, H, W)``."""


@dataclass(frozen=True)
class Unreadable:
    """A case, or a part of one, that the model does not see."""

    case: str
    reason: str
    """In fixed words, with the remedy."""


class Cases(Protocol):
    """Where images come from."""

    reading_s: float
    """Seconds that reading and preparing took so far."""

    def __iter__(self) -> Iterator[Image | Unreadable]: ...


class FolderCases:
    """The files of a folder, each a case by its name relative to the folder; a ``labels.csv`` in it is none."""

    def __init__(self, study: Study, folder: Path, workers: int = 1, rules: Rules | None = None) -> None:
        """Raises :class:`DataError` where there is no such folder or file."""
        if not folder.exists():
            raise DataError(f"{folder}: no such file or folder; give the images, or --site DIR for a vault's")
        self._study, self._folder, self._workers = study, folder, workers
        self._rules = rules or Rules()
        self.reading_s = 0.0

    def __iter__(self) -> Iterator[Image | Unreadable]:
        sheet = self._folder / LABELS
        found = discover([self._folder], self._rules, ignored=[sheet] if sheet.is_file() else [])
        with Pool(self._rules, self._workers) as pool:
            results = pool.results(_job(file) for file in found)
            while True:
                started = time.perf_counter()
                job, result = next(results, (None, None))
                if job is None:
                    return
                if isinstance(result, Refused):
                    made: Sequence[Image | Unreadable] = [Unreadable(job.key, _words(result))]
                elif result is None or not result.pictures:
                    made = [Unreadable(job.key, _NO_PICTURE)]
                else:
                    pictures = [(picture.number + 1, picture.pixels) for picture in result.pictures]
                    made = [_prepared(self._study, job.key, number, pixels) for number, pixels in pictures]
                self.reading_s += time.perf_counter() - started
                yield from made


class VaultCases:
    """The patients of a vault, each a case by the pseudonym that the vault knows it by; every image counts."""

    _TOGETHER = 64

    def __init__(self, study: Study, vault: Vault) -> None:
        self._study, self._vault = study, vault
        self.reading_s = 0.0

    def __iter__(self) -> Iterator[Image | Unreadable]:
        numbers: dict[str, int] = {}
        every = [(row.id, row.patient) for row in self._vault.rows()]
        for first in range(0, len(every), self._TOGETHER):
            rows = every[first : first + self._TOGETHER]
            pixels = self._vault.read_many([row_id for row_id, _ in rows])
            for _, patient in rows:
                started = time.perf_counter()
                numbers[patient] = numbers.get(patient, 0) + 1
                made = _prepared(self._study, patient, numbers[patient], next(pixels))
                self.reading_s += time.perf_counter() - started
                yield made


def _job(file: Found) -> Job:
    return Job(key=file.name, content=file.read)


def _words(refused: Refused) -> str:
    return f"{refused.reason.reason}; {refused.reason.remedy}"


def _prepared(study: Study, case: str, number: int, pixels: NDArray[Any]) -> Image | Unreadable:
    if pixels.min() == pixels.max():
        return Unreadable(case, _words(Refused(BLANK)))
    try:
        return Image(case, number, prepare(pixels, study))
    except DataError as error:
        return Unreadable(case, str(error))
