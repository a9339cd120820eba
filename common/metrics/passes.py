"""What travels in each of the two passes: counts of images, and in a study that outlines also sums over outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.metrics.counts import Counts
from common.metrics.layout import Arrays, Layout
from common.metrics.outlines import Outlines
from common.study import Study

_OUTLINES = "outline_"


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


def _named(prefix: str, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    return {f"{prefix}{key}": value for key, value in arrays.items()}


def _apart(prefix: str, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Fields without the prefix, and those with it, by their own names."""
    rest = {key: value for key, value in arrays.items() if not key.startswith(prefix)}
    return rest, {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
