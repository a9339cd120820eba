"""What a readiness report keeps of every image while it streams through a vault: numbers, some 150 bytes an image."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from client.vault.records import Row

GROUPED = ("sex", "age", "device", "view", "modality", "sequence")
"""Attributes by which images and patients are counted."""
MEASURES = ("mean", "spread", "dark", "bright", "sharpness")

Codes = NDArray[np.int64]


class Words:
    """One word an image, or none, as numbers: ``words[code]``; code 0 is none."""

    def __init__(self) -> None:
        self.words: list[tuple[str, ...]] = [()]
        self._known: dict[tuple[str, ...], int] = {(): 0}
        self._codes = array("i")

    def put(self, position: int, word: tuple[str, ...]) -> None:
        """The word of the image at ``position``; those that were left out before it have none."""
        self.fill(position)
        code = self._known.setdefault(word, len(self.words))
        if code == len(self.words):
            self.words.append(word)
        self._codes.append(code)

    def fill(self, count: int) -> None:
        """Images up to ``count`` that have no word yet have none."""
        if count > len(self._codes):
            self._codes.frombytes(bytes(self._codes.itemsize * (count - len(self._codes))))

    @property
    def codes(self) -> Codes:
        return np.array(self._codes, dtype=np.int64)

    def spread(self) -> tuple[Codes, Codes, list[str]]:
        """Images and their single values: positions, codes of values (``(M,)`` each), and the values, in order.

        An image with two values is there twice, one with none (value ``""``) once.
        """
        values = sorted({value for word in self.words for value in word or ("",)})
        place = {value: code for code, value in enumerate(values)}
        codes, positions, found = self.codes, [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for nth in range(max(map(len, self.words)) or 1):
            # The nth value of every word, or -1; of the empty word the first is "".
            table = np.array([place[(word or ("",))[nth]] if nth < len(word or ("",)) else -1 for word in self.words])
            there = np.flatnonzero(table[codes] >= 0)
            positions.append(there)
            found.append(table[codes[there]])
        return np.concatenate(positions), np.concatenate(found), values


class Columns:
    """The images of a vault, one position each, in the order they came."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._ids, self._patients, self._looks = array("q"), array("q"), array("Q")
        self._looked = array("q")
        self._sides, self._forms = (array("i"), array("i")), Words()
        self._measures = {name: array("f") for name in MEASURES}
        self.splits = Words()
        self.attributes = {name: Words() for name in GROUPED}
        self.labels: dict[str, Words] = {}
        self.has: dict[str, dict[str, int]] = {}
        """Modality -> attribute -> images that have it."""
        self.anonymous = self.masks = self.boxes = self.lossy = 0
        for position, row in enumerate(rows):
            self._take(position, row)
        for words in (*self.attributes.values(), *self.labels.values()):
            words.fill(len(self))

    def __len__(self) -> int:
        return len(self._ids)

    def _take(self, position: int, row: Row) -> None:
        self._ids.append(row.id)
        # 64 bits of a hash stand for a patient: two of 100,000 share them once in 3 × 10⁹ vaults.
        self._patients.append(
            int.from_bytes(blake2b(row.patient.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
        )
        if look := row.keys.get("look"):
            self._looked.append(position)
            self._looks.append(int(look, 16))
        self._sides[0].append(min(row.shape[:2]))
        self._sides[1].append(max(row.shape[:2]))
        self._forms.put(position, (row.dtype, "colour" if len(row.shape) == 3 else "grey"))
        for name, values in self._measures.items():
            values.append(row.measures.get(name, float("nan")))
        self.splits.put(position, (row.split,) if row.split else ())
        for name, words in self.attributes.items():
            if value := row.attributes.get(name):
                words.put(position, (value,))
        for column, cell in row.labels.items():
            self.labels.setdefault(column, Words()).put(position, tuple(sorted({value for value in cell if value})))
        seen = self.has.setdefault(row.attributes.get("modality", ""), {})
        for name, value in row.attributes.items():
            if value:
                seen[name] = seen.get(name, 0) + 1
        self.anonymous += "anonymous" in row.keys
        self.masks += row.has_mask
        self.boxes += len(row.boxes)
        self.lossy += row.attributes.get("lossy") == "yes"

    @property
    def ids(self) -> Codes:
        return np.array(self._ids, dtype=np.int64)

    def patients(self) -> Codes:
        """Patients as numbers from 0; which is which says nothing."""
        return np.unique(np.array(self._patients, dtype=np.int64), return_inverse=True)[1].astype(np.int64)

    def looks(self) -> tuple[Codes, NDArray[np.uint64]]:
        """Positions of the images that have a look, and the looks."""
        return np.array(self._looked, dtype=np.int64), np.array(self._looks, dtype=np.uint64)

    def measures(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Each measure of all images; NaN where it was not taken."""
        for name, values in self._measures.items():
            yield name, np.array(values, dtype=np.float64)

    def sides(self) -> tuple[Codes, Codes]:
        """The shorter and the longer side of every image, in pixels."""
        return np.array(self._sides[0], dtype=np.int64), np.array(self._sides[1], dtype=np.int64)

    def forms(self) -> Mapping[str, int]:
        """Images by type of pixels, e.g. ``uint8 grey``."""
        counts = np.bincount(self._forms.codes, minlength=len(self._forms.words))
        return {" ".join(word): int(counts[code]) for code, word in enumerate(self._forms.words) if word}
