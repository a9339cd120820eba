"""What a second worker is worth in a search."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass

from commands import FEDWARD, ROOT
from measuring import Failed, Figure, Measured, at_least, interleaved, measure, ratios
from options import Options, Workload

_STUDY = """\
name: bench
task: binary
classes: [normal, pneumonia]
data: {{phantoms: {{images: {images}, size: 64}}}}
image: {{size: 64}}
model: {{name: cnn, params: {{filters: [16, 32, 32], hidden: [32]}}}}
training: {{local_epochs: 1}}
federation: {{rounds: {rounds}}}
partition: {{kind: iid, sites: 3, min_per_site: 5}}
"""
_SPACE = """\
method: {method}
trials: {trials}
folds: 3
space:
  training.optimiser.lr: {{low: 1e-4, high: 1e-2, log: true}}
  model.dropout: {{low: 0.0, high: 0.5}}
  training.batch_size: [16, 32, 64]
"""


@dataclass(frozen=True)
class Searched:
    """One search: how it was measured, and what of it was training."""

    measured: Measured
    fits_s: float
    """Wall seconds of all fits together, by their own clocks."""
    scores: list[float]


def _search(options: Options, method: str, workers: int) -> Searched:
    trials, out = options.scaled(20, 2), options.folder / "search"
    study, space = options.folder / "study.yaml", options.folder / "space.yaml"
    study.write_text(_STUDY.format(images=options.scaled(600, 60), rounds=options.scaled(4, 1)))
    space.write_text(_SPACE.format(method=method, trials=trials))
    shutil.rmtree(out, ignore_errors=True)
    done = measure([FEDWARD, "search", study, space, "--workers", str(workers), "--out", out], cwd=ROOT)
    found = json.loads((out / "trials.json").read_text())["trials"]
    by_number = sorted(found, key=lambda trial: trial["trial"])
    if len(found) != trials or any(trial["status"] != "done" for trial in found):
        raise Failed("not every trial of the search has a result")
    return Searched(done, sum(trial["wall_s"] for trial in found), [trial["score"] for trial in by_number])


def search(options: Options) -> list[Figure]:
    """One worker against two: wall seconds of the whole command, start-up, vaults and page included."""
    found = interleaved(
        options.repeat,
        one=lambda: _search(options, "random", 1),
        two=lambda: _search(options, "random", 2),
        tpe=lambda: _search(options, "tpe", 2),
    )
    if any(run.scores != found["one"][0].scores for name in ("one", "two") for run in found[name]):
        raise Failed("two workers found other scores than one")
    wall = {name: [run.measured.wall_s for run in runs] for name, runs in found.items()}
    note = "" if (os.cpu_count() or 1) >= 2 else "this machine has one core"
    return [
        Figure("one worker / two workers", "× wall", ratios(wall["one"], wall["two"]), at_least(1.7), note),
        Figure(
            "random, two workers / TPE, two workers",
            "× wall",
            ratios(wall["two"], wall["tpe"]),
            note="TPE waits for what it learns from",
        ),
        *(Figure(f"whole command, {_NAMES[name]}", "s", values) for name, values in wall.items()),
        Figure("all fits by their own clocks, one worker", "s", [run.fits_s for run in found["one"]]),
        *(Figure(f"peak PSS, {_NAMES[name]}", "MB", [run.measured.pss_mb for run in found[name]]) for name in found),
    ]


_NAMES = {"one": "one worker", "two": "two workers", "tpe": "two workers, TPE"}

WORKLOADS: dict[str, Workload] = {
    "search": Workload(
        "`fedward search`: 20 random trials × 3 folds, small CNN on 600 phantoms of 64×64 at 3 sites, 4 rounds: one "
        "worker process against two, and TPE",
        search,
        1,
    ),
}
