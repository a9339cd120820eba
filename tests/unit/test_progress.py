"""What a run says: lines for pipes, bars for a terminal, JSON for programs, and the last words."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from simulations.progress import JsonProgress, PlainProgress, TerminalProgress, choose_progress, closing, interval
from tests.unit import fake_results


def started(**changes: Any) -> dict[str, Any]:
    images = {"train": 30, "val": 5, "test": 7}
    return {
        "event": "started",
        "study": "tiny",
        "source": "phantoms (synthetic)",
        "synthetic": True,
        "sites": {"site-1": images, "site-2": images},
        "unreadable": 0,
        "images_without_patient": 0,
        "notes": [],
        "arms": ["federated", "local"],
        "repeats": 1,
        "rounds": 4,
    } | changes


def round_(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "event": "round",
        "arm": "federated",
        "repeat": 0,
        "round": number,
        "rounds": 4,
        "train_loss": 0.5,
        "val_loss": 0.25,
        "val_auc": 0.875,
        "wall_s": 2.0,
        "sites": {"site-1": {"status": "ok"}, "site-2": {"status": "ok"}},
    } | changes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(*events: dict[str, Any], clock: Clock | None = None) -> list[str]:
    stream = io.StringIO()
    progress = PlainProgress(stream, clock or Clock())
    for event in events:
        progress(event)
    progress.close()
    return stream.getvalue().splitlines()


def test_the_first_lines_say_what_is_real_and_what_was_left_out() -> None:
    assert plain(started()) == [
        "tiny: phantoms (synthetic), SYNTHETIC data",
        "2 hospitals, 60 training, 10 validation and 14 test images, each in its hospital's encrypted vault",
    ]
    told = started(synthetic=False, source="folder x", unreadable=3, images_without_patient=20, notes=["x: 9 images"])
    lines = plain(told)
    assert lines[0] == "tiny: folder x, real images"
    assert lines[2].startswith("20 images without a patient")
    assert lines[3] == "x: 9 images"
    assert lines[4].startswith("3 unreadable images left out")


def test_a_round_is_a_line_with_the_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock)
    progress(round_(1))
    clock.now += 4.0  # the first took 2 s, this one 4 s: 3 s a round
    progress(round_(2))
    progress(round_(1, arm="local:site-1", repeat=2, val_loss=None, val_auc=None))
    assert stream.getvalue().splitlines() == [
        "federated round 1/4  loss 0.500  val loss 0.250  val AUC 0.875  6 s left",
        "federated round 2/4  loss 0.500  val loss 0.250  val AUC 0.875  6 s left",
        "local:site-1 #3 round 1/4  loss 0.500  6 s left",
    ]


def test_time_left_after_resuming_counts_the_rounds_of_this_process() -> None:
    assert plain({"event": "resumed", "arm": "federated", "repeat": 0, "round": 2}, round_(3)) == [
        "federated continues after round 2",
        "federated round 3/4  loss 0.500  val loss 0.250  val AUC 0.875  2 s left",
    ]


def test_a_site_whose_reply_did_not_count_is_named() -> None:
    sites = {"site-1": {"status": "refused: its weights are not finite"}, "site-2": {"evaluation": "ok"}}
    assert plain(round_(4, sites=sites))[1:] == ["  ! round 4, site-1: refused: its weights are not finite"]


def test_other_events_are_silent() -> None:
    assert plain({"event": "site", "site": "site-1"}, {"event": "testing"}, {"event": "finished"}) == [
        "testing the models on everybody's test patients"
    ]


def test_json_lines_are_the_events() -> None:
    stream = io.StringIO()
    progress = JsonProgress(stream)
    events = [started(study="Größe"), round_(1), {"event": "anything", "nested": {"value": None}}]
    for event in events:
        progress(event)
    progress.close()
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == events
    assert "Größe" in stream.getvalue()


def test_a_terminal_has_a_bar_per_arm_and_one_for_all_who_train_alone() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    progress(started())
    for number in (1, 2, 3, 4):
        progress(round_(number))
    for site in ("site-1", "site-2"):
        progress({"event": "resumed", "arm": f"local:{site}", "repeat": 0, "round": 1})
    bad = {"site-2": {"status": "declined: vault-unusable"}}
    progress(round_(2, arm="local:site-2", sites=bad))
    progress({"event": "testing", "repeat": 0})
    progress.close()
    shown = stream.getvalue()
    last = shown[shown.rindex("federated") :]
    assert "4/4" in last
    assert "alone" in last
    assert "3/8" in last  # one round of site-1 and two of site-2, of four each
    assert "local:" not in shown
    assert "! round 2, site-2: declined: vault-unusable" in shown


@pytest.mark.parametrize(("as_json", "kind"), [(True, JsonProgress), (False, PlainProgress)])
def test_without_a_terminal_lines_are_chosen(as_json: bool, kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(choose_progress(as_json), kind)


def test_the_last_lines_show_every_arm_and_who_gained() -> None:
    result = fake_results.results()
    lines = closing(result)
    for arm, name in (("federated", "federated"), ("pooled", "pooled"), ("local", "alone (mean)")):
        cell = result["arms"][arm]["test"]["auc"]
        assert [line for line in lines if line.startswith(name) and interval(cell) in line]
    rows = [row for row in result["differences"] if row["metric"] == "auc" and row["on"] == "all"]
    assert sum(line.startswith("federated - ") for line in lines) == len(rows)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "cannot tell")]
)
def test_a_gain_is_called_one_only_when_its_interval_says_so(low: float, high: float, verdict: str) -> None:
    row = {"a": "federated", "b": "local:site-1", "metric": "auc", "on": "all", "value": (low + high) / 2}
    (line,) = closing({"arms": {}, "differences": [{**row, "low": low, "high": high}]})[2:]
    assert line.startswith("federated - site-1 alone")
    assert line.endswith(f"  {verdict}")
    assert closing({"arms": {}, "differences": [{**row, "low": None, "high": None}]})[2:] == []


def test_the_last_lines_stay_few_with_many_hospitals() -> None:
    row = {"a": "federated", "metric": "auc", "on": "all", "value": 0.0, "low": -0.1, "high": 0.1}
    many = [{**row, "b": f"local:site-{number}"} for number in range(1000)]
    lines = closing({"arms": {}, "differences": many})
    assert len(lines) < 20
    assert lines[-1] == "… and 988 more hospitals: see the report"


def test_an_undefined_metric_is_a_dash() -> None:
    assert interval({"value": None, "low": None, "high": None}) == "-"
    assert interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert interval({"value": None, "low": 0.25, "high": 0.75}) == "[0.250, 0.750]"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"


def test_where_small_groups_are_hidden_the_bounds_are_shown() -> None:
    (line,) = plain(round_(1, val_auc=None, val_auc_bounds=(0.5, 0.75)))
    assert "val AUC in [0.500, 0.750]" in line
