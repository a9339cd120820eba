"""The coordinator keeps sites' anchors: which fits it refuses for them, and what it sends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.federation import join_request, new_identity
from client.home import Home
from common import protocol
from common.anchors import Anchor, Anchored, sign
from common.errors import ReplyRefused
from common.identity import SiteKey
from common.protocol import secure
from server.anchoring import FILE, AnchorDesk
from server.asking import Link, SignedRoster
from server.cli import roster
from server.provision import Coordinator
from server.recall import Call
from tests.unit import federation as fed
from tests.unit import secure_fixtures
from tests.unit.anchored import digest

ADDRESS = "192.0.2.10:9000"
PRIVATE = fed.study(
    **{
        "model.norm": "group",
        "training": {"batch_size": 8, "local_steps": 2},
        "privacy": {"noise_multiplier": 1.5, "sample_rate": 0.3, "delta": 1e-3, "accountant": "rdp"},
    }
)


class Hub:
    """A coordinator, sites that it has admitted, and their keys."""

    def __init__(self, folder: Path, *aliases: str) -> None:
        self.coordinator = Coordinator.init(folder / "hub", name="trial", address=ADDRESS, listen=ADDRESS)
        self.folder = folder
        self.keys: dict[str, SiteKey] = {}
        for alias in aliases:
            self.admit(alias)

    def admit(self, alias: str) -> None:
        home = Home.init(self.folder / alias, alias=alias, synthetic=True)
        self.coordinator.admit(join_request(home).read_bytes())
        self.keys[alias] = SiteKey.load(home.directory / "federation" / "identity.key")

    def task(self, round_: int = 1) -> protocol.Task:
        return protocol.Task(PRIVATE, round=round_, roster=self.coordinator.roster.hash)

    def anchor(self, alias: str, number: int, branch: str = "0", by: str = "", **facts: object) -> bytes:
        given = {
            "federation": "trial",
            "alias": alias,
            "roster": self.coordinator.roster.hash,
            "study": PRIVATE.hash,
            "round": 1,
            "sequence": number,
            "digest": digest(number, branch),
        }
        return sign(Anchor(**{**given, **facts}), self.keys[by or alias]).data  # type: ignore[arg-type]

    def came(self, alias: str, number: int, *others: bytes, **facts: object) -> Anchored:
        return Anchored(self.anchor(alias, number, **facts), others)  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path, "north", "south")


def test_the_newest_of_each_site_goes_to_all_over_runs_and_restarts(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    assert desk.bundle() == ()
    desk.judge("north", hub.task(), hub.came("north", 3))
    desk.judge("south", hub.task(), hub.came("south", 40))
    last = hub.came("north", 5, round=2)
    desk.judge("north", hub.task(2), last)
    again = AnchorDesk(Coordinator.open(hub.coordinator.directory))
    assert again.bundle()[0] == last.own
    assert len(again.bundle()) == 2
    hub.coordinator.revoke("north")
    assert len(again.bundle()) == 1
    assert (hub.coordinator.directory / FILE).stat().st_mode & 0o077 == 0


def test_the_roster_says_how_far_each_ledger_had_come(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """What a coordinator's people read out to a site that was restored."""
    AnchorDesk(hub.coordinator).judge("north", hub.task(), hub.came("north", 41))
    roster(hub.coordinator.directory, as_json=False)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert lines["north"].endswith("  entry 41")
    assert lines["south"].endswith("  -")
    roster(hub.coordinator.directory, as_json=True)
    sites = {site["alias"]: site["ledger"] for site in json.loads(capsys.readouterr().out)["sites"]}
    assert sites == {
        "north": {"entry": 41, "digest": digest(41), "study": PRIVATE.hash, "round": 1},
        "south": None,
    }


