"""The running coordinator: sites' way in, the roster as it changes, one run after another, and what there is to know.

One process, one thread for the network (``server.superlink``), one for the run, and this loop, which looks at the
directory once a second: a site that is admitted or revoked there is so at once, a run that is launched there is begun.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.alerts import Board
from common.errors import FedwardError, IdentityError, Interrupted, QuorumError
from common.files import show, sweep_folder
from common.identity import Address
from common.memory import keep_freed_memory
from server.admission import Admission, admit
from server.alerts import Lookout, ended
from server.anchoring import FILE as ANCHORS
from server.anchoring import AnchorDesk
from server.app import survey_first, train
from server.asking import Link, SignedRoster
from server.courier import Courier
from server.desk import EVENTS, STATUS, UNFINISHED, RunFolder, State, all_runs, at_work
from server.events import EventLog, JsonLines
from server.federated import Asked
from server.provision import Coordinator
from server.superlink import Fleet
from server.survey_page import PAGE
from server.watch import Watch

logger = logging.getLogger("fedward.coordinator")

TICK_S = 1.0
PATIENCE_S = 300.0
PAUSE_S = 5.0


class Running:
    """A coordinator at work. ``run`` returns when ``stop`` is set."""

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        tick_s: float = TICK_S,
        patience_s: float = PATIENCE_S,
        pause_s: float = PAUSE_S,
        send: Callable[[dict[str, Any]], None] = lambda told: None,
        report: Callable[[Path], object] = lambda folder: None,
    ) -> None:
        """``send``: where alerts go beside the log; it must not wait for anybody.

        ``report``: makes pages of the results in a run's folder, when there are any.
        """
        keep_freed_memory()
        self._coordinator = coordinator
        self._board = Board(f"coordinator of {coordinator.config.name}", send, clock=coordinator.clock)
        self._lookout = Lookout(coordinator, self._board, time.monotonic)
        self._tick_s, self._patience_s, self._pause_s = tick_s, patience_s, pause_s
        self._report = report
        listen = Address.parse(coordinator.config.listen)
        self.fleet = Fleet(
            {},
            host=listen.host,
            port=listen.port,
            certificate=coordinator.certificate_path,
            key=coordinator.server_key_path,
            client_ca=coordinator.authority_path if coordinator.config.site_certificates else None,
        )
        self._listed: dict[str, bytes] = {}
        self._barred: frozenset[str] = frozenset()
        self._signed = b""
        self._roster = SignedRoster()
        self._run: _Run | None = None
        self._courier = Courier(coordinator, self.fleet)
        self._anchors = AnchorDesk(coordinator)
        self._rolled_back: list[str] = []
        self._trouble: dict[str, str] = {}
        self._since = time.time()

    def run(self, *, stop: threading.Event, resume: bool = False) -> None:
        """Serve until ``stop``. Runs that a killed process left are marked; ``resume`` queues the last such run again.

        A disk that is full or a damaged file ends nothing, nor does a mistake of this program's: it is said once, and
        tried again each tick.

        Raises :class:`RunError` where a coordinator runs in this directory, :class:`FleetError` where the port is
        taken; no run is touched then.
        """
        directory = self._coordinator.directory
        with at_work(directory):
            self._try("the roster", self._follow_roster)
            with self.fleet:
                logger.info(
                    "listening on %s; sites reach it at %s",
                    self._coordinator.config.listen,
                    self._coordinator.config.address,
                )
                counted = self._try("the runs", lambda: self._take_stock(resume=resume))
                try:
                    while not stop.is_set():
                        self._try("the roster", self._follow_roster)
                        if counted:
                            self._try("the runs", self._next_run)
                        else:
                            counted = self._try("the runs", lambda: self._take_stock(resume=resume))
                        self._try("finished models", self._courier.step)
                        self._try(ANCHORS, self._compare_ledgers)
                        self._try(STATUS, self._tell)
                        stop.wait(self._tick_s)
                finally:
                    if self._run is not None:
                        self._run.end()
                        self._run = None
                    self._courier.close()
                    with suppress(FedwardError, OSError):
                        self._tell()

    def _try(self, what: str, step: Callable[[], None]) -> bool:
        """Whether ``step`` went well; what is wrong is logged when it changes."""
        said = ""
        try:
            step()
        except (FedwardError, OSError) as error:
            said = str(error)
        except Exception as error:
            said = f"unexpected: {type(error).__name__}: {error}"
            if said != self._trouble.get(what):
                logger.exception("%s failed", what)
        if said != self._trouble.get(what, ""):
            logger.log(logging.ERROR if said else logging.INFO, "%s: %s", what, said or "in order again")
        self._trouble[what] = said
        return not said

    def _take_stock(self, *, resume: bool) -> None:
        """Before the first run: what a killed coordinator left, and what was asked of it meanwhile."""
        at = self._coordinator.clock()
        for folder in all_runs(self._coordinator.runs):
            state = folder.state
            sweep_folder(folder.path)
            if state in (*UNFINISHED, "interrupted") and folder.to_stop:
                folder.turn("stopped", at, why="asked to")
            elif state in UNFINISHED:
                folder.turn("interrupted", at, why="the coordinator was killed")
        left = [folder for folder in all_runs(self._coordinator.runs) if folder.state == "interrupted"]
        if resume and left:
            max(left, key=lambda folder: (str(folder.facts.get("interrupted", "")), folder.name)).resume(at)

    def _follow_roster(self) -> None:
        """Register and shut out as ``roster.json`` says now. Raises :class:`IdentityError` for a damaged one."""
        signed = self._coordinator.signed_roster
        if signed == self._signed:
            return
        roster = self._coordinator.roster
        wanted = {entry.alias: entry.public_key.openssh.encode() for entry in roster.active}
        for alias in set(self._listed) - set(wanted):
            self._shut_out(alias)
        barred = set()
        for alias, key in wanted.items():
            if self._listed.get(alias) == key:
                continue
            try:
                self.fleet.register(alias, key)
            except IdentityError as error:
                logger.error("%s cannot come in: %s, or restart `fedward coordinator up`", alias, error)
                if alias in self._listed:  # by a key that it has no longer
                    self._shut_out(alias)
                barred.add(alias)
            else:
                self._listed[alias] = key
                logger.info("%s is on the roster and may connect", alias)
        self._barred, self._signed = frozenset(barred), signed
        self._roster = SignedRoster(signed, roster.hash, roster.keys)

    def _compare_ledgers(self) -> None:
        self._rolled_back = self._anchors.rolled_back

    def _shut_out(self, alias: str) -> None:
        del self._listed[alias]
        self.fleet.revoke(alias)
        logger.info("%s is out", alias)

    def _next_run(self) -> None:
        if self._run is not None:
            if self._run.folder.to_stop:
                self._run.stop.set()
            if self._run.alive:
                return
            self._settle(self._run)
            self._run = None
        for folder in all_runs(self._coordinator.runs):
            if folder.state == "queued":
                if folder.to_stop:
                    folder.turn("stopped", self._coordinator.clock(), why="before it began")
                    continue
                admission = self._admission(folder)
                self._run = _Run(self._coordinator, self.fleet, folder, admission, self._anchors, self._report)
                return

    def _settle(self, run: _Run) -> None:
        """Put on the disk how ``run`` ended, and tell of it."""
        outcome = run.settle()
        if outcome is None:
            return
        alert = ended(run.folder.name, outcome, quorum=run.quorum_lost, unpaid=run.unpaid)
        if alert is not None:
            self._board.once(alert)

    def _admission(self, folder: RunFolder) -> Admission:
        return Admission(
            sites=lambda: (
                dict.fromkeys(self._barred, 0) | {alias: status.node_id for alias, status in self.fleet.nodes().items()}
            ),
            online=lambda: frozenset(alias for alias, status in self.fleet.nodes().items() if status.online),
            roster=lambda: self._roster,
            patience_s=self._patience_s,
            pause_s=self._pause_s,
            begun=folder.begun,
            program=version("fedward"),
        )

    def _tell(self) -> None:
        """``status.json``, each second."""
        run = self._run
        sites = {
            alias: {
                "online": status.online,
                "last_seen": status.last_seen,
                "answer": run.admission.answers.get(alias, "") if run else "",
                "program": run.admission.programs.get(alias, "") if run else "",
                "until": run.admission.until.get(alias, 0) if run else 0,
            }
            for alias, status in self.fleet.nodes().items()
        }
        told: dict[str, Any] = {
            "at": time.time(),
            "since": self._since,
            "port": self.fleet.port,
            "sites": sites,
            "run": run.facts() if run else None,
            "refused": dict(self.fleet.refusals),
            "rolled_back": self._rolled_back,
        }
        told["alerts"] = self._lookout.look(told, self._trouble)
        show(self._coordinator.directory / STATUS, json.dumps(told))


class _Run:
    """One run in its own thread. Raises :class:`RunError` for a folder that is damaged."""

    def __init__(
        self,
        coordinator: Coordinator,
        fleet: Fleet,
        folder: RunFolder,
        admission: Admission,
        anchors: AnchorDesk,
        report: Callable[[Path], object],
    ) -> None:
        self.folder, self.admission, self._anchors, self._report = folder, admission, anchors, report
        self.stop, self.watch = threading.Event(), Watch()
        self._coordinator, self._fleet = coordinator, fleet
        self._facts = folder.facts
        self._outcome: tuple[State, datetime, str] | None = None
        self._aside: list[str] = []
        self.quorum_lost = self.unpaid = False
        self._thread = threading.Thread(target=self._work, name="fedward-run", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """Stop after the message at hand, and wait for that."""
        self.stop.set()
        self._thread.join(60.0)
        try:
            self.settle()
        except FedwardError as error:
            logger.error("how run %s ended is not on the disk: %s", self.folder.name, error)

    def settle(self) -> State | None:
        """Put the outcome on the disk, once there is one; which. Raises :class:`RunError` where it is full."""
        if self._outcome is None:
            return None
        state, at, why = self._outcome
        if self.folder.path.is_dir():
            self.folder.turn(state, at, known=self._facts, why=why)
        self._outcome = None
        return state

    def facts(self) -> dict[str, Any]:
        """For ``status``."""
        return {"name": self.folder.name, **self.watch.facts(), "set_aside": list(self._aside)}

    def _turn(self, state: State, **facts: Any) -> None:
        self._facts = self.folder.turn(state, self._coordinator.clock(), known=self._facts, **facts)

    def _work(self) -> None:
        state: State = "failed"
        try:
            state, why = self._train()
        except FedwardError as error:
            logger.error("run %s: %s", self.folder.name, error)
            why = str(error)
        except Exception as error:
            logger.exception("run %s failed", self.folder.name)
            why = f"unexpected: {type(error).__name__}; see the log"
        self._outcome = (state, self._coordinator.clock(), why)

    def _train(self) -> tuple[State, str]:
        """How it ended, and why. Raises for a run that failed."""
        folder = self.folder
        lines = JsonLines.append_to(folder.path / EVENTS)
        events = EventLog(lines, self._remember)
        try:
            study = folder.study
            self._turn("waiting")
            with self._fleet.grid() as grid:
                link = Link(
                    grid,
                    events,
                    stop=self.stop,
                    sleep=self._sleep,
                    roster=self.admission.roster,
                    anchors=self._anchors,
                    pause_s=self.admission.pause_s,
                    watch=self.watch,
                )
                sites = admit(link, study, self.admission)
                asked = self._asked(sites)
                roster = self._coordinator.roster.hash
                self._turn("running", sites=sorted(sites), roster=roster, asked=asked.to_json())
                events.emit("begun", study=study.hash, sites=sorted(sites))
                if self._facts.get("survey_only"):
                    survey_first(link, study, sites, folder.path, folder.base)
                    return "stopped", f"surveyed, not trained; {PAGE} in its folder says what came of it"
                result = train(link, study, sites, folder.path, folder.base, asked)
                self._facts["trained"] = result["trained"]
                self._make_pages(events)
                if result.get("unpaid"):
                    return "stopped", self._unpaid(result)
            return "finished", ""
        except Interrupted:
            return ("stopped", "asked to") if folder.to_stop else ("interrupted", "shut down")
        except QuorumError as error:
            events.emit("alert", kind="quorum-lost", why=str(error))
            self.quorum_lost = True
            raise
        finally:
            lines.close()

    def _asked(self, sites: Mapping[str, int]) -> Asked:
        """What the roster's sites answered before the run began: a run that goes on asks its own sites only."""
        federation, admission = self._coordinator.config.name, self.admission
        kept = self._facts.get("asked") if admission.begun else None
        if kept is not None:
            return Asked(kept["images"], kept["declined"], federation)
        declined = {alias: answer for alias, answer in admission.answers.items() if alias not in sites}
        return Asked({alias: admission.images.get(alias, {}) for alias in sites}, declined, federation)

    def _make_pages(self, events: EventLog) -> None:
        """The results are on the disk: that no page could be made of them fails no run, and keeps no model back."""
        try:
            self._report(self.folder.path)
        except Exception as error:
            why = str(error) if isinstance(error, FedwardError) else f"unexpected: {type(error).__name__}"
            logger.exception("no report of run %s", self.folder.name)
            events.emit("alert", kind="no-report", why=f"{why}; `fedward coordinator report` makes it again")

    def _unpaid(self, result: Mapping[str, Any]) -> str:
        """Word of sites whose privacy budgets have ended the run."""
        self.unpaid = True
        kept = result["arms"]["federated"]["kept_round"]
        return (
            f"the privacy budget of {', '.join(result['unpaid'])} is used up; the model of round {kept} is kept in the "
            "run's folder, and `resume` goes on from there once a privacy officer has raised it"
        )

    def _sleep(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def _remember(self, line: Mapping[str, Any]) -> None:
        if line["event"] == "set-aside":
            self._aside.append(line["site"])
