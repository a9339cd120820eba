"""One site's images under two models: what both passes of a comparison start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from common.metrics import cells
from common.metrics.layout import Ints, Layout, Scored
from common.metrics.paired.areas import Areas
from common.metrics.paired.decisions import Decided, called
from common.metrics.paired.joint import Joint
from common.metrics.paired.spread import Spread
from common.metrics.reference import Reference


@dataclass(frozen=True)
class Pair:
    """Scores ``(N, C)`` of two models on the same images, in the same order."""

    first: Scored
    second: Scored
    layout: Layout
    min_cell: int = 1

    @classmethod
    def of(
        cls,
        first: NDArray[Any],
        second: NDArray[Any],
        targets: NDArray[Any],
        patients: NDArray[Any],
        layout: Layout,
        min_cell: int = 1,
    ) -> Pair:
        """Arguments as in :meth:`common.metrics.Counts.of`, of either model. Raises as it does."""
        one, other = (Scored.of(scores, targets, patients, layout) for scores in (first, second))
        return cls(one, other, layout, min_cell)

    def decided(self, thresholds: tuple[Ints, Ints]) -> Decided:
        """Both models' decisions, each at its own thresholds (``common.metrics.Thresholds.position``)."""
        both = [self.first, self.second]
        if self.min_cell > 1:
            both = [cells.withhold(scored, self.layout.task, self.min_cell)[0] for scored in both]
        one, other = (
            called(scored, position, self.layout, self.min_cell)
            for scored, position in zip(both, thresholds, strict=True)
        )
        return Decided.of(both[0], one, other, self.layout, self.min_cell)

    def joint(self, thresholds: tuple[Ints, Ints]) -> Joint:
        """First pass."""
        return Joint.of(self.decided(thresholds))

    def spread(self, references: tuple[Reference, Reference], joint: Joint) -> tuple[Spread, Areas]:
        """Second pass, against all sites' counts and joint table."""
        thresholds = references[0].thresholds.position, references[1].thresholds.position
        spread = Spread.of(self.decided(thresholds), joint)
        return spread, Areas.of(self.first, self.second, references, self.min_cell)
