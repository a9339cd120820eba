"""One row for each of what is compared: differences, values of several runs, hospitals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.report.charts.frame import ARM_COLOURS, FEDERATED, INK, SOFT, label_rows, legend_above, panel, short
from server.report.intervals import Interval
from server.report.results import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7f7f7f")
HATCHES = ("", "///", "...", "xxx")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Effect:
    """One row of a forest plot."""

    label: str
    interval: Interval
    colour: str = FEDERATED


def forest(effects: Sequence[Effect], title: str, axis: str) -> Figure:
    """Differences with their intervals around a line at zero; top row first."""
    figure, axes = panel(1.05 + 0.29 * len(effects))
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for row, effect in enumerate(effects):
        value, low, high = effect.interval.value, effect.interval.low, effect.interval.high
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=effect.colour, linewidth=2.0, solid_capstyle="butt")
        if value is not None:
            decided = (low is not None and low > 0.0) or (high is not None and high < 0.0)
            axes.plot(
                value,
                row,
                "s",
                color=effect.colour,
                markersize=6.5,
                markerfacecolor=effect.colour if decided else "white",
            )
    label_rows(axes, [short(effect.label) for effect in effects], title, axis)
    axes.set_ylim(len(effects) - 0.4, -0.6)
    left, right = axes.get_xlim()
    reach = max(abs(left), abs(right), 0.005)
    axes.set_xlim(min(left, -0.15 * reach), max(right, 0.15 * reach))
    return figure


@dataclass(frozen=True)
class Dots:
    """One row of :func:`dots`: an arm's value in each of several runs."""

    label: str
    arm: str
    values: Sequence[Interval]


def dots(found: Sequence[Dots], title: str, axis: str) -> Figure:
    """Values as points, with intervals where there are any; one row each, top first."""
    figure, axes = panel(1.05 + 0.34 * len(found))
    for row, item in enumerate(found):
        colour = ARM_COLOURS.get(item.arm, INK)
        defined = [i for i in item.values if i.value is not None]
        for place, interval in enumerate(defined):
            y = row + (place - (len(defined) - 1) / 2) * min(0.5 / max(len(defined), 1), 0.16)
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.2, alpha=0.7)
            axes.plot(interval.value or 0.0, y, "o", color=colour, markersize=5.5)
    label_rows(axes, [short(item.label) for item in found], title, axis)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.08)
    return figure


def partition(sites: Mapping[str, Site], classes: Sequence[str], title: str) -> Figure:
    """Images per hospital, three bars each (train, val, test), stacked by class."""
    figure, axes = panel(1.0 + 0.1 * min(len(classes), 12) + 0.55 * len(sites))
    known = [split for split in SPLITS if any(site.images.get(split) for site in sites.values())]
    step = 0.84 / max(len(known), 1)
    for row, site in enumerate(sites.values()):
        for place, split in enumerate(known):
            if split not in site.images:
                continue
            y, left = row + (place - (len(known) - 1) / 2) * step, 0
            for index, name in enumerate(classes):
                amount = site.classes.get(split, {}).get(name, 0)
                if amount:
                    axes.barh(y, amount, step * 0.86, left, color=_class_colour(index), hatch=_class_hatch(index))
                left += amount
            if not left:
                left = site.images.get(split, 0)
                axes.barh(y, left, step * 0.86, color=SOFT)
            axes.annotate(
                f"{split} {left}", (left, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=SOFT
            )
    label_rows(axes, [short(name, 18) for name in sites], title, "Images")
    axes.set_ylim(len(sites) - 0.45, -0.55)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    _class_legend(axes, classes)
    return figure


def _class_colour(index: int) -> str:
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def _class_hatch(index: int) -> str:
    return HATCHES[(index // len(CLASS_COLOURS)) % len(HATCHES)]


def _class_legend(axes: Axes, classes: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    shown = 12 if len(classes) <= 12 else 11
    handles = [Patch(facecolor=_class_colour(i), hatch=_class_hatch(i)) for i in range(min(len(classes), shown))]
    labels = [short(name, 22) for name in classes[:shown]]
    if len(classes) > shown:
        handles.append(Patch(facecolor="white", edgecolor=SOFT))
        labels.append(f"and {len(classes) - shown} more")
    if handles:
        legend_above(axes, handles, labels, 1.2)
