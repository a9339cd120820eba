"""Arms against each other from sums that hospitals would send, beside the bootstrap that needs everybody's scores.

Nobody could ask real hospitals this: they have only the federated arm. What they can be asked (``evaluation.compare``)
goes through messages, and through the same sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.evaluation import Scores
from common.metrics import Counts, Layout, Reference, Thresholds
from common.metrics.paired import Areas, Comparison, Joint, Models, Pair, Spread, compare
from common.study import Study


def from_sums(
    ours: Scores, theirs: Scores, owner: NDArray[np.int64], thresholds: tuple[Thresholds, Thresholds], study: Study
) -> Comparison:
    """Two arms on the same images, each hospital's (``owner`` ``(N,)``) summed by itself and then added up."""
    layout, least = Layout.of(study), study.evaluation.min_cell
    hospitals = [owner == number for number in np.unique(owner)]
    references = tuple(
        Reference(_counted(scores, hospitals, layout, least), chosen)
        for scores, chosen in zip((ours, theirs), thresholds, strict=True)
    )
    one, other = references
    pairs = [
        Pair.of(ours.scores[at], theirs.scores[at], ours.targets[at], ours.patients[at], layout, least)
        for at in hospitals
    ]
    joint, spread, areas = Joint.zero(layout), Spread.zero(layout), Areas.zero(layout)
    for pair in pairs:
        joint += pair.joint((one.thresholds.position, other.thresholds.position))
    for pair in pairs:
        rates, curves = pair.spread((one, other), joint)
        spread, areas = spread + rates, areas + curves
    return compare(joint, spread, Models((one, other), areas), study.evaluation.confidence)


def _counted(scores: Scores, hospitals: Sequence[NDArray[np.bool_]], layout: Layout, least: int) -> Counts:
    total = Counts.zero(layout)
    for at in hospitals:
        found = (scores.scores[at], scores.targets[at], scores.patients[at], scores.loss[at])
        total += Counts.of(*found, layout, least)
    return total
