"""How far a run has come, from the events on its disk: whether a coordinator is at work or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KEPT = ("round", "rounds", "train_loss", "val_loss", "val_auc", "val_auc_bounds", "wall_s")


def come_so_far(events: Path) -> dict[str, Any]:
    """Of the last finished round its number, ``rounds``, losses, ``val_auc`` or ``val_auc_bounds``, ``wall_s`` and
    ``absent`` (alias -> why); of the run ``bytes`` that weights and sums took both ways, and ``set_aside`` (aliases).

    Empty before the first round. A round that was played again after a kill counts once.
    """
    rounds: dict[int, dict[str, Any]] = {}
    aside: list[str] = []
    try:
        with events.open(encoding="utf-8", errors="replace") as lines:
            for text in lines:
                # Cheap to tell: a run has many lines for each of these.
                if '"event":"round"' in text or '"event":"set-aside"' in text:
                    line = _parsed(text)
                    if line.get("event") == "round" and _whole(line):
                        rounds[line["round"]] = line
                    elif line.get("event") == "set-aside":
                        aside.append(str(line.get("site")))
    except OSError:
        return {}
    if not rounds:
        return {}
    last = rounds[max(rounds)]
    absent = {site: facts["status"] for site, facts in last["sites"].items() if facts["status"] != "ok"}
    return {
        **{key: last.get(key) for key in _KEPT},
        "bytes": sum(line["bytes"] for line in rounds.values()),
        "absent": absent,
        "set_aside": sorted(set(aside)),
    }


def _whole(line: dict[str, Any]) -> bool:
    sites = line.get("sites")
    told = isinstance(sites, dict) and all(isinstance(facts, dict) and "status" in facts for facts in sites.values())
    return told and isinstance(line.get("round"), int) and isinstance(line.get("bytes"), int)


def _parsed(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:  # half a line, which a kill left
        return {}
    return line if isinstance(line, dict) else {}
