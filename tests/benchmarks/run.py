"""``make bench``: measure fedward against its baselines and print, or record, the figures.

python tests/benchmarks/run.py [--only NAME …] [--repeat N] [--peers] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from commands import ROOT
from measuring import Failed, Figure
from options import Options
from recording import circumstances, record, table
from workloads import WORKLOADS, warm_up


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--repeat", type=int, help="repetitions of every workload; each has a default of its own")
    parser.add_argument("--peers", action="store_true", help="measure Flower with Ray and NVFlare too; installs them")
    parser.add_argument("--write", action="store_true", help="record the figures in docs/results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="where --write writes")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink the workloads, to test the bench itself")
    found = parser.parse_args()
    if found.repeat is not None and found.repeat < 1:
        parser.error("--repeat must be at least 1")
    if not 0.0 < found.scale <= 1.0:
        parser.error("--scale must be above 0 and at most 1")
    if found.write and found.scale != 1.0 and found.out.resolve() == (ROOT / "docs" / "results").resolve():
        parser.error("figures of a shrunk workload are not recorded; leave out --scale, or give another --out")
    return found


def main() -> int:
    """0 when everything was measured, whatever the figures; 1 when a workload could not be."""
    given = arguments()
    found: dict[str, list[Figure]] = {}
    about = {}
    failed = False
    if given.scale == 1.0 and given.only != ["help"]:
        with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
            warm_up(Path(folder))
    for name in given.only or WORKLOADS:
        workload = WORKLOADS[name]
        repeat = given.repeat or workload.default_repeat
        about[name] = circumstances(_command(name), repeat)
        print(f"{name}: {workload.what}", flush=True)
        with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
            try:
                found[name] = workload.run(Options(Path(folder), repeat, given.peers, given.scale))
            except Failed as error:
                failed = True
                print(f"  FAILED: {error}\n", flush=True)
                continue
        print("\n".join("  " + line for line in table(found[name])) + "\n", flush=True)
        if given.write:
            record({name: found[name]}, about, given.out)
    short = [
        f"{name}: {figure.name}" for name, figures in found.items() for figure in figures if figure.verdict == "SHORT"
    ]
    print(f"short of the aim: {'; '.join(short) or 'nothing'}")
    return 1 if failed else 0


def _command(name: str) -> str:
    """What repeats this workload's recording."""
    options = [option for option in sys.argv[1:] if option in ("--peers",)]
    return shlex.join(["make", "bench", f"ARGS=--only {name} --write{' ' if options else ''}{' '.join(options)}"])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    os._exit(130)
