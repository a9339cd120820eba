"""What a run says while it works: live bars on a terminal, plain lines when piped, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from common.study_personal import PERSONALISED

Event = Mapping[str, Any]
_SHOWN = 12
"""Comparisons that the last lines hold."""


class JsonProgress:
    """Every event as one JSON line on ``stream``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing to end."""


def opening(event: Event) -> list[str]:
    """The first lines of a run, for terminal and pipe alike."""
    images = {split: sum(site[split] for site in event["sites"].values()) for split in ("train", "val", "test")}
    kind = "SYNTHETIC data" if event["synthetic"] else "real images"
    lines = [
        f"{event['study']}: {event['source']}, {kind}",
        f"{len(event['sites'])} hospitals, {images['train']} training, {images['val']} validation and "
        f"{images['test']} test images, each in its hospital's encrypted vault",
    ]
    if event["images_without_patient"]:
        lines.append(f"{event['images_without_patient']} images without a patient: each counts as its own patient")
    lines += event["notes"]
    if event["unreadable"]:
        lines.append(f"{event['unreadable']} unreadable images left out; the report lists them")
    return lines


def problems(event: Event) -> list[str]:
    """A line for each site whose reply did not count in this round."""
    found = []
    for site, facts in sorted(event["sites"].items()):
        reasons = [facts.get("status"), facts.get("evaluation")]
        found += [f"round {event['round']}, {site}: {reason}" for reason in reasons if reason not in ("ok", None)]
    return found


def numbers(event: Event) -> str:
    parts = [f"loss {event['train_loss']:.3f}"] if event["train_loss"] is not None else []
    if event["val_loss"] is not None:
        parts.append(f"val loss {event['val_loss']:.3f}")
    if event.get("val_dice") is not None:
        parts.append(f"val Dice {event['val_dice']:.3f}")
    if event["val_auc"] is not None:
        parts.append(f"val AUC {event['val_auc']:.3f}")
    elif "val_auc_bounds" in event:
        low, high = event["val_auc_bounds"]
        parts.append(f"val AUC in [{low:.3f}, {high:.3f}]")
    return "  ".join(parts)


class Stream(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class PlainProgress:
    """One line per round, for pipes and logs; with the time that the arm still needs."""

    def __init__(self, stream: Stream, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._begun: dict[tuple[str, int], tuple[float, int]] = {}

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started":
            for line in opening(event):
                self._line(line)
        elif kind == "round":
            key = (event["arm"], event["repeat"])
            begun, first = self._begun.setdefault(key, (self._clock() - event["wall_s"], event["round"] - 1))
            per_round = (self._clock() - begun) / (event["round"] - first)
            left = per_round * (event["rounds"] - event["round"])
            repeat = f" #{event['repeat'] + 1}" if event["repeat"] else ""
            self._line(
                f"{event['arm']}{repeat} round {event['round']}/{event['rounds']}  {numbers(event)}  {left:.0f} s left"
            )
            for line in problems(event):
                self._line("  ! " + line)
        elif kind == "central-privacy":
            self._line(event["told"])
        elif kind == "resumed":
            self._line(f"{event['arm']} continues after round {event['round']}")
        elif kind == "testing":
            self._line("testing the models on everybody's test patients")

    def close(self) -> None:
        """Nothing to end."""


class TerminalProgress:
    """A live bar per arm; the hospitals that train alone share one, for there may be a thousand."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._totals: dict[str, int] = {}
        self._rounds: dict[TaskID, dict[str, int]] = {}
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started":
            for line in opening(event):
                self._console.print(line, markup=False, highlight=False)
            rounds = event["rounds"]
            self._totals = {"alone": rounds * len(event["sites"])}
            self._totals |= {arm: rounds for arm in event["arms"] if arm != "local"}
            self._progress.start()
        elif kind in ("round", "resumed"):
            arm = "alone" if event["arm"].startswith("local:") else event["arm"]
            key = (arm, event["repeat"])
            if key not in self._tasks:
                name = arm + (f" #{event['repeat'] + 1}" if event["repeat"] else "")
                self._tasks[key] = self._progress.add_task(name, total=self._totals.get(arm), numbers="")
            task = self._tasks[key]
            done = self._rounds.setdefault(task, {})
            done[event["arm"]] = event["round"]
            shown = numbers(event) if kind == "round" else "continues"
            self._progress.update(task, completed=sum(done.values()), numbers=shown)
            for line in problems(event) if kind == "round" else []:
                self._console.print("  ! " + line, markup=False, highlight=False)
        elif kind == "central-privacy":
            self._console.print(event["told"], markup=False, highlight=False)
        elif kind == "testing":
            self._console.print("testing the models on everybody's test patients", markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def choose_progress(as_json: bool) -> JsonProgress | PlainProgress | TerminalProgress:
    """JSON on stdout when asked for; live on a terminal; plain lines on stderr otherwise."""
    if as_json:
        return JsonProgress(sys.stdout)
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)


