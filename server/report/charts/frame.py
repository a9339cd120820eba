"""What all figures of a report share: their look, their colours, a frame to draw in, and how one becomes markup.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers; line styles repeat them.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from common.html import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEDERATED, LOCAL, POOLED = "#0072B2", "#D55E00", "#009E73"
INK, SOFT, GRID = "#1b2430", "#536070", "#dfe4ea"
ARM_COLOURS = {"federated": FEDERATED, "local": LOCAL, "pooled": POOLED}
ARM_STYLES = {"federated": "-", "local": ":", "pooled": "--"}
WIDTH = 5.0  # inches; about 480 px, readable on a telephone and two to a row on a desk
MAX_POINTS = 300  # of one curve
_SQUARE = 4.3  # inches; as high as wide, with its labels

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


def short(text: str, limit: int = 26) -> str:
    return clean(text, limit).replace("\n", " ")


def panels(height: float, count: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``height`` inches and its ``count`` axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, [figure.add_subplot(count, 1, place + 1) for place in range(count)]


def panel(height: float = _SQUARE) -> tuple[Figure, Axes]:
    """A figure of one pair of axes."""
    figure, (axes,) = panels(height)
    return figure, axes


def unit_square(title: str, x: str, y: str, margin: float) -> tuple[Figure, Axes]:
    """Two shares against each other, with the diagonal on which they are equal."""
    figure, axes = panel()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xlim=(-margin, 1 + margin), ylim=(-margin, 1 + margin), xlabel=x, ylabel=y)
    axes.set_title(short(title, 60))
    axes.set_aspect("equal")
    return figure, axes


def look(arm: str) -> dict[str, Any]:
    """An arm's colour and line."""
    return {"color": ARM_COLOURS.get(arm, INK), "linestyle": ARM_STYLES.get(arm, "-")}


def faint_or_full(arm: str, *, faint: bool) -> dict[str, Any]:
    """As :func:`look`, wide; a faint line is one hospital alone."""
    return look(arm) | (
        {"linestyle": "-", "linewidth": 0.9, "alpha": 0.6} if faint else {"linewidth": 2.0, "alpha": 1.0}
    )


def label_rows(axes: Axes, labels: Sequence[str], title: str, axis: str) -> None:
    """One row for each of ``labels``, top first."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(axis)
    axes.set_title(title)


def thin(points: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """At most :data:`MAX_POINTS` indices of ``points``, both ends among them."""
    return np.unique(np.linspace(0, max(points - 1, 0), min(points, MAX_POINTS)).round().astype(np.intp))


def legend(axes: Axes) -> None:
    """The lines' names between title and axes, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend_above(axes, handles, labels, 1.6)


def legend_above(axes: Axes, handles: Sequence[Any], labels: Sequence[str], handle_length: float) -> None:
    columns = max(1, min(3, 62 // (max(map(len, labels)) + 6)))
    rows = -(-len(labels) // columns)
    axes.set_title(axes.get_title("left"), pad=9 + 13 * rows)
    legend = axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, borderpad=0.1,
        labelspacing=0.3, handlelength=handle_length, columnspacing=1.0, fontsize=8.5,
    )  # fmt: skip
    legend.set_in_layout(False)  # the title's padding has made room
