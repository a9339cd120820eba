"""Running fedward as a user does, and reading what a run left behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from measuring import Measured, measure

FEDWARD = Path(sys.executable).with_name("fedward")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIDE_WORK = ("vaults", "testing", "comparing", "report")
"""Phases that a bare loop does not have; everything else (start-up, training, what lies between) is the same work."""


@dataclass(frozen=True)
class Played:
    """One simulation: how it was measured, its results and its events. The run's folder is gone."""

    measured: Measured
    results: dict[str, Any]
    events: list[dict[str, Any]]
    sizes: dict[str, int]

    def phase(self, name: str, unit: str = "cpu_s") -> float:
        return float(next((phase[unit] for phase in self.results["phases"] if phase["name"] == name), 0.0))

    @property
    def same_work_cpu_s(self) -> float:
        """CPU seconds of the process tree less those of the phases that a bare loop does not have."""
        return self.measured.cpu_s - sum(self.phase(name) for name in SIDE_WORK)

    @property
    def rounds_s(self) -> list[float]:
        """Wall seconds of each round, evaluation included."""
        return [event["wall_s"] for event in self.events if event["event"] == "round"]

    @property
    def first_site_s(self) -> float:
        """From the start of the command to the end of the first hospital's first fit: above its first step."""
        first = next(event for event in self.events if event["event"] == "site")
        return datetime.fromisoformat(first["time"]).timestamp() - self.measured.started


def simulate(study: Path, folder: Path, *arguments: str | Path, data: Path | None = None) -> Played:
    """``fedward simulate`` into ``folder``/run, read and removed again."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    source: Sequence[str | Path] = ("--data", data) if data else ()
    measured = measure([FEDWARD, "simulate", study, *source, "--out", out, *arguments], cwd=ROOT)
    results = json.loads((out / "results.json").read_text())
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    sizes["sites"] = sum(path.stat().st_size for path in (out / "sites").rglob("*") if path.is_file())
    shutil.rmtree(out)
    return Played(measured, results, events, sizes)


@dataclass(frozen=True)
class Imported:
    """One ``fedward site import``: how it was measured and what it counted."""

    measured: Measured
    images: int
    seconds: float
    """Wall time without start-up and end."""


def new_site(directory: Path) -> Path:
    """An empty site in ``directory``, in place of what is there."""
    shutil.rmtree(directory, ignore_errors=True)
    measure([FEDWARD, "site", "init", directory, "--name", "bench", "--synthetic"])
    return directory


def import_into(site: Path, source: Path, *, workers: int = 1) -> Imported:
    """``fedward site import`` of a folder."""
    done = measure([FEDWARD, "site", "import", source, "--site", site, "--workers", str(workers), "--json"])
    counted = json.loads(done.output.strip().splitlines()[-1])
    return Imported(done, counted["images"], counted["seconds"])


def script(name: str, *arguments: str | Path | float) -> tuple[Measured, dict[str, Any]]:
    """A Python script of this folder, in a process of its own, and the JSON that it ends with."""
    done = measure([sys.executable, HERE / name, *map(str, arguments)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    return done, json.loads(done.output.strip().splitlines()[-1])
