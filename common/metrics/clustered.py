"""Ratios whose units are grouped by patient, as sums that merge: a mean per image, a share of lesions, a rate.

The value is A / B, with a patient's a and b summed over the patient's images before they are squared. The variance
is that of the ratio estimator for clusters (J. N. K. Rao and A. J. Scott, Biometrics 48 (1992) 577-585):
P / (P - 1) · Σ (a - R·b)² / B², which follows from Σa², Σab and Σb². A patient is at one site only, so all of
these add up over sites; they are whole numbers, so order cannot show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.intervals import UNDEFINED, Interval, interval, quantile
from common.metrics.layout import Arrays, Floats, Ints, divide, integers

_UNIT = 2.0**-32
_SQUARE = 2.0**-24
_MOST = 1 << 61
"""Sums of two sites, each at most so large, still fit int64."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """Ratios of one shape; ``a + b`` is both sites together."""

    above: Ints
    below: Ints
    """In units of 2^-32."""
    squares: Ints
    """``(3, …)``: sums over patients of a², ab, b², in units of 2^-24."""
    patients: Ints
    """Patients that a ratio rests on: those with something below the line."""
    withheld: Ints
    """Sites that withheld a ratio because of too few patients."""

    @classmethod
    def of(cls, above: Floats, below: Floats, patients: NDArray[np.generic]) -> Ratio:
        """From each unit's part ``(N, …)`` of both, non-negative; ``patients`` ``(N,)`` tell patients apart."""
        names, patient = np.unique(patients, return_inverse=True)
        sums = np.zeros((2, len(names), *above.shape[1:]))
        np.add.at(sums[0], patient.reshape(-1), above)
        np.add.at(sums[1], patient.reshape(-1), below)
        a, b = np.rint(sums / _UNIT) * _UNIT
        return cls(
            above=_whole(a, _UNIT).sum(axis=0),
            below=_whole(b, _UNIT).sum(axis=0),
            squares=np.stack([_whole(x, _SQUARE).sum(axis=0) for x in (a * a, a * b, b * b)]),
            patients=(b > 0).sum(axis=0, dtype=np.int64),
            withheld=np.zeros(above.shape[1:], dtype=np.int64),
        )

    def only(self, told: NDArray[np.bool_]) -> Ratio:
        """One site's ratios where ``told``; of the others nothing but that they are withheld, if there is anything."""
        return Ratio(
            above=np.where(told, self.above, 0),
            below=np.where(told, self.below, 0),
            squares=np.where(told, self.squares, 0),
            patients=np.where(told, self.patients, 0),
            withheld=np.asarray(~told & (self.patients > 0), dtype=np.int64),
        )

    @classmethod
    def zero(cls, shape: tuple[int, ...]) -> Ratio:
        """Nobody: where a sum starts."""
        return cls.of(np.zeros((0, *shape)), np.zeros((0, *shape)), np.zeros(0, dtype=np.int64))

    def __add__(self, other: Ratio) -> Ratio:
        """Both together. Raises :class:`ProtocolError` where sums exceed what any patients could have."""
        parts = [mine + theirs for mine, theirs in zip(self._parts(), other._parts(), strict=True)]
        if any(part.size and part.max() > _MOST for part in parts):
            raise ProtocolError(
                "sums over patients are greater than any patients could make them; a site sent wrong ones"
            )
        return Ratio(*parts)

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return max((float(part.max()) / _MOST for part in self._parts() if part.size), default=0.0)

    @property
    def value(self) -> Floats:
        """NaN where nothing is below the line."""
        return divide(self.above.astype(np.float64), self.below.astype(np.float64))

    @property
    def denominator(self) -> Floats:
        """What stands below the line."""
        return np.multiply(self.below, _UNIT)

    def intervals(self, confidence: float) -> list[Interval]:
        """Of each ratio in [0, 1], in the order of its flattened shape."""
        return [
            UNDEFINED if math.isnan(value) else interval(value, variance if n > 1 else None, n, confidence)
            for value, variance, n in self._each()
        ]

    def rates(self, confidence: float) -> list[Interval]:
        """As :meth:`intervals`, of rates that may exceed 1: value ± z · s, never below 0, unknown of one patient."""
        z, found = quantile(confidence), []
        for value, variance, n in self._each():
            if math.isnan(value):
                found.append(UNDEFINED)
                continue
            reach = z * math.sqrt(variance)
            found.append(
                Interval(value, max(0.0, value - reach), value + reach) if n > 1 else Interval(value, None, None)
            )
        return found

    def _each(self) -> list[tuple[float, float, float]]:
        """Value, variance and patients of each ratio."""
        value, below = self.value, np.maximum(self.denominator, _UNIT)
        aa, ab, bb = self.squares * _SQUARE
        clean = np.nan_to_num(value)
        n = self.patients.astype(np.float64)
        spread = np.maximum(aa - 2 * clean * ab + clean**2 * bb, 0.0) / below**2
        # Rounding of the squares (2^-25 a patient) must not pass for variance where there is none.
        spread[spread <= n * _SQUARE / below**2] = 0.0
        variance = spread * n / np.maximum(n - 1, 1)
        return list(zip(value.ravel().tolist(), variance.ravel().tolist(), n.ravel().tolist(), strict=True))

    def _parts(self) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        return self.above, self.below, self.squares, self.patients, self.withheld

    def to_arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """For the wire, the fields' names beginning with ``name``."""
        return {f"{name}_{part}": value for part, value in zip(_PARTS, self._parts(), strict=True)}

    @classmethod
    def from_arrays(cls, arrays: Arrays, name: str, shape: tuple[int, ...], *, share: bool = True) -> Ratio:
        """What came from elsewhere; a ``share`` is at most 1.

        Raises :class:`ProtocolError` for anything that no honest sender could send.
        """
        shapes = (shape, shape, (3, *shape), shape, shape)
        parts = [
            integers(arrays, f"{name}_{part}", wanted, _MOST).copy()
            for part, wanted in zip(_PARTS, shapes, strict=True)
        ]
        found = cls(*parts)
        above, below, squares, patients, _ = parts
        nothing = patients == 0
        holds = [
            bool(((below == 0) == nothing).all()),
            not squares[:, nothing].any() and not above[nothing].any(),
            not share or bool((above <= below).all()),
        ]
        if not all(holds):
            raise ProtocolError("a statistics message contradicts itself: sums without patients, or shares above one")
        return found

    @classmethod
    def fields(cls, name: str) -> set[str]:
        """Names of the fields on the wire."""
        return {f"{name}_{part}" for part in _PARTS}


_PARTS = ("above", "below", "squares", "patients", "withheld")


def _whole(values: Floats, unit: float) -> Ints:
    return np.asarray(np.rint(values / unit), dtype=np.int64)
