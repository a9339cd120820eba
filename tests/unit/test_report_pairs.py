"""What the report says of pairs of models and of readers, word by word; and what it does not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.errors import RunError
from common.html import Block, Details, Page, Paragraph, Section, Table, render
from server.comparisons import correct
from server.report import page, pairs, readers
from server.report.results import Run, parse
from tests.unit import fake_results


def texts(blocks: list[Block]) -> str:
    return " ".join(block.text for block in blocks if isinstance(block, Paragraph))


def tables(blocks: list[Block]) -> list[Table]:
    found: list[Table] = []
    for block in blocks:
        if isinstance(block, Table):
            found.append(block)
        if isinstance(block, Details):
            found += tables(list(block.blocks))
    return found


@pytest.fixture
def raw() -> dict[str, Any]:
    return fake_results.results(sites=3)


def with_readers(raw: dict[str, Any]) -> dict[str, Any]:
    rows = [dict(row) for row in raw["comparisons"][:3]]
    for row, names in zip(rows, (("model", "reader_1"), ("model", "reader_2"), ("reader_1", "reader_2")), strict=True):
        row["a"], row["b"] = names
        row["overall"] = {key: value for key, value in row["overall"].items() if key != "auc"}
    return raw | {"readers": {"columns": ["reader_1", "reader_2"], "comparisons": rows}}


def test_a_pair_is_told_with_its_interval_and_whether_it_may_be_chance(raw: dict[str, Any]) -> None:
    blocks = pairs.blocks(parse(raw))
    said = texts(blocks)
    assert said.startswith("Federated against pooled: AUC 0.")
    assert "after correction for 4 comparisons" in said
    for row in raw["comparisons"]:
        small = row["overall"]["auc"]["p_holm"] < 0.05
        name = "pooled" if row["b"] == "pooled" else row["b"].removeprefix("local:") + " alone"
        sentence = next(one for one in said.split("Federated against ") if one.startswith(name))
        assert ("it is more than chance" in sentence) is small
        assert ("it may well be chance" in sentence) is not small
    ranked, decided = tables(blocks)[:2]
    assert [row[0].text for row in ranked.rows] == [
        "Federated − Pooled", "Federated − site-1 alone", "Federated − site-2 alone", "Federated − site-3 alone",
    ]  # fmt: skip
    assert any(row[4].text != "—" for row in ranked.rows), "the bootstrap's interval stands beside"
    counted = raw["comparisons"][0]["overall"]["sensitivity"]["mcnemar"]
    assert [cell.text for cell in decided.rows[0][3:5]] == [str(counted[key]) for key in ("first_only", "second_only")]


def test_hidden_cells_are_bounds_and_no_claim(raw: dict[str, Any]) -> None:
    row = raw["comparisons"][0]
    row["withheld"] = 2
    auc, sensitivity = row["overall"]["auc"], row["overall"]["sensitivity"]
    auc |= {"value": None, "low": -0.2, "high": 0.3, "p": None, "p_holm": None, "p_false_discovery": None}
    sensitivity |= {"p": None, "p_holm": None, "p_bounds": [0.01, 0.2]}
    del sensitivity["mcnemar"]
    blocks = pairs.blocks(parse(raw))
    assert "only known to lie between −0.200 and +0.300" in texts(blocks)
    assert "bounds remain" in texts(blocks)
    ranked, decided = tables(blocks)[:2]
    assert ranked.rows[0][3].text == "hidden"
    assert decided.rows[0][5].text == "0.010 to 0.200"


def test_readers_are_told_by_themselves_and_against_the_model(raw: dict[str, Any]) -> None:
    blocks = readers.blocks(parse(with_readers(raw)))
    assert texts(blocks).startswith("The model reaches accuracy 0.")
    own = tables(blocks)[0]
    assert [row[0].text for row in own.rows] == ["The model", "reader_1", "reader_2"]
    assert all(" to " in cell.small for row in own.rows for cell in row[2:])
    assert "each reader helped to make it" in texts(blocks)


def test_without_readers_the_page_says_so_and_makes_none_up(raw: dict[str, Any]) -> None:
    assert readers.blocks(parse(raw)) == []
    none = raw | {"readers": {"columns": ["reader_1", "reader_2"], "comparisons": []}}
    blocks = readers.blocks(parse(none))
    assert texts(blocks).startswith(
        "No reader data: no vault holds readers' labels in the columns reader_1 and reader_2"
    )
    assert not tables(blocks)


def test_where_nothing_was_compared_nothing_is_said(raw: dict[str, Any]) -> None:
    assert pairs.blocks(parse(raw | {"comparisons": []})) == []
    assert pairs.blocks(parse({key: value for key, value in raw.items() if key != "comparisons"})) == []


@pytest.mark.parametrize("spoil", [{"p": 1.5}, {"p": "small"}, {"p": True}, {"first": None}])
def test_damaged_comparisons_are_refused(raw: dict[str, Any], spoil: dict[str, Any]) -> None:
    raw["comparisons"][0]["overall"]["auc"] |= spoil
    with pytest.raises(RunError, match="damaged"):
        parse(raw)


def test_the_sections_stand_on_the_page(raw: dict[str, Any]) -> None:
    run: Run = parse(with_readers(raw))
    headings = [section.heading for section in page.sections_of(run, drawn=False)]
    assert "Are the models really different?" in headings and "Against human readers" in headings
    whole = Page("one", "", page.banner([run]), [Section("readers", "Readers", readers.blocks(run))], "")
    assert "reader_2" in render(whole)


def test_a_family_is_corrected_together_and_its_neighbours_are_not() -> None:
    def row(on: str, p: float | None) -> dict[str, Any]:
        return {"on": on, "overall": {"auc": {"p": p}, "f1": {"p": 0.5}}, "per_class": {"a": {"auc": {"p": 0.01}}}}

    rows = [row("all", 0.01), row("all", 0.04), row("all", None), row("site-1", 0.04)]
    correct(rows)
    auc = [one["overall"]["auc"] for one in rows]
    assert np.allclose([one["p_holm"] for one in (auc[0], auc[1], auc[3])], [0.02, 0.04, 0.04])
    assert np.allclose([one["p_false_discovery"] for one in (auc[0], auc[1], auc[3])], [0.02, 0.04, 0.04])
    assert "p_holm" not in auc[2] and auc[0]["family"] == 2 and auc[3]["family"] == 1
    assert [one["per_class"]["a"]["auc"]["p_holm"] for one in rows] == pytest.approx([0.03, 0.03, 0.03, 0.01])
