"""Looking a value up in a DICOM dataset that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence


class Tags:
    """What a dataset says of one of its frames.

    In an enhanced multi-frame object a value is looked for in the frame's functional groups, then in the shared
    ones, then in the dataset itself (PS3.3 C.7.6.16); elsewhere only in the dataset. A malformed value is no value:
    callers decide what its absence means. ``little_endian`` is the byte order in which the dataset was written.
    """

    def __init__(self, dataset: Dataset, frame: int = 0) -> None:
        self._places = [*_groups(dataset, "PerFrameFunctionalGroupsSequence", frame)]
        self._places += _groups(dataset, "SharedFunctionalGroupsSequence", 0)
        self._places.append(dataset)
        self.little_endian = dataset.original_encoding[1] is not False

    def get(self, keyword: str) -> Any:
        """The value as pydicom reads it; ``None`` where it is missing, empty or malformed."""
        for place in self._places:
            value = raw_value(place, keyword)
            if value is not None:
                return value
        return None

    def first(self, keyword: str) -> Any:
        """The first of several values."""
        value = self.get(keyword)
        if isinstance(value, list | tuple | MultiValue):
            return value[0] if len(value) else None
        return value

    def number(self, keyword: str) -> float | None:
        """The first value as a finite number."""
        return finite(self.first(keyword))

    def numbers(self, keyword: str, count: int) -> list[float] | None:
        """Exactly ``count`` finite numbers."""
        value = self.get(keyword)
        if not isinstance(value, list | tuple | MultiValue) or len(value) != count:
            return None
        found = [finite(item) for item in value]
        return None if None in found else [item for item in found if item is not None]

    def text(self, keyword: str) -> str:
        """The first value as stripped text; empty where there is none."""
        return plain(self.first(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """All values as stripped text."""
        value = self.get(keyword)
        if isinstance(value, list | tuple | MultiValue):
            return tuple(plain(item) for item in value)
        return (plain(value),) if value is not None else ()

    def items(self, keyword: str) -> tuple[Dataset, ...]:
        """The items of a sequence."""
        value = self.get(keyword)
        return tuple(value) if isinstance(value, Sequence) else ()


def raw_value(dataset: Dataset, keyword: str) -> Any:
    """One element's value; ``None`` where it is missing, empty or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts on access: any malformed value ends here
        return None
    if value is None or value == "" or (isinstance(value, Sequence | MultiValue) and not len(value)):
        return None
    return value


def whole(value: Any) -> int | None:
    """``value`` as an integer, where it is one."""
    number = finite(value)
    return int(number) if number is not None and number == int(number) else None


def finite(value: Any) -> float | None:
    """``value`` as a finite number, where it is one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> str:
    """``value`` as text without the padding that DICOM allows."""
    if isinstance(value, MultiValue):
        value = "\\".join(str(item) for item in value)
    return "" if value is None else str(value).strip(" \0\t\r\n")


def _groups(dataset: Dataset, keyword: str, index: int) -> Iterator[Dataset]:
    """The single items of every functional group (macro) of one frame."""
    frames = raw_value(dataset, keyword)
    if not isinstance(frames, Sequence) or index >= len(frames):
        return
    for element in frames[index]:
        if element.VR == "SQ" and element.value is not None and len(element.value):
            yield element.value[0]
