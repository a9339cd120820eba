"""Metrics as sums that merge: a site sends counts and sums of squares, never a score.

Two passes. First every site sends :class:`Counts` (histograms of scores); their sum, with
the thresholds chosen on validation, is the :class:`Reference` that goes back out. Then
every site sends :class:`Moments` (sums over its patients of squared influences); from both
:func:`summarise` gives each metric with an interval clustered by patient. In a study that outlines,
:class:`Outlines` travel with the counts, and need no second pass for their intervals; :class:`Lesions` come with the
second.
"""

from common.metrics.counts import Counts, auc, auc_bounds, roc
from common.metrics.intervals import Interval
from common.metrics.layout import Layout
from common.metrics.lesions import Found, Lesions
from common.metrics.moments import Moments
from common.metrics.outlines import GRID, Outlines, Overlaps, choose_outline
from common.metrics.passes import FirstPass, Question, SecondPass
from common.metrics.ratios import METRICS
from common.metrics.reference import Reference, Thresholds, choose_threshold
from common.metrics.summary import Summary, summarise, with_outlines

__all__ = [
    "GRID",
    "METRICS",
    "Counts",
    "FirstPass",
    "Found",
    "Interval",
    "Layout",
    "Lesions",
    "Moments",
    "Outlines",
    "Overlaps",
    "Question",
    "Reference",
    "SecondPass",
    "Summary",
    "Thresholds",
    "auc",
    "auc_bounds",
    "choose_outline",
    "choose_threshold",
    "roc",
    "summarise",
    "with_outlines",
]
