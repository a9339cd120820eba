"""Reports of several runs: repeats of one study summarised, different runs side by side."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import RunError
from common.html import Block, Cell, Column, Details, Figure, Heading, Page, Paragraph, Section, Statement, Table, Tiles
from server.report import charts, tables, verdict
from server.report.page import banner, footer, one_run, sections_of
from server.report.results import ARMS, Interval, Run
from server.report.words import (
    Verdict,
    arm_name,
    count,
    duration,
    in_sentence,
    listing,
    metric_cell,
    metric_name,
    number,
    ordered_metrics,
    plural,
    signed,
    size,
    verdict_tone,
)
from server.report.words import verdict as judge

DRAWN = 4
"""Runs whose own figures stand on a page of several; the others keep their tables."""


def page(runs: Sequence[Run]) -> Page:
    """The page for these runs: one, repeats of one study, or a comparison."""
    if not runs:
        raise RunError("there are no results to report: name at least one run that has finished")
    if len(runs) == 1:
        return one_run(runs[0])
    groups = grouped(runs)
    return _repeats(groups[0]) if len(groups) == 1 else _comparison(groups)


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in seed or repeat alone belong together; anything else is another experiment.

    Where the same seed and repeat comes twice (an engine compared with itself, say) every
    run of that group stands by itself.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        study = {key: value for key, value in run.study.items() if key != "seed"}
        key = json.dumps([study, run.source, run.engine, run.device, run.synthetic], sort_keys=True)
        groups.setdefault(key, []).append(run)
    result: list[list[Run]] = []
    for group in groups.values():
        distinct = len({(run.seed, run.repeat) for run in group}) == len(group)
        result += [sorted(group, key=lambda run: (run.repeat, run.seed))] if distinct else [[run] for run in group]
    return result


# --- repeats -------------------------------------------------------------------------------------


def _repeats(runs: Sequence[Run]) -> Page:
    first, metric = runs[0], verdict.main_metric(runs[0])
    sections = [
        Section("verdict", "Did federating pay off?", [*_repeat_verdict(runs, metric), _repeat_tiles(runs, metric)]),
        Section("summary", "Mean and spread", _summary(runs, metric)),
        Section("repeats", "Each repeat", _details(runs, [_repeat_name(run) for run in runs])),
    ]
    strategy = first.setting("federation", "strategy", "name") or "federated"
    subtitle = (
        f"{plural(len(runs), 'repeat')} of {plural(len(first.sites), 'hospital')}, "
        f"{plural(first.rounds, 'round')} of {strategy}; {first.source}"
    )
    return Page(first.name, subtitle, banner(runs), sections, footer(runs))


def _repeat_name(run: Run) -> str:
    return f"Repeat {run.repeat + 1}, seed {run.seed}"


def _same_hospitals(runs: Sequence[Run]) -> bool:
    return all(run.sites == runs[0].sites for run in runs)


def _repeat_verdict(runs: Sequence[Run], metric: str) -> list[Block]:
    judged: Counter[Verdict] = Counter()
    values: list[float] = []
    for run in runs:
        for hospital in tables.hospitals(run, metric):
            gain = hospital.gain_everyone
            if gain is not None and gain.value is not None:
                judged[judge(gain)] += 1
                values.append(gain.value)
    blocks: list[Block] = []
    if values:
        total = sum(judged.values())
        worst = "worse" if judged["worse"] else "better" if judged["better"] else "cannot tell"
        blocks.append(
            Statement(
                f"Federating was better than training alone in {count(judged['better'])} of {count(total)} comparisons, "
                f"worse in {count(judged['worse'])}.",
                f"One comparison per hospital and repeat, {in_sentence(metric)} on everyone's test patients; in "
                f"{count(judged['cannot tell'])} the interval does not decide. Mean difference "
                f"{signed(statistics.fmean(values))}, from {signed(min(values))} to {signed(max(values))}.",
                verdict_tone(worst),  # type: ignore[arg-type]
            )
        )
    else:
        blocks.append(
            Statement("Whether federating pays off is not known.", "It needs the arms federated and local.", "unsure")
        )
    gaps = [gap for run in runs if (gap := tables.difference(run, "federated", "pooled", metric)) is not None]
    found = [gap.value for gap in gaps if gap.value is not None]
    if found:
        said = Counter(judge(gap) for gap in gaps)
        blocks.append(
            Statement(
                f"Against pooling all images in one place: {in_sentence(metric)} {signed(statistics.fmean(found))} on "
                "average.",
                f"Federated − pooled from {signed(min(found))} to {signed(max(found))} over {plural(len(found), 'repeat')}; "
                f"better in {said['better']}, worse in {said['worse']}, not to be told apart in {said['cannot tell']}.",
                "bad" if said["worse"] else "good" if said["better"] else "unsure",
            )
        )
    return blocks


def _repeat_tiles(runs: Sequence[Run], metric: str) -> Tiles:
    items = []
    for arm in _arms(runs):
        values = _values(runs, arm, metric)
        if values:
            items.append(
                (number(statistics.fmean(values)), f"Mean {metric_name(metric)}, {arm_name(arm).lower()}", _range(values))
            )
    items.append((count(len(runs)), "Repeats", f"of {plural(runs[0].rounds, 'round')}"))
    return Tiles(items)


def _summary(runs: Sequence[Run], metric: str) -> list[Block]:
    arms = _arms(runs)
    metrics = ordered_metrics(name for run in runs for name in tables.metrics_of(run))
    rows = [[Cell(metric_name(name)), *(_spread_cell(_values(runs, arm, name)) for arm in arms)] for name in metrics]
    blocks: list[Block] = [
        Table(
            "Mean ± standard deviation over the repeats, everyone's test patients",
            [Column("Metric", numeric=False), *(Column(arm_name(arm)) for arm in arms)],
            rows,
            "Below each mean the least and the greatest value. The spread between repeats shows chance in training and "
            "dealing; the intervals of the single repeats below show chance in the choice of test patients.",
        ),
        _figure(
            [charts.Dots(arm_name(arm), arm, _intervals(runs, arm, metric)) for arm in arms],
            f"{metric_name(metric)} in every repeat",
            metric,
            "repeats",
        ),
    ]
    if _same_hospitals(runs):
        blocks.append(_hospital_summary(runs, metric))
    else:
        blocks.append(
            Paragraph(
                "Patients are dealt to the hospitals anew in every repeat, so a hospital of one repeat is not that of "
                "the next, and hospitals are not averaged.",
                "muted",
            )
        )
    return blocks


def _hospital_summary(runs: Sequence[Run], metric: str) -> Table:
    found: dict[str, list[Interval]] = {}
    for run in runs:
        for hospital in tables.hospitals(run, metric):
            if hospital.gain_everyone is not None and hospital.gain_everyone.value is not None:
                found.setdefault(hospital.site, []).append(hospital.gain_everyone)
    rows = []
    for site in tables.ends(runs[0], metric, list(found)):
        said = Counter(judge(gain) for gain in found[site])
        cell = _spread_cell([gain.value for gain in found[site] if gain.value is not None], sign=True)
        rows.append([Cell(site), cell, *(Cell(count(said[word])) for word in ("better", "worse", "cannot tell"))])
    return Table(
        f"Federated − alone by hospital: {in_sentence(metric)} on everyone's test patients, over the repeats",
        [
            Column("Hospital", numeric=False),
            Column("Difference"),
            *(Column(word, "Repeats in which federating is") for word in ("better", "worse", "cannot tell")),
        ],
        rows,
        tables.shortened(len(found)),
    )


# --- different runs ------------------------------------------------------------------------------


def _comparison(groups: Sequence[Sequence[Run]]) -> Page:
    runs = [run for group in groups for run in group]
    names = _names(groups)
    metric = verdict.main_metric(runs[0])
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
    blocks += [_run_table(groups, names), *_compared(groups, names)]
    sections = [
        Section("comparison", "Side by side", blocks),
        Section("settings", "What the studies set differently", [_settings(groups, names)]),
        Section(
            "runs",
            "Each run",
            _details(runs, [n if len(g) == 1 else f"{n}: {_repeat_name(r)}" for n, g in zip(names, groups, strict=True) for r in g]),
        ),
    ]
    subtitle = f"{plural(len(groups), 'experiment')}, {plural(len(runs), 'run')}, by {in_sentence(metric)} and more"
    return Page("Comparison of runs", subtitle, banner(runs), sections, footer(runs))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each: the study's, numbered where it comes twice."""
    total = Counter(group[0].name for group in groups)
    seen: Counter[str] = Counter()
    names = []
    for group in groups:
        name = group[0].name
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return names


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
    metric = verdict.main_metric(runs[0])
    metrics = ordered_metrics(name for run in runs for name in tables.metrics_of(run))
    blocks: list[Block] = []
    for arm in _arms(runs):
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
    if len(groups) <= tables.MANY_SITES:
        arm = _arms(runs)[0]
        rows_drawn = [charts.Dots(n, arm, _intervals(g, arm, metric)) for n, g in zip(names, groups, strict=True)]
        blocks.append(_figure(rows_drawn, f"{arm_name(arm)}: {metric_name(metric)}", metric, "comparison"))
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
        gaps = [gap for run in group if (gap := tables.difference(run, "federated", "pooled", metric)) is not None]
        if len(gaps) == 1:
            rows.append([Cell(name), metric_cell(gaps[0], metric, sign=True)])
        elif gaps:
            rows.append([Cell(name), _spread_cell([g.value for g in gaps if g.value is not None], sign=True)])
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


