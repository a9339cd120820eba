"""A clinician's three questions, answered first: for whom does it fail, how sure are you, what would my hospital gain?

No more than the intervals allow, and where nothing was measured, that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from common.html import Block, Statement
from server.report import own_models
from server.report.contrasts import hospitals, main_metric
from server.report.examined import AllMistakes
from server.report.fairness import ASKED, ATTRIBUTES, GAP, Found, examined, group_name, least_excluded, standing
from server.report.intervals import Interval
from server.report.results import Run, Scores
from server.report.verdict import against_alone
from server.report.words import arm_name, bounds, in_sentence, level, listing, number, plural, signed, spoken

WHOM, SURE, GAIN = "For whom does it fail?", "How sure are you?", "What would my hospital gain?"
_NAMED = 3
_SUPPRESSED = (
    "In this study no count of validation or test patients leaves a hospital. Each can test the model on its own "
    "patients, and keep the result."
)


def blocks(run: Run) -> list[Block]:
    """Three statements."""
    kept = examined(run)
    return [whom(run, kept), sure(run, kept), gain(run)]


def whom(run: Run, kept: tuple[str, Scores] | None) -> Statement:
    if kept is None:
        return Statement("Not measured.", "This run has no model of all hospitals.", "unsure", WHOM)
    if run.suppressed:
        return Statement("Not measured: no hospital may tell.", _SUPPRESSED, "unsure", WHOM)
    scores = kept[1]
    missed = _missed(scores.mistakes)
    found = scores.subgroups
    if found is None or not found.by:
        asked = f"To know, add {ASKED} to the study."
        return Statement("Not measured: the study names no subgroups.", f"{asked} {missed}".strip(), "unsure", WHOM)
    attributes = listing(ATTRIBUTES.get(name, name) for name in found.by)
    differing = standing(found)
    worse = [one for one in differing if one.worse]
    if worse:
        named = listing(dict.fromkeys(group_name(one.attribute, one.group.value) for one in worse[:_NAMED]))
        detail = " ".join(_words(one, run.confidence) for one in worse[:_NAMED])
        return Statement(f"It works worse for {named}.", f"{detail} {missed}".strip(), "bad", WHOM)
    if not found.comparisons:
        few = f"Of no group by {attributes} are there enough test patients to tell."
        return Statement(few, missed, "unsure", WHOM)
    text = f"By {attributes}, no group was found for which it works worse."
    detail = _may_be(least_excluded(found), run.confidence, run.least)
    gaps = [one for one in differing if one.metric == GAP]
    if gaps:
        detail += (
            f" Its scores are off differently for {group_name(gaps[0].attribute, gaps[0].group.value)}: read below."
        )
    return Statement(text, f"{detail} {missed}".strip(), "unsure", WHOM)


def _words(one: Found, confidence: float) -> str:
    span, own = one.apart.span, one.group.metrics.get(one.metric)
    value = number(own.value, 2) if own is not None and own.value is not None else "lower"
    by = f"{signed(span.value, 2)}, from " if span.value is not None else ""
    return (
        f"For {group_name(one.attribute, one.group.value)} its {in_sentence(one.metric)} is {value}, {by}"
        f"{signed(span.low, 2)} to {signed(span.high, 2)} against all others ({level(confidence)} interval)."
    )


def _may_be(found: Found | None, confidence: float, least: int) -> str:
    if found is None or found.apart.span.low is None or found.apart.span.low >= 0.0:
        return ""
    return (
        f"That is no proof that it works alike for all: for {group_name(found.attribute, found.group.value)} its "
        f"sensitivity may be lower than for all others by up to {number(-found.apart.span.low, 2)} "
        f"({level(confidence)} interval{', with small cells hidden' if least > 1 else ''})."
    )


def _missed(found: AllMistakes | None) -> str:
    if found is None or len(found.classes) != 1 or found.classes[0].misses[0] != found.classes[0].misses[1]:
        return ""
    row = found.classes[0]
    return (
        f"In all it missed {row.misses[0]} of {plural(row.positives, 'test image')} with {row.value}, and called "
        f"{row.alarms[0]} of {row.negatives} without it positive."
    )


def sure(run: Run, kept: tuple[str, Scores] | None) -> Statement:
    metric = main_metric(run)
    name, scores = kept if kept is not None else next((arm, one.model) for arm, one in run.arms.items())
    value = scores.test.get(metric, Interval(None))
    if run.suppressed:
        return Statement("Not measured: no hospital may tell.", _SUPPRESSED, "unsure", SURE)
    test = sum(site.patients.get("test", 0) for site in run.sites.values())
    images = sum(site.images.get("test", 0) for site in run.sites.values())
    on = f"On {plural(images, 'test image')} of {plural(test, 'patient')} that no training saw"
    if value.low is None or value.high is None:
        return Statement("Not measured: no interval could be given.", f"{on}.", "unsure", SURE)
    measured = in_sentence(metric)
    between = f"between {number(value.low, 2)} and {number(value.high, 2)}"
    text = f"{level(run.confidence)} sure that its {measured} is {between}."
    parts = [
        f"{in_sentence(rate)} {spoken(found, 2) if found.hidden else f'{number(found.value, 2)} ({bounds_of(found)})'}"
        for rate in ("sensitivity", "specificity")
        if (found := scores.test.get(rate)) is not None and found.low is not None
    ]
    detail = f"{on}, the {arm_name(name).lower()} model: {listing(parts)}." if parts else f"{on}."
    what = "It speaks of patients like these, at these hospitals; others have to be tested first."
    if value.hidden:
        text = f"On these patients its {measured} is {between}; closer than that is not known."
        what = (
            f"Counts of fewer than {run.least} patients stay at the hospitals, so each of these is the least and the "
            f"most that it can be, and by how much chance in the choice of patients moved it is not in them. {what}"
        )
        return Statement(text, f"{detail} {what}", "unsure", SURE)
    return Statement(text, f"{detail} {what}", "", SURE)


def bounds_of(interval: Interval) -> str:
    return f"{number(interval.low, 2)} to {number(interval.high, 2)}"


def gain(run: Run) -> Statement:
    metric = main_metric(run)
    if run.at_hospitals:
        return _gain_unknown(run, metric)
    found = against_alone(run, metric)
    rows = [h for h in hospitals(run, metric) if h.gain_everyone is not None and h.gain_everyone.value is not None]
    if not rows:
        return Statement(found.text, found.detail, found.tone, GAIN)
    ranked = sorted(rows, key=lambda h: h.gain_everyone.value if h.gain_everyone and h.gain_everyone.value else 0.0)
    ends = [ranked[-1], ranked[0]] if len(ranked) > 1 else ranked
    said = [
        f"{h.site} {signed(h.gain_everyone.value)} ({bounds(h.gain_everyone, sign=True)})"
        for h in ends
        if h.gain_everyone
    ]
    between = "from " + " down to ".join(said) if len(said) > 1 else said[0]
    detail = f"In {in_sentence(metric)} against training alone: {between}. The table below has every hospital."
    return Statement(found.text, detail, found.tone, GAIN)


def _gain_unknown(run: Run, metric: str) -> Statement:
    """Hospitals that play it themselves train no model alone: what each one's patients get is all there is to say."""
    text = "Not measured: no hospital trained a model alone."
    if run.own_models is not None and run.own_models.sites:
        text = f"Not measured against training alone. {own_models.choices(run.own_models)}"
    detail = "Images stay where they are, so there is no model of all images in one place either."
    own = {site: cells[metric] for site, cells in run.arms["federated"].own.items() if metric in cells}
    detail += _from_worst_to_best({site: one for site, one in own.items() if one.known}, metric)
    detail += " A hospital that has a model of its own can set it beside that, on the same patients."
    return Statement(text, detail, "unsure", GAIN)


