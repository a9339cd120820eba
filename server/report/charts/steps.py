"""What changes step by step: rounds of training, levels of a disturbance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server.report.charts.frame import FEDERATED, LOCAL, POOLED, faint_or_full, legend, panel, panels, short, thin
from server.report.intervals import Interval
from server.report.results import RoundEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class History:
    """One model's rounds; ``kept`` is the round whose weights were kept."""

    label: str
    arm: str
    entries: Sequence[RoundEntry]
    kept: int | None = None
    faint: bool = False


PANELS = (
    ("val_dice", "Validation Dice"),
    ("val_auc", "Validation AUC"),
    ("val_loss", "Validation loss"),
    ("train_loss", "Training loss"),
)


def learning(histories: Sequence[History]) -> Figure:
    """Validation AUC (or else loss) above training loss, by round; a ring marks the round that was kept."""
    from matplotlib.ticker import MaxNLocator

    known = learned(histories)
    figure, below = panels(1.0 + 1.65 * len(known), len(known))
    for axes, (key, title) in zip(below, known, strict=True):
        for history in histories:
            _learning_line(axes, history, key)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
    legend(below[0])
    below[-1].set_xlabel("Round")
    return figure


def learned(histories: Sequence[History]) -> list[tuple[str, str]]:
    """The panels there is anything for: ``(field of RoundEntry, title)``; validation loss only for want of AUC."""
    known = [
        (key, title)
        for key, title in PANELS
        if any(getattr(entry, key) is not None for history in histories for entry in history.entries)
    ]
    return [panel for panel in known if panel[0] != "val_loss" or known[0][0] == "val_loss"]


def _learning_line(axes: Axes, history: History, key: str) -> None:
    points = [(e.round, value) for e in history.entries if (value := getattr(e, key)) is not None]
    if not points:
        return
    keep = [points[i] for i in thin(len(points))]
    drawn = faint_or_full(history.arm, faint=history.faint)
    axes.plot(
        [x for x, _ in keep],
        [y for _, y in keep],
        **drawn,
        marker="o" if len(keep) == 1 else "",
        markersize=4,
        label=short(history.label, 40) if history.label else "_",
    )
    if not history.faint and (kept := [(x, y) for x, y in points if x == history.kept]):
        axes.plot(
            *kept[0], marker="o", markersize=7, markerfacecolor="white", color=drawn["color"], markeredgewidth=1.8
        )


def severity(lines: Mapping[str, Sequence[Interval]], title: str) -> Figure:
    """Metrics by level, from 0, each with its interval as a band; a gap where it is unknown."""
    figure, axes = panel(2.9)
    for (label, spans), colour, style in zip(lines.items(), (FEDERATED, LOCAL, POOLED), ("-", "--", ":"), strict=False):
        levels = np.arange(len(spans))
        value, low, high = (
            np.array([np.nan if one is None else one for one in side], dtype=float)
            for side in zip(*((span.value, span.low, span.high) for span in spans), strict=True)
        )
        axes.fill_between(levels, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(levels, value, style, color=colour, linewidth=2.0, marker="o", markersize=4, label=short(label, 40))
    axes.set(xlim=(-0.1, max(len(next(iter(lines.values()))) - 0.9, 1)), ylim=(-0.02, 1.02), xlabel="Level")
    axes.set_title(short(title, 60))
    legend(axes)
    return figure
