"""``opening.py SITE REPEAT``: what it costs to open a vault, and to know its images as an import does.

Prints one JSON line: ``images``; ``wall_s`` and ``cpu_s`` of each opening; and in MB what stays in memory (PSS):
``opened`` of the open vault, ``known`` of the importer's memory of the images; and by how much the readiness report
raises the peak (resident), ``report``.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path

import psutil

from client.home import Home
from client.ingest.importer import Importer, Sheets
from client.ingest.readiness import examine


def pss_mb() -> float:
    gc.collect()
    return float(psutil.Process().memory_full_info().pss / 1e6)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(site: Path, repeat: int) -> None:
    home = Home.open(site)
    wall, cpu = [], []
    before = pss_mb()
    with home.vault() as vault:  # imports and the key provider's start come with the first
        opened, images = pss_mb(), len(vault)
        with Importer(vault, Sheets(), rules=home.config.rules, split=home.config.split):
            known, peak = pss_mb(), peak_mb()
            examine(vault)
            report = peak_mb() - peak
    for _ in range(repeat):
        clock, used = time.perf_counter(), time.process_time()
        with home.vault(read_only=True):
            wall.append(time.perf_counter() - clock)
            cpu.append(time.process_time() - used)
    memory = {"opened": opened - before, "known": known - opened, "report": report}
    print(json.dumps({"images": images, "wall_s": wall, "cpu_s": cpu, **memory}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
