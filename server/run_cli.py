"""What ``fedward coordinator up``, ``launch``, ``status`` … do and print; ``run_commands`` declares the commands."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from common.errors import IdentityError, RunError, StudyError
from common.logs import log_to
from common.study import Study
from server.desk import EVENTS, RESUMABLE, UNFINISHED, RunFolder, all_runs, find_run, is_at_work, read_status
from server.provision import Coordinator
from server.receipts import DELIVERY, brought

_ANSWERS = {
    "": "",
    "ready": "has approved",
    "offline": "cannot be reached",
    "approval-pending": "waits for its people's approval",
    "approval-refused": "has refused",
    "policy-objects": "its policy does not allow this study",
    "study-withdrawn": "has withdrawn",
    "study-expired": "its approval has expired",
    "study-finished": "has its model already",
    "site-paused": "is paused",
    "outside-hours": "is closed at this hour",
    "roster-changed": "asks its people about the new roster",
    "no training images": "has no training images for this study",
}
_NOT_BROUGHT = {
    "not yet": "has not come for its model yet",
    "no answer": "did not answer when its model was brought; it is brought again",
    "withdrawn": "withdrew, and gets no model",
    "revoked": "is off the roster, and gets no model",
    "model-refused": "refused the model; its log says why",
}


def up(directory: Path, *, resume: bool, patience_s: float) -> None:
    from server.coordinate import Running

    coordinator = Coordinator.open(directory)
    if is_at_work(directory):
        raise RunError(f"a coordinator is running in {directory} already; stop that one first")
    log_to(directory / "logs" / "coordinator.log")
    for expiry in coordinator.expiring():
        logging.getLogger("fedward").warning("%s: %d days left; run `%s`", expiry.what, expiry.days, expiry.remedy)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    Running(coordinator, patience_s=patience_s).run(stop=stop, resume=resume)


def health(directory: Path) -> None:
    from server.health import judge

    print(judge(Coordinator.open(directory), time.time()))


def launch(path: Path, directory: Path) -> None:
    coordinator = Coordinator.open(directory)
    study = Study.load(path)
    _check(study, path, coordinator)
    folder = RunFolder.launch(coordinator.runs, study, path.parent, coordinator.clock())
    print(f"{folder.name}: hash {study.hash}")
    print("each site's people see it with `fedward site studies` and decide with `fedward site approve`")
    if not is_at_work(directory):
        print("it begins when `fedward coordinator up` runs")


def _check(study: Study, path: Path, coordinator: Coordinator) -> None:
    """A mistake shows here, not at the sites."""
    from common.models import build_initial
    from server.strategies import build_strategy

    build_strategy(study.federation.strategy)
    build_initial(study, 0, path.parent)
    expires = study.governance.expires
    if expires is not None and coordinator.clock().date() > expires:
        raise StudyError(f"{path}: the study expired on {expires}; set governance.expires to a later day")
    for run in all_runs(coordinator.runs):
        if run.hash == study.hash:  # the sites have answered its rounds, and answer each only once
            raise RunError(f"run {run.name} ({run.state}) has this study already: resume it, or rename the study")
    if not coordinator.roster.active:
        raise IdentityError("no site is on the roster; take some in with `fedward coordinator admit`")


def stop(name: str | None, directory: Path) -> None:
    coordinator = Coordinator.open(directory)
    run = find_run(coordinator.runs, name, "queued", "waiting", "running", "interrupted")
    state = run.facts["state"]
    if state not in ("queued", "interrupted", *UNFINISHED):
        raise RunError(f"run {run.name} is {state} already")
    run.ask_to_stop()
    if state == "interrupted":
        run.turn("stopped", coordinator.clock(), why="asked to")
    at_once = state in ("queued", "interrupted") or not is_at_work(directory)
    print(f"{run.name} " + ("is stopped" if at_once else "stops after the message at hand"))


def resume(name: str | None, directory: Path) -> None:
    coordinator = Coordinator.open(directory)
    alive = is_at_work(directory)
    run = find_run(coordinator.runs, name, *RESUMABLE, *(() if alive else UNFINISHED))
    run.resume(coordinator.clock(), killed=not alive)
    print(f"{run.name} goes on from its last checkpoint" + ("" if alive else " when `up` runs"))


def logs(name: str | None, directory: Path) -> None:
    runs = Coordinator.open(directory).runs
    states = ("queued", "waiting", "running", "finished", "failed", "stopped", "interrupted")
    path = find_run(runs, name, *states).path / EVENTS  # type: ignore[arg-type]
    if path.exists():
        sys.stdout.write(path.read_text(encoding="utf-8"))


def export(out: Path, name: str | None, directory: Path) -> None:
    run = find_run(Coordinator.open(directory).runs, name, "finished")
    if run.state != "finished":
        raise RunError(f"run {run.name} is {run.state}; only finished ones are exported")
    if out.exists():
        raise RunError(f"{out} exists and is not overwritten; choose another folder")
    out.mkdir(parents=True)
    for path in sorted(run.path.iterdir()):
        if path.is_file() and path.name not in ("run.json", "stop", DELIVERY):
            shutil.copy(path, out / path.name)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def status(directory: Path, *, as_json: bool) -> None:
    coordinator = Coordinator.open(directory)
    alive = is_at_work(directory)
    told = (read_status(directory) or {}) if alive else {}  # what a dead one told of is over
    active = frozenset(entry.alias for entry in coordinator.roster.active)
    runs = [_facts(run, active) for run in all_runs(coordinator.runs)]
    expiries = {expiry.what: expiry.days for expiry in coordinator.expiries()}
    if as_json:
        print(json.dumps({"up": alive, **told, "runs": runs, "certificate_days": expiries}, ensure_ascii=False))
        return
    if not alive:
        print("the coordinator is not running: start it with `fedward coordinator up`")
    roster = coordinator.roster
    print(f"{coordinator.config.name}: {len(roster.active)} sites, reached at {coordinator.config.address}")
    for entry in roster.active:
        site = _site(told.get("sites", {}).get(entry.alias)) if alive else "not seen while the coordinator is down"
        print(f"  {entry.alias:<16} {site}")
    said = [f"{run['name']}: {_run(run, told, _ahead(run, runs), alive=alive)}" for run in runs]
    print("\n".join(said[-5:]), end="\n" if said else "")
    for what, days in expiries.items():
        if days <= 30:
            print(f"certificate {what}: {days} days left")


def _site(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "not seen"
    seen = facts["last_seen"]
    ago = "never seen" if seen is None else f"seen {max(0.0, time.time() - seen):.0f} s ago"
    words = ["online" if facts["online"] else "offline", ago]
    if facts["answer"]:
        words.append(_ANSWERS.get(facts["answer"], facts["answer"]))
    if facts["program"]:
        words.append(f"fedward {facts['program']}")
    return ", ".join(words)


def _facts(run: RunFolder, active: frozenset[str]) -> dict[str, Any]:
    try:
        facts = {"name": run.name, **run.facts}
        return facts | ({"delivery": brought(run, active)} if facts["state"] == "finished" else {})
    except RunError as error:
        return {"name": run.name, "state": "damaged", "why": str(error)}


def _ahead(run: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The run that a queued one comes after; none for the next."""
    earlier = [other["name"] for other in runs if other["state"] == "queued" and other["name"] < run["name"]]
    active = [other["name"] for other in runs if other["state"] in UNFINISHED]
    return str([*active, *earlier][-1]) if active or earlier else ""


