"""Measuring a command: wall, CPU seconds of its whole process tree, peak PSS; and figures made of repetitions."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 0.2
"""How often the tree's memory is read; a peak shorter than this can be missed."""

_PR_SET_CHILD_SUBREAPER = 36
_UNUSUAL = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
"""Not set for what is measured, as a user has it. Everything measured pins torch's threads itself; without compiled
bytecode Python would compile torch at every start, 3 CPU-seconds on either side of a ratio."""


@dataclass(frozen=True)
class Measured:
    """One run of a command. ``started`` is Unix time; ``cpu_s`` counts every process that descended from it."""

    started: float
    wall_s: float
    cpu_s: float
    pss_mb: float
    processes: int
    output: str
    unread: int = 0
    """Processes whose memory the kernel did not show: ``pss_mb`` is without them."""


class Failed(Exception):
    """A measured command that did not end well; the message holds the end of what it said."""


@dataclass
class _Watch:
    """Samples a process tree: PSS of all of it at once, and each process's CPU time when last seen."""

    root: psutil.Process
    pss: int = 0
    processes: int = 0
    unread: set[int] = field(default_factory=set)
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.done.is_set():
            self.sample()
            self.done.wait(SAMPLE_S)

    def sample(self) -> None:
        total = count = 0
        with contextlib.suppress(psutil.Error):
            for process in [self.root, *self.root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    try:
                        total += _pss(process.pid)
                    except PermissionError:
                        self.unread.add(process.pid)
                    times = process.cpu_times()
                    self.cpu[process.pid, process.create_time()] = times.user + times.system
                    count += 1
        self.pss, self.processes = max(self.pss, total), max(self.processes, count)


def _pss(pid: int) -> int:
    """Proportional set size in bytes: shared pages count once over the tree."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def adopt_orphans() -> None:
    """Make this process the one that inherits and waits for descendants whose parents ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 900.0,
) -> Measured:
    """Run ``command`` to its end and measure it. Raises :class:`Failed` where it exits non-zero or takes too long.

    CPU seconds are those that the kernel accounts to waited-for descendants (orphans are adopted and waited for),
    or the sum of the samples where that is more.
    """
    adopt_orphans()
    before, started, clock = _children_cpu(), time.time(), time.perf_counter()
    environment = {**os.environ, **(env or {})}
    for name in _UNUSUAL:
        environment.pop(name, None)
    with tempfile.TemporaryFile("w+b") as said:
        process = subprocess.Popen(list(map(str, command)), env=environment, cwd=cwd, stdout=said, stderr=said)
        watch = _Watch(psutil.Process(process.pid))
        sampler = threading.Thread(target=watch.run, daemon=True)
        sampler.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            wall = time.perf_counter() - clock
            watch.done.set()
            sampler.join()
            _end(process)
        said.seek(0)
        output = said.read().decode(errors="replace")
    if code != 0:
        reason = "took too long" if code is None else f"exited {code}"
        raise Failed(f"{Path(str(command[0])).name} {reason}: {' | '.join(output.strip().splitlines()[-3:])[:600]}")
    cpu = max(_children_cpu() - before, sum(watch.cpu.values()))
    return Measured(started, wall, cpu, watch.pss / 1e6, watch.processes, output, len(watch.unread))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the tree: the command itself after a timeout, and orphans, which are ours now."""
    left = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=3.0)
    for orphan in alive:
        with contextlib.suppress(psutil.Error):
            orphan.send_signal(signal.SIGKILL)
    psutil.wait_procs(alive, timeout=10.0)
    process.wait()


# -- figures -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """``value ≤ limit`` or ``value ≥ limit``."""

    sign: str
    limit: float

    def met(self, value: float) -> bool:
        return value <= self.limit if self.sign == "≤" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


def at_most(limit: float) -> Aim:
    return Aim("≤", limit)


def at_least(limit: float) -> Aim:
    return Aim("≥", limit)


@dataclass(frozen=True)
class Figure:
    """One measured number: a value per repetition, and what it should be. ``None`` in ``values``: nothing measured."""

    name: str
    unit: str
    values: Sequence[float]
    aim: Aim | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """``met``, ``SHORT``, ``not measured``, or nothing where there is no aim."""
        if self.median is None:
            return "not measured"
        if self.aim is None:
            return ""
        return "met" if self.aim.met(self.median) else "SHORT"

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "values": [round(value, 4) for value in self.values],
            "aim": str(self.aim) if self.aim else None,
            "verdict": self.verdict,
            "note": self.note,
        }


def interleaved(repeat: int, **measurements: Callable[[], Any]) -> dict[str, list[Any]]:
    """Each measurement once, then each again, so that a busy minute meets all of them. Odd rounds run backwards."""
    found: dict[str, list[Any]] = {name: [] for name in measurements}
    for number in range(repeat):
        names = list(measurements) if number % 2 == 0 else list(reversed(measurements))
        for name in names:
            found[name].append(measurements[name]())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Repetition by repetition: the two were measured next to each other."""
    return [a / b for a, b in zip(above, below, strict=True)]
