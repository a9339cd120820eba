"""The report's section on pairs of models: whether their difference may be chance, in words a clinician reads."""

from __future__ import annotations

from collections.abc import Sequence

from common.html import Block, Cell, Column, Details, Paragraph, Table
from server.report import contrasts
from server.report.compared import Compared, Contrasted
from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import arm_name, bounds, count, in_sentence, level, listing, metric_name, number, signed

TEXT = False
_SAID = 4
_TESTS = {
    "delong": "DeLong's test, clustered by patient",
    "mcnemar-mid-p": "McNemar's test (mid-p)",
    "obuchowski": "Obuchowski's test for clustered proportions",
    "wald": "a normal test on the interval's standard error",
}
_DECIDED = ("sensitivity", "specificity", "accuracy")


def blocks(run: Run) -> list[Block]:
    """Empty where nothing was compared from sums."""
    everyone = _shown(run, [pair for pair in run.comparisons if pair.on == "all"])
    own = _shown(run, [pair for pair in run.comparisons if pair.on != "all"])
    if not everyone:
        return []
    metric = "auc" if any("auc" in pair.overall for pair in everyone) else "accuracy"
    found: list[Block] = [
        Paragraph(" ".join(_sentence(pair, metric, run.confidence) for pair in everyone[:_SAID])),
        ranked(run, everyone, metric, f"{metric_name(metric)} of every pair of models on everyone's test patients"),
        decided(run, everyone, "What they decide about the same images, each at its own threshold from validation"),
    ]
    inner: list[Block] = []
    if own:
        inner.append(ranked(run, own, metric, f"{metric_name(metric)} on each hospital's own test patients"))
        inner.append(decided(run, own, "Decisions on each hospital's own test patients"))
    inner += [_by_class(run, pair) for pair in everyone if pair.per_class]
    if inner:
        found.append(Details("The same on each hospital's own patients, and class by class", inner))
    found.append(Paragraph(" ".join(_notes(run, [*everyone, *own])), "muted"))
    return found


def p_value(p: float | None) -> str:
    """``0.034``; ``< 0.001`` below that; a dash where it is unknown."""
    return "—" if p is None else "< 0.001" if p < 0.001 else number(p)


def _shown(run: Run, pairs: Sequence[Compared]) -> list[Compared]:
    """All but the middle of many hospitals alone."""
    alone = {pair.b.removeprefix("local:"): pair for pair in pairs if pair.b.startswith("local:")}
    kept = contrasts.ends(run, contrasts.main_metric(run), list(alone))
    return [pair for pair in pairs if not pair.b.startswith("local:")] + [alone[site] for site in kept]


def _sentence(pair: Compared, metric: str, confidence: float) -> str:
    found = pair.overall.get(metric)
    names = f"{arm_name(pair.a)} against {arm_name(pair.b).lower()}"
    if found is None or found.difference.value is None:
        return f"{names}: {_unknown(pair, found)}."
    amount = f"{in_sentence(metric)} {number(found.first.value)} against {number(found.second.value)}"
    amount += f", a difference of {signed(found.difference.value)}"
    if found.difference.low is not None:
        amount += f" ({level(confidence)} interval {signed(found.difference.low)} to {signed(found.difference.high)})"
    p = found.p_holm if found.p_holm is not None else found.p
    if p is None:
        return f"{names}: {amount}; whether it is chance cannot be told."
    many = f" after correction for {found.family} comparisons" if found.family > 1 else ""
    verdict = "more than chance" if p < 1 - confidence else "may well be chance"
    return f"{names}: {amount}; it {'is ' * (verdict[0] == 'm')}{verdict} (p {equals(p)}{many})."


def equals(p: float) -> str:
    """``= 0.034``, ``< 0.001``."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _unknown(pair: Compared, found: Contrasted | None) -> str:
    if found is not None and found.difference.low is not None:
        return (
            f"small cells are hidden, so the difference is only known to lie between "
            f"{signed(found.difference.low)} and {signed(found.difference.high)}"
        )
    return "undefined on these patients" if not pair.withheld else "hidden, because too few patients stand behind it"


def ranked(run: Run, pairs: Sequence[Compared], metric: str, caption: str) -> Table:
    """Pairs by one metric, with the bootstrap's interval where there is one."""
    drawn = {(d.a, d.b, d.on): d.interval for d in run.differences if d.metric == metric}
    rows = []
    for pair in pairs:
        found = pair.overall.get(metric)
        if found is None:
            continue
        boot = drawn.get((pair.a, pair.b, pair.on))
        rows.append(
            [
                _name(pair),
                Cell(_value(found.first)),
                Cell(_value(found.second)),
                _difference(found.difference),
                *([Cell(bounds(boot, sign=True) if boot is not None else "—")] if drawn else []),
                *_p_cells(found),
            ]
        )
    return Table(
        caption,
        [
            Column("Pair", numeric=TEXT),
            Column("First"),
            Column("Second"),
            Column("Difference"),
            *([Column("Bootstrap's interval")] if drawn else []),
            *_p_columns(),
        ],
        rows,
    )


