"""A coordinator's runs on the disk, and what its commands say of them."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.federation import join_request
from client.home import Home
from common.errors import IdentityError, RunError
from common.study import Study
from server import run_cli
from server.coordinate import Running
from server.desk import RunFolder, all_runs, find_run
from server.provision import Coordinator
from tests.integration.services_keys import free_port

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STUDY = "name: tiny\ntask: binary\nclasses: [normal, pneumonia]\nimage: {size: 16}\nmodel: {name: cnn, norm: none}\n"


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    address = f"127.0.0.1:{free_port()}"
    return Coordinator.init(tmp_path / "hub", name="trial", address=address, listen=address, also=[], clock=lambda: AT)


def admitted(coordinator: Coordinator, tmp_path: Path) -> Home:
    home = Home.init(tmp_path / "north", alias="north", synthetic=True)
    coordinator.admit(join_request(home).read_bytes())
    return home


def launched(runs: Path) -> RunFolder:
    return RunFolder.launch(runs, Study.parse(STUDY), Path(), AT)


def test_runs_are_found_in_the_order_they_were_launched(tmp_path: Path) -> None:
    first, second = launched(tmp_path), launched(tmp_path)
    assert [run.name for run in all_runs(tmp_path)] == [first.name, second.name]
    assert second.name == "20260304-050607-tiny-2"
    assert first.study == Study.parse(STUDY)
    assert find_run(tmp_path, None, "queued").name == second.name
    assert find_run(tmp_path, first.name).name == first.name
    with pytest.raises(RunError, match="no run is running"):
        find_run(tmp_path, None, "running")
    with pytest.raises(RunError, match="there is no run"):
        find_run(tmp_path, "../../etc")


def test_states_turn_and_are_kept(tmp_path: Path) -> None:
    run = launched(tmp_path)
    with pytest.raises(RunError, match="is queued"):
        run.resume(AT)
    run.turn("waiting", AT)
    run.turn("failed", AT, why="quorum")
    run.ask_to_stop()
    assert (run.state, run.facts["why"], run.to_stop) == ("failed", "quorum", True)
    run.resume(AT)
    assert (run.state, run.to_stop, run.facts["why"]) == ("queued", False, "")
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        _ = run.state


def test_commands_in_the_wrong_order_say_what_comes_first(
    coordinator: Coordinator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = coordinator.directory
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    with pytest.raises(IdentityError, match="no site is on the roster"):
        run_cli.launch(study, hub)
    with pytest.raises(IdentityError, match="coordinator init"):
        run_cli.status(tmp_path, as_json=False)
    admitted(coordinator, tmp_path)
    run_cli.launch(study, hub)
    assert "it begins when `fedward coordinator up` runs" in capsys.readouterr().out
    run_cli.status(hub, as_json=False)
    told = capsys.readouterr().out
    assert "not running: start it with `fedward coordinator up`" in told
    assert "north            not seen" in told
    assert "-tiny: queued" in told
    run_cli.stop(None, hub)
    with pytest.raises(RunError, match="only finished ones are exported"):
        run_cli.export(tmp_path / "out", sorted((hub / "runs").iterdir())[0].name, hub)
    with pytest.raises(RunError, match="no run is"):
        run_cli.resume(None, hub)
    run_cli.status(hub, as_json=True)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["up"] is False
    assert [run["state"] for run in facts["runs"]] == ["queued"]


def test_a_second_coordinator_in_one_directory_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    (coordinator.directory / "status.json").write_text(
        json.dumps({"at": time.time(), "process": os.getpid(), "port": 1, "sites": {}, "run": None, "refused": {}})
    )
    with pytest.raises(RunError, match="already"):
        run_cli.up(coordinator.directory, resume=False, patience_s=1.0)


def test_what_a_killed_coordinator_left_is_marked_and_resumed(coordinator: Coordinator, tmp_path: Path) -> None:
    import threading

    admitted(coordinator, tmp_path)
    run = launched(coordinator.runs)
    run.turn("running", AT)
    stop = threading.Event()
    stop.set()
    Running(coordinator).run(stop=stop)
    assert run.state == "interrupted"
    Running(coordinator).run(stop=stop, resume=True)
    assert run.state == "queued"
    run.turn("waiting", AT)
    Running(coordinator).run(stop=stop, resume=True)
    assert run.state == "queued"
