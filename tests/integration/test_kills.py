"""SIGKILL and SIGSTOP of either side, at every phase of a run: it ends with the weights of an undisturbed one.

A sample of :data:`tests.integration.kill_points.POINTS` runs by default, all of them under ``make soak``.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from client import upkeep
from tests.conftest import SOAK
from tests.integration.endurance import (
    SEED,
    SITES,
    Endurance,
    absences,
    delivered,
    every_round_once,
    model,
    nothing_half_written,
    on_record,
    statuses,
)
from tests.integration.federation_fixtures import wait_for
from tests.integration.kill_points import HELD, POINTS, Point, arm

MOST_RUNS = 25
TRAINING = Point("training", "agent", "client.app:train", hold=True)


def sample() -> list[str]:
    """All points under ``make soak``; else one of each side."""
    if SOAK:
        return list(POINTS)
    rng = random.Random(SEED)
    sides = [[name for name, point in POINTS.items() if point.who == who] for who in ("agent", "coordinator")]
    return [rng.choice(side) for side in sides]


@pytest.fixture(scope="module")
def federations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Endurance]]:
    """One for many tests; another before its sites have been asked for more studies than they take in a day."""
    now: list[Endurance] = []
    with contextlib.ExitStack() as up:

        def current() -> Endurance:
            if not now or now[-1].count >= MOST_RUNS:
                verified(now)
                up.close()
                now.append(up.enter_context(Endurance.of(tmp_path_factory.mktemp("kills"))))
                now[-1].up()
            return now[-1]

        yield current
        verified(now)


def verified(so_far: list[Endurance]) -> None:
    for alias in SITES if so_far else ():
        upkeep.verify(so_far[-1].made.home(alias))


@pytest.fixture
def enduring(federations: Callable[[], Endurance]) -> Endurance:
    return federations()


@pytest.mark.slow
@pytest.mark.parametrize("name", sample())
def test_a_kill_changes_no_number(enduring: Endurance, name: str) -> None:
    point, made = POINTS[name], enduring.made
    struck = "coordinator" if point.who == "coordinator" else random.Random(f"{SEED} {name}").choice(SITES)
    text = enduring.text()
    expected = enduring.undisturbed(text)
    with enduring.revived(struck) as codes:
        run = enduring.begin(text, point, struck)
        wait_for(lambda: bool(codes), "the struck process to be seen", made)
        enduring.over(run)
    assert codes == [-signal.SIGKILL]
    assert model(made.run(run)) == expected, "other weights than undisturbed"
    every_round_once(made, run)
    assert statuses(made, run) == [dict.fromkeys(SITES, "ok")] * 4
    # Killed between the record and the keeping of a reply, which never left: made again, and on record again.
    on_record(made, text, twice_at_most=int(point.phase in ("on record", "keeping the reply")))
    delivered(made, run)
    nothing_half_written(made)


@pytest.mark.slow
def test_a_site_that_stands_still_is_away_and_comes_back(enduring: Endurance) -> None:
    """Past a deadline (under ``make soak`` for minutes, past its heart-beats): its late reply is dropped."""
    made, still = enduring.made, random.Random(SEED).choice(SITES)
    text = enduring.text(deadline_s=20, quorum=0.5, keep="last")
    run = enduring.begin(text, TRAINING, still)
    made.running[still].send_signal(signal.SIGSTOP)
    enduring.let_go(still)
    lost = made.rounds(run) + 1
    wait_for(lambda: made.rounds(run) >= lost, "the round to go on without it", made)
    if SOAK:
        time.sleep(150)
    made.running[still].send_signal(signal.SIGCONT)
    enduring.over(run)
    assert statuses(made, run)[lost - 1][still] in ("no answer before the deadline", "offline")
    every_round_once(made, run)
    expected = enduring.undisturbed(text, absences(made, run))
    assert model(made.run(run)) == expected, "its late reply was counted"
    back = enduring.text(rounds=1)
    run = enduring.begin(back)
    enduring.over(run)
    assert statuses(made, run) == [dict.fromkeys(SITES, "ok")]


@pytest.mark.slow
@pytest.mark.soak
def test_a_site_that_is_absent_when_a_run_is_resumed_comes_back_into_it(enduring: Endurance) -> None:
    made = enduring.made
    text = enduring.text(quorum=0.5, keep="last")
    run = enduring.begin(text, TRAINING, "north")
    for name in ("north", "coordinator"):
        made.end(name, signal.SIGKILL)
    (made.folder / f"north{HELD}").unlink()
    # East answers the second round with what it has kept, and is held in the third until north is there.
    held = made.folder / "east.armed"
    arm(held, TRAINING)
    made.up("resume", patience=1.0)
    wait_for(lambda: not held.exists(), "the run to go on with east alone", made)
    enduring.up("north")
    status = made.folder / "coordinator" / "status.json"
    wait_for(lambda: json.loads(status.read_text())["sites"]["north"]["online"], "north to be back", made)
    enduring.let_go("east")
    enduring.over(run)
    assert [sites["north"] == "ok" for sites in statuses(made, run)] == [True, False, False, True]
    every_round_once(made, run)
    assert model(made.run(run)) == enduring.undisturbed(text, absences(made, run))
    made.end("coordinator")
    enduring.up("coordinator")


@pytest.mark.slow
@pytest.mark.soak
def test_a_coordinator_that_stands_still_for_minutes_loses_no_site(enduring: Endurance) -> None:
    made, text = enduring.made, enduring.text()
    run = enduring.begin(text)
    wait_for(lambda: made.rounds(run) >= 1, "a round", made)
    made.running["coordinator"].send_signal(signal.SIGSTOP)
    time.sleep(150)
    made.running["coordinator"].send_signal(signal.SIGCONT)
    enduring.over(run)
    assert model(made.run(run)) == enduring.undisturbed(text)
    assert statuses(made, run) == [dict.fromkeys(SITES, "ok")] * 4
    on_record(made, text)
