"""``fedward reproduce``: behind the front door."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common import html
from common.errors import RunError, StudyError
from common.files import write_atomically
from simulations.progress import choose_progress
from simulations.reproduce import latency, stages
from simulations.reproduce.beside import Beside, beside, results_of
from simulations.reproduce.confounding import confounding
from simulations.reproduce.found import Found
from simulations.reproduce.markdown import markdown
from simulations.reproduce.page import page_of
from simulations.reproduce.paper import Paper, load
from simulations.reproduce.playing import Listener, Order, play

FORMAT = 1
REPORT = "paper"
"""``paper.html``, ``paper.md`` and ``paper.json``."""


def reproduce(
    number: int,
    *,
    data: Sequence[str],
    out: Path | None,
    seeds: int,
    workers: int,
    quick: bool,
    full: bool,
) -> None:
    """Play a paper's studies, write the page and print the tables."""
    if quick and full:
        raise StudyError("--quick makes everything small and --full leaves it large; give one of them")
    paper = load(number)
    target = out or Path("runs") / f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-paper-{number}"
    order = Order(paper, target, _folders(paper, data), seeds, workers, quick, full)
    if not order.wanted:
        raise StudyError(f"paper {number}: none of its runs can be played with these --data; {_sets(paper)}")
    play(order, _listen)
    found = measure(order, _command(order, number))
    written = write(found)
    print(in_terminal(found))
    print(f"page: {written}")


def measure(order: Order, command: str) -> Found:
    """What the finished runs of ``order`` say."""
    results = results_of(order)
    confounded = order.paper.confounded or ""
    timed = [name for name in order.paper.latency if name in results]
    latencies = [latency.measure(order.folder(name), order.seeds) for name in timed]
    return Found(
        order,
        results,
        beside(order, results, latencies),
        stages.worths(order, results),
        latencies,
        confounding(order.folder(confounded), order.seeds) if confounded in results else None,
        command,
    )


def write(found: Found) -> Path:
    """``paper.html``, ``paper.md`` and ``paper.json`` in the reproduction's folder; returns the page's path."""
    out, page = found.order.out, page_of(found)
    write_atomically(out / f"{REPORT}.json", json.dumps(_json(found), indent=1).encode())
    write_atomically(out / f"{REPORT}.md", markdown(page).encode())
    html.write(page, out / f"{REPORT}.html")
    return out / f"{REPORT}.html"


def in_terminal(found: Found) -> str:
    """The paper's figures beside ours, for the terminal."""
    lines = ["", f"{'':<52}{'paper':>9}{'ours':>9}"]
    for table in found.tables:
        lines.append(table.printed.caption)
        for line in table.lines:
            ours = f"{line.measured.value:.3f}" if line.measured else "-"
            lines.append(f"  {line.published.what[:49]:<50}{line.published.value:>9.4g}{ours:>9}")
    if found.synthetic:
        lines.append("ours: on SYNTHETIC phantoms; not the paper's result")
    return "\n".join([*lines, ""])


def _json(found: Found) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "paper": found.order.paper.paper,
        "title": found.order.paper.title,
        "synthetic": found.synthetic,
        "quick": found.order.quick,
        "seeds": found.order.seeds,
        "tables": [_table_json(table) for table in found.tables],
        "stages": [worth.json() for worth in found.worths],
        "latency": [one.json() for one in found.latencies],
        "confounding": found.confounded.json() if found.confounded else None,
        "left_out": found.order.left_out,
        "runs": {
            name: {
                "study_hash": runs[0].study_hash,
                "synthetic": runs[0].synthetic,
                "cpu_s": sum(r.cpu_s or 0.0 for r in runs),
            }
            for name, runs in found.results.items()
        },
    }


def _table_json(table: Beside) -> dict[str, Any]:
    rows = [
        {
            "what": line.published.what,
            "paper": line.published.value,
            "unit": line.published.unit,
            "ours": line.measured.json() if line.measured else None,
            "run": line.published.ours.run if line.published.ours else None,
            "reason": line.reason,
        }
        for line in table.lines
    ]
    return {"caption": table.printed.caption, "where": table.printed.where, "rows": rows}


def _folders(paper: Paper, given: Sequence[str]) -> dict[str, Path]:
    """``NAME=DIR``, or a folder alone where the paper has one set only."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not equals and len(paper.sets) == 1:
            name, rest = next(iter(paper.sets)), text
        if name not in paper.sets or not rest:
            raise StudyError(f"--data {text}: name a set of paper {paper.paper} and its folder; {_sets(paper)}")
        if name in found:
            raise StudyError(f"--data {text}: {name} is given twice; give it once")
        found[name] = Path(rest).expanduser()
    for name, path in found.items():
        if not path.exists():
            raise RunError(f"--data {name}: {path} does not exist; {paper.sets[name].layout}")
    return found


def _sets(paper: Paper) -> str:
    return "give " + " and ".join(f"--data {name}=DIR ({one.title})" for name, one in paper.sets.items())


def _command(order: Order, number: int) -> str:
    """The command, with folders' names instead of whole paths: it is shown on a page that may travel."""
    words = ["fedward", "reproduce", str(number)]
    for name, path in order.data.items():
        words += ["--data", f"{name}={path.resolve().name}"]
    words += ["--seeds", str(order.seeds)] if order.seeds > 1 else []
    words += [f"--{name}" for name in ("quick", "full") if getattr(order, name)]
    return shlex.join(words)


def _listen(name: str) -> Listener:
    """What a run says while it works, under its name."""
    print(f"== {name}", file=sys.stderr, flush=True)
    return choose_progress(as_json=False)
