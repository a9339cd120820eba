"""What ``fedward coordinator up``, ``launch``, ``status`` … do and print; ``run_commands`` declares the commands."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.alerts import monitored
from common.errors import IdentityError, RunError, StudyError
from common.logs import log_to
from common.study import Study
from server.desk import EVENTS, RESUMABLE, UNFINISHED, RunFolder, all_runs, find_run, is_at_work, read_status
from server.history import come_so_far
from server.provision import Coordinator
from server.receipts import DELIVERY, brought

LOG = Path("logs", "coordinator.log")
_FOLLOW_S = 0.5


def up(directory: Path, *, resume: bool, patience_s: float) -> None:
    from common.webhook import Webhook
    from server.coordinate import Running
    from server.reporting import write_pages

    coordinator = Coordinator.open(directory)
    if is_at_work(directory):
        raise RunError(f"a coordinator is running in {directory} already; stop that one first")
    log_to(directory / LOG)
    for expiry in coordinator.expiring():
        logging.getLogger("fedward").warning("%s: %d days left; run `%s`", expiry.what, expiry.days, expiry.remedy)
    webhook = Webhook(coordinator.config.webhook, directory) if coordinator.config.webhook else None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        send = webhook.send if webhook else lambda told: None
        running = Running(coordinator, patience_s=patience_s, send=send, report=write_pages)
        running.run(stop=stop, resume=resume)
    finally:
        if webhook is not None:
            webhook.close()


def health(directory: Path) -> None:
    from server.health import judge

    print(judge(Coordinator.open(directory), time.time()))


def doctor(directory: Path, *, as_json: bool) -> None:
    from common.doctor import tell
    from server.doctor import examine

    tell(examine(directory), "the coordinator", as_json=as_json)


def launch(path: Path, directory: Path, *, survey_only: bool = False) -> None:
    coordinator = Coordinator.open(directory)
    study = Study.load(path)
    if survey_only and not study.surveyed:
        raise StudyError(f"{path}: the study asks for no survey; add survey: [classes, pixels] to it")
    _check(study, path, coordinator)
    folder = RunFolder.launch(coordinator.runs, study, path.parent, coordinator.clock(), survey_only=survey_only)
    print(f"{folder.name}: hash {study.hash}")
    if survey_only:
        print("it stops when the sites have answered the survey; `fedward coordinator resume` trains then")
    print("each site's people see it with `fedward site studies` and decide with `fedward site approve`")
    if not is_at_work(directory):
        print("it begins when `fedward coordinator up` runs")


def _check(study: Study, path: Path, coordinator: Coordinator) -> None:
    """A mistake shows here, not at the sites."""
    from common.central import check_colluders, check_sites, effect_of, effect_words
    from common.models import build_initial
    from common.weights import state_of
    from server.secure import check_sites as check_masked
    from server.strategies import build_strategy

    build_strategy(study.federation.strategy)
    model, _ = build_initial(study, 0, path.parent)
    expires = study.governance.expires
    if expires is not None and coordinator.clock().date() > expires:
        raise StudyError(f"{path}: the study expired on {expires}; set governance.expires to a later day")
    for run in all_runs(coordinator.runs):
        if run.hash == study.hash:  # the sites have answered its rounds, and answer each only once
            raise RunError(f"run {run.name} ({run.state}) has this study already: resume it, or rename the study")
    if not coordinator.roster.active:
        raise IdentityError("no site is on the roster; take some in with `fedward coordinator admit`")
    if study.central_privacy is not None:
        sites = len(coordinator.roster.active)
        check_sites(study, sites)
        check_colluders(study, sites)
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(effect_words(effect_of(study, sites, parameters)))
    secure = study.federation.secure_aggregation
    if secure is not None:
        sites = len(coordinator.roster.active)
        check_masked(study, state_of(model), sites=sites, roster=sites)
        print(
            f"updates are summed under masks: you will see sums of at least {secure.needed(sites, 3)} of the {sites} "
            "sites on the roster, and no site's own"
        )


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
    run.resume(coordinator.clock(), killed=not alive, train=True)
    print(f"{run.name} goes on from its last checkpoint" + ("" if alive else " when `up` runs"))


def logs(name: str | None, directory: Path, *, coordinator: bool = False, follow: bool = False) -> None:
    """A run's events, or with ``coordinator`` its own log; ``follow`` goes on until Ctrl-C."""
    runs = Coordinator.open(directory).runs
    states = ("queued", "waiting", "running", "finished", "failed", "stopped", "interrupted")
    path = directory / LOG if coordinator else find_run(runs, name, *states).path / EVENTS  # type: ignore[arg-type]
    if path.exists():
        with path.open(encoding="utf-8") as file:
            shutil.copyfileobj(file, sys.stdout)
            while follow:
                sys.stdout.flush()
                time.sleep(_FOLLOW_S)
                shutil.copyfileobj(file, sys.stdout)


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


