"""The report's section on hospitals' own models: what each would run, and what it gains or loses by taking part."""

from __future__ import annotations

from common.html import Block, Cell, Column, Paragraph, Statement, Table
from server.report.contrasts import ENDS, MANY_SITES, main_metric
from server.report.intervals import Interval
from server.report.results import OwnModel, OwnModels, Run
from server.report.words import (
    count,
    in_sentence,
    level,
    listing,
    metric_cell,
    metric_name,
    plural,
    verdict,
    verdict_cell,
)

MODELS = {"global": "the model of all", "personal": "its own", "local": "its own, trained alone"}
METHODS = {
    "fedbn": "Everything but the norm layers is trained together; these each hospital trains and keeps (FedBN).",
    "ditto": "Beside the model of all, each hospital trains one of its own that is drawn towards it (Ditto).",
    "finetune": "Each hospital went on with the finished model on its own images, as long as that helped on its "
    "validation patients.",
}
_RULE = (
    "The choice is made on a hospital's own validation patients: the model of all stays, unless another's loss there "
    "is lower by more than the standard error of the difference, with Student's t for few patients, and at least ten "
    "stand behind it. Test patients had no say in it."
)
_NAMED = 5


def blocks(run: Run) -> list[Block]:
    """Empty where hospitals have no models of their own."""
    found = run.own_models
    if found is None:
        return []
    metric = main_metric(run)
    compared = any(model.differences for model in found.sites.values())
    return [
        Statement(choices(found), tone="unsure") if run.at_hospitals else _verdict(found, metric, run),
        Paragraph(METHODS.get(found.method, found.method)),
        _table(run, found, metric) if compared else _measured(run, found, metric),
        Paragraph(_RULE, "muted"),
    ]


def choices(found: OwnModels) -> str:
    """What hospitals would run, in a sentence."""
    own = sum(model.would_run != "global" for model in found.sites.values())
    return f"{count(own)} of {plural(len(found.sites), 'hospital')} would run a model of their own."


def gain(site: OwnModel, metric: str) -> Interval | None:
    """What a hospital gains by taking part: the model that it would run, against itself alone."""
    if site.would_run == "local":
        return Interval(0.0, 0.0, 0.0)
    return site.difference(site.would_run, "local", metric)


def _verdict(found: OwnModels, metric: str, run: Run) -> Statement:
    gains = {site: known for site, model in found.sites.items() if (known := gain(model, metric)) is not None}
    measured = {site: one for site, one in gains.items() if one.value is not None}
    if not measured:
        return Statement(
            "What hospitals gain by taking part was not measured.",
            "It needs the arm local, too.",
            "unsure",
        )
    said = {site: verdict(one) for site, one in measured.items()}
    losing = [site for site, word in said.items() if word == "worse"]
    better = sum(word == "better" for word in said.values())
    name, total = in_sentence(metric), plural(len(measured), "hospital")
    told = (
        f"By {name} on each hospital's own test patients, the model that it would run against itself alone: better for "
        f"{count(better)} of {total}, worse for {count(len(losing))}, undecided for "
        f"{count(len(measured) - better - len(losing))} at {level(run.confidence)}."
    )
    if losing:
        who = listing(losing) if len(losing) <= _NAMED else plural(len(losing), "hospital")
        return Statement(f"{who} would lose by taking part.", told, "bad")
    lows = [one.low for one in measured.values() if one.low is not None]
    at_worst = f" At worst one loses {-min(lows):.3f}, the lowest bound of all." if lows and min(lows) < 0 else ""
    return Statement("No hospital is seen to lose by taking part.", told + at_worst, "good" if better else "unsure")


def _table(run: Run, found: OwnModels, metric: str) -> Table:
    name = metric_name(metric)
    shared, alone = run.arms.get("federated"), run.arms.get("local")
    names = list(found.sites)
    if len(names) > MANY_SITES:
        names = sorted(names, key=lambda site: _value(gain(found.sites[site], metric)))
        names = names[:ENDS] + names[-ENDS:]
    rows = []
    for site in names:
        model = found.sites[site]
        against = gain(model, metric)
        rows.append(
            [
                Cell(site),
                Cell(count(run.sites[site].patients.get("test", 0)) if site in run.sites else "—"),
                metric_cell(shared.own.get(site, {}).get(metric) if shared is not None else None, metric),
                metric_cell(alone.own.get(site, {}).get(metric) if alone is not None else None, metric),
                metric_cell(model.test.get(metric), metric),
                metric_cell(model.difference("personal", "best", metric), metric, sign=True),
                Cell(MODELS.get(model.would_run, model.would_run)),
                metric_cell(against, metric, sign=True),
                verdict_cell(against),
            ]
        )
    own = f"{name} on its own test patients"
    return Table(
        f"Each hospital's models, by {in_sentence(metric)} with {level(run.confidence)} intervals",
        [
            Column("Hospital", numeric=False),
            Column("Test patients"),
            Column("Of all", own),
            Column("Alone", own),
            Column("Own", own),
            Column("Own − better of the others"),
            Column("Would run", numeric=False),
            Column("Difference", "What it would run − itself alone"),
            Column("It is", "What it would run − itself alone", numeric=False),
        ],
        rows,
        "Differences are paired by patient. “Better of the others” is judged on the test patients themselves, which "
        "makes it the harder rival.",
    )


def _measured(run: Run, found: OwnModels, metric: str) -> Table:
    """Where nobody has every patient's scores: each hospital's models by themselves."""
    shared, own = run.arms.get("federated"), f"{metric_name(metric)} on its own test patients"
    names = list(found.sites)
    rows = [
        [
            Cell(site),
            Cell(count(run.sites[site].patients.get("test", 0)) if site in run.sites else "—"),
            metric_cell(shared.own.get(site, {}).get(metric) if shared is not None else None, metric),
            metric_cell(found.sites[site].test.get(metric), metric),
            Cell(MODELS.get(found.sites[site].would_run, found.sites[site].would_run)),
        ]
        for site in (names if len(names) <= MANY_SITES else names[: 2 * ENDS])
    ]
    return Table(
        f"Each hospital's models, by {in_sentence(metric)} with {level(run.confidence)} intervals",
        [
            Column("Hospital", numeric=False),
            Column("Test patients"),
            Column("Of all", own),
            Column("Own", own),
            Column("Would run", numeric=False),
        ],
        rows,
        f"The first {2 * ENDS} of {count(len(names))} hospitals; metrics.csv has all."
        if len(names) > MANY_SITES
        else "",
    )


def _value(interval: Interval | None) -> float:
    return interval.value if interval is not None and interval.value is not None else 0.0
