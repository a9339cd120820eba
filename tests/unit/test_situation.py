"""What ``status`` says at each moment, read as a newcomer reads it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.words import duration, older
from server.history import come_so_far
from server.situation import describe, next_steps

NOW = 1_800_000_000.0
HASH = "a" * 64


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    os.environ.pop("TZ")
    time.tzset()


def site(**facts: Any) -> dict[str, Any]:
    return {"online": True, "last_seen": NOW - 1, "answer": "ready", "program": "1.0", "until": 0, **facts}


def facts(**changed: Any) -> dict[str, Any]:
    run = {"name": "r", "state": "running", "hash": HASH, "ahead": ""}
    return {
        "up": True,
        "up_s": 600.0,
        "stale_s": None,
        "federation": "trial",
        "address": "hub:8443",
        "program": "1.0",
        "sites": {"east": site(), "north": site()},
        "run": None,
        "runs": [run | changed.pop("of_run", {})],
        "refused": {},
        "alerts": [],
        "certificate_days": {"server": 300},
        **changed,
    }


def told(made: dict[str, Any]) -> str:
    return "\n".join(describe({**made, "next": list(next_steps(made))}, NOW))


def live(**changed: Any) -> dict[str, Any]:
    return {
        "name": "r",
        "phase": "training",
        "round": 2,
        "since": NOW - 60,
        "deadline": NOW + 3540,
        "answered": ["east"],
        "awaited": ["north"],
        "waits": {},
        "set_aside": [],
        **changed,
    }


def test_a_round_names_who_is_awaited_and_for_how_long() -> None:
    last = {"round": 1, "rounds": 4, "train_loss": 0.5, "val_loss": 0.41, "val_auc": 0.873, "bytes": 12_300_000}
    text = told(facts(run=live(), of_run=last | {"absent": {}}))
    assert "running, training, round 2 of 4 since Fri 07:59; answered: east; awaited: north, for 59 min more" in text
    assert "after round 1 of 4: training loss 0.500, validation loss 0.410, AUC 0.873, 12.3 MB moved so far" in text
    hidden = last | {"absent": {}, "val_auc": None, "val_auc_bounds": [0.706, 0.994]}
    assert "AUC between 0.706 and 0.994, as small groups are hidden" in told(facts(run=live(), of_run=hidden))
    private = last | {"absent": {}, "train_loss": None, "val_loss": None, "val_auc": None}
    assert "after round 1 of 4: 12.3 MB moved so far" in told(facts(run=live(), of_run=private))
    assert "testing the finished model" in told(facts(run=live(phase="testing")))


def test_a_closed_site_is_waited_for_and_it_says_until_when() -> None:
    waits = {"north": {"answer": "outside-hours", "until": int(NOW) + 36_000}}
    text = told(facts(run=live(waits=waits)))
    assert "round 2 waits for north, which is closed at this hour until Fri 18:00" in text
    assert "next:" not in text, "nothing to do"
    waits = {"north": {"answer": "roster-changed", "until": 0}}
    assert "next: ask north to decide: `fedward site approve aaaaaaaaaaaa`" in told(facts(run=live(waits=waits)))


def test_before_a_run_it_says_who_has_yet_to_decide() -> None:
    sites = {"east": site(), "north": site(answer="approval-pending"), "west": site(answer="offline", online=False)}
    text = told(facts(sites=sites, of_run={"state": "waiting"}))
    assert "approved by east; north waits for its people's approval; west is offline" in text
    assert "next: ask north to decide: `fedward site approve aaaaaaaaaaaa`" in text
    assert "next: call west: " in text
    text = told(facts(sites=sites, of_run={"state": "waiting"}, up_s=12.0))
    assert "next: wait for west: " in text
    assert "call west" not in text


def test_before_a_run_it_says_when_it_begins_without_the_others_and_never_that_an_online_site_is_offline() -> None:
    sites = {"east": site(), "north": site(answer="approval-pending"), "west": site(answer="offline")}
    enough = live(begins=NOW + 300, waits={})
    text = told(facts(sites=sites, of_run={"state": "waiting"}, run=enough))
    assert "approved by east; that is enough: it begins at Fri 08:05, or when the others have decided; north" in text
    assert "west is asked next" in text
    assert "offline" not in text


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"up": False}, "next: `fedward coordinator up --resume`"),
        ({"up": False, "runs": []}, "next: `fedward coordinator up`"),
        ({"stale_s": 90.0}, "the coordinator has said nothing for 90 s"),
        ({"sites": {}}, "next: take sites in: `fedward coordinator admit REQUEST`"),
        ({"runs": []}, "next: `fedward coordinator launch STUDY.yaml`"),
        (
            {"of_run": {"state": "failed", "why": "quorum"}},
            "next: mend what it names, then `fedward coordinator resume r`",
        ),
        ({"of_run": {"state": "stopped"}}, "next: `fedward coordinator resume r` goes on with it"),
        ({"of_run": {"state": "finished"}}, "next: `fedward coordinator export DIR`"),
        ({"certificate_days": {"server": 9}}, "renew the certificate server, 9 days left"),
        ({"refused": {"no signature": 3}}, "refused requests since the start: no signature 3"),
        ({"sites": {"east": site(program="0.9")}}, "fedward 0.9 (here is 1.0: that site should upgrade)"),
        ({"alerts": [{"level": "critical", "text": "disk"}]}, "critical: disk"),
        (
            {"sites": {"east": site(answer="another version: that site speaks protocol 1")}},
            "next: agree on one version of fedward with east",
        ),
    ],
)
def test_every_moment_has_its_line(changed: dict[str, Any], says: str) -> None:
    assert says in told(facts(**changed))


def test_who_upgrades_is_who_is_older() -> None:
    assert [older(*pair) for pair in (("1.0", "1.0"), ("1.10.0", "1.9.3"), ("1.0", "1.0.1"))] == ["", "ours", "theirs"]
    assert [duration(seconds) for seconds in (-5, 119, 120, 7200, 172_800)] == [
        "0 s",
        "119 s",
        "2 min",
        "2 h",
        "2 days",
    ]


def test_rounds_that_were_played_again_count_once(tmp_path: Path) -> None:
    def line(round_: int, size: int, **sites: str) -> str:
        kept = {site: {"status": status} for site, status in sites.items()}
        made = {"event": "round", "round": round_, "rounds": 3, "bytes": size, "train_loss": 0.1, "sites": kept}
        return json.dumps(made, separators=(",", ":")) + "\n"

    events = tmp_path / "events.jsonl"
    assert come_so_far(events) == {}
    aside = '{"event":"set-aside","site":"west"}\n'
    events.write_text(line(1, 10, east="ok") + line(2, 10) + line(2, 12, east="ok", west="refused: x") + aside + '{"ev')
    found = come_so_far(events)
    assert (found["round"], found["rounds"], found["bytes"]) == (2, 3, 22)
    assert found["absent"] == {"west": "refused: x"}
    assert found["set_aside"] == ["west"]
