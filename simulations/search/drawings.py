"""Figures of a search: a field's values against the score, and the course of the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.html import clean
from server.report.charts import FEDERATED, SOFT, WIDTH
from simulations.search.results import Judged
from simulations.search.space import Range, SearchSpec
from simulations.search.words import metric_name, value_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEST = "#D55E00"
_MOST_LABELS = 24


def marginal(name: str, spec: SearchSpec, judged: Sequence[Judged]) -> Figure:
    """Each finished trial's score, with its spread over folds, against its value of the field ``name``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    axis = spec.space[name]
    done = [one for one in judged if one.score is not None]
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([one.score for one in done], dtype=float)
    spread = np.array([one.deviation or 0.0 for one in done])
    if isinstance(axis, Range):
        places = np.array([float(one.params[name]) for one in done])
        if axis.log:
            axes.set_xscale("log")
            # matplotlib would write powers of ten as formulas, which are switched off
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        places = np.array([float(axis.values.index(one.params[name])) for one in done])
        labels = [clean(value_words(value), _MOST_LABELS) for value in axis.values]
        axes.set_xticks(range(len(labels)), labels, rotation=0 if sum(map(len, labels)) < 40 else 30)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.errorbar(places, scores, spread, fmt="none", ecolor=SOFT, elinewidth=0.8, alpha=0.6)
    axes.scatter(places, scores, 22, color=FEDERATED, alpha=0.85, zorder=3)
    axes.scatter(places[:1], scores[:1], 60, facecolors="none", edgecolors=_BEST, linewidths=1.8, zorder=4)
    axes.set(xlabel=clean(name, 60), ylabel=f"Validation {metric_name(spec.metric)}")
    return figure


def course(spec: SearchSpec, judged: Sequence[Judged]) -> Figure:
    """Each finished trial's score in the order they were tried, and the best so far."""
    from matplotlib.figure import Figure

    done = sorted((one for one in judged if one.score is not None), key=lambda one: one.trial.number)
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    numbers = [one.trial.number for one in done]
    scores = np.array([one.score for one in done], dtype=float)
    best = np.maximum.accumulate(scores) if spec.maximised else np.minimum.accumulate(scores)
    axes.step(numbers, best, where="post", color=_BEST, linewidth=1.6, label="Best so far")
    axes.scatter(numbers, scores, 18, color=FEDERATED, alpha=0.85, zorder=3, label="Trial")
    axes.set(xlabel="Trial", ylabel=f"Validation {metric_name(spec.metric)}")
    axes.legend(loc="lower right" if spec.maximised else "upper right")
    return figure
