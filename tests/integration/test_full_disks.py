"""A disk that fills at either end of a run: what leaves is on record, and with room the run goes on."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from common import protocol
from common.study import Study
from server import run_cli
from tests.integration.endurance import Endurance, delivered, every_round_once, model, nothing_half_written, on_record
from tests.integration.federation_fixtures import Federation, wait_for
from tests.integration.kill_points import Point
from tests.integration.test_mishaps import fill

BEFORE = {
    "putting a reply on record": Point("on record", "agent", "client.home:Home.record", only="'train.fit'", hold=True),
    "keeping a reply": Point("keeping the reply", "agent", "client.replies:Replies.keep", hold=True),
    "a checkpoint": Point("checkpointing", "coordinator", "server.rounds:save_progress", hold=True),
    "results": Point("writing results", "coordinator", "server.app:write_model", hold=True),
}


def onto(disk: Path, folder: Path) -> None:
    """``folder``, moved to another disk, under the path it had."""
    subprocess.run(["cp", "-a", f"{folder}/.", disk], check=True)
    subprocess.run(["mount", "--bind", disk, folder], check=True)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("what", ["putting a reply on record", "keeping a reply"])
def test_a_sites_disk_is_full(what: str, disk: Callable[[int], Path], tmp_path: Path) -> None:
    with Endurance.of(tmp_path / "all") as enduring:
        made, folder = enduring.made, tmp_path / "all" / "north"
        onto(disk(64 << 20), folder)
        try:
            enduring.up()
            text = enduring.text()
            run = enduring.begin(text, BEFORE[what], "north")
            filling = fill(folder)
            enduring.let_go("north")
            facts = made.state(run, "failed", "finished")
            assert facts["state"] == "failed"
            code = "audit-unusable" if "record" in what else "site-store-unusable"
            assert f"north: declined: {code}" in facts["why"]
            assert made.running["north"].poll() is None, "the agent goes on"
            fits = fits_on_record(made, text)
            assert fits[1] == 1
            assert fits[2] == (0 if "record" in what else 1), "first on record, then kept, then sent"
            filling.unlink()
            run_cli.resume(run, made.folder / "coordinator")
            enduring.over(run)
            assert model(made.run(run)) == enduring.undisturbed(text)
            every_round_once(made, run)
            on_record(made, text, twice_at_most=1)
            delivered(made, run)
            nothing_half_written(made)
            for name in (*made.sites, "coordinator"):
                made.end(name)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("what", ["a checkpoint", "results"])
def test_the_coordinators_disk_is_full(what: str, disk: Callable[[int], Path], tmp_path: Path) -> None:
    with Endurance.of(tmp_path / "all") as enduring:
        made, folder = enduring.made, tmp_path / "all" / "coordinator"
        onto(disk(16 << 20), folder)
        try:
            enduring.up()
            text = enduring.text()
            run = enduring.begin(text, BEFORE[what], "coordinator")
            filling = fill(folder)
            enduring.let_go("coordinator")
            wait_for(lambda: "No space left on device" in made.log("coordinator"), "it to be told", made)
            assert made.running["coordinator"].poll() is None, "the coordinator goes on"
            filling.unlink()
            facts = made.state(run, "failed", "finished")
            assert facts["state"] == "failed"
            assert "No space left on device" in facts["why"]
            run_cli.resume(run, folder)
            enduring.over(run)
            assert model(made.run(run)) == enduring.undisturbed(text)
            every_round_once(made, run)
            on_record(made, text)
            delivered(made, run)
            nothing_half_written(made)
            assert json.loads((folder / "status.json").read_text())["sites"]
            for name in (*made.sites, "coordinator"):
                made.end(name)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fits_on_record(made: Federation, text: str) -> Counter[int]:
    study = Study.parse(text).hash
    entries = [entry.facts for entry in made.home("north").audit.entries() if entry.event == "reply"]
    return Counter(facts["round"] for facts in entries if (facts["study"], facts["kind"]) == (study, protocol.TRAIN))
