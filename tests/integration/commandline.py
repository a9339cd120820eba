"""The command as a user types it, run in this process, and the small studies and folders that it is given."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import pytest

import fedward

STUDY = """\
name: tiny
task: binary
classes: [normal, pneumonia]
seed: 7
data: {phantoms: {images: 60, size: 32, difficulty: 0.2}}
image: {size: 16}
model: {name: cnn, norm: none, params: {filters: [4, 4], hidden: [8]}}
federation: {rounds: 1, strategy: {name: fedadam, params: {eta: 0.01}}}
partition: {kind: iid, sites: 2, min_per_site: 2}
evaluation: {bootstrap: 100}
"""
LONG = STUDY.replace("rounds: 1", "rounds: 150")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line; nothing above it may look like a traceback or like another error."""
        lines = self.err.splitlines()
        assert lines[-1].startswith("fedward: "), self.err
        assert "Traceback" not in self.err
        assert not [line for line in lines[:-1] if line.startswith("fedward: ")], self.err
        return lines[-1].removeprefix("fedward: ")


def command(*arguments: object, stdout: TextIO | None = None) -> Outcome:
    """``fedward ARGUMENTS`` in this process; what it does to signals is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    argv, sys.argv = sys.argv, ["fedward", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(stdout or out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            fedward.main()
    finally:
        sys.argv = argv
        for number, handler in before.items():
            signal.signal(number, handler)
    code = end.value.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(code: int, *arguments: object) -> str:
    """The one line that a refused command prints, and nothing else."""
    outcome = command(*arguments)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    return outcome.error


@contextlib.contextmanager
def meanwhile(ready: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """``act`` in another thread as soon as ``ready``; it must come to that before the block ends."""
    over, acted = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if ready():
                act()
                acted.set()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert acted.is_set(), "the command ended too soon"


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def rounds_done(run: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(event["event"] == "round" for event in events(run)) >= count


def saved(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def images(
    folder: Path, rows: Sequence[str], header: str = "file,label,patient,split", bad: Sequence[str] = (), size: int = 20
) -> Path:
    """A folder with ``labels.csv`` and a small picture for every row; those in ``bad`` are no pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in rows:
        name = row.split(",")[0]
        if name in bad:
            (folder / name).write_bytes(b"no picture")
        else:
            assert cv2.imwrite(str(folder / name), rng.integers(0, 255, (size, size), dtype=np.uint8))
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def rows(count: int = 60, labels: Sequence[str] = ("normal", "pneumonia")) -> list[str]:
    return [f"{n}.png,{labels[n % len(labels)]},p{n}," for n in range(count)]
