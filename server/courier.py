"""Brings each finished model to the sites that trained it, once each, whenever they come online.

Beside the run of the day: a message of its own, which a site answers between two rounds of another study. Who has it
is on the disk (``delivery.json`` in the run's folder), so that a coordinator which was killed brings it to the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import numpy as np
from flwr.app import Message

from common import protocol
from common.errors import FedwardError, ProtocolError
from common.files import write_atomically
from common.package import WEIGHTS, Manifest
from server.desk import EVENTS, RunFolder, all_runs
from server.events import EventLog, JsonLines
from server.fleet_grid import FleetGrid
from server.package import contents, package
from server.provision import Coordinator
from server.receipts import DELIVERY, Receipt, State, receipts
from server.superlink import Fleet

logger = logging.getLogger("fedward.coordinator")

TTL_S = 86_400.0
PAUSE_S = (60.0, 6 * 3600.0)
"""After a site's refusal: before the next attempt, and at most."""
_OVER = frozenset({"study-withdrawn", "approval-refused"})
"""Codes of sites that do not want it."""


@dataclass
class _Parcel:
    """One run's model and who has it."""

    folder: RunFolder
    manifest: Manifest
    signed: bytes
    sites: dict[str, Receipt]
    tries: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Alias -> when to try again (monotonic seconds), and the pause after that."""
    changed: bool = False

    def open(self, alias: str) -> bool:
        return alias not in self.sites or self.sites[alias].state == "waiting"


class Courier:
    """Called once a tick; never waits for a site. For one thread; close it."""

    def __init__(
        self,
        coordinator: Coordinator,
        fleet: Fleet,
        *,
        pause_s: tuple[float, float] = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator, self._fleet = coordinator, fleet
        self._pause_s, self._clock = pause_s, clock
        self._parcels: dict[str, _Parcel] = {}
        self._done: set[str] = set()  # runs that are settled, or whose files are damaged: until the next start
        self._sent: dict[str, tuple[str, str]] = {}  # message -> run, alias
        self._grid: FleetGrid | None = None
        self._open = contextlib.ExitStack()

    def step(self) -> None:
        """Take what sites have answered, and send what is owed to those online."""
        self._collect()
        self._look()
        online = {alias: status.node_id for alias, status in self._fleet.nodes().items() if status.online}
        for parcel in list(self._parcels.values()):
            self._send(parcel, online)
            self._keep(parcel)
        if not self._sent:
            self.close()

    def close(self) -> None:
        """What is on its way is given up; it is sent again."""
        self._sent.clear()
        self._grid = None
        self._open.close()

    def _look(self) -> None:
        """Runs that have finished since; and those that somebody has removed, to free some space."""
        for name, parcel in list(self._parcels.items()):
            if not parcel.folder.path.is_dir():
                del self._parcels[name]
        for folder in all_runs(self._coordinator.runs):
            if folder.name in self._done or folder.name in self._parcels or folder.state != "finished":
                continue
            try:
                self._parcels[folder.name] = _Parcel(folder, *package(folder, self._coordinator), receipts(folder))
            except FedwardError as error:
                self._give_up(folder, error)
        for name, parcel in list(self._parcels.items()):
            # A revoked site stays among the owed: should it come back with another key, it is still that hospital.
            if not any(parcel.open(alias) for alias in parcel.manifest.sites):
                self._keep(parcel)
                del self._parcels[name]
                self._done.add(name)

    def _give_up(self, folder: RunFolder, error: FedwardError) -> None:
        """One run's files are damaged: the others' models go on."""
        logger.error("the model of run %s is not brought until the next start: %s", folder.name, error)
        self._parcels.pop(folder.name, None)
        self._done.add(folder.name)

    def _send(self, parcel: _Parcel, online: Mapping[str, int]) -> None:
        on_the_way = {alias for run, alias in self._sent.values() if run == parcel.folder.name}
        now = self._clock()
        due = [
            alias
            for alias in parcel.manifest.sites
            if alias in online
            and alias not in on_the_way
            and parcel.open(alias)
            and parcel.tries.get(alias, (now, 0.0))[0] <= now
        ]
        if not due:
            return
        try:
            files = contents(parcel.folder)
            parcel.manifest.check(files)
            task = protocol.Task(parcel.folder.study)
        except FedwardError as error:
            self._give_up(parcel.folder, error)
            return
        arrays = {name: np.frombuffer(content, np.uint8) for name, content in files.items()}
        sealed = protocol.seal(protocol.DeliveryRequest(task, parcel.signed, arrays))
        if self._grid is None:
            self._grid = self._open.enter_context(self._fleet.post())
        ids = self._grid.push_messages([sealed.to(online[alias], TTL_S) for alias in due])
        self._sent |= {id_: (parcel.folder.name, alias) for id_, alias in zip(ids, due, strict=True) if id_}

    def _collect(self) -> None:
        while self._grid is not None and self._sent:
            arrived = self._grid.pull_messages(list(self._sent))
            if not arrived:
                return
            for message in arrived:
                name, alias = self._sent.pop(message.metadata.reply_to_message_id)
                if name in self._parcels:
                    self._answered(self._parcels[name], alias, message)

    def _answered(self, parcel: _Parcel, alias: str, message: Message) -> None:
        answer = "no answer"
        if not message.has_error():
            try:
                reply = protocol.open_reply(message)
                if isinstance(reply, protocol.Refusal):
                    answer = reply.code
                elif reply == protocol.Receipt(alias, parcel.manifest.files[WEIGHTS].sha256):
                    self._settle(parcel, alias, "delivered")
                    return
                else:
                    answer = "wrong kind of reply"
            except ProtocolError:
                answer = "unreadable reply"
        if answer in _OVER:
            self._settle(parcel, alias, "withdrawn", answer)
            return
        pause = parcel.tries.get(alias, (0.0, self._pause_s[0]))[1]
        parcel.tries[alias] = (self._clock() + pause, min(2 * pause, self._pause_s[1]))
        self._settle(parcel, alias, "waiting", answer)

    def _settle(self, parcel: _Parcel, alias: str, state: State, answer: str = "") -> None:
        before = parcel.sites.get(alias)
        at = self._coordinator.clock().astimezone(UTC).isoformat(timespec="seconds")
        parcel.sites[alias] = Receipt(state=state, at=at, answer=answer)
        parcel.changed = True
        if before is None or (before.state, before.answer) != (state, answer):
            facts: dict[str, Any] = {"site": alias, "state": state, **({"answer": answer} if answer else {})}
            logger.info("the model of run %s at %s: %s", parcel.folder.name, alias, answer or state)
            lines = JsonLines.append_to(parcel.folder.path / EVENTS)
            try:
                EventLog(lines).emit("delivery", **facts)
            finally:
                lines.close()

    def _keep(self, parcel: _Parcel) -> None:
        if parcel.changed:
            kept = {alias: one.model_dump() for alias, one in sorted(parcel.sites.items())}
            write_atomically(parcel.folder.path / DELIVERY, json.dumps(kept, indent=1).encode(), mode=0o600)
            parcel.changed = False
