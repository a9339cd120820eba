"""A coordinator and sites in processes of their own, over TLS on loopback: rounds timed, processes watched.

python federated.py SITES ROUNDS MODEL FIT FOLDER [remove]

MODEL: a model of the study; ``trivial`` is a CNN of some hundred parameters. FIT: ``fit``, or ``none``: sites then
add a little to every weight in place of training, so that all of a round but training is timed. ``remove``: FOLDER,
at the end.
Prints one JSON object: seconds of each round (from one round's end to the next, checkpoint included), and for every
process its CPU seconds over these rounds and its memory (RSS) before the run, at its peak, and round by round.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.integration import federation_fixtures as fixtures

NO_FIT = """
import client.app
import torch
from client.training import Fit
class Quick:
    def __init__(self, model, view, study, seed, *more):
        self.model, self.examples = model, len(view)
        self.step = 1e-4 * (1 + sum(seed.site.encode()) % 7)
    def run(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(self.step * torch.sign(parameter))
        return Fit(self.examples, 0.5, 1)
client.app.LocalFit = Quick
"""
SAMPLE_S = 0.02


class Watch:
    """CPU and memory of processes, sampled; ``mark`` notes where each stands."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.base = {name: process.memory_info().rss for name, process in self._processes.items()}
        self.peak = dict(self.base)
        self.marks: list[dict[str, tuple[float, int]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for name, process in self._processes.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.peak[name] = max(self.peak[name], process.memory_info().rss)

    def mark(self) -> None:
        found = {}
        for name, process in self._processes.items():
            used = process.cpu_times()
            found[name] = (used.user + used.system, process.memory_info().rss)
        self.marks.append(found)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def study(model: str, rounds: int) -> str:
    spec = (
        "{name: cnn, norm: group, params: {filters: [4, 4], hidden: [8]}}"
        if model == "trivial"
        else f"{{name: {model}, norm: batch}}"
    )
    return (
        "name: bench\ntask: binary\nclasses: [normal, pneumonia]\nseed: 7\n"
        f"image: {{size: {24 if model == 'trivial' else 32}}}\n"
        f"model: {spec}\ntraining: {{batch_size: 8}}\nfederation: {{rounds: {rounds}, deadline_s: 600}}\n"
        "evaluation: {bootstrap: 100, min_cell: 10}\n"
    )


def measure(sites: int, rounds: int, model: str, fit: str, folder: Path) -> dict[str, Any]:
    if fit == "none":
        fixtures.AGENT = NO_FIT + fixtures.AGENT
    names = [f"h{number}" for number in range(1, sites + 1)]
    with fixtures.federation(folder, names) as made:
        made.up()
        for name in names:
            made.agent(name)
        status = folder / "coordinator" / "status.json"

        def online() -> bool:
            told = json.loads(status.read_text())["sites"]
            return len(told) == sites and all(site["online"] for site in told.values())

        fixtures.wait_for(online, "all sites to be online", made, 180)
        time.sleep(1.0)
        watch = Watch({name: process.pid for name, process in made.running.items()})
        run = made.launch(study(model, rounds))
        made.approve(run, *names)
        done = 0
        while made.facts(run)["state"] not in ("finished", "failed", "stopped"):
            if made.rounds(run) > done:
                done = made.rounds(run)
                watch.mark()
            time.sleep(0.02)
        watch.end()
        if made.facts(run)["state"] != "finished":
            raise SystemExit(f"the run {made.facts(run)['state']}: {made.facts(run)['why']}")
        ends = [datetime.fromisoformat(e["time"]).timestamp() for e in made.events(run) if e["event"] == "round"]
        size = sum(e["bytes"] for e in made.events(run) if e["event"] == "round") // rounds
    first, last, count = watch.marks[0], watch.marks[-1], len(watch.marks) - 1
    return {
        "rounds_s": [b - a for a, b in itertools.pairwise(ends)],
        "bytes_a_round": size,
        "processes": {
            name: {
                "cpu_s_a_round": (last[name][0] - first[name][0]) / count,
                "base_mb": watch.base[name] / 1e6,
                "peak_mb": watch.peak[name] / 1e6,
                "rounds_mb": [mark[name][1] / 1e6 for mark in watch.marks],
            }
            for name in watch.base
        },
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    place = Path(given[4])
    try:
        print(json.dumps(measure(int(given[0]), int(given[1]), given[2], given[3], place)))
    finally:
        if given[5:] == ["remove"]:
            shutil.rmtree(place, ignore_errors=True)
