"""Readers, their consensus, and Cohen's kappa against published figures, scikit-learn and brute force."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

from client.ingest.kinds import Identity, Refused
from client.ingest.labels import LabelSheet
from client.ingest.readers import Readers, Weights, agreement, agreements, settle
from common.errors import DataError
from common.labels import Labels
from common.randomness import generator

NO_KAPPA = (None, None, None, None)


def pairs(table: list[list[int]], names: str = "123456789") -> list[tuple[str, str]]:
    return [
        (names[row], names[column])
        for row, counts in enumerate(table)
        for column, count in enumerate(counts)
        for _ in range(count)
    ]


# --- which label ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "consensus", "label"),
    [
        ([("a",), ("a",)], (), ("a",)),
        ([("a",), ("b",)], (), None),
        ([("a",), ("b",)], ("c",), ("c",)),
        ([("a",), ("a",)], ("b",), ("b",)),
        ([("a", "b"), ("b", "a")], (), ("a", "b")),
        ([("a",), ("a", "b")], (), None),
        ([("a",), ()], (), ("a",)),
        ([(), ()], (), ()),
        ([("a",), (), ("a",), ("b",)], (), None),
    ],
)
def test_the_consensus_decides_else_those_who_agree(
    readings: list[tuple[str, ...]], consensus: tuple[str, ...], label: tuple[str, ...] | None
) -> None:
    assert settle(readings, consensus) == label


def test_readers_are_two_or_more_and_differ() -> None:
    for columns, consensus in ((("a",), "c"), (("a", "a"), "c"), (("a", "b"), "a")):
        with pytest.raises(DataError, match="two columns or more"):
            Readers(columns, consensus)


SHEET = "file,reader_1,reader_2,consensus\n1.png,a,a,\n2.png,a,b,\n3.png,a,b,b\n4.png,,b,\n5.png,,,\n"


def test_a_disagreement_without_consensus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(SHEET)
    sheet = LabelSheet.load(tmp_path / "s.csv")
    found = {}
    for name in ("1.png", "3.png", "4.png", "5.png"):
        labelled = sheet.lookup(name, Identity())
        assert labelled is not None
        found[name] = labelled.labels
    assert {name: labels["label"] for name, labels in found.items()} == {
        "1.png": ("a",), "3.png": ("b",), "4.png": ("b",), "5.png": (),
    }  # fmt: skip
    assert found["3.png"] == {"label": ("b",), "label:reader_1": ("a",), "label:reader_2": ("b",)}
    with pytest.raises(Refused) as caught:
        sheet.lookup("2.png", Identity())
    assert (caught.value.reason.code, caught.value.reason.stage) == ("readers-disagree", "labels")
    assert sheet.unused().rows == 0
    settled = {keys["file"]: labelled.labels["label"] for keys, labelled in sheet.settled()}
    assert settled == {"1.png": ("a",), "3.png": ("b",), "4.png": ("b",), "5.png": ()}


def test_or_excluded_by_rule_under_other_names(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(SHEET.replace("reader_1", "Smith").replace("reader_2", "Jones"))
    sheet = LabelSheet.load(tmp_path / "s.csv", readers=Readers(("Smith", "Jones"), disagreement="exclude"))
    labelled = sheet.lookup("2.png", Identity())
    assert labelled is not None
    assert labelled.labels == {"label": (), "label:Smith": ("a",), "label:Jones": ("b",)}
    with pytest.raises(DataError, match=r"no column 'Smit'.*did you mean 'Smith'"):
        LabelSheet.load(tmp_path / "s.csv", readers=Readers(("Smit", "Jones")))
    with pytest.raises(DataError, match="no column 'final'"):
        LabelSheet.load(tmp_path / "s.csv", readers=Readers(("Smith", "Jones"), "final"))


def test_without_a_consensus_column_the_label_is_the_final_word(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("file,reader_1,reader_2,Label,finding\n1,a,b,c,x\n2,a,a,,y\n")
    sheet = LabelSheet.load(tmp_path / "s.csv")
    first, second = (sheet.lookup(name, Identity()) for name in "12")
    assert first and first.labels["label"] == ("c",) and first.labels["finding"] == ("x",)
    assert second and second.labels["label"] == ("a",)
    (tmp_path / "s.csv").write_text("file,reader_1,reader_2,label,consensus\n1,a,b,c,c\n")
    with pytest.raises(DataError, match="both a label and a consensus"):
        LabelSheet.load(tmp_path / "s.csv")


# --- how well they agree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "figures"),
    [("nominal", (0.4842, 0.1380, 0.2137, 0.7547)), ("linear", (0.4701, 0.1457, 0.1845, 0.7558))],
)
def test_kappa_and_its_error_as_sas_prints_them(weights: Weights, figures: tuple[float, float, float, float]) -> None:
    """SAS's PROC FREQ on a 3 by 3 table, as statsmodels' own tests quote its printout."""
    found = agreement(pairs([[0, 4, 1], [0, 8, 0], [0, 1, 5]]), weights=weights)
    assert (found.kappa, found.standard_error, found.low, found.high) == pytest.approx(figures, abs=5e-5)
    assert (found.images, found.agreed) == (19, 13) and found.agreement == pytest.approx(13 / 19)
    assert found.table == ((0, 4, 1), (0, 8, 0), (0, 1, 5))
    assert found.classes == ("1", "2", "3")


def test_kappa_of_a_table_worked_by_hand() -> None:
    """100 images, marginals .8/.1/.1 and .8/.05/.15: observed .89, chance .64+.005+.015, kappa .23/.34.

    Standard error term by term, as equation 8 has it: the diagonal, then the cells beside it.
    """
    found = agreement(pairs([[75, 1, 4], [5, 4, 1], [0, 0, 10]]))
    kappa = (0.89 - 0.66) / (1 - 0.66)
    q = 1 - kappa
    on = 0.75 * (1 - 1.6 * q) ** 2 + 0.04 * (1 - 0.15 * q) ** 2 + 0.10 * (1 - 0.25 * q) ** 2
    # p_ij (p_.i + p_j.)²: (1,2): .8 + .1, (1,3): .8 + .1, (2,1): .05 + .8, (2,3): .05 + .1
    off = q**2 * (0.01 * 0.9**2 + 0.04 * 0.9**2 + 0.05 * 0.85**2 + 0.01 * 0.15**2)
    error = np.sqrt((on + off - (kappa - 0.66 * q) ** 2) / 100) / (1 - 0.66)
    assert found.kappa == pytest.approx(kappa, abs=1e-12)
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    assert round(kappa, 3) == 0.676 and round(float(error), 3) == 0.088


def delta_method(p: NDArray[np.float64], w: NDArray[np.float64], images: int) -> float:
    """The same standard error by numerical derivatives of kappa under multinomial sampling."""

    def kappa(p: NDArray[np.float64]) -> float:
        chance = p.sum(1) @ w @ p.sum(0)
        return float(((w * p).sum() - chance) / (1 - chance))

    step, slope = 1e-6, np.zeros_like(p)
    for place in np.ndindex(*p.shape):
        up, down = p.copy(), p.copy()
        up[place] += step
        down[place] -= step
        slope[place] = (kappa(up) - kappa(down)) / (2 * step)
    return float(np.sqrt(((p * slope**2).sum() - (p * slope).sum() ** 2) / images))


@pytest.mark.parametrize("weights", ["nominal", "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(8))
def test_kappa_agrees_with_scikit_learn_and_its_error_with_the_delta_method(weights: Weights, seed: int) -> None:
    rng = generator("kappa", seed)
    classes = int(rng.integers(2, 6))
    truth = rng.integers(1, classes + 1, 200)
    one, two = (np.where(rng.random(200) < 0.6, truth, rng.integers(1, classes + 1, 200)) for _ in range(2))
    found = agreement([(str(a), str(b)) for a, b in zip(one, two, strict=True)], weights=weights)
    labels = np.arange(1, classes + 1)
    assert found.kappa == pytest.approx(
        cohen_kappa_score(one, two, labels=labels, weights=None if weights == "nominal" else weights), abs=1e-12
    )
    apart = np.abs(labels[:, None] - labels[None, :]) / (classes - 1)
    w = {"nominal": np.eye(classes), "linear": 1 - apart, "quadratic": 1 - apart**2}[weights]
    p = np.array([[((one == a) & (two == b)).mean() for b in labels] for a in labels])
    assert found.standard_error == pytest.approx(delta_method(p, w, 200), rel=1e-5)


def test_weights_measure_the_distance_of_grades_not_their_rank() -> None:
    given = pairs([[5, 1, 1], [2, 6, 1], [1, 0, 7]], names="129")
    found = agreement(given, weights="linear")
    one, two = ([int(pair[side]) for pair in given] for side in (0, 1))
    assert found.kappa == pytest.approx(cohen_kappa_score(one, two, labels=range(1, 10), weights="linear"))
    assert agreement([("10", "9"), ("9", "9")], weights="linear").classes == ("9", "10")
    with pytest.raises(DataError, match="whole numbers"):
        agreement([("mild", "severe")], weights="quadratic")


def test_no_kappa_where_there_is_none_and_why() -> None:
    for given, reason in (
        ([], "no image was read by both"),
        ([("a", ""), ("", "b")], "no image was read by both"),
        ([("a", "a")] * 9, "one and the same class"),
    ):
        found = agreement(given)
        assert (found.kappa, found.standard_error, found.low, found.high) == NO_KAPPA
        assert reason in found.reason
        json.dumps(asdict(found), allow_nan=False)
    opposed = agreement([("a", "b")] * 5)  # each always says one class, but not the same one
    assert (opposed.kappa, opposed.agreement, opposed.reason) == (0.0, 0.0, "")


def test_every_pair_of_readers_from_what_a_vault_holds() -> None:
    rows: list[Labels] = [
        {"label": ("a",), "label:r1": ("a", "b"), "label:r2": ("b", "a"), "label:r3": ()},
        {"label": ("c",), "label:r1": ("c",), "label:r2": ("a",), "label:r3": ("c",)},
        {"label": ("c",)},
    ]
    found = agreements(rows)
    assert [item.readers for item in found] == [("r1", "r2"), ("r1", "r3"), ("r2", "r3")]
    assert [item.images for item in found] == [2, 1, 1]
    assert found[0].classes == ("a", "a|b", "c") and found[0].agreed == 1
    text = json.dumps([asdict(item) for item in found], allow_nan=False)
    assert json.loads(text)[0]["table"] == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert agreements([{"label": ("a",)}]) == ()


def test_the_interval_covers_the_true_kappa_about_as_often_as_it_says() -> None:
    rng = generator("kappa coverage")
    p = np.array([[0.35, 0.05, 0.02], [0.06, 0.20, 0.04], [0.03, 0.05, 0.20]])
    chance = float(p.sum(1) @ p.sum(0))
    kappa = (float(np.trace(p)) - chance) / (1 - chance)
    covered = 0
    for _ in range(400):
        found = agreement(pairs(rng.multinomial(200, p.ravel()).reshape(3, 3).tolist()))
        assert found.low is not None and found.high is not None
        covered += found.low <= kappa <= found.high
    assert 0.91 <= covered / 400 <= 0.98
