"""Where a run took place, what it cost, and how its repeats spread."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import psutil


def version() -> str:
    return metadata.version("fedward")


def describe() -> dict[str, str]:
    """Versions and hardware, for the report. No host name, no user, no path."""
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    facts |= {name: metadata.version(name) for name in ("torch", "flwr", "numpy", "cryptography", "safetensors")}
    facts["cores"] = str(os.cpu_count())
    facts["memory_gb"] = f"{psutil.virtual_memory().total / 2**30:.0f}"
    facts["cpu"] = _cpu()
    return facts


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


class Stopwatch:
    """Wall and CPU seconds of the process tree, in total and by phase.

    The command counts from its process' start (``whole_process``); a notebook's process has a life of its own.
    """

    def __init__(self, *, whole_process: bool = True) -> None:
        self._wall0, self._cpu0 = time.perf_counter(), 0.0
        self._phases: dict[str, list[float]] = {}
        if not whole_process:
            self._cpu0 = self._cpu()
            return
        with contextlib.suppress(psutil.Error):
            # Start-up counts: the clock began when the process did.
            self._wall0 -= time.time() - psutil.Process().create_time()
        self._phases["start-up"] = [time.perf_counter() - self._wall0, self._cpu()]

    def _cpu(self) -> float:
        """CPU seconds of this process, its ended children and its living ones."""
        own = os.times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                total += times.user + times.system
        return total

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to phase ``name``."""
        wall, cpu = time.perf_counter(), self._cpu()
        try:
            yield
        finally:
            total = self._phases.setdefault(name, [0.0, 0.0])
            total[0] += time.perf_counter() - wall
            total[1] += max(0.0, self._cpu() - cpu)

    def json(self) -> dict[str, Any]:
        """``wall_s``, ``cpu_s`` and ``phases`` as they stand in ``results.json``."""
        return {
            "wall_s": round(time.perf_counter() - self._wall0, 3),
            "cpu_s": round(self._cpu() - self._cpu0, 3),
            "phases": [
                {"name": name, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
                for name, (wall, cpu) in self._phases.items()
            ],
        }


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum of every arm's test metrics over the repeats."""
    found: dict[str, Any] = {}
    for arm in results[0]["arms"]:
        found[arm] = {}
        for metric in results[0]["arms"][arm]["test"]:
            values = [result["arms"][arm]["test"][metric]["value"] for result in results]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                found[arm][metric] = {
                    "mean": statistics.fmean(known),
                    "sd": statistics.stdev(known) if len(known) > 1 else 0.0,
                    "min": min(known),
                    "max": max(known),
                    "values": known,
                }
    return found