def report(name: str | None, directory: Path) -> None:
    """Write the page of a run anew, and print where it is."""
    from server.reporting import write_pages

    print(write_pages(find_run(Coordinator.open(directory).runs, name, "finished").path))


def status(directory: Path, *, as_json: bool) -> None:
    from server.situation import describe

    facts = look(Coordinator.open(directory), time.time())
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(describe(facts, time.time())))


def check(directory: Path) -> int:
    """Print the alerts that hold; the exit code for monitoring."""
    facts = look(Coordinator.open(directory), time.time())
    silent = None
    if not facts["up"]:
        silent = "the coordinator is not running; start it with `fedward coordinator up`"
    elif facts["stale_s"] is not None:
        silent = "the coordinator has said nothing lately; look at its log and the disk"
    return monitored([*([{"level": "critical", "text": silent}] if silent else []), *facts["alerts"]])


def look(coordinator: Coordinator, at: float) -> dict[str, Any]:
    """Everything that ``status --json`` prints (docs/coordinator.md); ``at``: the time now, in seconds of the epoch."""
    from common.alerts import expires
    from server.health import STALE_S
    from server.situation import next_steps

    alive, roster = is_at_work(coordinator.directory), coordinator.roster
    told = (read_status(coordinator.directory) or {}) if alive else {}  # what a dead one told of is over
    age = at - told["at"] if told else 0.0
    active = frozenset(entry.alias for entry in roster.active)
    runs = [_facts(run, active) for run in all_runs(coordinator.runs)]
    unseen = {"online": False, "last_seen": None, "answer": "", "program": "", "until": 0}
    expiries = coordinator.expiries()
    alerts = told.get("alerts")
    if alerts is None:
        found = (expires(one.what, one.days, f"run `{one.remedy}`") for one in expiries)
        alerts = [vars(alert) for alert in found if alert is not None]
    facts: dict[str, Any] = {
        "up": alive,
        "up_s": (at - told["since"] if told else 0.0) if alive else None,
        "stale_s": age if abs(age) > STALE_S else None,
        "federation": coordinator.config.name,
        "address": coordinator.config.address,
        "program": version("fedward"),
        "roster": {"version": roster.version, "hash": roster.hash},
        "sites": {entry.alias: unseen | told.get("sites", {}).get(entry.alias, {}) for entry in roster.active},
        "run": told.get("run"),
        "runs": [{**run, "ahead": _ahead(run, runs)} for run in runs],
        "refused": told.get("refused", {}),
        "alerts": alerts,
        "certificate_days": {expiry.what: expiry.days for expiry in expiries},
    }
    return {**facts, "next": list(next_steps(facts))}


def _facts(run: RunFolder, active: frozenset[str]) -> dict[str, Any]:
    try:
        facts = {"name": run.name, **run.facts}
    except RunError as error:
        return {"name": run.name, "state": "damaged", "why": str(error)}
    delivery = {"delivery": brought(run, active)} if facts["state"] == "finished" else {}
    return facts | come_so_far(run.path / EVENTS) | delivery


def _ahead(run: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The run that a queued one comes after; none for the next."""
    earlier = [other["name"] for other in runs if other["state"] == "queued" and other["name"] < run["name"]]
    active = [other["name"] for other in runs if other["state"] in UNFINISHED]
    return str([*active, *earlier][-1]) if run["state"] == "queued" and (active or earlier) else ""
