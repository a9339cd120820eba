"""The report's figures, drawn with matplotlib's SVG back end.

Each function returns a ``matplotlib.figure.Figure`` (so a notebook can show it) made
inside :func:`drawing`; :func:`svg` turns one into markup that depends on nothing
but the numbers: no date, fixed ids, text as text in the reader's own font.
"""

from server.report.charts.curves import Line, froc, net_benefit, reliability, roc
from server.report.charts.frame import ARM_COLOURS, FEDERATED, SOFT, WIDTH, drawing, svg
from server.report.charts.rows import Dots, Effect, dots, forest, partition
from server.report.charts.steps import History, learned, learning, severity

__all__ = [
    "ARM_COLOURS",
    "FEDERATED",
    "SOFT",
    "WIDTH",
    "Dots",
    "Effect",
    "History",
    "Line",
    "dots",
    "drawing",
    "forest",
    "froc",
    "learned",
    "learning",
    "net_benefit",
    "partition",
    "reliability",
    "roc",
    "severity",
    "svg",
]
