"""Second pass: how much the metrics vary from patient to patient.

Each metric's *influence* of a patient is how much the patient moves it, to first order; the
variance of the metric is the sum of squared influences, with a patient's images summed before
squaring, because images of one patient are not independent. A patient is at one site only,
so these sums add up over sites.

Sources. AUC: N. A. Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 53 (1997)
567-578, which with one image each is DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.
Rates: the ratio estimator for clusters, J. N. K. Rao and A. J. Scott, A simple method for the analysis of
clustered binary data, Biometrics 48 (1992) 577-585. Means over classes: sums of the classes' influences per patient,
which takes care of the covariances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics import cells
from common.metrics.layout import Arrays, Floats, Ints, Layout, Scored, Task, expect, integers
from common.metrics.ratios import METRICS, RATES, Fraction, Tally, fractions, over_classes, rates
from common.metrics.reference import Reference

SQUARED = 2.0**-56
MOST_SQUARED = 1 << 58
"""Squares are fixed-point, so that order cannot show. No metric's squares can add up to more than 4."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over patients, in the order of :data:`METRICS`; the last column is the metric over all classes."""

    layout: Layout
    squares: Ints
    """``(7, C + 1)`` sums of squared influences, in units of 2^-56."""
    auc_parts: Ints
    """``(C, 2)`` the same of the AUC's two parts: over negatives, over positives."""
    support: Ints
    """``(7, C + 1)`` patients that the metric rests on (below the line of its fraction)."""
    withheld: Ints
    """``(7, C + 1)`` sites that withheld a sum because of too few patients."""
    patients: int

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating],
        targets: NDArray[np.floating],
        patients: NDArray[np.generic],
        reference: Reference,
        min_cell: int = 1,
    ) -> Moments:
        """A site's sums; arguments as in :meth:`Counts.of`, which must have been given the same images.

        ``min_cell``: a sum over 1 to k - 1 patients is withheld, and what each patient adds to one follows from the
        blocks and cells that :class:`Counts` releases, not from the scores: a coordinator chooses the reference, and
        could choose one by which all but one patient of a sum add nothing.
        Raises :class:`DataError`, :class:`ModelError` as there.
        """
        layout = reference.counts.layout
        scored = Scored.of(scores, targets, patients, layout)
        if min_cell > 1:
            scored, _ = cells.withhold(scored, layout.task, min_cell)
        return cls.summed(Influences.of(scored, reference, min_cell), layout, min_cell)

    @classmethod
    def summed(cls, found: Influences, layout: Layout, min_cell: int = 1) -> Moments:
        """The sums of a site's influences. Raises :class:`ProtocolError` as :meth:`of`."""
        squares, auc_parts = fixed(found.values, axis=1), fixed(found.parts, axis=0)
        counted = found.support.sum(axis=1, dtype=np.int64)
        small = (counted > 0) & (counted < min_cell)
        squares[small], counted[small] = 0, 0
        auc_parts[small[0, :-1]] = 0
        return cls(layout, squares, auc_parts, counted, small.astype(np.int64), int(found.known.sum()))

    @classmethod
    def zero(cls, layout: Layout) -> Moments:
        """No patient at all: where a sum starts."""
        table = np.zeros((len(METRICS), layout.classes + 1), dtype=np.int64)
        return cls(layout, table, np.zeros((layout.classes, 2), dtype=np.int64), table, table, 0)

    def __add__(self, other: Moments) -> Moments:
        """Both together. Raises :class:`ProtocolError` when squares exceed what any patients could have."""
        if self.layout != other.layout:
            raise ValueError(f"cannot add moments of {self.layout} and {other.layout}")
        squares, auc_parts = self.squares + other.squares, self.auc_parts + other.auc_parts
        if max(squares.max(), auc_parts.max()) > MOST_SQUARED:
            raise ProtocolError("sums of squares are greater than any patients could make them; a site sent wrong ones")
        return Moments(
            self.layout,
            squares,
            auc_parts,
            self.support + other.support,
            self.withheld + other.withheld,
            self.patients + other.patients,
        )

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return float(max(self.squares.max(initial=0), self.auc_parts.max(initial=0))) / MOST_SQUARED

    def variances(self) -> tuple[Floats, Floats]:
        """``(7, C + 1)`` sums of squared influences, and ``(C, 2)`` the AUC's parts: variances but for n / (n - 1)."""
        return np.multiply(self.squares, SQUARED), np.multiply(self.auc_parts, SQUARED)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "layout": self.layout.code(),
            "squares": self.squares,
            "auc_parts": self.auc_parts,
            "support": self.support,
            "withheld": self.withheld,
            "patients": np.array([self.patients], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Moments:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        expect(arrays, {"layout", "squares", "auc_parts", "support", "withheld", "patients"})
        if not np.array_equal(integers(arrays, "layout", (3,)), layout.code()):
            raise ProtocolError("statistics are of another task, number of classes or number of bins than the study's")
        shape = (len(METRICS), layout.classes + 1)
        squares = integers(arrays, "squares", shape, MOST_SQUARED).copy()
        auc_parts = integers(arrays, "auc_parts", (layout.classes, 2), MOST_SQUARED).copy()
        support = integers(arrays, "support", shape).copy()
        withheld = integers(arrays, "withheld", shape).copy()
        patients = int(integers(arrays, "patients", (1,))[0])
        if (support > patients).any() or squares[support == 0].any() or auc_parts[support[0, :-1] == 0].any():
            raise ProtocolError("a statistics message contradicts itself: squares without patients")
        return cls(layout, squares, auc_parts, support, withheld, patients)


@dataclass(frozen=True, eq=False)
class Influences:
    """What each patient of a site moves each metric by, to first order."""

    values: Floats
    """``(7, patients, C + 1)`` in the order of :data:`METRICS`; the last column is the metric over all classes."""
    parts: Floats
    """``(patients, C, 2)`` of the AUC: through a patient's negatives, and through the positives."""
    support: NDArray[np.bool_]
    """``(7, patients, C + 1)``: whether the metric rests on the patient."""
    known: NDArray[np.bool_]
    """``(patients,)``: whether the patient has a labelled image."""

    @classmethod
    def of(cls, scored: Scored, reference: Reference, min_cell: int = 1) -> Influences:
        """Of ``scored``, whose patients keep their numbers where none of their images is known."""
        tally, above, below = _per_patient(scored, reference, min_cell)
        influence, support = influences(tally, reference.tallies[0], reference.counts.layout.task)
        parts, positive_or_negative = _placements(tally, above, below, reference)
        auc = parts.sum(axis=2)
        everywhere = np.flatnonzero(~np.isnan(reference.auc))
        overall = auc[:, everywhere].sum(axis=1) / max(len(everywhere), 1)
        return cls(
            np.concatenate([np.column_stack([auc, overall])[None], influence]),
            parts,
            np.concatenate([_with_any(positive_or_negative)[None], support]),
            np.asarray(cells.presence(scored.patient, scored.patients, scored.known).any(axis=1)),
        )


def _per_patient(scored: Scored, reference: Reference, min_cell: int) -> tuple[Tally, Floats, Floats]:
    """Sums ``(patients, C)`` over each patient's images: confusion counts and placements.

    A positive image's placement is the share of all negatives it scores above, a negative's the share of
    all positives that score above it; ties count a half. Under the small-cell rule images stand where
    :attr:`Reference.auc` has them, at the first bin of their block, and are predicted as
    :attr:`Reference.tallies` has them at their worst.
    """
    positive, negative = scored.positive, scored.known & ~scored.positive
    layout = reference.counts.layout
    low, high = cells.placed(scored, layout.bins, min_cell) if min_cell > 1 else (scored.position, scored.position)
    if layout.task == "multiclass":
        predicted = _predicted(scored, min_cell)
    else:
        predicted = np.where(positive, low, high) >= reference.thresholds.position
    share = reference.below(low)
    images = np.stack(
        [
            positive & predicted,
            negative & predicted,
            positive & ~predicted,
            negative & ~predicted,
            positive * share[:, :, 0],
            negative * (1.0 - share[:, :, 1]),
        ]
    ).astype(np.float64)
    order = np.argsort(scored.patient, kind="stable")
    starts = np.flatnonzero(np.diff(scored.patient[order], prepend=-1))
    sums = np.add.reduceat(images[:, order], starts, axis=1) if len(order) else images
    return Tally(*sums[:4]), sums[4], sums[5]


def _predicted(scored: Scored, min_cell: int) -> NDArray[np.bool_]:
    """``(N, C)`` by argmax; an image of a cell that is not released is taken for every class but its own."""
    best = scored.scores.argmax(axis=1)
    classes = scored.positive.shape[1]
    predicted: NDArray[np.bool_] = np.eye(classes, dtype=np.bool_)[best]
    rows = np.flatnonzero(scored.known.any(axis=1))
    true = scored.positive[rows].argmax(axis=1)
    hidden = cells.unreleased(true, best[rows], scored.patient[rows], classes, min_cell)[true, best[rows]]
    predicted[rows[hidden]] = ~scored.positive[rows[hidden]]
    return predicted


def influences(tally: Tally, everybody: Tally, task: Task) -> tuple[Floats, NDArray[np.bool_]]:
    """Influence of each patient on each of RATES, ``(6, patients, C + 1)``, and whether the rate rests on it.

    Of a fraction A / B with value R: (a - R·b) / B. Undefined rates have none. ``tally`` ``(patients, C)`` holds each
    patient's counts, ``everybody`` ``(C,)`` all sites'.
    """
    influence: dict[str, Floats] = {}
    support: dict[str, NDArray[np.bool_]] = {}
    whole = fractions(everybody)
    for name, part in fractions(tally).items():
        influence[name] = _influence(part, whole[name])
        support[name] = part.below > 0
    influence["balanced_accuracy"] = (influence["sensitivity"] + influence["specificity"]) / 2
    support["balanced_accuracy"] = support["accuracy"]
    right = Fraction(tally.tp.sum(axis=1), (tally.tp + tally.fn).sum(axis=1))
    rightly = Fraction(everybody.tp.sum(keepdims=True), (everybody.tp + everybody.fn).sum(keepdims=True))
    defined = {name: ~np.isnan(values) for name, values in rates(everybody).items()}
    overall = over_classes(task, influence, defined, _influence(right, rightly))
    columns = [np.column_stack([influence[name], np.nan_to_num(overall[name])]) for name in RATES]
    return np.stack(columns), np.stack([_with_any(support[name]) for name in RATES])


def _influence(part: Fraction, whole: Fraction) -> Floats:
    scale = np.divide(1.0, whole.below, out=np.zeros(whole.below.shape), where=whole.below > 0)
    return (part.above - np.nan_to_num(whole.value) * part.below) * scale


def _placements(tally: Tally, above: Floats, below: Floats, reference: Reference) -> tuple[Floats, NDArray[np.bool_]]:
    """Influence on the AUC, ``(patients, C, 2)``, through a patient's negatives and through the positives."""
    area = np.nan_to_num(reference.auc)
    negatives, positives = tally.fp + tally.tn, tally.tp + tally.fn
    excess = np.stack([below - negatives * area, above - positives * area], axis=2)
    usable = np.all(reference.totals > 0, axis=1, keepdims=True)
    parts = np.divide(excess, reference.totals, out=np.zeros(excess.shape), where=usable)
    return parts, np.asarray(negatives + positives > 0)


def _with_any(support: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.column_stack([support, np.asarray(support.any(axis=1))])


def fixed(influence: Floats, axis: int) -> Ints:
    """Sum of squares over patients (``axis``), each rounded to the unit: whole numbers add in any order.

    Raises :class:`ProtocolError` where they are greater than if the reference held these images.
    """
    squares = np.square(influence)
    if squares.size and squares.sum(axis=axis).max() * (1 / SQUARED) > MOST_SQUARED:
        raise ProtocolError("the reference lacks this site's images; it is of another split or round")
    summed: Ints = np.rint(squares * (1 / SQUARED)).astype(np.int64).sum(axis=axis)
    return summed
