"""The running coordinator: sites' way in, the roster as it changes, one run after another, and what there is to know.

One process, one thread for the network (``server.superlink``), one for the run, and this loop, which looks at the
directory once a second: a site that is admitted or revoked there is so at once, a run that is launched there is begun.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import FedwardError, IdentityError, Interrupted, QuorumError
from common.identity import Address
from server.admission import Admission, admit
from server.app import train
from server.desk import EVENTS, STATUS, UNFINISHED, RunFolder, all_runs
from server.events import EventLog, JsonLines
from server.provision import Coordinator
from server.rounds import Link
from server.superlink import Fleet

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
    ) -> None:
        self._coordinator = coordinator
        self._tick_s, self._patience_s, self._pause_s = tick_s, patience_s, pause_s
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
        self._signed = b""
        self._run: _Run | None = None

    def run(self, *, stop: threading.Event, resume: bool = False) -> None:
        """Serve until ``stop``. Runs that a killed process left are marked; ``resume`` queues such runs again."""
        at = self._coordinator.clock()
        for folder in all_runs(self._coordinator.runs):
            if folder.state in UNFINISHED:
                folder.turn("interrupted", at, why="the coordinator was killed")
            if resume and folder.state == "interrupted":
                folder.resume(at)
        self._follow_roster()
        with self.fleet:
            logger.info("listening on %s, port %d", self._coordinator.config.listen, self.fleet.port)
            try:
                while not stop.is_set():
                    self._follow_roster()
                    self._next_run()
                    self._tell()
                    stop.wait(self._tick_s)
            finally:
                if self._run is not None:
                    self._run.end()
                    self._run = None
                with suppress(FedwardError):
                    self._tell(running=False)

    def _follow_roster(self) -> None:
        """Register and shut out as ``roster.json`` says now; a damaged one changes nothing and is said."""
        try:
            signed = self._coordinator.signed_roster
            if signed == self._signed:
                return
            wanted = {entry.alias: entry.public_key.openssh.encode() for entry in self._coordinator.roster.active}
        except IdentityError as error:
            logger.error("%s", error)
            return
        for alias in set(self._listed) - set(wanted):
            self.fleet.revoke(alias)
            logger.info("%s is out", alias)
        for alias, key in wanted.items():
            if self._listed.get(alias) != key:
                self.fleet.register(alias, key)
                logger.info("%s may come in", alias)
        self._listed, self._signed = wanted, signed

    def _next_run(self) -> None:
        if self._run is not None:
            if self._run.folder.to_stop:
                self._run.stop.set()
            if self._run.alive:
                return
            self._run = None
        for folder in all_runs(self._coordinator.runs):
            if folder.state == "queued":
                if folder.to_stop:
                    folder.turn("stopped", self._coordinator.clock(), why="before it began")
                    continue
                self._run = _Run(self._coordinator, self.fleet, folder, self._admission())
                return

    def _admission(self) -> Admission:
        return Admission(
            sites=lambda: {alias: status.node_id for alias, status in self.fleet.nodes().items()},
            online=lambda: frozenset(alias for alias, status in self.fleet.nodes().items() if status.online),
            roster=lambda: self._signed,
            patience_s=self._patience_s,
            pause_s=self._pause_s,
        )

    def _tell(self, *, running: bool = True) -> None:
        """``status.json``: not synced to the disk each second, but never half-written."""
        run = self._run
        sites = {
            alias: {
                "online": status.online,
                "last_seen": status.last_seen,
                "answer": run.admission.answers.get(alias, "") if run else "",
                "program": run.admission.programs.get(alias, "") if run else "",
            }
            for alias, status in self.fleet.nodes().items()
        }
        told = {
            "at": time.time(),
            "process": os.getpid() if running else 0,
            "port": self.fleet.port,
            "sites": sites,
            "run": run.facts() if run else None,
            "refused": dict(self.fleet.refusals),
        }
        path = self._coordinator.directory / STATUS
        partial = path.with_name(f".{STATUS}.new")
        partial.write_text(json.dumps(told), encoding="utf-8")
        partial.chmod(0o600)
        os.replace(partial, path)  # noqa: PTH105


class _Run:
    """One run in its own thread."""

    def __init__(self, coordinator: Coordinator, fleet: Fleet, folder: RunFolder, admission: Admission) -> None:
        self.folder, self.admission = folder, admission
        self.stop = threading.Event()
        self._coordinator, self._fleet = coordinator, fleet
        self._last: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, name="fedward-run", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """Stop after the message at hand, and wait for that."""
        self.stop.set()
        self._thread.join(60.0)

    def facts(self) -> dict[str, Any]:
        """For ``status``."""
        return {"name": self.folder.name, **self._last}

    def _work(self) -> None:
        folder, clock = self.folder, self._coordinator.clock
        lines = JsonLines.append_to(folder.path / EVENTS)
        events = EventLog(lines, self._remember)
        try:
            study = folder.study
            folder.turn("waiting", clock())
            with self._fleet.grid() as grid:
                link = Link(grid, events, stop=self.stop, sleep=self._sleep)
                sites = admit(link, study, self.admission)
                folder.turn("running", clock(), sites=sorted(sites))
                events.emit("begun", study=study.hash, sites=sorted(sites))
                train(link, study, sites, folder.path, folder.base)
            folder.turn("finished", clock())
        except Interrupted:
            asked = folder.to_stop
            folder.turn("stopped" if asked else "interrupted", clock(), why="asked to" if asked else "shut down")
        except FedwardError as error:
            logger.error("run %s: %s", folder.name, error)
            folder.turn("failed", clock(), why=str(error))
            if isinstance(error, QuorumError):
                events.emit("alert", kind="quorum-lost", why=str(error))
        except Exception as error:
            logger.exception("run %s failed", folder.name)
            folder.turn("failed", clock(), why=f"unexpected: {type(error).__name__}; see the log")
        finally:
            lines.close()

    def _sleep(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def _remember(self, line: Mapping[str, Any]) -> None:
        kept = ("round", "rounds", "train_loss", "val_auc", "val_loss", "bytes", "wall_s")
        if line["event"] == "round":
            self._last = {key: line.get(key) for key in kept}
            self._last["absent"] = {
                site: facts["status"] for site, facts in line["sites"].items() if facts["status"] != "ok"
            }


def read_status(directory: Path) -> dict[str, Any] | None:
    """What the running coordinator last told; ``None`` where none has run."""
    try:
        found: dict[str, Any] = json.loads((directory / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
