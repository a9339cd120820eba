"""What is going on at a coordinator, in words for somebody who sees it for the first time, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from common.alerts import EXPIRES_DAYS, UNDECIDED
from common.words import duration, older
from server.answer_words import in_words
from server.asking import OTHER_VERSION
from server.desk import RESUMABLE, UNFINISHED

Facts = Mapping[str, Any]

_NOT_BROUGHT = {
    "not yet": "has not come for its model yet",
    "no answer": "did not answer when its model was brought; it is brought again",
    "withdrawn": "withdrew, and gets no model",
    "revoked": "is off the roster, and gets no model",
    "model-refused": "refused the model; its log says why",
}
_PHASES = {
    "surveying": "surveying",
    "agreeing on keys": "agreeing on keys",
    "training": "training",
    "unmasking": "unmasking",
    "evaluating": "evaluating",
    "testing": "testing the finished model",
}
_AWAY = ("offline", "not reachable")
_LISTED = 5
_RETURN_S = 90.0
"""Within this an agent that lost its coordinator tries again: ``client.fleet.Pace``'s longest pause, and half."""


def describe(facts: Facts, now: float) -> Iterator[str]:
    """``facts`` as ``status --json`` prints them, line by line; ``now``: seconds of the epoch."""
    if not facts["up"]:
        yield "the coordinator is not running"
    elif facts["stale_s"] is not None:
        yield f"the coordinator has said nothing for {duration(facts['stale_s'])}: it hangs, or its disk is full"
    count = len(facts["sites"])
    yield f"{facts['federation']}: {count} site{'' if count == 1 else 's'}, reached at {facts['address']}"
    width = max(map(len, facts["sites"]), default=0)
    for alias, site in facts["sites"].items():
        told = _site(site, facts, now) if facts["up"] else "not seen while the coordinator is down"
        yield f"  {alias:<{width}}  {told}"
    for run in facts["runs"][-_LISTED:]:
        yield f"{run['name']}: {_run(run, facts, now)}"
        if run["state"] in UNFINISHED and run.get("round"):
            yield f"  {_progress(run)}"
    if any(facts["refused"].values()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(facts["refused"].items()))
        yield f"refused requests since the start: {reasons}"
    for alert in facts["alerts"]:
        yield f"{alert['level']}: {alert['text']}"
    for step in facts["next"]:
        yield f"next: {step}"


def _site(site: Facts, facts: Facts, now: float) -> str:
    seen = site["last_seen"]
    words = [
        "online" if site["online"] else "offline",
        "never seen" if seen is None else f"seen {duration(now - seen)} ago",
    ]
    if site["answer"] and (site["online"] or site["answer"] not in _AWAY):  # else it stands there already
        words.append(_said(site))
    if site["program"]:
        behind = {"": "", "theirs": "that site", "ours": "the coordinator"}[older(site["program"], facts["program"])]
        hint = f" (here is {facts['program']}: {behind} should upgrade)" if behind else ""
        words.append(f"fedward {site['program']}{hint}")
    return ", ".join(words)


def _said(site: Facts) -> str:
    answer: str = site["answer"]
    if answer in _AWAY and site.get("online"):
        return "is asked next"  # it came after the last question
    return in_words(answer) + (f" until {_clock(site['until'])}" if site["until"] else "")


def _run(run: Facts, facts: Facts, now: float) -> str:
    live = facts["run"] if facts["run"] and facts["run"]["name"] == run["name"] else {}
    state = run["state"]
    if state in UNFINISHED and not facts["up"]:
        return f"was {state} when the coordinator ended; goes on with `fedward coordinator up --resume`"
    if state == "queued" and run["ahead"]:
        return f"queued, behind {run['ahead']}"
    if state == "waiting":
        said = {alias: site for alias, site in facts["sites"].items() if site["answer"] not in ("", "ready")}
        ready = [alias for alias, site in facts["sites"].items() if site["answer"] == "ready"]
        listed = "".join(f"; {alias} {_said(site)}" for alias, site in said.items())
        begins = live.get("begins", 0)
        latest = f"; that is enough: it begins at {_clock(begins)}, or when the others have decided" if begins else ""
        # A run that goes on after a restart was approved before; it is their agents that it waits for.
        asks = "the sites' approval" if run.get("round") is None else "its sites, to go on"
        return f"waits for {asks}, hash {run['hash'][:12]}; approved by {_names(ready)}{latest}{listed}"
    if state == "running":
        return _running(run, live, now)
    why = f": {run['why']}" if run.get("why") else ""
    return f"{state}{why}{_delivery(run.get('delivery', {}))}"


