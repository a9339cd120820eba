"""A federation that is put through something, and the same study undisturbed, to compare the outcome with.

``FEDWARD_SEED`` chooses what is sampled and who is struck; tests print it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message

from common import protocol
from common.study import Study
from server.app import train
from server.asking import Link
from server.desk import all_runs
from server.events import EventLog
from simulations.engine import InProcessGrid
from tests.integration.federation_fixtures import STUDY, Federation, federation, wait_for
from tests.integration.kill_points import HELD, Point, arm

SEED = int(os.environ.get("FEDWARD_SEED", "11"))
SITES = ("east", "north")
SLOW_S = 0.05
_PRELUDE = """
import pathlib
from tests.integration.kill_points import install
install("coordinator" if WHO == "coordinator" else "agent", pathlib.Path({folder!r}, f"{{WHO}}.armed"))
"""


@dataclass
class Endurance:
    """A federation that stays up from one test to the next."""

    made: Federation
    patience_s: float = 60.0
    """For the sites of a run: all of them, not a quorum, unless one is away for long."""
    count: int = 0
    _models: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def of(cls, folder: Path, sites: Sequence[str] = SITES, **options: Any) -> Iterator[Endurance]:
        print(f"FEDWARD_SEED={SEED}")
        with federation(folder, sites, prelude=_PRELUDE.format(folder=str(folder)), **options) as made:
            found = cls(made)
            yield found
            print(f"{found.count} runs; FEDWARD_SEED={SEED}")

    def up(self, *names: str) -> None:
        for name in names or ("coordinator", *self.made.sites):
            if name == "coordinator":
                self.made.up("resume", patience=self.patience_s)
            else:
                self.made.agent(name, slow=SLOW_S)

    def text(self, rounds: int = 4, **settings: object) -> str:
        """A study that has not been trained yet; its numbers are those of every other with the same settings."""
        self.count += 1
        wanted = {"rounds": rounds, "deadline_s": 120, **settings}
        listed = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        return STUDY.replace("tiny", f"k{self.count:03}").replace("rounds: 4, deadline_s: 60", listed)

    def undisturbed(self, text: str, absent: Iterable[tuple[int, str]] = ()) -> bytes:
        """The model of the same study over the same vaults in one process, but for the ``absent``: round and site."""
        away = set(absent)
        key = repr((text.partition("\n")[2], sorted(away)))
        if key not in self._models:
            out = self.made.folder / f"undisturbed-{len(self._models)}"
            out.mkdir()
            with contextlib.closing(InProcessGrid([self.made.folder / alias for alias in self.made.sites])) as inner:
                nodes = dict(zip(self.made.sites, inner.get_node_ids(), strict=True))
                grid = _Absences(inner, {(round_, nodes[alias]) for round_, alias in away})
                train(Link(grid, EventLog()), Study.parse(text), nodes, out, out)  # type: ignore[arg-type]
            self._models[key] = model(out)
        return self._models[key]

    def begin(self, text: str, point: Point | None = None, struck: str = "") -> str:
        """Launch and approve; with ``struck``'s process armed for ``point`` when its rounds are over. The run."""
        self._clear()
        file = self.made.folder / f"{struck}.armed"
        if point is not None and not point.rounds:
            arm(file, point)
        run = self.made.launch(text)
        self.made.approve(run, *self.made.sites)
        if point is not None and point.rounds:
            wait_for(lambda: self.made.rounds(run) >= point.rounds, "a round", self.made)
            arm(file, point)
        if point is not None:
            wait_for(lambda: not file.exists(), f"{struck} to be struck {point}", self.made)
        return run

    def _clear(self) -> None:
        """What a test that failed has left is no matter of the next one's."""
        for left in (*self.made.folder.glob("*.armed"), *self.made.folder.glob(f"*{HELD}")):
            left.unlink()
        for run in all_runs(self.made.folder / "coordinator" / "runs"):
            if run.state not in ("finished", "failed", "stopped"):
                run.ask_to_stop()

    def let_go(self, held: str) -> None:
        (self.made.folder / f"{held}{HELD}").unlink()

    def over(self, run: str, timeout_s: float = 200.0) -> None:
        facts = self.made.state(run, "finished", "failed", "stopped", timeout_s=timeout_s)
        assert facts["state"] == "finished", (facts, self.made.events(run)[-4:])

    @contextlib.contextmanager
    def revived(self, name: str) -> Iterator[list[int]]:
        """Start ``name`` again as often as it ends; the exit codes."""
        codes: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                code = self.made.running[name].poll()
                if code is not None:
                    codes.append(code)
                    self.up(name)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield codes
        finally:
            over.set()
            watcher.join()


