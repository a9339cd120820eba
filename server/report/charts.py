"""The report's figures, drawn with matplotlib's SVG back end.

Each function returns a ``matplotlib.figure.Figure`` (so a notebook can show it) made
inside :func:`drawing`; :func:`svg` turns one into markup that depends on nothing
but the numbers: no date, fixed ids, text as text in the reader's own font. Colours
are Okabe and Ito's (2008), told apart by colour-blind readers; line styles repeat them.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from common.html import clean
from server.report.calibrated import Calibrated
from server.report.intervals import Interval
from server.report.outlined import Outlined
from server.report.results import Curve, RoundEntry, Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEDERATED, LOCAL, POOLED = "#0072B2", "#D55E00", "#009E73"
INK, SOFT, GRID = "#1b2430", "#536070", "#dfe4ea"
ARM_COLOURS = {"federated": FEDERATED, "local": LOCAL, "pooled": POOLED}
ARM_STYLES = {"federated": "-", "local": ":", "pooled": "--"}
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7f7f7f")
HATCHES = ("", "///", "...", "xxx")
SPLITS = ("train", "val", "test")
WIDTH = 5.0  # inches; about 480 px, readable on a telephone and two to a row on a desk
MAX_POINTS = 300  # of one curve

_FONT_FAMILY = re.compile(r"(font:[^;\"]*?)'DejaVu Sans'[^;\"]*")
_UNUSED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>|(?<=<g) id=\"[^\"]*\"", re.DOTALL)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Figures made and written inside look alike. Sets matplotlib's parameters and puts them back."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a class may be called "$x^$"
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.facecolor": "white",
        "hatch.linewidth": 0.6,
        "hatch.color": "white",
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The reader's fonts draw the text; what this machine's font lacks does not matter.
        warnings.filterwarnings("ignore", message=r".*missing from", category=UserWarning)
        yield


def svg(figure: Figure, name: str) -> Markup:
    """The figure as an ``<svg>`` element. ``name`` keeps its ids apart from other figures' on the page."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": f"fedward-{name}"}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = _UNUSED.sub("", text[text.index("<svg") :])
    text = _FONT_FAMILY.sub(r"\1system-ui, sans-serif", text)
    head, rest = text[: text.index(">")], text[text.index(">") :]
    head = re.sub(r" (?:width|height|version|xmlns(?::xlink)?|id)=\"[^\"]*\"", "", head)
    return Markup(re.sub(r"\n\s*", "\n", head + rest))  # noqa: S704 - matplotlib escapes the text in it


