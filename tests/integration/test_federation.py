"""A real federation: coordinator and hospitals as processes, approvals, kills; the same numbers as in simulation."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client import upkeep
from client.delivery import Received, received, verify
from common.study import Study
from common.weights import load
from fedward import app
from server import run_cli
from server.app import train
from server.asking import Link
from server.events import EventLog
from simulations.engine import InProcessGrid
from tests.integration.federation_fixtures import STUDY, Federation, federation, wait_for

SITES = ("east", "north", "west")
SURVEYED = (
    STUDY.replace("size: 24", "size: 24, normalise: federated")
    .replace("batch_size: 8", "batch_size: 8, class_weighting: federated")
    .replace("rounds: 4", "rounds: 4, compression: int8")
    .replace("min_cell: 10", "min_cell: 10, subgroups: [sex, site]")
)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("federation"), SITES) as made:
        yield made


def weights_of(run: Path) -> dict[str, np.ndarray]:
    (path,) = run.glob("*.safetensors")
    return dict(load(path)[0] if isinstance(load(path), tuple) else load(path))


@pytest.mark.slow
def test_a_study_waits_for_people_trains_and_gives_the_simulations_numbers(three: Federation, tmp_path: Path) -> None:
    three.up("report")
    for alias in SITES:
        three.agent(alias)
    name = three.launch(SURVEYED, survey_only=True)
    three.approve(name, "east", "north")
    wait_for(
        lambda: (
            {event["site"]: event["answer"] for event in three.events(name) if event["event"] == "site-answer"}
            == {"east": "ready", "north": "ready", "west": "approval-pending"}
        ),
        "two of three to be ready",
        three,
    )
    assert three.facts(name)["state"] == "waiting"
    three.approve(name, "west")
    assert three.state(name, "stopped", "finished", "failed")["why"].startswith("surveyed, not trained")
    assert (three.run(name) / "survey.html").exists()
    assert not three.rounds(name)
    run_cli.resume(name, three.folder / "coordinator")
    assert three.state(name, "finished", "failed")["state"] == "finished", three.facts(name)
    assert three.facts(name)["sites"] == list(SITES)
    # The same study over the same vaults, in one process.
    study = Study.parse(SURVEYED)
    simulated = tmp_path / "simulated"
    simulated.mkdir()
    with contextlib.closing(InProcessGrid([three.folder / alias for alias in SITES])) as grid:
        train(Link(grid, EventLog()), study, dict(zip(SITES, grid.get_node_ids(), strict=True)), simulated, tmp_path)
    results = [json.loads((path / "results.json").read_text()) for path in (three.run(name), simulated)]
    assert results[0]["arms"]["federated"]["test"] == results[1]["arms"]["federated"]["test"]
    groups = [result["arms"]["federated"]["subgroups"] for result in results]
    assert groups[0] == groups[1]
    models = [sorted(path.glob("*.safetensors"))[0].read_bytes() for path in (three.run(name), simulated)]
    assert models[0] == models[1], "other weights than in simulation"
    cards = [json.loads((path / "model.json").read_text()) for path in (three.run(name), simulated)]
    assert cards[0] == cards[1]
    assert cards[0]["basis"]["mean"]
    # Its page, from what the sites let go: of women and men each has six positives in its test, and tells of neither.
    assert {site["value"]: site["patients"] for site in groups[0]["by"]["site"]["values"]} == dict.fromkeys(SITES, 10)
    assert groups[0]["by"]["sex"] == {"values": [], "suppressed": 3}
    images = {"train": 72, "val": 24, "test": 24}
    own = {"images": images, "patients": {"test": 24}, "withheld": []}
    assert results[0]["sites"] == dict.fromkeys(SITES, own)
    page = three.run(name) / "report.html"
    written = page.read_text()
    for words in ("no hospital trained a model alone", "Suppressed: at 3 hospitals", "Federation trial", "closer than"):
        assert words.lower() in written.lower(), words
    page.unlink()
    again = CliRunner().invoke(app, ["coordinator", "report", name, "--dir", str(three.folder / "coordinator")])
    assert again.output == f"{page}\n"
    assert page.read_text() == written
    # At the end each site has the signed model, once, and what it had kept for the run is erased.
    everywhere = dict.fromkeys(SITES, "delivered")
    wait_for(lambda: three.delivered(name) == everywhere, "the model at every site", three)
    for alias in SITES:
        (model,) = received(three.home(alias))
        assert isinstance(model, Received)
        verify(three.home(alias), model)
        assert (model.folder / "model.safetensors").read_bytes() == models[0]
        events = [entry.event for entry in three.home(alias).audit.entries()]
        assert events.count("model-received") == events.count("study-finished") == events.count("replies-erased") == 1
    status = CliRunner().invoke(app, ["coordinator", "status", "--dir", str(three.folder / "coordinator")])
    assert f"{name}: finished; its model is at east, north, west\n" in status.output
    # What left is on record at each site.
    for alias in SITES:
        home = three.home(alias)
        home.audit.verify()
        sent = Counter(entry.facts["kind"] for entry in home.audit.entries() if entry.event == "reply")
        assert sent["train.fit"] == 4
        assert sent["query.survey"] == 2, "images per split, asked for before people decide; counts and sums once"
        assert upkeep.verify(home).images == 120
    for alias in SITES:
        assert three.end(alias) == 0
    assert three.end("coordinator") == 0


@pytest.mark.slow
def test_kills_change_no_number(three: Federation, tmp_path: Path) -> None:
    """An agent and the coordinator killed in the middle of rounds; nothing is trained or counted twice.

    Meanwhile a site gets the model of the run before, as if it had been away at that one's end.
    """
    text = SURVEYED.replace("name: tiny", "name: killed")
    before = next(run for run in three.run("").iterdir() if run.name.endswith("-tiny"))
    kept = json.loads((before / "delivery.json").read_bytes())
    (before / "delivery.json").write_text(json.dumps({alias: kept[alias] for alias in ("east", "north")}))
    shutil.rmtree(three.folder / "west" / "models")
    three.up()
    for alias in SITES:
        three.agent(alias, slow=0.4)
    name = three.launch(text)
    three.approve(name, *SITES)
    wait_for(lambda: three.rounds(name) >= 1, "a round", three)
    three.end("north", signal.SIGKILL)
    three.agent("north", slow=0.4)
    wait_for(lambda: three.rounds(name) >= 2, "another round", three)
    three.end("coordinator", signal.SIGKILL)
    three.up("resume")
    assert three.state(name, "finished", "failed", "stopped")["state"] == "finished", three.facts(name)
    rounds = [event["round"] for event in three.events(name) if event["event"] == "round"]
    assert sorted(set(rounds)) == [1, 2, 3, 4]
    results = [json.loads((path / "results.json").read_text()) for path in (three.run(name), before)]
    assert results[0]["arms"]["federated"]["test"] == results[1]["arms"]["federated"]["test"]
    assert results[0]["sites"] == results[1]["sites"], "what sites answered at first is forgotten by a resumed run"
    study = Study.parse(text).hash
    for alias in SITES:
        entries = [entry.facts for entry in three.home(alias).audit.entries() if entry.event == "reply"]
        trained = Counter(
            facts["round"] for facts in entries if facts["study"] == study and facts["kind"] == "train.fit"
        )
        assert set(trained.values()) == {1}, (alias, trained)
    everywhere = dict.fromkeys(SITES, "delivered")
    wait_for(lambda: three.delivered(before.name) == three.delivered(name) == everywhere, "both models", three)
    for alias, times in {"east": 1, "north": 1, "west": 2}.items():
        came = [entry.facts["run"] for entry in three.home(alias).audit.entries() if entry.event == "model-received"]
        assert Counter(came) == {before.name: times, name: 1}, alias
    for alias in (*SITES, "coordinator"):
        three.end(alias)


@pytest.mark.slow
def test_a_site_that_refuses_withdraws_or_is_revoked(three: Federation) -> None:
    three.up()
    for alias in SITES:
        three.agent(alias, slow=0.3)
    # West refuses: with a quorum of all, nothing begins, and the reason is told.
    name = three.launch(STUDY.replace("name: tiny", "name: refused"))
    three.approve(name, "east", "north")
    approvals, record = three.record("west", name)
    approvals.refuse(record, by="Bob", why="not our patients")
    approvals.close()
    facts = three.state(name, "failed")
    assert "west: approval-refused" in facts["why"]
    assert "not our patients" not in three.log("coordinator"), "the words stay at the site"
    # With two of three enough: west withdraws in mid-run and the others go on.
    text = STUDY.replace("name: tiny", "name: most").replace("rounds: 4", "rounds: 4, quorum: 0.6")
    name = three.launch(text)
    three.approve(name, *SITES)
    wait_for(lambda: three.rounds(name) >= 1, "a round", three)
    approvals, record = three.record("west", name)
    approvals.withdraw(record, by="Bob")
    approvals.close()
    assert three.state(name, "finished", "failed")["state"] == "finished", three.facts(name)
    last = [event for event in three.events(name) if event["event"] == "round"][-1]
    assert last["sites"]["west"]["status"] == "declined: study-withdrawn"
    assert last["sites"]["east"]["status"] == "ok"
    result = json.loads((three.run(name) / "results.json").read_text())
    assert result["absent"] == ["west"]
    assert {site: "test" in told["images"] for site, told in result["sites"].items()} == {
        "east": True,
        "north": True,
        "west": False,
    }
    wait_for(lambda: len(three.delivered(name)) == 3, "all to be settled", three)
    assert three.delivered(name) == {"east": "delivered", "north": "delivered", "west": "withdrawn"}
    # Revoked: shut out while everything runs.
    three.coordinator.revoke("west")
    wait_for(lambda: "refused" in three.log("west").lower(), "west to be shut out", three)
    for alias in (*SITES, "coordinator"):
        three.end(alias)


def test_a_site_that_has_not_joined_says_how(tmp_path: Path) -> None:
    from client.agent import run
    from client.home import Home
    from common.errors import IdentityError

    home = Home.init(tmp_path / "alone", alias="alone", synthetic=True)
    with pytest.raises(IdentityError, match="join"):
        run(home, stop=__import__("threading").Event())