def _run(run: dict[str, Any], told: dict[str, Any], ahead: str, *, alive: bool) -> str:
    live = told["run"] if told.get("run") and told["run"]["name"] == run["name"] else {}
    if run["state"] in UNFINISHED and not alive:
        return f"was {run['state']} when the coordinator ended; goes on with `fedward coordinator up --resume`"
    if run["state"] == "queued" and ahead:
        return f"queued, behind {ahead}"
    if run["state"] == "waiting":
        return f"waits for the sites' approval, hash {run['hash'][:12]}"
    if run["state"] == "running":
        where = (
            f"round {live['round']} of {live.get('rounds')}" if live.get("round") else "the first round is on its way"
        )
        auc = f", validation AUC {live['val_auc']:.3f}" if live.get("val_auc") is not None else ""
        lost = "".join(f"; {site}: {reason}" for site, reason in live.get("absent", {}).items())
        return f"running, {where}{auc}{lost}"
    why = f": {run['why']}" if run.get("why") else ""
    return f"{run['state']}{why}{_delivery(run.get('delivery', {}))}"


def _delivery(sites: dict[str, str]) -> str:
    """Who has the finished model, and why the others have not."""
    there = [site for site, answer in sites.items() if answer == "delivered"]
    said = [f"its model is at {', '.join(there)}"] if there else []
    said += [f"{site}: {_NOT_BROUGHT.get(answer, answer)}" for site, answer in sites.items() if site not in there]
    return "".join(f"; {part}" for part in said)