def _from_worst_to_best(own: Mapping[str, Interval], metric: str) -> str:
    """Over the hospitals whose own test is known; where small cells are hidden, what it may be at the ends."""
    if not own:
        return ""
    worst = min(own, key=lambda site: own[site].least or 0.0)
    best = max(own, key=lambda site: own[site].most or 0.0)
    low, high = number(own[worst].least, 2), number(own[best].most, 2)
    low, high = (f"at least {low}" if own[worst].hidden else low), (f"at most {high}" if own[best].hidden else high)
    said = f"{low} at {worst}" if len(own) == 1 and low == high else f"from {low} ({worst}) to {high} ({best})"
    return f" On hospitals' own test patients the model's {in_sentence(metric)} is {said}; a table below has each."


def of_repeats(runs: Sequence[Run]) -> list[Block]:
    """The first two questions over repeats of one study; what federating gains stands beside them."""
    return [_whom_of(runs), _sure_of(runs)]


def _whom_of(runs: Sequence[Run]) -> Statement:
    known = [kept[1].subgroups for run in runs if (kept := examined(run)) is not None and kept[1].subgroups]
    measured = [found for found in known if found is not None and found.comparisons]
    if not measured:
        return whom(runs[0], examined(runs[0]))
    worse = Counter(
        name
        for found in measured
        for name in {group_name(one.attribute, one.group.value) for one in standing(found) if one.worse}
    )
    of = plural(len(measured), "repeat")
    attributes = listing(ATTRIBUTES.get(name, name) for name in measured[0].by)
    bounds_ = [one for found in measured if (one := least_excluded(found)) is not None]
    lowest = min(bounds_, key=lambda one: one.apart.span.low or 0.0, default=None)
    detail = (
        f"All repeats are tested on the same patients. {_may_be(lowest, runs[0].confidence, runs[0].least)}".strip()
    )
    if not worse:
        return Statement(
            f"By {attributes}, no group was found for which it works worse, in none of {of}.",
            detail,
            "unsure",
            WHOM,
        )
    said = listing(f"{name} (in {number_} of {of})" for name, number_ in worse.most_common(_NAMED))
    return Statement(f"It works worse for {said}.", detail, "bad", WHOM)


def _sure_of(runs: Sequence[Run]) -> Statement:
    metric = main_metric(runs[0])
    found = [(kept[1].test.get(metric) or Interval(None)) for run in runs if (kept := examined(run)) is not None]
    lows = [one.low for one in found if one.low is not None]
    highs = [one.high for one in found if one.high is not None]
    values = [one.value for one in found if one.value is not None]
    if not lows or not values:
        return sure(runs[0], examined(runs[0]))
    text = (
        f"Its {in_sentence(metric)} was {number(min(values), 2)} to {number(max(values), 2)} over "
        f"{plural(len(values), 'repeat')}; their intervals reach from {number(min(lows), 2)} "
        f"to {number(max(highs), 2)}."
    )
    detail = (
        f"Each interval is of {level(runs[0].confidence)} and tells of chance in the choice of test patients; the "
        "spread over repeats, of chance in training. It speaks of patients like these, at these hospitals."
    )
    return Statement(text, detail, "", SURE)
