"""What befalls a run: damaged vaults, full disks, signals, killed workers, readers that leave.

Each ends in one line that says how to go on; what was made is removed, or can be resumed. The command
runs in this process, with real signals, disks and workers; only a whole process group has one of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.commandline import (
    LONG,
    STUDY,
    Outcome,
    command,
    events,
    images,
    meanwhile,
    refused,
    rounds_done,
    rows,
    saved,
    send,
)


def fill(disk: Path) -> Path:
    """A file that takes all that is free."""
    path = disk / "filling"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return path


@pytest.mark.parametrize("part", ["pixels", "manifest", "key"])
def test_a_changed_vault_is_named_with_its_site(part: str, unfinished: Path) -> None:
    home = unfinished / "sites" / "site-2"
    vault = home / "vault.sqlite"
    if part == "key":
        (home / "vault.key").unlink()
    else:
        query = "SELECT data FROM pixels LIMIT 1" if part == "pixels" else "SELECT manifest FROM header"
        with contextlib.closing(sqlite3.connect(vault)) as connection:
            (sealed,) = connection.execute(query).fetchone()
        content = bytearray(vault.read_bytes())
        content[content.index(sealed[:48]) + 5] ^= 1
        vault.write_bytes(content)
    outcome = command("simulate", "--resume", unfinished)
    assert outcome.code == 4
    assert outcome.error.startswith("site-2: ")
    assert ("cannot read the key file" if part == "key" else "damaged or was altered") in outcome.error
    assert "start the simulation anew" in outcome.error
    assert not (unfinished / "results.json").exists()


# -- disks ---------------------------------------------------------------------------------


def test_too_little_space_is_told_before_anything_is_written(disk: Callable[[int], Path], tmp_path: Path) -> None:
    study = saved(tmp_path / "tiny.yaml", STUDY)
    home = disk(128 << 10)
    assert "needs about" in refused(8, "simulate", study, "--out", home / "deep" / "run")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("deep", [True, False])
def test_a_disk_that_fills_while_vaults_are_written(deep: bool, disk: Callable[[int], Path], tmp_path: Path) -> None:
    study = saved(tmp_path / "tiny.yaml", STUDY)
    data = images(tmp_path / "data", rows(100), size=64)
    home = disk(100 * (4096 + 512) + (16 << 10))  # what the images need, but hardly more
    out = home / "a" / "b" if deep else home
    outcome = command("simulate", study, "--data", data, "--out", out)
    assert outcome.code != 0
    assert "free" in outcome.error
    assert "space" in outcome.error
    assert "needs about" not in outcome.error
    assert list(home.iterdir()) == []


def test_a_disk_that_fills_during_training(disk: Callable[[int], Path], tmp_path: Path) -> None:
    home = disk(8 << 20)
    study, run = saved(tmp_path / "long.yaml", LONG), home / "run"
    with meanwhile(rounds_done(run, 2), lambda: fill(home)):
        outcome = command("simulate", study, "--out", run, "--arms", "federated")
    assert outcome.code == 8
    assert "No space left on device" in outcome.error
    assert f"--resume {run}" in outcome.error
    again = command("simulate", "--resume", run)
    assert again.code == 8
    assert "No space left on device" in again.error
    (home / "filling").unlink()

    subprocess.run(["mount", "-o", "remount,ro", home], check=True)
    assert "Read-only file system" in refused(8, "simulate", study, "--out", home / "other")
    assert "Read-only file system" in refused(8, "simulate", "--resume", run)
    subprocess.run(["mount", "-o", "remount,rw", home], check=True)

    assert command("simulate", "--resume", run).code == 0
    history = json.loads((run / "results.json").read_text())["arms"]["federated"]["history"]
    assert [record["round"] for record in history] == list(range(1, 151))
    assert "Read-only file system" not in (run / "events.jsonl").read_text()
    assert not list(run.rglob(".*")), "temporary files are left"


# -- signals -------------------------------------------------------------------------------

# A signal may strike inside the standard library, between a file's opening and its being handed over: the
# collector then closes it, and says so.
anywhere = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@anywhere
def test_ctrl_c_during_training_keeps_the_checkpoint(stopped: tuple[Path, Outcome], unfinished: Path) -> None:
    run, outcome = stopped
    assert outcome.code == 130
    assert outcome.out == ""
    assert f"--resume {run}" in outcome.error
    assert not (run / "results.json").exists()
    assert events(run)[-1]["event"] == "interrupted"
    resumed = command("simulate", "--resume", unfinished)
    assert resumed.code == 0, resumed.err
    assert "federated continues after round" in resumed.err
    assert json.loads((unfinished / "results.json").read_text())["rounds"] == 150


@anywhere
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_vaults_are_written_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    study = saved(tmp_path / "many.yaml", STUDY.replace("images: 60", "images: 3000"))
    run = tmp_path / "new" / "run"
    with meanwhile((run / "sites" / "site-1").exists, send(number)):
        outcome = command("simulate", study, "--out", run)
    assert outcome.code == code
    assert len(outcome.err.splitlines()) == 1
    assert "stopped" in outcome.error
    assert not (tmp_path / "new").exists()


@anywhere
def test_sigterm_during_training_is_like_ctrl_c(unfinished: Path) -> None:
    before = sum(event["event"] == "round" for event in events(unfinished))
    with meanwhile(rounds_done(unfinished, before + 2), send(signal.SIGTERM)):
        outcome = command("simulate", "--resume", unfinished)
    assert outcome.code == 143
    assert "--resume" in outcome.error


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_ctrl_c_with_workers_is_prompt_and_leaves_no_process(unfinished: Path) -> None:
    """A terminal signals the whole group: workers must leave the answer to their parent."""
    family: list[psutil.Process] = []
    sent: list[float] = []

    def ctrl_c() -> None:
        family.extend(workers())
        sent.append(time.monotonic())
        for process in (*family, psutil.Process()):
            process.send_signal(signal.SIGINT)

    before = sum(event["event"] == "round" for event in events(unfinished))
    with meanwhile(rounds_done(unfinished, before + 1), ctrl_c):
        outcome = command("simulate", "--resume", unfinished, "--workers", 2)
    assert time.monotonic() - sent[0] < 10
    assert outcome.code == 130
    assert f"--resume {unfinished}" in outcome.error
    assert len(family) == 2
    assert psutil.wait_procs(family, timeout=5)[1] == []


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """As the kernel does when memory is short. There are more workers than hospitals, too, which is fine."""
    study, run = saved(tmp_path / "long.yaml", LONG.replace("sites: 2", "sites: 1")), tmp_path / "run"

    def kill() -> None:
        workers()[0].kill()

    with meanwhile(rounds_done(run, 1), kill):
        outcome = command("simulate", study, "--out", run, "--arms", "federated,local", "--workers", 2)
    assert outcome.code == 8
    assert "a worker process was killed" in outcome.error
    assert "--resume" in outcome.error
    assert workers() == []
    resumed = command("simulate", "--resume", run, "--workers", 1)
    assert resumed.code == 0, resumed.err
    assert "continues after round" in resumed.err


# -- what others read ----------------------------------------------------------------------


def test_json_is_lines_of_json_on_standard_output_alone(tmp_path: Path) -> None:
    study = saved(tmp_path / "tiny.yaml", STUDY)
    outcome = command("simulate", study, "--out", tmp_path / "run", "--arms", "federated", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert lines[0]["event"] == "started"
    assert lines[-1]["event"] == "finished"
    assert lines == events(tmp_path / "run")


def test_a_reader_that_has_gone_is_no_error_message(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("fedward")
    pipe = ["bash", "-c", f"'{program}' study schema | head -1"]
    schema = subprocess.run(pipe, capture_output=True, text=True, check=False)
    assert (schema.stdout, schema.stderr) == ("{\n", "")

    study = saved(tmp_path / "tiny.yaml", STUDY)
    read, write = os.pipe()
    os.close(read)
    arguments = ("simulate", study, "--out", tmp_path / "run", "--arms", "federated", "--json")
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as closed:
        outcome = command(*arguments, stdout=closed)
    assert (outcome.code, outcome.err) == (141, "")
    assert command("simulate", "--resume", tmp_path / "run").code == 0
