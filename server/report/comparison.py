"""The page of several different runs, side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.html import Block, Cell, Column, Page, Paragraph, Section, Statement, Table
from server.report import charts, contrasts
from server.report.page import banner, footer
from server.report.results import Run
from server.report.spread import arms_of, details, dot_figure, intervals_of, repeat_name, spread_cell, values_of
from server.report.words import (
    arm_name,
    count,
    duration,
    in_sentence,
    metric_cell,
    metric_name,
    number,
    ordered_metrics,
    plural,
    size,
)


def comparison(groups: Sequence[Sequence[Run]]) -> Page:
    runs = [run for group in groups for run in group]
    names = _names(groups)
    metric = contrasts.main_metric(runs[0])
    blocks: list[Block] = []
    if len({_test_patients(run) for run in runs}) > 1 or len({run.source for run in runs}) > 1:
        blocks.append(
            Statement(
                "These runs were not tested on the same patients.",
                "Their data, or the way patients were dealt to splits and hospitals, differ: read differences between "
                "the runs as hints, not as effects.",
                "bad",
            )
        )
    blocks += [*_best(groups, names, metric), _run_table(groups, names), *_compared(groups, names)]
    sections = [
        Section("comparison", "Side by side", blocks),
        Section("settings", "What the studies set differently", [_settings(groups, names)]),
        Section(
            "runs",
            "Each run",
            details(
                runs,
                [n if len(g) == 1 else f"{n}: {repeat_name(r)}" for n, g in zip(names, groups, strict=True) for r in g],
            ),
        ),
    ]
    subtitle = f"{plural(len(groups), 'experiment')}, {plural(len(runs), 'run')}"
    return Page("Comparison of runs", subtitle, banner(runs), sections, footer(runs))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each: the study's, and where several share it what tells them apart, or a number."""
    tellers: tuple[Callable[[Run], str], ...] = (
        lambda run: run.setting("federation", "strategy", "name"),
        lambda run: run.setting("model", "name"),
        lambda run: run.engine,
        lambda run: run.source,
    )
    firsts = [group[0] for group in groups]
    names: list[str] = []
    for index, run in enumerate(firsts):
        same = [other for other in firsts if other.name == run.name]
        words = (tell(run) for tell in tellers if len({tell(other) for other in same}) == len(same))
        place = str(sum(other.name == run.name for other in firsts[: index + 1]))
        names.append(run.name if len(same) == 1 else f"{run.name} ({next(words, place)})")
    return names


def _best(groups: Sequence[Sequence[Run]], names: Sequence[str], metric: str) -> list[Block]:
    """Which run stands highest, and why that alone proves nothing."""
    scored = [
        (statistics.fmean(found), name)
        for name, g in zip(names, groups, strict=True)
        if (found := values_of(g, "federated", metric))
    ]
    if len(scored) < 2:
        return []
    value, name = max(scored)
    return [
        Statement(
            f"Highest federated {in_sentence(metric)}: {name}, {number(value)}.",
            "Runs are not compared with each other by a paired test: a gap smaller than the intervals may be chance, "
            "and of many runs one always comes out on top.",
            "unsure",
        )
    ]


def _test_patients(run: Run) -> tuple[int, int]:
    sites = run.sites.values()
    return sum(s.images.get("test", 0) for s in sites), sum(s.patients.get("test", 0) for s in sites)


def _run_table(groups: Sequence[Sequence[Run]], names: Sequence[str]) -> Table:
    rows = []
    for name, group in zip(names, groups, strict=True):
        run = group[0]
        rows.append(
            [
                Cell(name, small=run.study_hash[:12]),
                Cell(count(len(group))),
                Cell(run.setting("federation", "strategy", "name") or "—"),
                Cell(run.setting("model", "name") or "—"),
                Cell(count(len(run.sites))),
                Cell(count(run.rounds)),
                Cell(run.engine, small=run.device),
                Cell(duration(statistics.fmean(r.wall_s for r in group))),
                Cell(size(round(statistics.fmean(r.bytes_sent for r in group)))),
            ]
        )
    text = ("Study", "Strategy", "Model", "Engine")
    heads = ("Study", "Runs", "Strategy", "Model", "Hospitals", "Rounds", "Engine", "Clock", "Sent")
    return Table("The runs", [Column(head, numeric=head not in text) for head in heads], rows)


def _compared(groups: Sequence[Sequence[Run]], names: Sequence[str]) -> list[Block]:
    runs = [run for group in groups for run in group]
    metric = contrasts.main_metric(runs[0])
    metrics = ordered_metrics(name for run in runs for name in contrasts.metrics_of(run))
    blocks: list[Block] = []
    for arm in arms_of(runs):
        rows = []
        for name, group in zip(names, groups, strict=True):
            if any(arm in run.arms for run in group):
                rows.append([Cell(name), *(_group_cell(group, arm, m) for m in metrics)])
        blocks.append(
            Table(
                f"{arm_name(arm)}: everyone's test patients",
                [Column("Study", numeric=False), *(Column(metric_name(m)) for m in metrics)],
                rows,
                "Below each value its interval, or for repeats the least and greatest."
                if any(len(group) > 1 for group in groups)
                else "",
            )
        )
    if len(groups) <= contrasts.MANY_SITES:
        arm = arms_of(runs)[0]
        rows_drawn = [charts.Dots(n, arm, intervals_of(g, arm, metric)) for n, g in zip(names, groups, strict=True)]
        blocks.append(dot_figure(rows_drawn, f"{arm_name(arm)}: {metric_name(metric)}", metric, "comparison"))
    gaps = _gap_rows(groups, names, metric)
    if gaps:
        blocks.append(
            Table(
                f"Federated − pooled, {in_sentence(metric)}",
                [Column("Study", numeric=False), Column("Difference")],
                gaps,
            )
        )
    return blocks


def _gap_rows(groups: Sequence[Sequence[Run]], names: Sequence[str], metric: str) -> list[list[Cell]]:
    rows = []
    for name, group in zip(names, groups, strict=True):
        gaps = [gap for run in group if (gap := contrasts.difference(run, "federated", "pooled", metric)) is not None]
        if len(gaps) == 1:
            rows.append([Cell(name), metric_cell(gaps[0], metric, sign=True)])
        elif gaps:
            rows.append([Cell(name), spread_cell([g.value for g in gaps if g.value is not None], sign=True)])
    return rows


def _settings(groups: Sequence[Sequence[Run]], names: Sequence[str]) -> Block:
    flat = [dict(_flatten(group[0].study)) for group in groups]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = []
    for key in keys:
        values = [settings.get(key, "—") for settings in flat]
        if len(set(values)) > 1:
            rows.append([Cell(key), *(Cell(value if len(value) <= 60 else f"{value[:59]}…") for value in values)])
    if not rows:
        return Paragraph("Nothing: the study is the same; engine, device or data differ.")
    return Table("Settings that differ", [Column(text, numeric=False) for text in ("Setting", *names)], rows)


def _flatten(node: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found += _flatten(value, f"{path}{key}.")
        else:
            found.append((f"{path}{key}", json.dumps(value, ensure_ascii=False).strip('"')))
    return found


def _group_cell(group: Sequence[Run], arm: str, metric: str) -> Cell:
    if len(group) == 1:
        return metric_cell(group[0].arms[arm].model.test.get(metric), metric)
    return spread_cell(values_of(group, arm, metric))
