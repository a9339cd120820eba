"""Secure sums with the coordinator's and the sites' own code: drop-outs, attempts, lost rounds, sites that lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import protocol
from common.errors import RunError
from common.protocol import secure
from server.secure import AttemptFailed, RoundLost
from tests.unit.secure_fixtures import NAMES, PHASES, SENT, Coordinator, Sites, same, study


def test_the_sum_is_the_plain_sum_and_the_loss_its_mean(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    coordinator = Coordinator(sites, study())
    found = coordinator.collect()
    assert found.survivors == NAMES
    same(found, sites.plain(*NAMES))
    assert 0.1 < found.total.loss < 1
    assert coordinator.sum.reasons == {}
    assert not coordinator.events.of("attempt")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("near", [None, 4])
@pytest.mark.parametrize("how", ["silent", "refuses"])
def test_one_of_five_drops_out_of_any_phase_and_the_sum_is_exact(
    tmp_path: Path, phase: str, near: int | None, how: str
) -> None:
    sites = Sites(tmp_path)

    def bend(name: str, request: protocol.Request, reply: protocol.Reply) -> protocol.Reply | None:
        if name != "cat" or not isinstance(request, PHASES[phase]):
            return reply
        return None if how == "silent" else protocol.Refusal(name, "internal-error")

    sites.bend = bend
    coordinator = Coordinator(sites, study(**{"federation.secure_aggregation": {"neighbours": near}}))
    found = coordinator.collect()
    others = tuple(name for name in NAMES if name != "cat")
    left = others if phase in ("keys", "shares", "training") else NAMES
    assert found.survivors == left
    same(found, sites.plain(*left))
    if left == others:
        assert coordinator.sum.reasons["cat"].endswith(f"({phase})")


def test_a_site_may_drop_out_of_every_phase_as_long_as_enough_stay(tmp_path: Path) -> None:
    """Threshold 3 of 5: one leaves before its shares, another before its row; then anybody may be slow."""
    sites = Sites(tmp_path)
    gone = {"ada": secure.SharesRequest, "eve": protocol.TrainRequest}
    sites.bend = lambda name, request, reply: None if isinstance(request, gone.get(name, ())) else reply
    coordinator = Coordinator(sites, study(**{"federation.secure_aggregation": {"threshold": 3}}))
    found = coordinator.collect()
    assert found.survivors == ("bob", "cat", "dan")
    same(found, sites.plain("bob", "cat", "dan"))


@pytest.mark.parametrize("phase", ["keys", "shares", "training", "survivors"])
def test_below_the_threshold_nothing_is_unmasked(tmp_path: Path, phase: str) -> None:
    sites = Sites(tmp_path)
    sites.bend = lambda name, request, reply: (
        None if name in ("ada", "eve") and isinstance(request, PHASES[phase]) else reply
    )
    coordinator = Coordinator(sites, study())  # two thirds of five: four
    with pytest.raises(AttemptFailed):
        coordinator.collect()
    assert not any(isinstance(request, secure.UnmaskRequest) for _, request in sites.asked)
    assert [line["number"] for line in coordinator.events.of("attempt")] == [1], "silence is not mended by asking again"


def test_an_agent_started_anew_is_in_the_next_attempt(tmp_path: Path) -> None:
    """It has forgotten its session; the others send what they have kept, masked anew."""
    for phase in ("shares", "training", "survivors", "unmasking"):
        sites = Sites(tmp_path / phase)
        struck: list[str] = []

        def bend(name: str, request: protocol.Request, reply: protocol.Reply) -> protocol.Reply:
            if name == "bob" and isinstance(request, PHASES[phase]) and not struck:  # noqa: B023
                struck.append(name)  # noqa: B023
                sites.restart(name)  # noqa: B023
                return sites.answer(name, request)  # noqa: B023
            return reply

        sites.bend = bend
        coordinator = Coordinator(sites, study(), quorum=5)
        found = coordinator.collect()
        same(found, sites.plain(*NAMES))
        if phase in ("shares", "training"):
            assert "attempt-over" in coordinator.events.of("attempt")[0]["sites"]["bob"]
            rows = [reply.row for reply in sites.replies if isinstance(reply, secure.MaskedReply)]
            assert len({row.tobytes() for row in rows}) == len(rows), "a row was sent twice under one mask"


def test_shares_that_never_come_lose_the_round_for_everybody_else(tmp_path: Path) -> None:
    """Asked for once, shares are for those survivors; the coordinator remembers across its own restart."""
    sites = Sites(tmp_path / "sites")
    sites.bend = lambda name, request, reply: (
        None if name in ("ada", "eve") and isinstance(request, secure.UnmaskRequest) else reply
    )
    path = tmp_path / "release.json"
    coordinator = Coordinator(sites, study(), path=path)
    with pytest.raises(RoundLost, match="round 1 is lost"):
        coordinator.collect()
    # Another coordinator process, all sites well: the same survivors, so the same sum.
    sites.bend = lambda name, request, reply: reply
    again = Coordinator(sites, study(), path=path)
    same(again.collect(), sites.plain(*NAMES))
    # And with one of them gone there is no sum of the others.
    sites.bend = lambda name, request, reply: None if name == "dan" else reply
    with pytest.raises(RoundLost):
        Coordinator(sites, study(), path=path).collect()
    # The next round has its own survivors.
    found = Coordinator(sites, study(), path=path).sum.collect(2, SENT, again.grid.sites)
    assert found.survivors == ("ada", "bob", "cat", "eve")


def test_a_coordinator_that_has_forgotten_is_told_by_the_sites(tmp_path: Path) -> None:
    """Its folder was lost; the sites know for whom they have unmasked the round."""
    sites = Sites(tmp_path)
    same(Coordinator(sites, study()).collect(), sites.plain(*NAMES))
    sites.bend = lambda name, request, reply: None if name == "dan" else reply
    forgetful = Coordinator(sites, study())
    with pytest.raises(RoundLost):
        forgetful.collect()
    assert forgetful.sum.reasons["ada"] == "declined: round-released (survivors)"


def test_a_damaged_record_of_releases_says_so(tmp_path: Path) -> None:
    path = tmp_path / "release.json"
    path.write_text('{"round": "x"}')
    with pytest.raises(RunError, match=r"release.json is damaged"):
        Coordinator(Sites(tmp_path), study(), path=path).collect()


def test_a_site_that_gives_wrong_shares_is_found_out_and_done_without(tmp_path: Path) -> None:
    sites = Sites(tmp_path)

    def bend(name: str, request: protocol.Request, reply: protocol.Reply) -> protocol.Reply | None:
        if name == "eve" and isinstance(request, protocol.TrainRequest):
            return None  # so that a key is restored too
        if name == "ada" and isinstance(reply, secure.UnmaskReply):
            return replace(
                reply,
                seeds={site: share[:-1] + bytes([share[-1] ^ 1]) for site, share in reply.seeds.items()},
                keys={site: bytes(33) for site in reply.keys},
            )
        return reply

    sites.bend = bend
    coordinator = Coordinator(sites, study(**{"federation.secure_aggregation": {"threshold": 3}}))
    same(coordinator.collect(), sites.plain("ada", "bob", "cat", "dan"))
    (told,) = coordinator.events.of("bad-shares")
    assert {holder for _, holder in told["shares"]} == {"ada"}
    assert {site for site, _ in told["shares"]} == set(NAMES)


def wrong(name: str, reply: protocol.Reply) -> list[protocol.Reply]:
    """What a site must not get away with, in place of its reply."""
    if isinstance(reply, secure.KeysReply):
        return [
            replace(reply, bundle=replace(reply.bundle, mask=bytes(32))),
            replace(reply, bundle=replace(reply.bundle, signature=b"\x30" * 100)),
            secure.SurvivorsReply(name, b"x"),
        ]
    if isinstance(reply, secure.SharesReply):
        return [
            replace(reply, envelopes={}),
            replace(reply, envelopes={**reply.envelopes, name: bytes(secure.SEALED_BYTES)}),
            replace(reply, site="bob"),
        ]
    if isinstance(reply, secure.MaskedReply):
        return [
            replace(reply, row=reply.row[:-1]),
            replace(reply, row=np.concatenate([reply.row, reply.row])),
            replace(reply, round=2),
            protocol.TrainReply(name, 1, SENT, 1, 0.1, 0.0),
        ]
    if isinstance(reply, secure.SurvivorsReply):
        return [replace(reply, signature=b"\x30" * 100)]
    if isinstance(reply, secure.UnmaskReply):
        return [replace(reply, seeds={}), replace(reply, keys={"bob": bytes(33)})]
    return []


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("phase", PHASES)
def test_a_site_that_answers_wrongly_hurts_itself_only(tmp_path: Path, phase: str, number: int) -> None:
    sites = Sites(tmp_path)
    done: list[protocol.Reply] = []

    def bend(name: str, request: protocol.Request, reply: protocol.Reply) -> Any:
        if name != "ada" or not isinstance(request, PHASES[phase]):
            return reply
        choices = wrong(name, reply)
        done.append(reply)
        return choices[min(number, len(choices) - 1)]

    sites.bend = bend
    coordinator = Coordinator(sites, study())
    found = coordinator.collect()
    assert done
    others = NAMES[1:]
    left = others if phase in ("keys", "shares", "training") else NAMES
    same(found, sites.plain(*left))
    assert coordinator.sum.reasons["ada"].startswith("refused: ")
    assert coordinator.sum.reasons["ada"].endswith(f"({phase})")
