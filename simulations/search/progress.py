"""What a search says while it works: JSON lines for programs, else a line for each fit and trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from simulations.progress import JsonProgress
from simulations.search.words import metric_name, params_words, score_words

Event = Mapping[str, Any]


class Lines:
    """One line a fit, with the time that the rest will take, and one a trial."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._begun, self._left, self._done = clock(), 0, 0
        self._folds = 1

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "search-started":
            self._open(event)
        elif kind == "fit":
            self._done += 1
            self._fit(event)
        elif kind == "trial":
            said = score_words(event["metric"], event["score"], event["deviation"])
            result = said if event["status"] == "done" else f"{event['status']}: {event['reason']}"
            values = params_words(event["params"])
            self._line(f"trial {event['trial']}/{event['trials']}  {result}" + (f"  ({values})" if values else ""))

    def _open(self, event: Event) -> None:
        kind = "SYNTHETIC data" if event["synthetic"] else "real images"
        images = sum(site["train"] + site["val"] for site in event["sites"].values())
        folds = f"{event['folds']} folds by patient" if event["folds"] > 1 else "the study's validation split"
        total = event["trials"] * event["folds"]
        self._left, self._folds = total - event["kept"], event["folds"]
        self._line(f"{event['study']}: {event['source']}, {kind}")
        self._line(
            f"{len(event['sites'])} hospitals, {images} training and validation images; no test patient is in a vault"
        )
        trials = f"{event['trials']} trials ({event['method']}) × " if event["trials"] > 1 else ""
        self._line(f"{trials}{folds}, judged by {metric_name(event['metric'])}")
        if event["kept"]:
            self._line(f"{event['kept']} of {total} fits are there already")

    def _fit(self, event: Event) -> None:
        left = (self._clock() - self._begun) / self._done * max(0, self._left - self._done)
        score = score_words(event["metric"], event[event["metric"]], None)
        said = score if event["status"] == "done" else event["status"]
        fold = f" fold {event['fold']}/{self._folds}" if self._folds > 1 else ""
        self._line(f"  trial {event['trial']}{fold}  {said}  {event['wall_s']:.0f} s, at most {left:.0f} s left")

    def close(self) -> None:
        """Nothing to end."""


def choose_progress(as_json: bool) -> JsonProgress | Lines:
    """JSON on stdout when asked for, else lines on stderr."""
    return JsonProgress(sys.stdout) if as_json else Lines(sys.stderr)