def closing(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: each arm's test result and who gained."""
    outlined = any("dice" in found["test"] for found in result["arms"].values())
    heads = f"{'on all test patients':<22}{'AUC':>22}{'sensitivity':>14}{'specificity':>14}"
    lines = ["", heads + (f"{'Dice':>24}" if outlined else "")]
    for arm, found in result["arms"].items():
        if arm == PERSONALISED:  # on each hospital's own patients: another population
            continue
        name = "alone (mean)" if arm == "local" else arm
        auc, sensitivity, specificity = (found["test"][key] for key in ("auc", "sensitivity", "specificity"))
        line = f"{name:<22}{interval(auc):>22}{_number(sensitivity):>14}{_number(specificity):>14}"
        lines.append(line + (f"{interval(found['test']['dice']):>24}" if "dice" in found["test"] else ""))
    judged = "dice" if result.get("task") == "segmentation" else "auc"
    gains = [
        row
        for row in result["differences"]
        if row["metric"] == judged
        and row["on"] == "all"
        and row["low"] is not None  # else too few draws had both classes
    ]
    for row in gains[:_SHOWN]:
        name = row["b"].removeprefix("local:") + (" alone" if row["b"].startswith("local:") else "")
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "cannot tell"
        metric = "Dice" if judged == "dice" else "AUC"
        lines.append(
            f"federated - {name:<16} {metric} {row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]  {verdict}"
        )
    if len(gains) > _SHOWN:
        lines.append(f"… and {len(gains) - _SHOWN} more hospitals: see the report")
    return lines + _own_models(result["arms"].get(PERSONALISED))


def _own_models(arm: Mapping[str, Any] | None) -> list[str]:
    """What each hospital would run, and what that is against itself alone."""
    if arm is None:
        return []
    lines = ["", f"own models ({arm['method']}), on each hospital's own test patients"]
    for site, facts in list(arm["sites"].items())[:_SHOWN]:
        chosen, auc = facts["would_run"], facts["test"].get("auc")
        gain = next((row for row in facts["differences"] if _is_gain(row, chosen)), None)
        line = f"{site:<22}{'-' if auc is None else interval(auc):>22}  would run: {chosen}"
        if gain is not None:
            line += f", against alone AUC {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        lines.append(line)
    if len(arm["sites"]) > _SHOWN:
        lines.append(f"… and {len(arm['sites']) - _SHOWN} more hospitals: see the report")
    return lines


def _is_gain(row: Mapping[str, Any], would_run: str) -> bool:
    return (row["a"], row["b"], row["metric"]) == (would_run, "local", "auc") and row["low"] is not None


def _number(cell: Mapping[str, Any]) -> str:
    return "-" if cell["value"] is None else f"{cell['value']:.3f}"


def interval(cell: Mapping[str, Any]) -> str:
    """``0.912 [0.880, 0.941]``; the bounds alone where small cells hide the value; ``-`` where it is undefined."""
    if cell["low"] is None:
        return _number(cell)
    bounds = f"[{cell['low']:.3f}, {cell['high']:.3f}]"
    return bounds if cell["value"] is None else f"{cell['value']:.3f} {bounds}"
