"""A search, or a cross-validation, as a page: the best, all trials, which field mattered, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from common.html import (
    Banner,
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Page,
    Paragraph,
    Row,
    Section,
    Statement,
    Table,
)
from common.html import write as write_html
from common.metrics import Summary
from server.report.charts import drawing, svg
from server.report.intervals import Interval
from server.report.words import count, duration, metric_cell, ordered_metrics, plural
from server.report.words import metric_name as report_name
from simulations.search.drawings import course, marginal
from simulations.search.results import LEAST_FOR_IMPORTANCE, Judged
from simulations.search.space import SearchSpec
from simulations.search.words import chosen_on, metric_name, params_words, score_words, short_names, value_words

if TYPE_CHECKING:
    from simulations.search.run import Search

_TEXT = False
_OUTLINED = (
    " So was the threshold of outlines, on which Dice and lesions depend. The Dice that trials are judged by is of all "
    "pixels together; the one here is the mean over images with a finding."
)
_METHODS = {"grid": "all combinations", "random": "random draws", "tpe": "Optuna's tree-structured Parzen estimator"}


def write_page(
    search: Search,
    order: Sequence[Judged],
    best: Judged | None,
    matters: Mapping[str, float],
    together: Summary | None,
    path: Path,
) -> None:
    """Write the page, whole or not at all; ``order`` has the best trial first, ``together`` is out of fold."""
    write_html(page(search, order, best, matters, together), path)


def page(
    search: Search,
    order: Sequence[Judged],
    best: Judged | None,
    matters: Mapping[str, float],
    together: Summary | None,
) -> Page:
    study, spec, prepared = search.study, search.spec, search.prepared
    if prepared.synthetic:
        banner = Banner("synthetic", "Synthetic data", "Drawn by fedward. The numbers say nothing about patients.")
    else:
        banner = Banner("real", "Real images", "Measured on the hospitals' own validation patients.")
    sections = [Section("answer", "What came out", _answer(search, order, best))]
    if spec.space:
        sections.append(Section("trials", "All trials, best first", [_trials(spec, order)]))
        if best is not None:
            with drawing():
                sections.append(Section("fields", "Which field mattered", _fields(spec, order, matters)))
    if together is not None:
        sections.append(Section("together", "All patients, out of fold", _together(together)))
    if best is not None:
        sections.append(Section("folds", "Fold by fold" if spec.folds else "In detail", [_folds(spec, best)]))
    if spec.space and best is not None:
        sections.append(Section("best", "The best study", _best(best)))
    sections.append(Section("limits", "What this does not show", _limits(search, best)))
    return Page(
        "Search" if spec.space else "Cross-validation",
        study.name,
        banner,
        sections,
        f"Written by fedward {metadata.version('fedward')}. Study {study.hash}. Images: {prepared.source}. "
        "Research software: not a medical device.",
    )


def _answer(search: Search, order: Sequence[Judged], best: Judged | None) -> list[Block]:
    spec = search.spec
    if best is None:
        return [Statement("No trial has a result.", f"Trial {order[0].trial.number}: {order[0].reason}", "bad")]
    said = score_words(spec.metric, best.score, best.deviation)
    spread = " (mean and standard deviation over the folds)" if spec.folds else ""
    head = f"Trial {best.trial.number}: {said}" if spec.space else said
    done = sum(one.status == "done" for one in order)
    facts = [
        ("Trials", f"{count(done)} of {count(len(order))} finished; {_METHODS[spec.method]}"),
        ("Judged by", f"{metric_name(spec.metric)} on {_validation(spec)}{spread}"),
        ("Hospitals", count(len(search.prepared.sites))),
        ("Time", f"{duration(sum(one.wall_s for one in order))} of training, {plural(search.plan.workers, 'worker')}"),
    ]
    if best.pooled is not None and spec.folds:
        facts.insert(2, (f"Pooled {metric_name(spec.metric)}", f"{best.pooled:.4f}, of all folds' patients together"))
    return [
        Statement(head, params_words(best.params)),
        Paragraph(chosen_on(best, spec), "unsure"),
        Facts(facts if spec.space else facts[1:]),
    ]


def _validation(spec: SearchSpec) -> str:
    return f"{spec.folds} folds by patient" if spec.folds else "the study's validation patients"


def _trials(spec: SearchSpec, order: Sequence[Judged]) -> Table:
    names = short_names(list(spec.space))
    columns = [Column("Trial", numeric=_TEXT), Column(metric_name(spec.metric)), *map(Column, names.values())]
    if spec.folds:
        columns.append(Column("Pooled"))
    columns += [Column("Seconds"), Column("", numeric=_TEXT)]
    rows = []
    for one in order:
        score = "-" if one.score is None else f"{one.score:.4f}"
        cells = [
            Cell(str(one.trial.number)),
            Cell(score, "" if one.deviation is None else f"± {one.deviation:.4f}"),
            *(Cell(value_words(one.params[name])) for name in spec.space),
        ]
        if spec.folds:
            cells.append(Cell("-" if one.pooled is None else f"{one.pooled:.4f}"))
        why = "" if one.status == "done" else f"{one.status}: {one.reason}"
        cells += [
            Cell(f"{one.wall_s:.0f}"),
            Cell(why, tone="muted" if one.status == "pruned" else "bad" if why else ""),
        ]
        rows.append(cells)
    return Table("Trials", columns, rows)


def _fields(spec: SearchSpec, order: Sequence[Judged], matters: Mapping[str, float]) -> list[Block]:
    blocks: list[Block] = []
    if matters:
        rows = [[Cell(name), Cell(f"{share:.0%}", shade=share)] for name, share in matters.items()]
        blocks.append(
            Table(
                "Share of the score's variance that a field explains",
                [Column("Field", numeric=_TEXT), Column("Share")],
                rows,
                "Functional analysis of variance (Hutter et al. 2014) of the finished trials, by Optuna. It speaks of "
                "the values that were tried, and of few trials it speaks roughly.",
            )
        )
    elif len(spec.space) > 1:
        blocks.append(
            Paragraph(f"Which field matters most is said from {LEAST_FOR_IMPORTANCE} finished trials on.", "muted")
        )
    spread = " Bars: standard deviation over the folds." if spec.folds else ""
    figures: list[Block] = [
        Figure(
            svg(marginal(name, spec, order), f"field-{number}"),
            f"Validation score of every finished trial against {name}",
            f"{name}: every finished trial.{spread} The ring marks the best.",
        )
        for number, name in enumerate(spec.space)
    ]
    figures.append(
        Figure(
            svg(course(spec, order), "course"),
            "Validation score of the trials in the order they were tried",
            "The trials in their order, and the best so far.",
        )
    )
    blocks += [Row(figures[at : at + 2]) for at in range(0, len(figures), 2)]
    return blocks


def _together(found: Summary) -> list[Block]:
    metrics = ordered_metrics(found.overall)
    cells = [metric_cell(Interval(**found.overall[name].to_dict()), name) for name in metrics]
    rows = [[Cell(report_name(name)), cell] for name, cell in zip(metrics, cells, strict=True)]
    return [
        Table(
            f"{plural(found.patients, 'patient')}, {plural(found.images, 'image')}",
            [Column("Metric", numeric=_TEXT), Column("Value")],
            rows,
            "Each patient once, scored by the model that had not seen it; intervals are clustered by patient. The "
            "threshold was chosen on these same scores, which favours what depends on it a little; the AUC does not."
            + (_OUTLINED if found.outlines is not None else ""),
        )
    ]


def _folds(spec: SearchSpec, best: Judged) -> Table:
    outlined = any(fit.dice is not None for fit in best.fits)
    columns = [
        Column("Fold", numeric=_TEXT),
        *([Column("Dice")] if outlined else []),
        Column("AUC"),
        Column("Loss"),
        Column("Patients"),
        Column("Images"),
        Column("Round kept"),
        Column("Seconds"),
    ]
    rows = [
        [
            Cell(str(fit.fold) if spec.folds else "validation split"),
            *([Cell("-" if fit.dice is None else f"{fit.dice:.4f}")] if outlined else []),
            Cell("-" if fit.auc is None else f"{fit.auc:.4f}"),
            Cell("-" if fit.loss is None else f"{fit.loss:.4f}"),
            Cell(count(fit.patients)),
            Cell(count(fit.images)),
            Cell(f"{fit.kept_round} of {fit.rounds}"),
            Cell(f"{fit.wall_s:.0f}"),
        ]
        for fit in best.fits
    ]
    caption = f"Trial {best.trial.number} on its validation patients" if spec.space else "Validation patients by fold"
    return Table(caption, columns, rows)


def _best(best: Judged) -> list[Block]:
    lines = "\n".join(f"{name}: {value_words(value)}" for name, value in best.params.items())
    return [
        Paragraph("best.yaml beside this page is the study with these values. Its test is still to come:"),
        Code("fedward simulate best.yaml"),
        Code(lines),
    ]


def _limits(search: Search, best: Judged | None) -> list[Block]:
    spec, federation = search.spec, search.study.federation
    says = [
        "No test patient is in any vault of this search. How good the chosen study is, its test says, once."
        if spec.space
        else "No test patient is in any vault of this run.",
    ]
    if spec.space:
        says.append(
            "The best of several trials looks better than it is: its score was chosen for being high. Differences "
            "smaller than the spread over folds, or between seeds, are no differences."
        )
    if spec.folds:
        says.append(
            "Folds share training patients, so their spread understates how much results vary from study to study "
            "(Bengio and Grandvalet 2004). The pooled value compares scores of different models with each other."
        )
    if federation.keep == "best" or federation.early_stopping is not None:
        says.append(
            "Each training chose its round on the same validation patients (keep: best or early_stopping), which "
            "favours it a little."
        )
    if search.prepared.synthetic:
        says.append("The images are synthetic: values that suit them need not suit patients.")
    return [Paragraph(text) for text in says]
