"""Second pass of a comparison of two models: how much the difference of their AUC varies from patient to patient.

As :mod:`common.metrics.paired.spread`, of scores: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; for
clusters N. A. Obuchowski, Biometrics 53 (1997) 567-578.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics import cells
from common.metrics.layout import Arrays, Ints, Layout, Scored, expect, integers
from common.metrics.moments import MOST_SQUARED, Influences
from common.metrics.paired.spread import added, halved
from common.metrics.reference import Reference


@dataclass(frozen=True, eq=False)
class Areas:
    """Sums over patients for the difference of both models' AUC; the last column is the mean over the classes."""

    layout: Layout
    squares: Ints
    """``(C + 1,)`` of the difference of influences."""
    parts: Ints
    """``(C, 2)`` the same of its two parts: over negatives, over positives."""
    withheld: Ints
    """``(C + 1,)`` sites that withheld a sum for the small-cell rule."""
    patients: int

    @classmethod
    def of(cls, first: Scored, second: Scored, references: tuple[Reference, Reference], min_cell: int = 1) -> Areas:
        """A site's sums, of the same images under two models, each with its own reference.

        Under the small-cell rule an image stands where each model's counts tell it to be, and a sum is withheld as
        soon as the models put anybody elsewhere: the references are the coordinator's to choose, and two whose shares
        jump at one bin each make the sum a count of the few who stand between these bins. Nothing is lost, for where
        counts leave in blocks the AUC is bounds, of which no variance is asked (:mod:`~.comparison`).
        """
        layout = references[0].counts.layout
        both = [first, second]
        if min_cell > 1:
            both = [cells.withhold(scored, layout.task, min_cell)[0] for scored in both]
        found = [
            Influences.of(scored, reference, min_cell).parts for scored, reference in zip(both, references, strict=True)
        ]
        defined = ~np.isnan(references[0].auc) & ~np.isnan(references[1].auc)
        difference = found[0] - found[1]
        everywhere = np.flatnonzero(defined)
        overall = difference[:, everywhere].sum(axis=(1, 2)) / max(len(everywhere), 1)
        squares = halved(np.column_stack([difference.sum(axis=2), overall]))
        parts = halved(difference)
        moved = _moved(both[0], both[1], layout, min_cell)
        small = (moved > 0) & (min_cell > 1)
        squares[small] = 0
        parts[small[:-1]] = 0
        known = cells.presence(both[0].patient, both[0].patients, both[0].known).any(axis=1).sum()
        return cls(layout, squares, parts, small.astype(np.int64), int(known))

    @classmethod
    def zero(cls, layout: Layout) -> Areas:
        """No patient at all: where a sum starts."""
        row = np.zeros(layout.classes + 1, dtype=np.int64)
        return cls(layout, row, np.zeros((layout.classes, 2), dtype=np.int64), row, 0)

    def __add__(self, other: Areas) -> Areas:
        """Both together. Raises :class:`ProtocolError` when squares exceed what any patients could have."""
        if self.layout != other.layout:
            raise ValueError(f"cannot add sums of {self.layout} and {other.layout}")
        return Areas(
            self.layout,
            added(self.squares, other.squares),
            added(self.parts, other.parts),
            self.withheld + other.withheld,
            self.patients + other.patients,
        )

    @property
    def load(self) -> float:
        """As of :class:`~common.metrics.paired.Spread`."""
        return float(max(self.squares.max(), self.parts.max())) / MOST_SQUARED

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "layout": self.layout.code(),
            "squares": self.squares,
            "parts": self.parts,
            "withheld": self.withheld,
            "patients": np.array([self.patients], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Areas:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        expect(arrays, {"layout", "squares", "parts", "withheld", "patients"})
        if not np.array_equal(integers(arrays, "layout", (3,)), layout.code()):
            raise ProtocolError("sums of a comparison are of another task or number of classes than the study's")
        wide = (layout.classes + 1,)
        return cls(
            layout,
            integers(arrays, "squares", wide, MOST_SQUARED).copy(),
            integers(arrays, "parts", (layout.classes, 2), MOST_SQUARED).copy(),
            integers(arrays, "withheld", wide).copy(),
            int(integers(arrays, "patients", (1,))[0]),
        )


def _moved(first: Scored, second: Scored, layout: Layout, min_cell: int) -> Ints:
    """``(C + 1,)`` patients with an image that the two models' counts put into different places."""
    if min_cell == 1:
        return np.zeros(layout.classes + 1, dtype=np.int64)
    places = [np.stack(cells.placed(scored, layout.bins, min_cell)) for scored in (first, second)]
    elsewhere = (places[0] != places[1]).any(axis=0) & first.known
    counted = cells.presence(first.patient, first.patients, elsewhere)
    return np.append(counted.sum(axis=0), counted.any(axis=1).sum()).astype(np.int64)
