"""configs/papers: what is copied stands in the paper, what is planned can be played, what is shown was found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from client.evaluation import Scores
from common.errors import RunError, StudyError
from common.html import Banner, Cell, Column, Facts, Page, Paragraph, Section, Table
from server.report.intervals import Interval
from simulations.cli import check_parts
from simulations.reproduce.beside import Measured, measured
from simulations.reproduce.cli import _folders
from simulations.reproduce.confounding import by_rule
from simulations.reproduce.markdown import markdown
from simulations.reproduce.paper import PAPERS, Ours, Paper, load, numbers
from simulations.reproduce.playing import Order
from simulations.reproduce.scoring import Scored, by_appearance, same_patients

ALL = numbers()


def table(number: int) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PAPERS / f"{number}.table.yaml").read_text())
    return found


def spelled(value: float, unit: str) -> set[str]:
    """How a paper may print a figure."""
    percent = f"{round(100 * value, 6):g}"
    if unit == "ms":
        return {f"{value:g}"}
    return {f"{value:g}", f"{value:.2f}", f"{value:.4f}", percent} | (
        {f"{100 * value:.1f}"} if unit == "rate" else set()
    )


@pytest.mark.parametrize("number", ALL)
def test_every_figure_stands_in_its_paper(number: int, shared: Path) -> None:
    (text,) = (path.read_text() for path in sorted((shared / "papers").glob(f"{number - 1:03}_*.txt")))
    printed = set(re.findall(r"\d+(?:\.\d+)?", text))
    for one in load(number).published:
        for row in one.rows:
            assert spelled(row.value, row.unit) & printed, (one.caption, row.what, row.value)


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("how", ["phantoms", "real", "full", "quick"])
def test_every_study_of_a_paper_holds(number: int, how: str, tmp_path: Path) -> None:
    """Studies load, their changes are changes of a study, and two runs are never the same study."""
    paper = load(number)
    data = {} if how == "phantoms" else dict.fromkeys(paper.sets, tmp_path)
    order = Order(paper, tmp_path, data, quick=how == "quick", full=how == "full")
    studies = {name: order.study(name) for name in order.wanted}
    assert len({study.hash for study in studies.values()}) == len(studies)
    if how == "phantoms":  # models are the same whatever the images
        for name, study in studies.items():
            check_parts(study, Path(name))


@pytest.mark.parametrize("number", ALL)
def test_quick_reaches_a_figure_and_a_stage(number: int, tmp_path: Path) -> None:
    paper = load(number)
    wanted = Order(paper, tmp_path, {}, quick=True).wanted
    assert any(row.ours and row.ours.run in wanted for printed in paper.published for row in printed.rows)
    assert any(stage.having in wanted and stage.lacking in wanted for stage in paper.stages)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["quick"]["runs"].append("no-such"), "there is no run 'no-such'"),
        (lambda raw: raw["runs"]["main"]["images"].append("ct"), "there is no set 'ct'"),
        (lambda raw: raw["runs"]["main"].update(starts_from="transfer"), "must be a run listed before it"),
        (lambda raw: raw["published"][0]["rows"][0].pop("ours"), "say in why_not"),
        (lambda raw: raw["published"][0]["rows"][0].update(why_not="no"), "give ours, or say"),
        (lambda raw: raw.update(paper=4), "says paper: 4"),
        (lambda raw: raw["runs"]["main"].update(arms=[]), "name each arm once"),
    ],
)
def test_a_table_that_does_not_hold_together_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    raw = table(5)
    change(raw)
    (tmp_path / "5.table.yaml").write_text(json.dumps(raw))
    with pytest.raises(StudyError, match=said):
        load(5, tmp_path)


def test_what_a_cpu_cannot_do_waits_for_full(tmp_path: Path) -> None:
    short, full = (Order(load(4), tmp_path, {}, full=full) for full in (False, True))
    assert short.left_out == {"densenet": "too large for a CPU, --full plays it"}
    assert full.left_out == {}


def test_an_unknown_paper_names_those_there_are() -> None:
    with pytest.raises(StudyError, match=re.escape(f"papers are {', '.join(map(str, ALL))}")):
        load(99)


def test_runs_whose_images_are_not_given_are_left_out_and_said(tmp_path: Path) -> None:
    raw = table(5)
    raw["sets"]["other"] = {"title": "other", "layout": "other"}
    raw["runs"]["size-32"]["images"] = ["other"]
    paper = Paper.model_validate_json(json.dumps(raw))
    order = Order(paper, tmp_path, {"chest": tmp_path})
    assert order.left_out == {"size-32": "no --data other=DIR was given"}
    assert "size-32" in Order(paper, tmp_path, {}).wanted


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["ct=."], StudyError, "give --data chest=DIR"),
        (["chest=.", "chest=."], StudyError, "given twice"),
        (["chest="], StudyError, "name a set"),
        (["chest=no-such-folder"], RunError, "does not exist"),
    ],
)
def test_data_that_cannot_be_meant(given: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        _folders(load(5), given)


def test_one_set_needs_no_name(tmp_path: Path) -> None:
    assert _folders(load(5), [str(tmp_path)]) == {"chest": tmp_path}


class FakeResult:
    """As much of a result as a figure is read from."""

    def __init__(self, **metrics: Interval) -> None:
        self.arms = {"federated": self}
        self.model = self
        self.test = metrics
        self.per_class = {"tumor": {"recall": Interval(0.5)}}


def test_a_figure_of_several_seeds_is_their_mean_and_range() -> None:
    runs = [FakeResult(auc=Interval(value, value - 0.1, value + 0.1)) for value in (0.8, 0.9, 0.7)]
    found = measured(runs, Ours(run="main", metric="auc"))  # type: ignore[arg-type]
    assert found is not None
    assert (found.least, found.most, found.seeds) == (0.7, 0.9, 3)
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((0.7, 0.9))


def test_a_complement_turns_its_interval_over() -> None:
    runs = [FakeResult(sensitivity=Interval(0.8, 0.7, 0.95))]
    found = measured(runs, Ours(run="main", metric="sensitivity", complement=True))  # type: ignore[arg-type]
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.05, 0.3))


def test_a_figure_that_one_seed_lacks_is_none() -> None:
    runs = [FakeResult(auc=Interval(0.8)), FakeResult(auc=Interval(None))]
    assert measured(runs, Ours(run="main", metric="auc")) is None  # type: ignore[arg-type]
    assert measured(runs[:1], Ours(run="main", metric="recall", label="tumor")) == Measured(  # type: ignore[arg-type]
        0.5, least=0.5, most=0.5
    )


def test_the_rule_answers_with_the_most_frequent_class_of_the_source() -> None:
    """By hand: of MRI 6 normal and 3 tumors, of radiographs 1 normal and 4 with pneumonia in training."""
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    scores = Scores(np.zeros((4, 3)), targets, np.arange(4), np.zeros(4))
    of = Scored(scores, None, np.array(["mri", "mri", "chest", "chest"]))  # type: ignore[arg-type]
    rule = by_rule(of, {"chest": np.array([1, 0, 4]), "mri": np.array([6, 3, 0])})
    assert rule.scores.scores.argmax(axis=1).tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(rule.scores.scores.sum(axis=1), 1.0)
    np.testing.assert_allclose(rule.scores.scores[0], [2 / 3, 1 / 3, 0])
    assert same_patients(of, rule)


def test_models_of_other_patients_are_not_compared() -> None:
    targets = np.array([[1.0], [0.0], [1.0]], dtype=np.float32)
    one = Scored(Scores(np.zeros((3, 1)), targets, np.array([0, 0, 1]), np.zeros(3)), None, np.array([""] * 3))  # type: ignore[arg-type]
    assert same_patients(one, one)
    for change in ({"targets": 1 - targets}, {"patients": np.array([0, 1, 1])}, {"scores": np.zeros((3, 2))}):
        assert not same_patients(one, replace(one, scores=replace(one.scores, **change)))


@given(st.lists(st.integers(0, 5), min_size=1))
def test_numbering_by_appearance_keeps_the_groups(patients: list[int]) -> None:
    found = by_appearance(np.array(patients)).tolist()
    assert len(set(zip(patients, found, strict=True))) == len(set(patients)) == len(set(found))
    firsts = list(dict.fromkeys(found))
    assert firsts == list(range(len(firsts)))


def test_markdown_stays_text() -> None:
    page = Page(
        "A *title*",
        "",
        Banner("synthetic", "Synthetic data", "none"),
        [
            Section(
                "one",
                "One",
                [
                    Paragraph("<script>alert(1)</script> [a](b)"),
                    Facts([("1.", "first"), ("why", "so")]),
                    Table(
                        "t|t", [Column("x|y", "group", numeric=False), Column("n")], [[Cell("a\nb|c"), Cell("1", "s")]]
                    ),
                ],
            )
        ],
    )
    text = markdown(page)
    assert "\n| a b\\|c | 1<br><small>s</small> |\n" in text
    assert "\\<script\\>" in text
    assert "\\[a\\](b)" in text
    assert "\n1. first\n- why: so\n" in text
    assert "# A \\*title\\*" in text


def test_the_list_of_papers_waits_for_nothing_heavy() -> None:
    code = (
        "import sys; from simulations.reproduce.paper import listing; print(*listing(), sep='\\n');"
        "print({'torch', 'flwr'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.splitlines()[-1] == "set()"
    assert len(re.findall(r"^\d  ", run.stdout, re.MULTILINE)) == len(ALL)
