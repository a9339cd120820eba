"""What travels in each of the two passes: counts of images, and in a study that outlines also sums over outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.metrics.counts import Counts
from common.metrics.layout import Arrays, Layout, integers
from common.metrics.lesions import Lesions
from common.metrics.moments import Moments
from common.metrics.outlines import GRID, Outlines
from common.metrics.reference import Reference
from common.study import Study

_OUTLINES = "outline_"
_LESIONS = "lesion_"
_AT = "outline_at"


@dataclass(frozen=True, eq=False)
class FirstPass:
    """``a + b`` is both sites together."""

    counts: Counts
    outlines: Outlines | None = None
    """In a study that outlines."""

    @classmethod
    def zero(cls, study: Study) -> FirstPass:
        """No image at all: where a sum starts."""
        return cls(Counts.zero(Layout.of(study)), Outlines.zero() if study.outlines else None)

    def __add__(self, other: FirstPass) -> FirstPass:
        both = self.outlines is not None and other.outlines is not None
        return FirstPass(self.counts + other.counts, self.outlines + other.outlines if both else None)  # type: ignore[operator]

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it. Counts of images are far below."""
        return 0.0 if self.outlines is None else self.outlines.load

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            **self.counts.to_arrays(),
            **(_named(_OUTLINES, self.outlines.to_arrays()) if self.outlines is not None else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> FirstPass:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        layout = Layout.of(study)
        if not study.outlines:
            return cls(Counts.from_arrays(arrays, layout))
        rest, outlined = _apart(_OUTLINES, arrays)
        return cls(Counts.from_arrays(rest, layout), Outlines.from_arrays(outlined))


@dataclass(frozen=True, eq=False)
class Question:
    """What the second pass is asked: everybody's counts and thresholds."""

    reference: Reference
    outline: int | None = None
    """Which of ``GRID`` a pixel's probability must reach, where lesions are asked for."""

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        at = {} if self.outline is None else {_AT: np.array([self.outline], dtype=np.int64)}
        return {**self.reference.to_arrays(), **at}

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study) -> Question:
        """Raises :class:`ProtocolError` for anything that no honest coordinator could send."""
        layout, rest = Layout.of(study), dict(arrays)
        if not study.outlines or _AT not in rest:
            return cls(Reference.from_arrays(arrays, layout))
        at = int(integers({_AT: rest.pop(_AT)}, _AT, (1,), len(GRID) - 1)[0])
        return cls(Reference.from_arrays(rest, layout), at)


@dataclass(frozen=True, eq=False)
class SecondPass:
    """``a + b`` is both sites together."""

    moments: Moments
    lesions: Lesions | None = None
    """In a study that outlines."""

    @classmethod
    def zero(cls, study: Study) -> SecondPass:
        """No patient at all: where a sum starts."""
        return cls(Moments.zero(Layout.of(study)), Lesions.zero() if study.outlines else None)

    def __add__(self, other: SecondPass) -> SecondPass:
        both = self.lesions is not None and other.lesions is not None
        return SecondPass(self.moments + other.moments, self.lesions + other.lesions if both else None)  # type: ignore[operator]

    @property
    def load(self) -> float:
        """As of :class:`FirstPass`."""
        return max(self.moments.load, 0.0 if self.lesions is None else self.lesions.load)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            **self.moments.to_arrays(),
            **(_named(_LESIONS, self.lesions.to_arrays()) if self.lesions is not None else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, study: Study, question: Question) -> SecondPass:
        """An answer to ``question``. Raises :class:`ProtocolError` for anything that no honest site could send."""
        layout = Layout.of(study)
        if question.outline is None:
            return cls(Moments.from_arrays(arrays, layout))
        rest, lesions = _apart(_LESIONS, arrays)
        return cls(Moments.from_arrays(rest, layout), Lesions.from_arrays(lesions))


def tells_outlines(arrays: Arrays) -> bool:
    """Whether statistics that leave a site are of outlines or their lesions too."""
    return any(key.startswith((_OUTLINES, _LESIONS)) for key in arrays)


def _named(prefix: str, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    return {f"{prefix}{key}": value for key, value in arrays.items()}


def _apart(prefix: str, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Fields without the prefix, and those with it, by their own names."""
    rest = {key: value for key, value in arrays.items() if not key.startswith(prefix)}
    return rest, {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