def decided(run: Run, pairs: Sequence[Compared], caption: str) -> Table:
    """Pairs by what they decide, the images that tell them apart, and how far they agree."""
    rows = []
    for pair in pairs:
        for metric in _DECIDED:
            found = pair.overall.get(metric)
            if found is None:
                continue
            table, first = found.counted, metric == _DECIDED[0]
            agreement = next(iter(pair.agreement.values()), None) if len(pair.agreement) == 1 and first else None
            rows.append(
                [
                    _name(pair) if first else Cell(""),
                    Cell(metric_name(metric)),
                    _difference(found.difference),
                    Cell("—" if table is None else count(table.first_only)),
                    Cell("—" if table is None else count(table.second_only)),
                    *_p_cells(found),
                    Cell(
                        "" if agreement is None else number(agreement.value, 2),
                        small="" if agreement is None else bounds(agreement, sign=True),
                    ),
                ]
            )
    return Table(
        caption,
        [
            Column("Pair", numeric=TEXT),
            Column("", numeric=TEXT),
            Column("Difference"),
            Column("Only the first right"),
            Column("Only the second right"),
            *_p_columns(),
            Column("Agreement (κ)"),
        ],
        rows,
    )


def _by_class(run: Run, pair: Compared) -> Table:
    rows = [
        [Cell(name), Cell(metric_name(metric)), _difference(found.difference), *_p_cells(found)]
        for name, metrics in pair.per_class.items()
        for metric, found in metrics.items()
        if found.difference.value is not None
    ]
    return Table(
        f"{arm_name(pair.a)} against {arm_name(pair.b).lower()}, each class against the others",
        [Column("Class", numeric=TEXT), Column("Metric", numeric=TEXT), Column("Difference"), *_p_columns()],
        rows,
    )


def _name(pair: Compared) -> Cell:
    where = "" if pair.on == "all" else f"at {pair.on}, "
    return Cell(f"{arm_name(pair.a)} − {arm_name(pair.b)}", small=f"{where}{count(pair.images)} images")


def _value(known: Interval) -> str:
    return bounds(known) if known.hidden else number(known.value)


def _difference(known: Interval) -> Cell:
    if known.value is None and known.low is not None:
        return Cell("hidden", small=bounds(known, sign=True), title="small cells: bounds, no interval", tone="muted")
    return Cell(signed(known.value), small=bounds(known, sign=True))


def _p_columns() -> list[Column]:
    return [Column("p"), Column("p, Holm"), Column("p, false discovery")]


def _p_cells(found: Contrasted) -> list[Cell]:
    own = p_value(found.p)
    small = ""
    if found.p is None and found.p_bounds is not None:
        own, small = f"{p_value(found.p_bounds[0])} to {p_value(found.p_bounds[1])}", "bounds: small cells"
    return [
        Cell(own, small=small, title=_TESTS.get(found.test, "")),
        Cell(p_value(found.p_holm)),
        Cell(p_value(found.p_false_discovery)),
    ]


def _notes(run: Run, pairs: Sequence[Compared]) -> list[str]:
    tests = dict.fromkeys(
        found.test for pair in pairs for found in pair.overall.values() if found.test in _TESTS and found.p is not None
    )
    notes = [
        "All of it is made of sums: each hospital counts how often both models are right on the same images, and no "
        "score leaves it. p is how often a difference at least this large would come about if the two were "
        "equally good; it says nothing of how large or how useful a difference is.",
        "With several comparisons some p-values are small by chance. Claim only what stays below "
        f"{number(1 - run.confidence, 2)} in the column “Holm”; “false discovery” (Benjamini, Hochberg) is for finding "
        "candidates.",
    ]
    asked = run.study.get("evaluation", {}).get("compare") or ()
    if "last" in asked and not any(pair.b == "last" for pair in pairs):
        notes.append("The kept model is the last round's, so there is nothing to compare it with there.")
    if tests:
        notes.append(f"Tests: {listing(_TESTS[test] for test in tests)}.")
    if any(pair.clustered for pair in pairs):
        notes.append(
            "Patients have several images, which are not independent, so patients are the units of every test shown."
        )
    if any(pair.withheld for pair in pairs):
        notes.append("Where too few patients stand behind a cell, hospitals send none of that table: bounds remain.")
    return notes
