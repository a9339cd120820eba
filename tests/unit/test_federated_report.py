"""The page of a run that hospitals played themselves: what they gave and kept, and nothing that nobody measured."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError
from common.html import Page, render
from server.federated import Asked
from server.report import write_metrics_csv
from server.report.answers import GAIN, SURE, WHOM
from server.report.charts import drawing
from server.report.page import banner, one_run, sections_of
from server.report.results import parse
from server.reporting import write_pages
from tests.unit import fake_results


def told(**changes: Any) -> dict[str, Any]:
    """What three hospitals of four let a coordinator know; the fourth refused."""
    raw = fake_results.results(sites=3, arms=("federated",), refuse=False)
    for alone in ("workers", "threads", "device", "heterogeneity", "environment", "unreadable", "phases"):
        del raw[alone]
    sites = {
        site: {"images": {"train": 300, "test": 80}, "patients": {"test": 70}, "withheld": []} for site in raw["sites"]
    }
    return raw | {
        "synthetic": None,
        "source": "federation Thorax study",
        "engine": "federation",
        "cpu_s": None,
        "images_without_patient": 0,
        "unlabelled": 0,
        "sites": sites,
        "absent": [],
        "declined": {"site-4": "approval-refused"},
        **changes,
    }


def seen(raw: Mapping[str, Any], *, drawn: bool = False) -> str:
    """The page's words, as they are read; figures take a second."""
    run = parse(raw)
    with drawing():
        page = one_run(run) if drawn else Page(run.name, "", banner([run]), sections_of(run, drawn=False))
        body = render(page).split("</style>")[1].split("The study file")[0]
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", body)).split())


def answer(text: str, question: str) -> str:
    """What stands below a question on the first screen."""
    rest = text.split(question)[1]
    return rest.split({WHOM: SURE, SURE: GAIN, GAIN: "The model in numbers"}[question])[0]


def test_what_nobody_measured_is_not_on_the_page() -> None:
    text = seen(told())
    for claim in ("Each alone", "Pooled", "pays off", "Federating", "Processor time", "worker", "computer-made"):
        assert claim not in text, claim
    assert "Hospitals' own images" in text
    assert "Not measured: no hospital trained a model alone." in answer(text, GAIN)
    own = fake_results.results(sites=3, arms=("federated",), refuse=False)["arms"]["federated"]["sites"]
    values = {site: one["test"]["auc"]["value"] for site, one in own.items()}
    for site in (min(values, key=values.__getitem__), max(values, key=values.__getitem__)):
        assert f"{values[site]:.2f} ({site})" in answer(text, GAIN)


def test_who_gave_what_and_who_did_not() -> None:
    raw = told(absent=["site-2"])
    del raw["sites"]["site-2"]["images"]["test"], raw["sites"]["site-2"]["patients"]["test"]
    raw["sites"]["site-3"]["withheld"] = [["pneumonia", "with"]]
    raw["study"]["evaluation"]["min_cell"] = 10
    raw["arms"]["federated"]["history"][4]["sites"]["site-1"]["status"] = "declined: budget-exhausted"
    text = seen(raw)
    rows = text.split("What each hospital gave")[1].split("Hospital by hospital")[0]
    one, two, three, four = re.split(r"site-[1-4] ", rows.split("Left out of the test ")[1])[1:]
    assert one.startswith("11 of 12 rounds 70 80 images nothing")
    assert "not tested" in two
    assert "images with pneumonia fewer than 10 patients" in three
    assert four.startswith("took no part has refused")
    assert "has used up its privacy budget" in text.split("Replies that did not count")[1]


def bounded(test: dict[str, Any]) -> None:
    """As the small-cell rule leaves it: no value, only the least and the most."""
    for cell in test.values():
        cell["value"] = None


def test_bounds_of_hidden_cells_are_never_called_sure(tmp_path: Path) -> None:
    raw = told()
    raw["study"]["evaluation"]["min_cell"] = 10
    arm = raw["arms"]["federated"]
    auc = arm["test"]["auc"]
    for test in (arm["test"], *(site["test"] for site in arm["sites"].values())):
        bounded(test)
    arm["test"]["specificity"] |= {"low": 0.75, "high": 0.75}
    text = seen(raw, drawn=True)
    said = answer(text, SURE)
    assert "95% sure" not in said
    assert f"between {auc['low']:.2f} and {auc['high']:.2f}; closer than that is not known" in said
    assert "Counts of fewer than 10 patients stay at the hospitals" in said
    assert "specificity 0.75" in said
    assert "at least" in answer(text, GAIN)
    assert f"{auc['low']:.3f} to {auc['high']:.3f}" in text.split("Every arm on everyone's test patients")[1]
    assert "Drawn from blocks of scores" in text
    write_metrics_csv([raw], tmp_path / "metrics.csv")
    row = next(row for row in (tmp_path / "metrics.csv").read_text().splitlines() if ",all,,auc," in row)
    assert row.split(",")[2] == ""
    assert row.split(",")[-3:] == ["", repr(auc["low"]), repr(auc["high"])]


@pytest.mark.parametrize("by", ["privacy", "central_privacy"])
def test_where_no_count_of_a_test_may_leave_each_answer_says_so(by: str) -> None:
    raw = told()
    raw["study"][by] = {"evaluation": "suppressed"}
    raw["sites"] = {site: {"images": {}, "patients": {}} for site in raw["sites"]}
    arm = raw["arms"]["federated"]
    arm |= {"test": {name: {"value": None, "low": None, "high": None} for name in arm["test"]}, "sites": {}, "roc": {}}
    arm |= {"per_class": {}, "confusion": {}, "calibration": {}}
    text = seen(raw)
    for question in (WHOM, SURE):
        assert "Not measured: no hospital may tell." in answer(text, question)
    assert "On hospitals' own test patients" not in answer(text, GAIN)
    assert "this study asks for none" in text
    assert "it keeps to itself" in text.split("Who holds what")[-1]


def test_hospitals_own_models_say_what_each_would_run_and_no_more() -> None:
    raw = told()
    tests = {site: one["test"] for site, one in raw["arms"]["federated"]["sites"].items()}
    chosen = {"site-1": "personal", "site-2": "global", "site-3": "global"}
    raw["arms"]["personalised"] = {
        "method": "finetune",
        "sites": {site: {"chosen": chosen[site], "thresholds": {}, "test": test} for site, test in tests.items()},
    }
    text = seen(raw)
    assert "1 of 3 hospitals would run a model of their own." in answer(text, GAIN)
    table = text.split("Each hospital's models")[1].split("The choice is made")[0]
    assert "Alone" not in table
    assert "Difference" not in table
    assert table.count("the model of all") == 2


def test_a_budget_that_ended_the_run_is_told() -> None:
    assert "The privacy budget of site-2 was used up after 12 rounds" in seen(told(unpaid=["site-2"]))


def test_what_was_answered_at_first_is_kept_with_a_run() -> None:
    asked = Asked({"north": {"train": 30}}, {"west": "approval-refused"}, "hub")
    assert asked.to_json() == {"images": {"north": {"train": 30}}, "declined": {"west": "approval-refused"}}


def test_pages_come_from_the_results_alone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no results yet"):
        write_pages(tmp_path)
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(RunError, match=r"results\.json is damaged; restore"):
        write_pages(tmp_path)
    (tmp_path / "results.json").write_text('{"study_hash": "0", "arms": {}}')
    with pytest.raises(RunError, match="format None"):
        write_pages(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_flag_that_is_no_flag_is_refused() -> None:
    with pytest.raises(RunError, match="true or false"):
        parse(told(synthetic="unknown"))
