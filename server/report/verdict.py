"""What a run says, in plain words, and no more than its intervals allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from common.html import Statement, Tiles, Tone
from server.report.contrasts import Hospital, difference, hospitals, main_metric
from server.report.intervals import Interval
from server.report.results import Run
from server.report.words import (
    Verdict,
    arm_name,
    bounds,
    count,
    in_sentence,
    level,
    listing,
    metric_name,
    number,
    plural,
    signed,
    verdict,
    verdict_tone,
)

NAMED = 5
"""More hospitals than this are counted, not listed by name."""


def statements(run: Run) -> list[Statement]:
    """The verdict: who gained from federating, and what it costs against pooling."""
    metric = main_metric(run)
    return [against_alone(run, metric), against_pooled(run, metric)]


def against_alone(run: Run, metric: str) -> Statement:
    compared = [h for h in hospitals(run, metric) if h.gain_everyone is not None and h.gain_everyone.value is not None]
    if not compared:
        missing = listing(arm_name(arm).lower() for arm in ("federated", "local") if arm not in run.arms)
        why = f"this run has no arm “{missing}”" if missing else "no comparison could be computed"
        return Statement(
            "Whether federating pays off is not known.", f"To answer it a run needs both arms; {why}.", "unsure"
        )
    groups = _groups(compared)
    text = headline(Counter({said: len(names) for said, names in groups.items()}))
    best, worst = compared[0], compared[0]
    for hospital in compared:
        if _value(hospital) > _value(best):
            best = hospital
        if _value(hospital) < _value(worst):
            worst = hospital
    detail = [
        f"Judged by {in_sentence(metric)} on everyone's test patients, federated against each hospital training alone.",
        _extreme("Most is gained by", best, run.confidence),
    ]
    if worst is not best:
        detail.append(_extreme("Least by", worst, run.confidence))
    detail += _named(groups)
    return Statement(text, " ".join(detail), _tone(groups))


def headline(said: Counter[Verdict]) -> str:
    """Counts of better, worse and undecided hospitals as one sentence."""
    total = sum(said.values())
    better, worse, unclear = said["better"], said["worse"], said["cannot tell"]
    if better == total:
        who = "the one hospital" if total == 1 else f"all {count(total)} hospitals"
        return f"Federating pays off for {who}."
    if worse == total:
        who = "the one hospital" if total == 1 else f"all {count(total)} hospitals"
        return f"Federating makes things worse for {who}."
    if unclear == total:
        return "These data cannot tell whether federating pays off for any hospital."
    parts = []
    if better:
        parts.append(f"pays off for {count(better)} of {plural(total, 'hospital')}")
    if worse:
        of_all = "" if better else f" of {plural(total, 'hospital')}"
        parts.append(f"makes things worse for {count(worse)}{of_all}")
    text = f"Federating {listing(parts)}"
    return f"{text}; for {count(unclear)} these data cannot tell." if unclear else f"{text}."


def against_pooled(run: Run, metric: str) -> Statement:
    gap = difference(run, "federated", "pooled", metric)
    if gap is None or gap.value is None:
        return Statement(
            "Federated was not compared with pooling all images in one place.",
            "A run with the arms federated and pooled answers that.",
            "unsure",
        )
    said = verdict(gap)
    name = in_sentence(metric)
    amount = f"{name} {signed(gap.value)}{_range(gap, run.confidence)}"
    if said == "cannot tell":
        text = "Federated and pooled training cannot be told apart on these data."
        least = f" At worst federating costs {number(-gap.low)} of {name}." if gap.low is not None else ""
        return Statement(text, f"Federated − pooled: {amount}.{least}", "unsure")
    text = (
        f"Federated training beats pooling all images in one place by {number(gap.value)} of {name}."
        if said == "better"
        else f"Against pooling all images in one place, federating costs {number(-gap.value)} of {name}."
    )
    return Statement(text, f"Federated − pooled: {amount}.", verdict_tone(said))


def tiles(run: Run) -> Tiles:
    """The numbers a reader asks for first."""
    metric = main_metric(run)
    items = []
    for name, arm in run.arms.items():
        interval = arm.model.test.get(metric)
        if interval is not None:
            value, remark = number(interval.value), bounds(interval)
            if interval.hidden:
                value, remark = remark, "at least, and at most: small cells are hidden"
            remark = f"{remark}, mean over hospitals" if name == "local" and remark else remark
            items.append((value, f"{metric_name(metric)}, {arm_name(name).lower()}", remark))
    images = sum(sum(site.images.values()) for site in run.sites.values())
    patients = sum(sum(site.patients.values()) for site in run.sites.values())
    told = f"{count(images)} images of {plural(patients, 'patient')}"
    if run.at_hospitals:  # which tell of patients only in the test
        told = f"{count(images)} images" if images else "their images are not counted"
    items.append((count(len(run.sites)), "Hospitals", told))
    strategy = run.setting("federation", "strategy", "name")
    items.append((count(run.rounds), "Rounds", ", ".join(filter(None, (strategy, run.setting("model", "name"))))))
    return Tiles(items)


_MEANINGS = {
    "auc": "AUC is the chance that the model scores a random image with the finding above a random image without: "
    "0.5 is guessing, 1 is perfect.",
    "dice": "Dice is how far the model's outline and the true one are the same: 0 is nothing in common, 1 is pixel for "
    "pixel.",
}
_SAID = "“Better” and “worse” are said only where the whole interval lies on one side of zero."


def explanation(metric: str, *, judged: bool = True) -> str:
    """A sentence on the metric, for readers who do not live with it, and what makes a model better, where one is."""
    return " ".join(filter(None, (_MEANINGS.get(metric, ""), _SAID if judged else "")))


def _value(hospital: Hospital) -> float:
    gain = hospital.gain_everyone
    return gain.value if gain is not None and gain.value is not None else 0.0


def _groups(compared: Sequence[Hospital]) -> dict[Verdict, list[str]]:
    groups: dict[Verdict, list[str]] = {"better": [], "worse": [], "cannot tell": []}
    for hospital in compared:
        groups[verdict(hospital.gain_everyone or Interval(None))].append(hospital.site)
    return groups


def _named(groups: dict[Verdict, list[str]]) -> list[str]:
    sentences = []
    if 0 < len(groups["worse"]) <= NAMED:
        sentences.append(f"Worse for {listing(groups['worse'])}.")
    if 0 < len(groups["cannot tell"]) <= NAMED and (groups["better"] or groups["worse"]):
        sentences.append(f"Undecided for {listing(groups['cannot tell'])}.")
    return sentences


def _extreme(lead: str, hospital: Hospital, confidence: float) -> str:
    gain = hospital.gain_everyone or Interval(None)
    return f"{lead} {hospital.site}: {signed(gain.value)}{_range(gain, confidence)}."


def _range(interval: Interval, confidence: float) -> str:
    shown = bounds(interval, sign=True)
    return f" ({level(confidence)} interval {shown})" if shown else ""


def _tone(groups: dict[Verdict, list[str]]) -> Tone:
    if groups["worse"]:
        return "bad"
    return "good" if groups["better"] else "unsure"