def _running(run: Facts, live: Facts, now: float) -> str:
    where = f"round {live['round']}" if live.get("round") else "the first round is on its way"
    if live.get("round") and run.get("rounds"):
        where += f" of {run['rounds']}"
    if live.get("waits"):
        listed = (f"{alias}, which {_said(one)}" for alias, one in live["waits"].items())
        return f"running, {where} waits for {'; '.join(listed)}"
    if live.get("phase") not in _PHASES:
        return f"running, {where}"
    left = live["deadline"] - now
    parts = [f"running, {_PHASES[live['phase']]}, {where} since {_clock(live['since'])}"]
    if live["answered"]:
        parts.append(f"answered: {_names(live['answered'])}")
    if live["awaited"]:
        parts.append(f"awaited: {_names(live['awaited'])}, for {duration(left)} more at most")
    return "; ".join(parts)


def _progress(run: Facts) -> str:
    parts = []
    if run["train_loss"] is not None:  # private sites tell none
        parts.append(f"training loss {run['train_loss']:.3f}")
    if run["val_loss"] is not None:
        parts.append(f"validation loss {run['val_loss']:.3f}")
    if run["val_auc"] is not None:
        parts.append(f"AUC {run['val_auc']:.3f}")
    elif run.get("val_auc_bounds"):
        low, high = run["val_auc_bounds"]
        parts.append(f"AUC between {low:.3f} and {high:.3f}, as small groups are hidden")
    parts.append(f"{run['bytes'] / 1e6:,.1f} MB moved so far")
    lost = "".join(f"; {site}: {in_words(reason)}" for site, reason in run["absent"].items())
    return f"after round {run['round']} of {run['rounds']}: {', '.join(parts)}{lost}"


def next_steps(facts: Facts) -> Iterator[str]:
    """What somebody at the coordinator can do now, the most pressing first; empty where it goes on by itself."""
    runs: Sequence[Facts] = facts["runs"]
    unfinished = [run for run in runs if run["state"] in (*UNFINISHED, "interrupted")]
    if not facts["up"]:
        yield "`fedward coordinator up" + (" --resume`" if unfinished else "`")
    if facts["stale_s"] is not None:
        yield "look at its log and its disk, then start it again"
    for what, days in facts["certificate_days"].items():
        if days <= EXPIRES_DAYS:
            yield f"renew the certificate {what}, {days} days left: `fedward coordinator roster` says how"
    if not facts["sites"]:
        yield "take sites in: `fedward coordinator admit REQUEST`"
        return
    if not facts["up"]:
        return
    yield from _about_sites(facts)
    active = next((run for run in runs if run["state"] in UNFINISHED), None)
    if active is None and runs and runs[-1]["state"] in RESUMABLE:
        last = runs[-1]
        goes_on = f"`fedward coordinator resume {last['name']}`"
        if last.get("survey_only"):
            yield f"read its survey.html, then {goes_on}"
        elif last["state"] == "failed":
            yield f"mend what it names, then {goes_on}"
        else:
            yield f"{goes_on} goes on with it from its last finished round"
    elif active is None and runs and runs[-1]["state"] == "finished":
        yield "`fedward coordinator export DIR`, or launch another study"
    elif not runs:
        yield "`fedward coordinator launch STUDY.yaml`"


def _about_sites(facts: Facts) -> Iterator[str]:
    active = next((run for run in facts["runs"] if run["state"] in UNFINISHED), None)
    waits = (facts["run"] or {}).get("waits", {})
    decide = [
        alias
        for alias, site in facts["sites"].items()
        if waits.get(alias, site).get("answer") in UNDECIDED
        and (alias in waits or (active or {})["state"] == "waiting")
    ]
    if active is not None and decide:
        yield f"ask {_names(decide)} to decide: `fedward site approve {active['hash'][:12]}`"
    away = [alias for alias, site in facts["sites"].items() if not site["online"]]
    if away and facts["up_s"] < _RETURN_S:
        yield f"wait for {_names(away)}: this coordinator has just started, and sites come back by themselves"
    elif away:
        yield f"call {_names(away)}: `fedward site up` does not run there, or the network is shut"
    upgrade = [a for a, site in facts["sites"].items() if str(site["answer"]).startswith(OTHER_VERSION)]
    if upgrade:
        yield f"agree on one version of fedward with {_names(upgrade)}"


def _delivery(sites: Mapping[str, str]) -> str:
    """Who has the finished model, and why the others have not."""
    there = [site for site, answer in sites.items() if answer == "delivered"]
    said = [f"its model is at {', '.join(there)}"] if there else []
    said += [f"{site}: {_NOT_BROUGHT.get(answer, answer)}" for site, answer in sites.items() if site not in there]
    return "".join(f"; {part}" for part in said)


def _names(aliases: Sequence[str]) -> str:
    more = f" and {len(aliases) - _LISTED} more" if len(aliases) > _LISTED else ""
    return ", ".join(aliases[:_LISTED]) + more if aliases else "nobody yet"


def _clock(at: float) -> str:
    """In this machine's time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%a %H:%M")
