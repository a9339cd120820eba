"""A federation compares its model with another one and with its readers: real sites, real messages, figures by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from client import policy
from client.agent import identity_of
from client.app import Resident
from client.config import SiteConfig
from client.describe_compared import compared_words
from client.evaluation import Scores
from client.leaving import kinds
from client.readings import readings
from client.vault.keys import provider
from client.vault.store import Record, Vault
from common import protocol
from common.errors import DataError, ProtocolError, StudyError
from common.metrics.paired import UNREAD
from common.models import build_initial
from common.randomness import seed_for
from common.study import Study
from common.weights import load, state_of
from server.app import federate
from server.asking import Link
from simulations.engine import InProcessGrid
from simulations.sites import make_site
from tests.unit import federation as fed

STUDY = fed.study(
    **{
        "federation.rounds": 3,
        "federation.keep": "best",
        "evaluation.compare": ["start", "last"],
        "evaluation.readers": ["reader_1", "reader_2"],
    }
)
SITES = 3


def hospital(home: Path, number: int, *, read: bool = True) -> None:
    """Forty test images of thirty patients, of which thirty-six were read by both readers, and some to learn from."""
    random = np.random.default_rng(number)
    make_site(home, SiteConfig(alias=home.name))
    records = []
    for split, count in (("train", 24), ("val", 16), ("test", 40)):
        for index in range(count):
            ill = bool(random.random() < 0.5)
            pixels = (random.normal(110 + 25 * ill, 60, (32, 32))).clip(0, 255).astype(np.uint8)
            names = ("normal", "pneumonia")
            labels = {"label": (names[ill],)}
            if read and not (split == "test" and index % 10 == 0):
                for reader, skill in (("reader_1", 0.85), ("reader_2", 0.75)):
                    said = ill if random.random() < skill else not ill
                    labels[f"label:{reader}"] = ("unknown",) if reader == "reader_2" and index == 5 else (names[said],)
            records.append(Record(pixels, f"{split}-{index * 3 // 4}", labels, split))
    keys = provider("file:vault.key", base=home)
    with Vault.create(home / "vault.sqlite", keys, synthetic=True, source="drawn") as vault:
        vault.add(records)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sites")
    for number in range(SITES):
        hospital(root / f"site-{number + 1}", number)
    return {home.name: home for home in sorted(root.iterdir())}


@pytest.fixture(scope="module")
def grid(homes: dict[str, Path]) -> Iterator[InProcessGrid]:
    with closing(InProcessGrid(list(homes.values()))) as made:
        yield made


@pytest.fixture(scope="module")
def result(grid: InProcessGrid, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run")
    return federate(Link(grid, fed.Events().log), STUDY, out, base=Path()), out


def everybody(homes: dict[str, Path], weights: Any) -> tuple[Scores, list[NDArray[np.int64]]]:
    """What no coordinator may see: every site's scores, patients told apart, and its readers' decisions."""
    resident = Resident()
    parts, said = [], []
    for number, home in enumerate(homes.values()):
        site = resident.site(home)
        scores = resident.scores(site, STUDY, "test", weights, None)
        parts.append((scores.scores, scores.targets, scores.patients + 1000 * number, scores.loss))
        said.append(readings(site, STUDY, "test"))
    resident.close()
    whole = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return Scores(*whole), [np.concatenate(each)[:, 0] for each in zip(*said, strict=True)]


def test_the_kept_model_against_the_first_as_by_hand(
    result: tuple[dict[str, Any], Path], homes: dict[str, Path]
) -> None:
    found, out = result
    start, *last = found["comparisons"]
    kept = found["arms"]["federated"]["kept_round"]
    assert (start["a"], start["b"], start["on"]) == ("federated", "start", "all")
    assert [row["b"] for row in last] == ([] if kept == 3 else ["last"])
    model, _ = build_initial(STUDY, seed_for(STUDY.seed, 0, "weights"), Path())
    ours, _ = everybody(homes, load(out / "model.safetensors"))
    first, _ = everybody(homes, state_of(model))
    edge = found["arms"]["federated"]["thresholds"]["pneumonia"]
    right = [((ours.scores[:, 0] >= edge) == (ours.targets[:, 0] == 1))]
    # its own threshold is chosen on validation, and told by no message but the comparison's: found here by its counts
    table = start["overall"]["accuracy"]["mcnemar"]
    second = start["overall"]["accuracy"]["second"]["value"]
    fits = [
        edge
        for edge in np.arange(1024 + 1) / 1024
        if abs(np.mean((first.scores[:, 0] >= edge) == (first.targets[:, 0] == 1)) - second) < 1e-9
    ]
    assert fits
    matching = [
        (int((right[0] & ~other).sum()), int((other & ~right[0]).sum()))
        for edge in fits
        if (other := (first.scores[:, 0] >= edge) == (first.targets[:, 0] == 1)) is not None
    ]
    assert (table["first_only"], table["second_only"]) in matching
    exact = sm_mcnemar([[9, table["first_only"]], [table["second_only"], 9]], exact=True)
    assert table["exact"] == pytest.approx(exact.pvalue, abs=1e-9)
    assert start["images"] == len(ours.patients) and start["patients"] == len(np.unique(ours.patients))
    assert start["clustered"] is True and start["overall"]["sensitivity"]["test"] == "obuchowski"
    auc = start["overall"]["auc"]
    assert auc["first"]["value"] == pytest.approx(found["arms"]["federated"]["test"]["auc"]["value"], abs=1e-9)
    assert auc["low"] <= auc["value"] <= auc["high"] and 0 <= auc["p"] <= auc["p_holm"] <= 1


def test_readers_beside_the_model_as_by_hand(result: tuple[dict[str, Any], Path], homes: dict[str, Path]) -> None:
    found, out = result
    rows = found["readers"]["comparisons"]
    assert [(row["a"], row["b"]) for row in rows] == [
        ("model", "reader_1"),
        ("model", "reader_2"),
        ("reader_1", "reader_2"),
    ]
    scores, said = everybody(homes, load(out / "model.safetensors"))
    read = said[0] != UNREAD
    assert read.sum() == SITES * 35, "thirty-six were read by both, and of one reader 2 was uncertain"
    truth = scores.targets[read, 0].astype(int)
    model = (scores.scores[read, 0] >= found["arms"]["federated"]["thresholds"]["pneumonia"]).astype(int)
    decisions = {"model": model, "reader_1": said[0][read], "reader_2": said[1][read]}
    for row in rows:
        one, other = decisions[row["a"]], decisions[row["b"]]
        assert row["images"] == read.sum()
        sensitivity = row["overall"]["sensitivity"]
        assert sensitivity["first"]["value"] == pytest.approx(one[truth == 1].mean(), abs=1e-9)
        assert sensitivity["second"]["value"] == pytest.approx(other[truth == 1].mean(), abs=1e-9)
        assert 0 < sensitivity["second"]["low"] < sensitivity["second"]["value"] < sensitivity["second"]["high"] < 1
        specificity = row["overall"]["specificity"]
        assert specificity["first"]["value"] == pytest.approx(1 - one[truth == 0].mean(), abs=1e-9)
        table = row["overall"]["accuracy"]["mcnemar"]
        assert table["first_only"] == ((one == truth) & (other != truth)).sum()
        assert table["second_only"] == ((one != truth) & (other == truth)).sum()
        crossed = np.zeros((2, 2))
        np.add.at(crossed, (one, other), 1)
        assert row["agreement"]["pneumonia"]["value"] == pytest.approx(cohens_kappa(crossed).kappa, abs=1e-9)


def test_hospitals_without_readers_say_so(tmp_path: Path) -> None:
    for number in range(2):
        hospital(tmp_path / f"site-{number + 1}", number, read=False)
    study = STUDY.derive(**{"federation.rounds": 1, "evaluation.compare": []})
    with closing(InProcessGrid(sorted(tmp_path.iterdir()))) as grid:
        found = federate(Link(grid, fed.Events().log), study, tmp_path, base=Path())
    assert found["readers"] == {"columns": ["reader_1", "reader_2"], "comparisons": []}
    assert "comparisons" not in found


def test_under_the_small_cell_rule_what_is_hidden_has_no_p_value(grid: InProcessGrid, tmp_path: Path) -> None:
    """Forty images a site, which both readers seldom have wrong together: some cell is small somewhere."""
    study = STUDY.derive(**{"federation.rounds": 1, "evaluation.min_cell": 4, "evaluation.compare": []})
    found = federate(Link(grid, fed.Events().log), study, tmp_path, base=Path())
    for row in found["readers"]["comparisons"]:
        assert row["withheld"] >= 1
        for contrast in row["overall"].values():
            assert contrast["p"] is None and "mcnemar" not in contrast


def request_of(study: Study, **more: Any) -> protocol.EvaluateRequest:
    weights = {"w": np.zeros(3, np.float32)}
    return protocol.EvaluateRequest(protocol.Task(study), **{"split": "test", "weights": weights, **more})


def sent(request: protocol.Request) -> protocol.Request:
    return protocol.open_request(protocol.seal(request).to(1, 60.0))


GIVEN = {"threshold.0": np.array([3])}


@pytest.mark.parametrize("readers", [True, False])
def test_a_comparison_that_the_study_does_not_name_is_refused(readers: bool) -> None:
    weights = None if readers else {"w": np.ones(3, np.float32)}
    beside = protocol.Beside(GIVEN, weights)
    other = STUDY.derive(**{"evaluation.readers" if readers else "evaluation.compare": []})
    with pytest.raises(ProtocolError, match="does not name"):
        sent(request_of(other, beside=beside))
    with pytest.raises(ProtocolError, match="does not name"):
        sent(request_of(STUDY, beside=beside, split="val"))
    arrived = sent(request_of(STUDY, beside=beside))
    assert isinstance(arrived, protocol.EvaluateRequest) and arrived.beside is not None
    assert (arrived.beside.weights is None) is readers
    assert np.array_equal(arrived.beside.given["threshold.0"], GIVEN["threshold.0"])


def test_what_is_compared_tells_requests_apart() -> None:
    """Kept replies are found by it: another second model, or other thresholds, is another question."""
    one, other = ({"w": np.full(3, value, np.float32)} for value in (1, 2))
    asked = [
        request_of(STUDY),
        request_of(STUDY, beside=protocol.Beside(GIVEN)),
        request_of(STUDY, beside=protocol.Beside(GIVEN, one)),
        request_of(STUDY, beside=protocol.Beside(GIVEN, other)),
        request_of(STUDY, beside=protocol.Beside({"threshold.0": np.array([4])}, other)),
    ]
    identities = [identity_of(request) for request in asked]
    assert len(set(identities)) == len(asked)
    assert [one.kind for one in identities][:3] == [
        "evaluate.scores test",
        "evaluate.scores test against readers",
        "evaluate.scores test against another model",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.compare": ["last"]}, "keep is best"),
        ({"evaluation.compare": ["start", "start"]}, "twice"),
        ({"evaluation.readers": ["label"]}, "the truth"),
        ({"evaluation.readers": ["reader_1"] * 2}, "twice"),
        ({"evaluation.readers": [f"reader_{n}" for n in range(9)]}, "8"),
        (
            {"evaluation.compare": ["start"], "privacy": {"epsilon": 1, "delta": 0.001}, "training.local_steps": 1},
            "suppressed",
        ),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        fed.study(**changes)


def test_a_reading_outside_the_studys_classes_is_an_error(tmp_path: Path) -> None:
    hospital(tmp_path / "site-1", 1)
    study = STUDY.derive(**{"data.uncertain": ["other word"]})
    resident = Resident()
    with pytest.raises(DataError, match="'unknown'"):
        readings(resident.site(tmp_path / "site-1"), study, "test")
    resident.close()


def test_a_site_is_told_and_decides() -> None:
    """In words, by its policy, and in its audit log."""
    words = compared_words(STUDY.derive(**{"evaluation.min_cell": 10}))
    assert "the one that training began with and the last round's" in words
    assert "columns reader_1, reader_2" in words and "fewer than 10 patients" in words
    assert compared_words(fed.study()) == ""
    allowed = policy.Policy.decode(policy.TEMPLATE.encode())
    assert "comparisons" in allowed.statistics and "readers" not in allowed.statistics
    asked = [objection.text for objection in allowed.objections(STUDY) if objection.line == "statistics"]
    assert len(asked) == 1 and asked[0].startswith("the study asks for readers;")
    told = {"scores": "layout", "two models": "joint.asked", "readers": "readers0.asked"}
    left = {
        name: kinds(STUDY, protocol.StatisticsReply("site-1", 1, {key: np.zeros(1)}, 0.1)) for name, key in told.items()
    }
    assert left == {
        "scores": ["counts of scores", "seconds"],
        "two models": ["counts of scores", "joint counts of two models", "seconds"],
        "readers": ["counts of readers' labels", "seconds"],
    }
