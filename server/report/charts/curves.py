"""One quantity against another: ROC, reliability, FROC, net benefit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server.report.calibrated import Calibrated
from server.report.charts.frame import (
    ARM_COLOURS,
    INK,
    MAX_POINTS,
    SOFT,
    faint_or_full,
    look,
    panel,
    short,
    unit_square,
)
from server.report.outlined import Outlined
from server.report.results import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """A named curve of an arm; a faint one is one hospital alone."""

    label: str
    arm: str
    curve: Curve
    faint: bool = False


def roc(lines: Sequence[Line], title: str) -> Figure:
    """ROC curves in the unit square."""
    figure, axes = unit_square(title, "1 − specificity", "Sensitivity", 0.01)
    for line in lines:
        x, y = _thin_roc(line.curve)
        axes.plot(
            x,
            y,
            **faint_or_full(line.arm, faint=line.faint),
            label=short(line.label, 40) if line.label else "_",
            zorder=2 if line.faint else 3,
        )
    axes.legend(loc="lower right", borderaxespad=0.8)
    return figure


def reliability(lines: Mapping[str, tuple[str, Calibrated]], title: str) -> Figure:
    """Label -> arm and its groups: mean score against share of positives; a point's size says how many images."""
    figure, axes = unit_square(title, "Score", "Share of positives", 0.02)
    for label, (arm, one) in lines.items():
        sizes = 12 + 120 * np.sqrt(np.asarray(one.images) / max(1, sum(one.images)))
        axes.plot(one.score, one.observed, **look(arm), label=short(label, 40))
        axes.scatter(one.score, one.observed, sizes, color=ARM_COLOURS.get(arm, INK), alpha=0.75, zorder=3)
    axes.legend(loc="upper left", borderaxespad=0.8)
    return figure


def froc(curves: Mapping[str, tuple[str, Outlined]]) -> Figure:
    """Arm -> its name and curve: lesions found against false ones an image, on a root scale that shows both ends.

    Thresholds fall along it to where most are found: below, pieces run together and fewer are.
    """
    figure, axes = panel()
    axes.set_xscale("function", functions=(_root, np.square))
    most = 1.0
    for arm, (label, one) in curves.items():
        end = int(np.argmax(one.lesions_found)) + 1
        most = max(most, *one.false_lesions[:end])
        axes.plot(
            one.false_lesions[:end],
            one.lesions_found[:end],
            **look(arm),
            marker="o",
            markersize=3,
            label=short(label, 40),
        )
    axes.set(xlim=(0, most * 1.05), ylim=(-0.01, 1.01), xlabel="False lesions an image")
    axes.set(ylabel="Lesions found", title="FROC")
    axes.legend(loc="lower right", borderaxespad=0.8)
    return figure


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root; of margins below 0, which an axis looks at before it is told its limits, 0."""
    return np.asarray(np.sqrt(np.maximum(values, 0.0)))


def net_benefit(lines: Mapping[str, tuple[str, Calibrated]], title: str) -> Figure:
    """Label -> arm and its net benefit by threshold, with that of acting always; cut below, where that one falls."""
    figure, axes = panel()
    best = 0.0
    for label, (arm, one) in lines.items():
        axes.plot(one.threshold, one.benefit, **look(arm), linewidth=2.0, label=short(label, 40))
        best = max(best, *one.benefit, *one.always[:1])
    first = next(iter(lines.values()))[1]
    axes.plot(first.threshold, first.always, color=SOFT, linewidth=1.2, label="Everybody")
    axes.axhline(0.0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xlim=(0, 1), ylim=(-0.12 * best - 0.01, 1.06 * best + 0.01), xlabel="Threshold", ylabel="Net benefit")
    axes.set_title(short(title, 60))
    axes.legend(loc="lower left", borderaxespad=0.8)
    return figure


def _thin_roc(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The curve at no more than :data:`MAX_POINTS` of its points, evenly spaced along its length."""
    x, y = np.asarray(curve.fpr), np.asarray(curve.tpr)
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    at = np.searchsorted(length, np.linspace(0.0, length[-1], MAX_POINTS))
    keep = np.unique(np.concatenate(([0], at.clip(0, len(x) - 1), [len(x) - 1])))
    return x[keep], y[keep]