class _Absences:
    """A Grid on which some sites cannot be reached for the training of some rounds."""

    def __init__(self, inner: InProcessGrid, absent: set[tuple[int, int]]) -> None:
        self._inner, self._absent = inner, absent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return ["" if self._away(message) else next(iter(self._inner.push_messages([message]))) for message in messages]

    def _away(self, message: Message) -> bool:
        request = protocol.open_request(message)
        training = isinstance(request, protocol.TrainRequest)
        return training and (request.task.round, message.metadata.dst_node_id) in self._absent


def model(run: Path) -> bytes:
    """Equal weights are equal bytes."""
    (path,) = run.glob("*.safetensors")
    return path.read_bytes()


def history(made: Federation, run: str) -> list[dict[str, Any]]:
    found = json.loads((made.run(run) / "results.json").read_text())["arms"]["federated"]["history"]
    return list(found)


def statuses(made: Federation, run: str) -> list[dict[str, str]]:
    """Round by round, what became of each site's training."""
    return [{site: facts["status"] for site, facts in record["sites"].items()} for record in history(made, run)]


def absences(made: Federation, run: str) -> list[tuple[int, str]]:
    """Round and site of every training that was not counted."""
    said = enumerate(statuses(made, run), start=1)
    return [(number, site) for number, sites in said for site, status in sites.items() if status != "ok"]


def every_round_once(made: Federation, run: str, rounds: int = 4) -> None:
    """In the results, which are the checkpoint's, and among the events."""
    assert [record["round"] for record in history(made, run)] == list(range(1, rounds + 1))
    told = [event["round"] for event in made.events(run) if event["event"] == "round"]
    assert sorted(told) == sorted(set(told)), "a round that was told twice"


def on_record(made: Federation, text: str, rounds: int = 4, twice_at_most: int = 0) -> None:
    """Every reply that left stands in the site's log; so may one that was made and never left."""
    study = Study.parse(text).hash
    for alias in made.sites:
        audit = made.home(alias).audit
        audit.verify()
        said = [entry.facts for entry in audit.entries() if entry.event == "reply" and entry.facts["study"] == study]
        fits = Counter(facts["round"] for facts in said if facts["kind"] == protocol.TRAIN)
        assert set(fits) == set(range(1, rounds + 1)), (alias, fits)
        assert fits.total() - rounds <= twice_at_most, (alias, fits)
        evaluated = {facts["round"] for facts in said if facts["kind"] == f"{protocol.EVALUATE} val"}
        assert evaluated == set(range(1, rounds + 1)), (alias, evaluated)


def nothing_half_written(made: Federation) -> None:
    for alias in made.sites:
        for path in made.home(alias).state.glob("*.sqlite"):
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",), path


def delivered(made: Federation, run: str) -> None:
    """Every site has the model; after that nothing is written to the run any more, and nothing half-written is left."""
    wait_for(lambda: made.delivered(run) == dict.fromkeys(made.sites, "delivered"), "the model at every site", made)
    wait_for(lambda: not [path for path in made.run(run).rglob(".*") if path.is_file()], "no temporary files", made)
