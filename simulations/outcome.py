"""What came of a run, for notebooks: data frames, figures and the trained model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunError
from common.study import Study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

    from server.report.intervals import Interval
    from server.report.results import Metrics, Run

ALL = "all"
"""In a column ``site`` or ``tested_on``: all hospitals together, everybody's test patients."""
_INTERVAL = ("value", "low", "high")


class Simulation:
    """A finished run. Data frames and figures are made anew whenever they are asked for.

    In every frame ``repeat`` counts from 0, ``arm`` is ``federated``, ``local`` or ``pooled``,
    and an undefined number is NaN. A notebook shows the arms' results as a table.
    """

    def __init__(self, path: Path, results: Sequence[Mapping[str, Any]]) -> None:
        """Not called directly: :func:`simulations.simulate` or :meth:`open`."""
        from server.report.results import parse

        self.path = path
        self.results = tuple(results)
        """``results.json`` of every repeat."""
        self._runs = tuple(parse(result) for result in self.results)

    @classmethod
    def open(cls, run: Path | str) -> Simulation:
        """A run's folder, by whatever way it was made. Raises :class:`RunError` where it is not finished."""
        from simulations.cli import read_results

        path = Path(run).expanduser()
        return cls(path, read_results([path]))

    @property
    def report(self) -> Path:
        """The run's ``report.html``: one file that needs no other."""
        return self.path / "report.html"

    @property
    def study(self) -> Study:
        """The study as it was run, changes included."""
        return Study.parse(json.dumps(self.results[0]["study"], ensure_ascii=False), str(self.path))

    @property
    def synthetic(self) -> bool | None:
        """Whether no image is of a person; ``None`` where hospitals played it themselves, whose word it is."""
        return self._runs[0].synthetic

    # -- data frames ---------------------------------------------------------------------------

    @property
    def metrics(self) -> pd.DataFrame:
        """``repeat, arm, site, tested_on, metric, value, low, high``: a row per arm, site and metric.

        ``site`` is ``all`` for an arm's result on everybody's test patients (of the local arm the
        mean over hospitals), else a hospital, with ``tested_on`` its own patients (``site`` again)
        or, for a hospital alone, also everybody's (``all``).
        """
        rows = [
            (run.repeat, *row) for run in self._runs for name, arm in run.arms.items() for row in _arm_rows(name, arm)
        ]
        return _frame(("repeat", "arm", "site", "tested_on", "metric", *_INTERVAL), rows, _INTERVAL)

    @property
    def per_class(self) -> pd.DataFrame:
        """``repeat, arm, class, metric, value, low, high`` on everybody's test patients; not for the local arm."""
        rows = [
            (run.repeat, name, label, *row)
            for run in self._runs
            for name, arm in run.arms.items()
            for label, metrics in arm.model.per_class.items()
            for row in _metric_rows(metrics)
        ]
        return _frame(("repeat", "arm", "class", "metric", *_INTERVAL), rows, _INTERVAL)

    @property
    def history(self) -> pd.DataFrame:
        """``repeat, arm, site, round, train_loss, val_loss, val_auc, kept``: a row per round and model trained.

        ``site`` is ``all``, or of the local arm the hospital; ``kept`` marks the round whose weights were kept.
        """
        rows = [
            (run.repeat, arm.name, site, e.round, e.train_loss, e.val_loss, e.val_auc, e.round == model.kept_round)
            for run in self._runs
            for arm in run.arms.values()
            for site, model in ((ALL, arm.model), *arm.alone.items())
            for e in model.history
        ]
        numbers = ("train_loss", "val_loss", "val_auc")
        return _frame(("repeat", "arm", "site", "round", *numbers, "kept"), rows, numbers)

    @property
    def sites(self) -> pd.DataFrame:
        """``site, split, images, patients, origin, device`` and a column ``n_<class>`` for each class.

        Counts of labelled images and of patients; ``origin`` is the value of ``partition.column``,
        ``device`` the simulated detector, where the study has one.
        """
        run = self._runs[0]
        rows = [
            (
                *(name, split, images, site.patients.get(split, 0), site.origin, site.device),
                *(site.classes.get(split, {}).get(label, 0) for label in run.classes),
            )
            for name, site in run.sites.items()
            for split, images in site.images.items()
        ]
        head = ("site", "split", "images", "patients", "origin", "device")
        return _frame((*head, *(f"n_{label}" for label in run.classes)), rows, ())

    @property
    def differences(self) -> pd.DataFrame:
        """``repeat, a, b, metric, on, value, low, high``: paired differences a − b, bootstrapped by patient.

        ``b`` is ``pooled`` or ``local:<site>``; ``on`` says whose test patients: ``all`` or a site.
        """
        rows = [
            (run.repeat, d.a, d.b, d.metric, d.on, *_interval(d.interval))
            for run in self._runs
            for d in run.differences
        ]
        return _frame(("repeat", "a", "b", "metric", "on", *_INTERVAL), rows, _INTERVAL)

    @property
    def comparisons(self) -> pd.DataFrame:
        """``repeat, a, b, on, class, metric, value, low, high, p, p_holm, p_false_discovery, test``: a − b, from sums.

        ``class`` is ``all`` for the metric over all classes. A p-value that cannot be known is NaN.
        """
        p = ("p", "p_holm", "p_false_discovery")
        rows = [
            (
                *(run.repeat, pair.a, pair.b, pair.on, name, metric),
                *(one.difference.value, one.difference.low, one.difference.high),
                *(one.p, one.p_holm, one.p_false_discovery, one.test),
            )
            for run in self._runs
            for pair in run.comparisons
            for name, metrics in ((ALL, pair.overall), *pair.per_class.items())
            for metric, one in metrics.items()
        ]
        return _frame(("repeat", "a", "b", "on", "class", "metric", *_INTERVAL, *p, "test"), rows, (*_INTERVAL, *p))

    # -- figures -------------------------------------------------------------------------------

    def roc(self, label: str | None = None, *, repeat: int = 0) -> Figure:
        """ROC curves of the arms for class ``label`` (default: the positive, or else the first class)."""
        from server.report import charts, figures

        run = self._run(repeat)
        known = figures.roc_classes(run)
        if not known or (label is not None and label not in known):
            wanted = "" if label is None else f" of class {label!r}"
            raise RunError(f"there is no ROC curve{wanted}; classes that have one: {', '.join(known) or 'none'}")
        name = known[0] if label is None else label
        with charts.drawing():
            return self._labelled(charts.roc(figures.roc_lines(run, name), f"ROC: {name}"))

    def learning_curves(self, *, repeat: int = 0) -> Figure:
        """Validation AUC (or loss) and training loss by round; a ring marks the round that was kept."""
        from server.report import charts, figures

        histories = figures.histories(self._run(repeat))
        if not charts.learned(histories):
            raise RunError("no round was recorded, so there is no learning curve; look at report.html for what was")
        with charts.drawing():
            return self._labelled(charts.learning(histories))

    def partition(self) -> Figure:
        """Images per hospital, split and class; of many hospitals the largest and the smallest."""
        from server.report import charts
        from server.report.contrasts import ENDS, MANY_SITES

        run = self._runs[0]
        names, title = list(run.sites), "Images by class"
        if len(names) > MANY_SITES:
            ranked = sorted(names, key=lambda name: sum(run.sites[name].images.values()), reverse=True)
            names, title = ranked[:ENDS] + ranked[-ENDS:], f"{title}: the {ENDS} largest and {ENDS} smallest"
        with charts.drawing():
            return self._labelled(charts.partition({name: run.sites[name] for name in names}, run.classes, title))

    def _labelled(self, figure: Figure) -> Figure:
        """A figure leaves its notebook alone: where the images are synthetic it says so itself."""
        if self.synthetic:
            figure.suptitle("synthetic images", x=0.99, ha="right", fontsize=8, fontstyle="italic")
        # A notebook that has not set matplotlib up asks the figure; one that has does not.
        vars(figure)["_repr_png_"] = partial(_png, figure)
        return figure

    # -- the model -----------------------------------------------------------------------------

    def model(self, *, repeat: int = 0) -> nn.Module:
        """The trained network on the CPU, in evaluation mode: the federated arm's, or else the first arm's.

        Maps images ``(B, channels, size, size)`` float32 in [0, 1], as ``common.preprocess`` makes
        them for the study, to logits ``(B, outputs)``. Raises :class:`RunError` or :class:`ModelError`.
        """
        from common.models import build
        from common.weights import load, restore
        from server.results import read_card
        from simulations.runfolder import Folder

        self._run(repeat)
        folder = Folder(self.path).repeat(repeat, len(self._runs))
        study = read_card(folder).study
        model = build(study, study.seed)
        restore(model, load(folder / "model.safetensors"))
        return model.eval()

    # -- showing -------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Simulation {str(self.path)!r}: {', '.join(self._runs[0].arms)}, {self._about()}>"

    def _repr_html_(self) -> str:
        from markupsafe import escape

        from server.report.words import arm_name, metric_name
        from simulations.environment import spread

        first = self._runs[0]
        repeated = spread(self.results) if len(self._runs) > 1 else None
        heads = "".join(f"<th>{escape(arm_name(arm))}</th>" for arm in first.arms)
        rows = []
        for metric in next(iter(first.arms.values())).model.test:
            cells = [
                _repeated(repeated[name].get(metric)) if repeated else _cell(arm.model.test.get(metric))
                for name, arm in first.arms.items()
            ]
            rows.append(f"<tr><th>{escape(metric_name(metric))}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
        meaning = (
            f"mean over {len(self._runs)} repeats (least to most)"
            if repeated
            else f"{first.confidence:.0%} intervals, by patient"
        )
        return (
            f"<div><b>{escape(first.name)}</b>: {escape(self._about())}"
            f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<small>On everybody's test patients; {meaning}. Report: {escape(str(self.report))}</small></div>"
        )

    def _about(self) -> str:
        run = self._runs[0]
        kind = "SYNTHETIC images" if run.synthetic else "real images"
        return f"{len(run.sites)} hospitals, {run.source}, {kind}"

    def _run(self, repeat: int) -> Run:
        if not 0 <= repeat < len(self._runs):
            raise RunError(f"repeat {repeat} is not in this run; it has repeats 0 to {len(self._runs) - 1}")
        return self._runs[repeat]


def _arm_rows(name: str, arm: Any) -> Iterator[tuple[Any, ...]]:
    groups = [((ALL, ALL), arm.model.test)]
    groups += [((site, site), metrics) for site, metrics in arm.own.items()]
    groups += [((site, ALL), metrics) for site, metrics in arm.everyone.items()]
    for (site, tested_on), metrics in groups:
        for row in _metric_rows(metrics):
            yield (name, site, tested_on, *row)


def _metric_rows(metrics: Metrics) -> Iterator[tuple[Any, ...]]:
    for metric, interval in metrics.items():
        yield (metric, *_interval(interval))


def _interval(interval: Interval) -> tuple[float | None, float | None, float | None]:
    return interval.value, interval.low, interval.high


def _frame(columns: Sequence[str], rows: Sequence[tuple[Any, ...]], numbers: Sequence[str]) -> pd.DataFrame:
    """A data frame whose ``numbers`` are floats even where all are undefined."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns)).astype(dict.fromkeys(numbers, float))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=96)
    return buffer.getvalue()


def _cell(interval: Interval | None) -> str:
    from server.report.words import number

    if interval is None or interval.value is None:
        return "undefined"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def _repeated(found: Mapping[str, float] | None) -> str:
    from server.report.words import number

    return (
        "undefined" if found is None else f"{number(found['mean'])} ({number(found['min'])} to {number(found['max'])})"
    )
