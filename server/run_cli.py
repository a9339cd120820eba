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

from common.errors import IdentityError, RunError
from common.logs import log_to
from common.study import Study
from server.desk import EVENTS, RESUMABLE, RunFolder, all_runs, find_run
from server.provision import Coordinator

_SILENT_S = 10.0
_ANSWERS = {
    "": "",
    "ready": "has approved",
    "offline": "cannot be reached",
    "approval-pending": "waits for its people's approval",
    "approval-refused": "has refused",
    "policy-objects": "its policy does not allow this study",
    "study-withdrawn": "has withdrawn",
    "study-expired": "its approval has expired",
    "site-paused": "is paused",
    "outside-hours": "is closed at this hour",
    "roster-changed": "asks its people about the new roster",
    "no training images": "has no training images for this study",
}


def up(directory: Path, *, resume: bool, patience_s: float) -> None:
    from server.coordinate import Running

    coordinator = Coordinator.open(directory)
    log_to(directory / "logs" / "coordinator.log")
    for expiry in coordinator.expiring():
        logging.getLogger("fedward").warning("%s: %d days left; run `%s`", expiry.what, expiry.days, expiry.remedy)
    if _alive(directory):
        raise RunError(f"a coordinator is running in {directory} already; stop that one first")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    Running(coordinator, patience_s=patience_s).run(stop=stop, resume=resume)


def launch(path: Path, directory: Path) -> None:
    from common.models import build
    from server.strategies import build_strategy

    coordinator = Coordinator.open(directory)
    study = Study.load(path)
    build_strategy(study.federation.strategy)  # a mistake shows here, not at the sites
    build(study, 0)
    if not coordinator.roster.active:
        raise IdentityError("no site is on the roster; take some in with `fedward coordinator admit`")
    folder = RunFolder.launch(coordinator.runs, study, path.parent, coordinator.clock())
    print(f"{folder.name}: hash {study.hash}")
    print("each site's people see it with `fedward site studies` and decide with `fedward site approve`")
    if not _alive(directory):
        print("it begins when `fedward coordinator up` runs")


def stop(name: str | None, directory: Path) -> None:
    run = find_run(Coordinator.open(directory).runs, name, "queued", "waiting", "running")
    run.ask_to_stop()
    print(f"{run.name} stops after the message at hand")


def resume(name: str | None, directory: Path) -> None:
    coordinator = Coordinator.open(directory)
    run = find_run(coordinator.runs, name, *RESUMABLE)
    run.resume(coordinator.clock())
    print(f"{run.name} goes on from its last checkpoint" + ("" if _alive(directory) else " when `up` runs"))


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
        if path.is_file() and path.name not in ("run.json", "stop"):
            shutil.copy(path, out / path.name)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def status(directory: Path, *, as_json: bool) -> None:
    coordinator = Coordinator.open(directory)
    told = _told(directory)
    runs = [{"name": run.name, **run.facts} for run in all_runs(coordinator.runs)]
    expiries = {expiry.what: expiry.days for expiry in coordinator.expiries()}
    if as_json:
        alive = _alive(directory)
        print(json.dumps({"up": alive, **(told or {}), "runs": runs, "certificate_days": expiries}, ensure_ascii=False))
        return
    if not _alive(directory):
        print("the coordinator is not running: start it with `fedward coordinator up`")
    roster = coordinator.roster
    print(f"{coordinator.config.name}: {len(roster.active)} sites, reached at {coordinator.config.address}")
    sites = told["sites"] if told else {}
    for entry in roster.active:
        print(f"  {entry.alias:<16} {_site(sites.get(entry.alias))}")
    for run in runs[-5:]:
        print(f"{run['name']}: {_run(run, told)}")
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


def _run(run: dict[str, Any], told: dict[str, Any] | None) -> str:
    live = told["run"] if told and told["run"] and told["run"]["name"] == run["name"] else {}
    if run["state"] == "waiting":
        return f"waits for the sites' approval, hash {run['hash'][:12]}"
    if run["state"] == "running":
        where = f"round {live['round']} of {live['rounds']}" if live.get("round") else "the first round is on its way"
        auc = f", validation AUC {live['val_auc']:.3f}" if live.get("val_auc") is not None else ""
        lost = "".join(f"; {site}: {reason}" for site, reason in live.get("absent", {}).items())
        return f"running, {where}{auc}{lost}"
    why = f": {run['why']}" if run.get("why") else ""
    return f"{run['state']}{why}"


def _told(directory: Path) -> dict[str, Any] | None:
    from server.coordinate import read_status

    return read_status(directory)


def _alive(directory: Path) -> bool:
    """Whether a coordinator has told of itself within the last seconds."""
    told = _told(directory)
    return told is not None and bool(told["process"]) and time.time() - told["at"] < _SILENT_S