def test_a_ledger_that_went_back_is_refused_and_told(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    desk.judge("north", hub.task(), hub.came("north", 20))
    with pytest.raises(ReplyRefused, match=r"stands at entry 7, and stood at entry 20: .* restore the newer one"):
        desk.judge("north", hub.task(), hub.came("north", 7))
    assert desk.rolled_back == ["north"]
    assert AnchorDesk(hub.coordinator).rolled_back == ["north"], "over a restart too"
    with pytest.raises(ReplyRefused, match="entry 20, and stood at entry 20"):
        desk.judge("north", hub.task(), hub.came("north", 20, branch="b"))
    desk.judge("north", hub.task(), hub.came("north", 21))
    assert desk.rolled_back == []


def test_a_recovered_ledger_is_taken(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    desk.judge("north", hub.task(), hub.came("north", 20))
    desk.judge("north", hub.task(), hub.came("north", 9, branch="b", lost=((20, digest(20)),)))
    assert desk.rolled_back == []


def test_an_anchor_is_this_sites_for_this_request(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    for came, why in (
        (hub.came("north", 3, by="south"), "not signed by north"),
        (hub.came("south", 3), "another key than this site's"),
        (hub.came("north", 3, study="1" * 64), "another study, round or roster"),
        (hub.came("north", 3, round=2), "another study, round or roster"),
        (hub.came("north", 3, roster="1" * 64), "another study, round or roster"),
        (Anchored(b"{}"), "no ledger-anchor"),
    ):
        with pytest.raises(ReplyRefused, match=why):
            desk.judge("north", hub.task(), came)
    assert desk.bundle() == ()


def test_a_key_that_was_replaced_signs_nothing_new(hub: Hub) -> None:
    desk, old = AnchorDesk(hub.coordinator), hub.came("north", 3)
    stale = hub.keys["north"]
    home = Home.open(hub.folder / "north")
    hub.coordinator.replace(new_identity(home).read_bytes())
    hub.keys["north"] = SiteKey.load(home.directory / "federation" / "identity.key")
    task = hub.task()
    forged = Anchored(sign(_with(hub, 4), stale).data)
    with pytest.raises(ReplyRefused, match="another key than this site's"):
        desk.judge("north", task, forged)
    desk.judge("south", task, hub.came("south", 1, old.own))
    with pytest.raises(ReplyRefused, match="entry 2, and stood at entry 3"):
        desk.judge("north", task, hub.came("north", 2))


def _with(hub: Hub, number: int) -> Anchor:
    return Anchor(
        federation="trial",
        alias="north",
        roster=hub.coordinator.roster.hash,
        study=PRIVATE.hash,
        round=1,
        sequence=number,
        digest=digest(number),
    )


def test_peers_bring_back_what_a_coordinator_has_lost(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    norths = hub.anchor("north", 20)
    desk.judge("north", hub.task(), Anchored(norths))
    (hub.coordinator.directory / FILE).unlink()  # as a coordinator that was restored from a backup has it
    desk = AnchorDesk(hub.coordinator)
    forged = hub.anchor("north", 90, by="south")
    desk.judge("south", hub.task(), hub.came("south", 3, forged, norths, b"junk"))
    with pytest.raises(ReplyRefused, match="stood at entry 20"):
        desk.judge("north", hub.task(), hub.came("north", 7))


def test_a_site_that_stops_to_send_anchors_is_refused_its_private_fits(hub: Hub) -> None:
    desk = AnchorDesk(hub.coordinator)
    desk.judge("north", hub.task(), Anchored())  # an older version of fedward, without a ledger
    desk.judge("north", hub.task(), hub.came("north", 20))
    with pytest.raises(ReplyRefused, match="without an anchor"):
        desk.judge("north", hub.task(), Anchored())
    desk.judge("north", protocol.Task(fed.study(), round=1, roster=hub.coordinator.roster.hash), Anchored())


def test_who_is_asked_to_train_is_shown_the_anchors_and_who_is_asked_for_scores_is_not(hub: Hub) -> None:
    """In clear and under masks, where keys are asked for first: a site that was put back stops before any work."""
    desk = AnchorDesk(hub.coordinator)
    desk.judge("north", hub.task(), hub.came("north", 20))
    sites = secure_fixtures.Sites(hub.folder / "masked")
    masked = secure_fixtures.Coordinator(sites, secure_fixtures.study())
    masked.link.anchors = desk
    masked.collect()
    shown = {type(request): request.task.anchors for _, request in sites.asked}
    assert shown[secure.KeysRequest] == shown[protocol.TrainRequest] == desk.bundle()

    asked: list[protocol.Request] = []
    grid = fed.Scripted(("north",), lambda name, request: asked.append(request))
    link = Link(grid, fed.Events().log, roster=lambda: SignedRoster(b"", hub.coordinator.roster.hash), anchors=desk)
    weights: dict[str, Any] = {}
    for request in (
        protocol.TrainRequest(hub.task(), weights),
        protocol.EvaluateRequest(hub.task(), "val", weights),
        protocol.SurveyRequest(hub.task(0)),
    ):
        list(Call(link, request, grid.sites, 0.05, lambda: 0).answers())
    assert [request.task.anchors for request in asked] == [desk.bundle(), (), desk.bundle()]