# --- both ----------------------------------------------------------------------------------------


def _details(runs: Sequence[Run], titles: Sequence[str]) -> list[Block]:
    """Every run's own report, folded; figures for the first few only, to bound the page."""
    blocks: list[Block] = []
    if len(runs) > DRAWN:
        blocks.append(
            Paragraph(f"Figures are drawn for the first {DRAWN} only; the report in each run's own folder has them.", "muted")
        )
    for index, (run, title) in enumerate(zip(runs, titles, strict=True)):
        inner: list[Block] = []
        for section in sections_of(run, figures=index < DRAWN, prefix=f"run{index}-"):
            inner += [Heading(section.heading), *section.blocks]
        blocks.append(Details(title, inner))
    return blocks


def _arms(runs: Sequence[Run]) -> list[str]:
    present = dict.fromkeys(arm for run in runs for arm in run.arms)
    return [arm for arm in (*ARMS, *(a for a in present if a not in ARMS)) if arm in present]


def _intervals(runs: Sequence[Run], arm: str, metric: str) -> list[Interval]:
    return [i for run in runs if arm in run.arms and (i := run.arms[arm].model.test.get(metric)) is not None]


def _values(runs: Sequence[Run], arm: str, metric: str) -> list[float]:
    return [interval.value for interval in _intervals(runs, arm, metric) if interval.value is not None]