def _short(text: str, limit: int = 26) -> str:
    return clean(text, limit).replace("\n", " ")


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _thin(points: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """At most :data:`MAX_POINTS` indices of ``points``, both ends among them."""
    return np.unique(np.linspace(0, max(points - 1, 0), min(points, MAX_POINTS)).round().astype(np.intp))


def _thin_roc(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The curve at no more than :data:`MAX_POINTS` of its points, evenly spaced along its length."""
    x, y = np.asarray(curve.fpr), np.asarray(curve.tpr)
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
    at = np.searchsorted(length, np.linspace(0.0, length[-1], MAX_POINTS))
    keep = np.unique(np.concatenate(([0], at.clip(0, len(x) - 1), [len(x) - 1])))
    return x[keep], y[keep]


@dataclass(frozen=True)
class Line:
    """A named curve of an arm; a faint one is one hospital alone."""

    label: str
    arm: str
    curve: Curve
    faint: bool = False


def roc(lines: Sequence[Line], title: str) -> Figure:
    """ROC curves in the unit square."""
    figure = _figure(4.3)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    for line in lines:
        x, y = _thin_roc(line.curve)
        axes.plot(
            x,
            y,
            color=ARM_COLOURS.get(line.arm, INK),
            linestyle="-" if line.faint else ARM_STYLES.get(line.arm, "-"),
            linewidth=0.9 if line.faint else 2.0,
            alpha=0.6 if line.faint else 1.0,
            label=_short(line.label, 40) if line.label else "_",
            zorder=2 if line.faint else 3,
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 − specificity", ylabel="Sensitivity")
    axes.set_title(_short(title, 60))
    axes.set_aspect("equal")
    axes.legend(loc="lower right", borderaxespad=0.8)
    return figure


def reliability(lines: Mapping[str, tuple[str, Calibrated]], title: str) -> Figure:
    """Label -> arm and its groups: mean score against share of positives; a point's size says how many images."""
    figure = _figure(4.3)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    for label, (arm, one) in lines.items():
        colour = ARM_COLOURS.get(arm, INK)
        sizes = 12 + 120 * np.sqrt(np.asarray(one.images) / max(1, sum(one.images)))
        axes.plot(one.score, one.observed, color=colour, linestyle=ARM_STYLES.get(arm, "-"), label=_short(label, 40))
        axes.scatter(one.score, one.observed, sizes, color=colour, alpha=0.75, zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="Score", ylabel="Share of positives")
    axes.set_title(_short(title, 60))
    axes.set_aspect("equal")
    axes.legend(loc="upper left", borderaxespad=0.8)
    return figure


def froc(curves: Mapping[str, tuple[str, Outlined]]) -> Figure:
    """Arm -> its name and curve: lesions found against false ones an image, on a root scale that shows both ends.

    Thresholds fall along it to where most are found: below, pieces run together and fewer are.
    """
    figure = _figure(4.3)
    axes = figure.add_subplot()
    axes.set_xscale("function", functions=(_root, np.square))
    most = 1.0
    for arm, (label, one) in curves.items():
        colour = ARM_COLOURS.get(arm, INK)
        end = int(np.argmax(one.lesions_found)) + 1
        most = max(most, *one.false_lesions[:end])
        axes.plot(
            one.false_lesions[:end],
            one.lesions_found[:end],
            color=colour,
            linestyle=ARM_STYLES.get(arm, "-"),
            marker="o",
            markersize=3,
            label=_short(label, 40),
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
    figure = _figure(4.3)
    axes = figure.add_subplot()
    best = 0.0
    for label, (arm, one) in lines.items():
        colour, style = ARM_COLOURS.get(arm, INK), ARM_STYLES.get(arm, "-")
        axes.plot(one.threshold, one.benefit, color=colour, linestyle=style, linewidth=2.0, label=_short(label, 40))
        best = max(best, *one.benefit, *one.always[:1])
    first = next(iter(lines.values()))[1]
    axes.plot(first.threshold, first.always, color=SOFT, linewidth=1.2, label="Everybody")
    axes.axhline(0.0, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xlim=(0, 1), ylim=(-0.12 * best - 0.01, 1.06 * best + 0.01), xlabel="Threshold", ylabel="Net benefit")
    axes.set_title(_short(title, 60))
    axes.legend(loc="lower left", borderaxespad=0.8)
    return figure


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

    panels = learned(histories)
    figure = _figure(1.0 + 1.65 * len(panels))
    for place, (key, title) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        for history in histories:
            _learning_line(axes, history, key)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        if place == 0:
            _legend(axes)
        if place == len(panels) - 1:
            axes.set_xlabel("Round")
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
    keep = [points[i] for i in _thin(len(points))]
    colour = ARM_COLOURS.get(history.arm, INK)
    axes.plot(
        [x for x, _ in keep],
        [y for _, y in keep],
        color=colour,
        linestyle="-" if history.faint else ARM_STYLES.get(history.arm, "-"),
        linewidth=0.9 if history.faint else 2.0,
        alpha=0.6 if history.faint else 1.0,
        marker="o" if len(keep) == 1 else "",
        markersize=4,
        label=_short(history.label, 40) if history.label else "_",
    )
    if not history.faint and (kept := [(x, y) for x, y in points if x == history.kept]):
        axes.plot(*kept[0], marker="o", markersize=7, markerfacecolor="white", color=colour, markeredgewidth=1.8)


def _legend(axes: Axes) -> None:
    """The lines' names between title and axes, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        _legend_above(axes, handles, labels, 1.6)


def _legend_above(axes: Axes, handles: Sequence[Any], labels: Sequence[str], handle_length: float) -> None:
    columns = max(1, min(3, 62 // (max(map(len, labels)) + 6)))
    rows = -(-len(labels) // columns)
    axes.set_title(axes.get_title("left"), pad=9 + 13 * rows)
    legend = axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, borderpad=0.1,
        labelspacing=0.3, handlelength=handle_length, columnspacing=1.0, fontsize=8.5,
    )  # fmt: skip
    legend.set_in_layout(False)  # the title's padding has made room


@dataclass(frozen=True)
class Effect:
    """One row of a forest plot."""

    label: str
    interval: Interval
    colour: str = FEDERATED


def forest(effects: Sequence[Effect], title: str, axis: str) -> Figure:
    """Differences with their intervals around a line at zero; top row first."""
    figure = _figure(1.05 + 0.29 * len(effects))
    axes = figure.add_subplot()
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
    axes.set_yticks(range(len(effects)), [_short(effect.label) for effect in effects])
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    left, right = axes.get_xlim()
    reach = max(abs(left), abs(right), 0.005)
    axes.set_xlim(min(left, -0.15 * reach), max(right, 0.15 * reach))
    axes.set_xlabel(axis)
    axes.set_title(title)
    return figure


def severity(lines: Mapping[str, Sequence[Interval]], title: str) -> Figure:
    """Metrics by level, from 0, each with its interval as a band; a gap where it is unknown."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    for (label, spans), colour, style in zip(lines.items(), (FEDERATED, LOCAL, POOLED), ("-", "--", ":"), strict=False):
        levels = np.arange(len(spans))
        value, low, high = (
            np.array([np.nan if one is None else one for one in side], dtype=float)
            for side in zip(*((span.value, span.low, span.high) for span in spans), strict=True)
        )
        axes.fill_between(levels, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(levels, value, style, color=colour, linewidth=2.0, marker="o", markersize=4, label=_short(label, 40))
    axes.set(xlim=(-0.1, max(len(next(iter(lines.values()))) - 0.9, 1)), ylim=(-0.02, 1.02), xlabel="Level")
    axes.set_title(_short(title, 60))
    _legend(axes)
    return figure


def partition(sites: Mapping[str, Site], classes: Sequence[str], title: str) -> Figure:
    """Images per hospital, three bars each (train, val, test), stacked by class."""
    figure = _figure(1.0 + 0.1 * min(len(classes), 12) + 0.55 * len(sites))
    axes = figure.add_subplot()
    known = [split for split in SPLITS if any(site.images.get(split) for site in sites.values())]
    step = 0.84 / max(len(known), 1)
    for row, site in enumerate(sites.values()):
        for place, split in enumerate(known):
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
    axes.set_yticks(range(len(sites)), [_short(name, 18) for name in sites])
    axes.set_ylim(len(sites) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel("Images")
    axes.set_title(title)
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
    labels = [_short(name, 22) for name in classes[:shown]]
    if len(classes) > shown:
        handles.append(Patch(facecolor="white", edgecolor=SOFT))
        labels.append(f"and {len(classes) - shown} more")
    if handles:
        _legend_above(axes, handles, labels, 1.2)


@dataclass(frozen=True)
class Dots:
    """One row of :func:`dots`: an arm's value in each of several runs."""

    label: str
    arm: str
    values: Sequence[Interval]


def dots(rows: Sequence[Dots], title: str, axis: str) -> Figure:
    """Values as points, with intervals where there are any; one row each, top first."""
    figure = _figure(1.05 + 0.34 * len(rows))
    axes = figure.add_subplot()
    for row, item in enumerate(rows):
        colour = ARM_COLOURS.get(item.arm, INK)
        defined = [i for i in item.values if i.value is not None]
        for place, interval in enumerate(defined):
            y = row + (place - (len(defined) - 1) / 2) * min(0.5 / max(len(defined), 1), 0.16)
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.2, alpha=0.7)
            axes.plot(interval.value or 0.0, y, "o", color=colour, markersize=5.5)
    axes.set_yticks(range(len(rows)), [_short(item.label) for item in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    axes.set_xlabel(axis)
    axes.set_title(title)
    return figure
