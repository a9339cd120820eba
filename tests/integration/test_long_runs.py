"""Two hundred rounds: neither end's memory, threads or files grow; and a coordinator that starts before its sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.integration.endurance import Endurance, every_round_once, model
from tests.integration.federation_fixtures import wait_for

ROUNDS, WARM = 200, 60
MOST_KIB = 30.0
"""A round's growth after the warm-up; history and events are on the disk, a history's line is some 0.6 KiB."""


@pytest.mark.slow
@pytest.mark.soak
def test_two_hundred_rounds_leave_memory_and_files_flat(tmp_path: Path) -> None:
    with Endurance.of(tmp_path) as enduring:
        made = enduring.made
        enduring.up()
        text = enduring.text(rounds=ROUNDS, evaluate_every=10)
        run = enduring.begin(text)
        processes = {name: psutil.Process(process.pid) for name, process in made.running.items()}
        seen: dict[str, list[tuple[int, float, int, int]]] = {name: [] for name in processes}
        done = 0
        while done < ROUNDS:
            wait_for(lambda done=done: made.rounds(run) >= min(done + 5, ROUNDS), "five more rounds", made)
            done = made.rounds(run)
            for name, process in processes.items():
                resident = process.memory_info().rss / 1024
                seen[name].append((done, resident, process.num_fds(), process.num_threads()))
        enduring.over(run)
        every_round_once(made, run, ROUNDS)
        slopes = {}
        for name, points in seen.items():
            late = np.array([point for point in points if point[0] >= WARM], dtype=float)
            slopes[name] = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
            print(
                f"{name}: {late[0, 1] / 1024:.0f} MiB at round {late[0, 0]:.0f}, {late[-1, 1] / 1024:.0f} MiB at "
                f"{late[-1, 0]:.0f}: {slopes[name]:+.2f} KiB a round; files {late[:, 2].min():.0f} to "
                f"{late[:, 2].max():.0f}, threads {late[:, 3].min():.0f} to {late[:, 3].max():.0f}"
            )
            assert late[-1, 2] <= late[0, 2] + 4
            assert late[-1, 3] <= late[0, 3] + 2
        assert max(slopes.values()) < MOST_KIB, slopes
        assert model(made.run(run)) == enduring.undisturbed(text)