def _range(values: Sequence[float], *, sign: bool = False) -> str:
    show = signed if sign else number
    return f"{show(min(values))} to {show(max(values))}"


def _spread_cell(values: Sequence[float], *, sign: bool = False) -> Cell:
    """Mean ± sample standard deviation, least and greatest below."""
    if not values:
        return Cell("—", title="undefined, or not measured in these runs", tone="muted")
    show = signed if sign else number
    if len(values) == 1:
        return Cell(show(values[0]))
    return Cell(f"{show(statistics.fmean(values))} ± {number(statistics.stdev(values))}", _range(values, sign=sign))


def _group_cell(group: Sequence[Run], arm: str, metric: str) -> Cell:
    if len(group) == 1:
        return metric_cell(group[0].arms[arm].model.test.get(metric), metric)
    return _spread_cell(_values(group, arm, metric))


def _figure(rows: Sequence[charts.Dots], title: str, metric: str, name: str) -> Figure:
    axis = f"{metric_name(metric)} on everyone's test patients"
    said = "; ".join(
        f"{row.label} {listing(number(i.value) for i in row.values if i.value is not None) or 'undefined'}"
        for row in rows[:12]
    )
    return Figure(
        charts.svg(charts.dots(rows, title, axis), name),
        f"Dot plot. {title}: {said}",
        f"{title}, with intervals.",
    )
