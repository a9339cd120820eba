"""`fedward reproduce`: each paper's studies are played, its stage removed, and the page says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import Interrupted, RunError
from simulations.reproduce.cli import measure, write
from simulations.reproduce.paper import load, numbers
from simulations.reproduce.playing import Order, play
from simulations.runfolder import Folder

pytestmark = pytest.mark.slow


class Quiet:
    """Hears a run and says nothing; may stop it as Ctrl-C would."""

    def __init__(self, stop_at: str = "") -> None:
        self._stop_at = stop_at

    def __call__(self, event: Any) -> None:
        if event["event"] == self._stop_at:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("number", numbers())
def test_a_paper_runs_and_a_removed_stage_changes_the_result(number: int, tmp_path: Path) -> None:
    paper = load(number)
    order = Order(paper, tmp_path / "out", {}, quick=True)
    play(order, lambda name: Quiet())
    found = measure(order, f"fedward reproduce {number} --quick")
    page = write(found).read_text()
    assert "Synthetic data" in page
    assert "not the paper" in page
    told = json.loads((order.out / "paper.json").read_text())
    assert told["synthetic"]
    played = [stage for stage in told["stages"] if not stage["reason"]]
    assert played
    for stage in played:
        if stage["lacking"] is None:  # against a rule that sees no pixel
            assert stage["differences"][0]["value"] != 0.0
            continue
        with_it, without = (
            json.loads((order.folder(stage[side]) / "results.json").read_text()) for side in ("having", "lacking")
        )
        assert with_it["study_hash"] != without["study_hash"]
        tested = [next(iter(one["arms"].values()))["test"] for one in (with_it, without)]
        assert tested[0] != tested[1], f"{stage['stage']}: taking it away changed nothing"
    rows = [row for table in told["tables"] for row in table["rows"]]
    assert all((row["ours"] is None) == bool(row["reason"]) for row in rows)
    assert any(row["ours"] for row in rows)
    assert "SYNTHETIC" in (order.out / "paper.md").read_text()


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", numbers())
def test_every_run_of_a_paper_plays_on_phantoms(number: int, tmp_path: Path) -> None:
    """All that ``fedward reproduce N`` plays; what it says was not run waits for ``--full`` or can never be had."""
    paper = load(number)
    order = Order(paper, tmp_path / "out", {})
    play(order, lambda name: Quiet())
    found = measure(order, f"fedward reproduce {number}")
    write(found)
    assert set(order.left_out) == {name for name, run in paper.runs.items() if run.only_full}
    assert all(worth.differences for worth in found.worths)
    for table in found.tables:
        for line in table.lines:
            ours = line.published.ours
            assert (
                line.measured is not None
                or ours is None
                or paper.runs[ours.run].only_full
                or "undefined" in line.reason
            )


def test_a_stopped_reproduction_goes_on_where_it_was(tmp_path: Path) -> None:
    order = Order(load(5), tmp_path / "out", {}, quick=True)
    first, second = order.wanted
    with pytest.raises(Interrupted, match="give the same command again"):
        play(order, lambda name: Quiet("testing" if name == second else ""))
    assert Folder(order.folder(first)).finished
    assert not Folder(order.folder(second)).finished
    before = (order.folder(first) / "results.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="holds another reproduction"):
        play(Order(load(5), order.out, {}, seeds=2, quick=True), lambda name: Quiet())
    play(order, lambda name: Quiet())
    assert (order.folder(first) / "results.json").stat().st_mtime_ns == before
    assert Folder(order.folder(second)).finished
    with pytest.raises(RunError, match="in use by something else"):
        play(Order(load(5), order.folder(first), {}, quick=True), lambda name: Quiet())
