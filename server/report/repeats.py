"""The page of several repeats of one study: mean and spread."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from common.html import Block, Cell, Column, Page, Paragraph, Section, Statement, Table, Tiles
from server.report import answers, charts, contrasts
from server.report.intervals import Interval
from server.report.page import banner, footer
from server.report.results import Run
from server.report.spread import arms_of, details, dot_figure, extent, intervals_of, repeat_name, spread_cell, values_of
from server.report.words import (
    Verdict,
    arm_name,
    count,
    in_sentence,
    metric_name,
    number,
    ordered_metrics,
    plural,
    signed,
    verdict_tone,
)
from server.report.words import verdict as judge


def repeats(runs: Sequence[Run]) -> Page:
    first, metric = runs[0], contrasts.main_metric(runs[0])
    sections = [
        Section("answers", "Three questions", [*answers.of_repeats(runs), *_gain(runs, metric)]),
        Section("verdict", "Did federating pay off?", [*_repeat_verdict(runs, metric), _repeat_tiles(runs, metric)]),
        Section("summary", "Mean and spread", _summary(runs, metric)),
        Section("repeats", "Each repeat", details(runs, [repeat_name(run) for run in runs])),
    ]
    strategy = first.setting("federation", "strategy", "name") or "federated"
    subtitle = (
        f"{plural(len(runs), 'repeat')} of {plural(len(first.sites), 'hospital')}, "
        f"{plural(first.rounds, 'round')} of {strategy}; {first.source}"
    )
    return Page(first.name, subtitle, banner(runs), sections, footer(runs))


def _same_hospitals(runs: Sequence[Run]) -> bool:
    return all(run.sites == runs[0].sites for run in runs)


def _repeat_verdict(runs: Sequence[Run], metric: str) -> list[Block]:
    judged: Counter[Verdict] = Counter()
    values: list[float] = []
    for run in runs:
        for hospital in contrasts.hospitals(run, metric):
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
                f"Federating was better than training alone in {count(judged['better'])} of {count(total)} "
                f"comparisons, worse in {count(judged['worse'])}.",
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
    gaps = [gap for run in runs if (gap := contrasts.difference(run, "federated", "pooled", metric)) is not None]
    found = [gap.value for gap in gaps if gap.value is not None]
    if found:
        said = Counter(judge(gap) for gap in gaps)
        blocks.append(
            Statement(
                f"Against pooling all images in one place: {in_sentence(metric)} {signed(statistics.fmean(found))} on "
                "average.",
                f"Federated − pooled from {signed(min(found))} to {signed(max(found))} over "
                f"{plural(len(found), 'repeat')}; better in {said['better']}, worse in {said['worse']}, not to be told "
                f"apart in {said['cannot tell']}.",
                "bad" if said["worse"] else "good" if said["better"] else "unsure",
            )
        )
    return blocks


def _gain(runs: Sequence[Run], metric: str) -> list[Block]:
    """The first of the verdict's statements, as the answer to a question."""
    first = _repeat_verdict(runs, metric)[0]
    assert isinstance(first, Statement)
    return [replace(first, question=answers.GAIN)]


def _repeat_tiles(runs: Sequence[Run], metric: str) -> Tiles:
    items = []
    for arm in arms_of(runs):
        values = values_of(runs, arm, metric)
        if values:
            items.append(
                (
                    number(statistics.fmean(values)),
                    f"Mean {metric_name(metric)}, {arm_name(arm).lower()}",
                    extent(values),
                )
            )
    items.append((count(len(runs)), "Repeats", f"of {plural(runs[0].rounds, 'round')}"))
    return Tiles(items)


def _summary(runs: Sequence[Run], metric: str) -> list[Block]:
    arms = arms_of(runs)
    metrics = ordered_metrics(name for run in runs for name in contrasts.metrics_of(run))
    rows = [[Cell(metric_name(name)), *(spread_cell(values_of(runs, arm, name)) for arm in arms)] for name in metrics]
    blocks: list[Block] = [
        Table(
            "Mean ± standard deviation over the repeats, everyone's test patients",
            [Column("Metric", numeric=False), *(Column(arm_name(arm)) for arm in arms)],
            rows,
            "Below each mean the least and the greatest value. The spread between repeats shows chance in training"
            f"{'' if _same_hospitals(runs) else ' and dealing'}; the intervals of the single repeats "
            "below show chance in the choice of test patients.",
        ),
        dot_figure(
            [charts.Dots(arm_name(arm), arm, intervals_of(runs, arm, metric)) for arm in arms],
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
        for hospital in contrasts.hospitals(run, metric):
            if hospital.gain_everyone is not None and hospital.gain_everyone.value is not None:
                found.setdefault(hospital.site, []).append(hospital.gain_everyone)
    rows = []
    for site in contrasts.ends(runs[0], metric, list(found)):
        said = Counter(judge(gain) for gain in found[site])
        cell = spread_cell([gain.value for gain in found[site] if gain.value is not None], sign=True)
        rows.append([Cell(site), cell, *(Cell(count(said[word])) for word in ("better", "worse", "cannot tell"))])
    return Table(
        f"Federated − alone by hospital: {in_sentence(metric)} on everyone's test patients, over the repeats",
        [
            Column("Hospital", numeric=False),
            Column("Difference"),
            *(Column(word, "Repeats in which federating is") for word in ("better", "worse", "cannot tell")),
        ],
        rows,
        contrasts.shortened(len(found)),
    )
