"""Lines that lose, delay, fall silent or are down, in every phase: a run goes on, and its numbers are the same."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.integration.endurance import (
    SEED,
    SITES,
    Endurance,
    delivered,
    every_round_once,
    model,
    nothing_half_written,
    on_record,
    statuses,
)
from tests.integration.federation_fixtures import wait_for
from tests.integration.kill_points import Point
from tests.integration.wan import COORDINATOR, Line, Wan, missing, wan

BAD = Line(delay_s=0.05, loss=0.02, rate=5e6)
"""A round trip of 100 ms."""
CUT = ("silent", "down")
PHASES = {
    "approving": Point(
        "waiting for approval", "agent", "client.approvals:Approvals.seen", "after", rounds=0, hold=True
    ),
    "pulling": Point("pulling", "agent", "client.flower_private:pull_objects", hold=True),
    "training": Point("training", "agent", "client.app:train", hold=True),
    "pushing": Point("pushing", "agent", "client.fleet:_Agent._bring", hold=True),
    "in the middle of pushing": Point("pushing", "agent", "client.flower_private:push_objects", hold=True),
    "evaluating": Point("evaluating", "agent", "client.app:evaluate", hold=True),
    "testing": Point("testing", "agent", "client.app:moments", hold=True),
    "aggregating": Point("aggregating", "coordinator", "server.fits:Fits._accept", hold=True),
    "checkpointing": Point("checkpointing", "coordinator", "server.rounds:save_progress", hold=True),
}


@pytest.fixture(scope="module")
def lines() -> Iterator[Wan]:
    if missing():
        pytest.skip(missing())
    with wan(SITES, SEED) as made:
        yield made


@pytest.fixture(scope="module")
def enduring(lines: Wan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endurance]:
    inside = {name: ("ip", "netns", "exec", space) for name, space in lines.spaces.items()}
    with Endurance.of(tmp_path_factory.mktemp("wan"), host=COORDINATOR, inside=inside) as found:
        found.up()
        yield found


def cut(lines: Wan, how: str, site: str) -> None:
    lines.down(site) if how == "down" else lines.set(Line(silent=True), site)


def heal(lines: Wan, how: str, site: str, line: Line) -> None:
    lines.up(site) if how == "down" else lines.set(line, site)


def apart(enduring: Endurance, lines: Wan, point: Point, how: str, seconds: float, line: Line, rounds: int) -> None:
    """A site's line is cut in a phase, for longer than its time-outs; nothing is lost and nothing made twice."""
    made, site = enduring.made, random.Random(f"{SEED} {point}").choice(SITES)
    held = "coordinator" if point.who == "coordinator" else site
    text = enduring.text(rounds=rounds, deadline_s=600)
    run = enduring.begin(text, point, held)
    cut(lines, how, site)
    enduring.let_go(held)
    time.sleep(seconds)
    heal(lines, how, site, line)
    enduring.over(run)
    assert model(made.run(run)) == enduring.undisturbed(text)
    every_round_once(made, run, rounds)
    assert statuses(made, run) == [dict.fromkeys(SITES, "ok")] * rounds
    on_record(made, text, rounds)
    delivered(made, run)
    nothing_half_written(made)


@pytest.mark.slow
def test_a_bad_line_that_is_cut_while_a_reply_is_pushed(enduring: Endurance, lines: Wan) -> None:
    lines.set(BAD)
    try:
        apart(enduring, lines, PHASES["in the middle of pushing"], "silent", 6.0, BAD, rounds=2)
    finally:
        lines.set(Line())


@pytest.mark.slow
def test_a_site_that_withdraws_while_its_reply_cannot_be_pushed_is_obeyed(enduring: Endurance, lines: Wan) -> None:
    made = enduring.made
    run = enduring.begin(enduring.text(rounds=2), PHASES["pushing"], "north")
    cut(lines, "silent", "north")
    before = made.log("north").count("unreachable")
    enduring.let_go("north")
    wait_for(lambda: made.log("north").count("unreachable") > before, "the push to fail", made)
    approvals, record = made.record("north", run)
    approvals.withdraw(record, by="Bob")
    approvals.close()
    heal(lines, "silent", "north", Line())
    facts = made.state(run, "finished", "failed")
    assert facts["state"] == "failed"
    assert "round 2" in facts["why"]
    assert "north: declined: study-withdrawn" in facts["why"]


# --- make soak -------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("how", CUT)
@pytest.mark.parametrize("phase", PHASES)
def test_a_partition_in_every_phase(enduring: Endurance, lines: Wan, phase: str, how: str) -> None:
    """For longer than the site is listed as online: 20 s, at these tests' pace."""
    apart(enduring, lines, PHASES[phase], how, 30.0, Line(), rounds=3)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.02, 0.05])
def test_a_whole_run_over_bad_lines(enduring: Endurance, lines: Wan, loss: float) -> None:
    lines.set(Line(delay_s=0.1, loss=loss, rate=5e6))
    try:
        text = enduring.text(deadline_s=600)
        begun = time.monotonic()
        run = enduring.begin(text)
        enduring.over(run, timeout_s=600)
        print(f"{loss:.0%} loss, 200 ms there and back, 5 Mbit/s: {time.monotonic() - begun:.0f} s for four rounds")
    finally:
        lines.set(Line())
    made = enduring.made
    assert model(made.run(run)) == enduring.undisturbed(text)
    on_record(made, text)


@pytest.mark.soak
@pytest.mark.slow
def test_agents_that_start_before_anybody_answers(enduring: Endurance, lines: Wan) -> None:
    """Nobody listens, then nothing is heard at all, then the line is there: they come by themselves."""
    made = enduring.made
    for name in ("coordinator", *SITES):
        made.end(name)
    lines.set(Line(silent=True), "north")
    enduring.up(*SITES)
    time.sleep(15)
    enduring.up("coordinator")
    text = enduring.text()
    run = made.launch(text)
    made.approve(run, "east")
    lines.set(Line(), "north")
    made.approve(run, "north")
    enduring.over(run)
    assert model(made.run(run)) == enduring.undisturbed(text)


@pytest.mark.soak
@pytest.mark.slow
def test_half_open_connections_do_not_pile_up(enduring: Endurance, lines: Wan) -> None:
    """Each silence leaves connections of which one end knows nothing; both ends get rid of them."""
    import psutil

    made = enduring.made
    hub = psutil.Process(made.running["coordinator"].pid)
    text = enduring.text(rounds=2)
    run = enduring.begin(text)
    enduring.over(run)
    before = hub.num_fds()
    for _ in range(8):
        lines.set(Line(silent=True))
        time.sleep(6)
        lines.set(Line())
        time.sleep(4)
    ends = time.monotonic() + 120
    while hub.num_fds() > before + 4 and time.monotonic() < ends:
        time.sleep(1)
    assert hub.num_fds() <= before + 4
    enduring.over(enduring.begin(enduring.text(rounds=2)))
