"""The kept model by groups and on worse images: scikit-learn, planted and absent unfairness, hostile requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from client.describe_examined import examined_words
from client.examining import MOST_CHARACTERS, value_of
from client.policy import TEMPLATE, Policy
from client.vault.records import Row
from common import protocol
from common.corruptions import SETTINGS, corrupted, setting
from common.errors import ProtocolError, StudyError
from common.metrics import Counts, Layout, Moments, Reference, summarise
from common.metrics.estimates import Estimate, difference
from common.metrics.reference import Thresholds
from common.metrics.subgroup_moments import measure
from common.metrics.subgroups import NOT_RECORDED, OTHER, SEVERAL, Subgroups
from common.study import Study
from common.study_examined import CONDITIONS, LEVELS
from server.examined import examined_json, subgroups_json
from server.examining import Examined, Grouped
from server.report.examined import AllMistakes
from server.report.mistakes import _counts as mistakes_counts
from tests.unit import federation as fed

STUDY = Study.parse(
    "{name: groups, task: binary, classes: [normal, ill], evaluation: {subgroups: [sex, age], errors_by: [finding], "
    "robustness: [noise]}}"
)
LAYOUT = Layout("binary", 1, 1 << 14)
HALF = Thresholds.at([0.5], LAYOUT.bins)


def drawn(seed: int, count: int, lower: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Scores, targets, patients (some with two images), sex; the scores of women who are ill are ``lower`` by that."""
    random = np.random.default_rng(seed)
    patients = np.sort(random.integers(count * 3 // 4, size=count))
    sex = np.array(["F", "M"])[random.integers(2, size=count)[patients]]
    truth = random.random(count) < 0.45
    logit = random.normal(0.0, 1.0, count) + np.where(truth, 1.2, -1.2) - lower * (truth & (sex == "F"))
    return 1 / (1 + np.exp(-logit))[:, None], truth[:, None].astype(float), patients, sex.tolist()


def compared(scores: Any, targets: Any, patients: Any, values: list[str], min_cell: int = 1) -> dict[str, Any]:
    groups = Subgroups.of(scores, targets, patients, values, LAYOUT, min_cell)
    moments = measure(scores, targets, patients, values, groups, HALF) if min_cell == 1 else None
    return subgroups_json({"sex": Grouped(groups, moments)}, HALF, STUDY)


def row(found: dict[str, Any], value: str) -> dict[str, Any]:
    return next(one for one in found["by"]["sex"]["values"] if one["value"] == value)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_each_group_is_as_scikit_learn_has_it() -> None:
    scores, targets, patients, sex = drawn(1, 500)
    found = compared(scores, targets, patients, sex)
    for value in ("F", "M"):
        of = np.array(sex) == value
        truth, said = targets[of, 0], scores[of, 0] >= 0.5
        metrics = row(found, value)["metrics"]
        assert metrics["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores[of, 0]), abs=1e-4)
        assert metrics["sensitivity"]["value"] == pytest.approx(recall_score(truth, said), abs=1e-6)
        assert metrics["specificity"]["value"] == pytest.approx(recall_score(1 - truth, ~said), abs=1e-6)
        assert metrics["gap"]["value"] == pytest.approx((scores[of, 0] - truth).mean(), abs=1e-4)
    differences = row(found, "F")["differences"]
    assert differences["auc"]["value"] == pytest.approx(-row(found, "M")["differences"]["auc"]["value"])


def test_planted_unfairness_is_found_where_it_is() -> None:
    found = compared(*drawn(2, 800, lower=1.5))
    women, men = row(found, "F")["differences"], row(found, "M")["differences"]
    assert women["sensitivity"]["stands"]
    assert women["sensitivity"]["high"] < -0.1
    assert men["sensitivity"]["low"] > 0.1
    assert not women["specificity"]["stands"]


def test_none_planted_none_is_called_but_as_rarely_as_promised() -> None:
    """Holm over all comparisons: at most one run in twenty calls any; of 200 runs 20 would be a chance of 0.002."""
    runs = 200
    called = sum(
        any(cell.get("stands") for one in found["by"]["sex"]["values"] for cell in one["differences"].values())
        for seed in range(runs)
        for found in [compared(*drawn(1000 + seed, 160))]
    )
    assert called < 20


def test_two_groups_are_one_comparison_and_small_ones_are_none() -> None:
    scores, targets, patients, sex = drawn(3, 300)
    assert compared(scores, targets, patients, sex)["comparisons"] == 4
    few = ["O" if number < 8 else value for number, value in enumerate(sex)]
    found = compared(scores, targets, patients, few)
    assert all("stands" not in cell for cell in row(found, "O")["differences"].values())


def test_who_is_not_recorded_is_compared_with_nobody() -> None:
    scores, targets, patients, sex = drawn(4, 300)
    unknown = [NOT_RECORDED if number % 3 == 0 else value for number, value in enumerate(sex)]
    found = compared(scores, targets, patients, unknown)
    assert row(found, NOT_RECORDED)["differences"] == {}
    of = np.array(unknown) == "M"
    rest = roc_auc_score(targets[of, 0], scores[of, 0])
    own = row(found, "F")["metrics"]["auc"]["value"]
    assert row(found, "F")["differences"]["auc"]["value"] == pytest.approx(own - rest, abs=1e-3)


def test_hidden_small_cells_leave_bounds_that_hold_and_call_less() -> None:
    scores, targets, patients, sex = drawn(5, 800, lower=1.5)
    exact, hidden = compared(scores, targets, patients, sex), compared(scores, targets, patients, sex, 10)
    for value in ("F", "M"):
        for metric in ("auc", "sensitivity", "specificity"):
            true, told = row(exact, value)["metrics"][metric]["value"], row(hidden, value)["metrics"][metric]
            assert told["low"] <= true <= told["high"]
            apart, p = row(exact, value)["differences"][metric], row(hidden, value)["differences"][metric]
            assert p["low"] <= apart["value"] <= p["high"]
            assert p["p"] >= apart["p"] / 10
        assert row(hidden, value)["metrics"]["gap"]["value"] is None


def test_an_interval_of_a_difference_is_newcombes() -> None:
    """Method 10 of Newcombe 1998, Statistics in Medicine 17, table II, case (a): 56/70 against 48/80."""
    found = difference(Estimate(0.8, 0.8, None, 70), Estimate(0.6, 0.6, None, 80), 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    edge = difference(Estimate(0.8, 0.8, None, 70), Estimate(0.6, 0.6, None, 80), 1.0 - found.p)
    assert edge.low == pytest.approx(0.0, abs=1e-9)
    assert difference(Estimate(0.5, 0.5, None, 9), Estimate(0.5, 0.5, None, 9), 0.95).p == 1.0


def test_mistakes_are_counted_by_finding() -> None:
    scores, targets, patients, sex = drawn(6, 200)
    counts = Counts.of(scores, targets, patients, np.zeros(len(scores)), LAYOUT)
    groups = Subgroups.of(scores, targets, patients, sex, LAYOUT)
    moments = measure(scores, targets, patients, sex, groups, HALF)
    test = summarise(Reference(counts, HALF), Moments.of(scores, targets, patients, Reference(counts, HALF)))
    examined = Examined(HALF, dict.fromkeys(("sex", "age", "finding"), Grouped(groups, moments)))
    found = examined_json(examined, test, STUDY)["mistakes"]
    said, truth = scores[:, 0] >= 0.5, targets[:, 0] == 1
    (whole,) = found["classes"]
    assert whole["misses"] == [int((truth & ~said).sum())] * 2
    assert whole["alarms"] == [int((~truth & said).sum())] * 2
    assert whole["wrong"]["value"] == pytest.approx((truth != said).mean(), abs=1e-6)
    assert whole["sure_misses"] == int((truth & (scores[:, 0] < 0.1)).sum())
    rows = found["by"]["finding"]
    assert sum(one["misses"][0] for one in rows) == whole["misses"][0]
    assert rows[0]["missed"]["value"] >= rows[1]["missed"]["value"]


def test_what_is_suppressed_is_shown_as_suppressed_and_never_as_0() -> None:
    scores, targets, patients, sex = drawn(8, 300)
    few = (np.array(sex) == "F") & (targets[:, 0] == 1) & (np.cumsum((np.array(sex) == "F") & (targets[:, 0] == 1)) > 4)
    scores, targets, patients, sex = scores[~few], targets[~few], patients[~few], np.array(sex)[~few].tolist()
    counts = Counts.of(scores, targets, patients, np.zeros(len(scores)), LAYOUT, 10)
    grouped = Grouped(Subgroups.of(scores, targets, patients, sex, LAYOUT, 10), None)
    test = summarise(Reference(counts, HALF), None)
    found = examined_json(Examined(HALF, dict.fromkeys(("sex", "age", "finding"), grouped)), test, STUDY)
    women = next(one for one in found["mistakes"]["by"]["finding"] if one["value"] == "F")
    assert women["withheld"] == [False, True]
    parsed = AllMistakes.parse(found["mistakes"])
    shown = next(one for one in parsed.by["finding"] if one.value == "F")
    cells = mistakes_counts(shown.misses, shown.positives, shown.withheld[1])
    assert [cell.text for cell in cells] == ["suppressed", "suppressed"]
    assert row(found["subgroups"], "F")["withheld"] == 1


# --- what a study may ask, and a request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ("{subgroups: [sex, sex]}", "twice"),
        ("{subgroups: [../x]}", "pattern|subgroups"),
        ("{age_bands: [18, 65]}", "rising tens"),
        ("{age_bands: [60, 40]}", "rising tens"),
        ("{robustness: [rain]}", "robustness"),
        ("{subgroups: [a, b, c, d, e, f, g, h, i]}", "subgroups"),
    ],
)
def test_a_study_asks_what_can_be_answered(evaluation: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        Study.parse(f"{{name: x, task: binary, classes: [a, b], evaluation: {evaluation}}}")


def test_suppressed_metrics_leave_no_groups_either() -> None:
    private = "privacy: {unit: patient, epsilon: 8.0, delta: 1.0e-5}, training: {local_steps: 3}"
    with pytest.raises(StudyError, match="no counts of test patients leave"):
        Study.parse(f"{{name: x, task: binary, classes: [a, b], evaluation: {{subgroups: [sex]}}, {private}}}")


def test_a_study_that_asks_nothing_is_hashed_as_before() -> None:
    plain = fed.study()
    assert b"subgroups" not in plain.canonical()
    assert fed.study(**{"evaluation.subgroups": []}).hash == plain.hash
    assert fed.study(**{"evaluation.subgroups": ["sex"]}).hash != plain.hash


@pytest.mark.parametrize(
    ("split", "by", "condition"),
    [
        ("test", "patient", ""),
        ("val", "sex", ""),
        ("val", "", "noise 1"),
        ("test", "sex", "noise 1"),
        ("test", "", "blur 1"),
        ("test", "", "noise 6"),
        ("test", "", "noise"),
    ],
)
def test_a_request_beyond_the_study_is_refused(split: str, by: str, condition: str) -> None:
    made = protocol.seal(protocol.EvaluateRequest(protocol.Task(STUDY), split, fed.weights(0), by, condition))
    with pytest.raises(ProtocolError):
        protocol.open_request(fed.request(made.content, made.kind))


@pytest.mark.parametrize(
    ("by", "condition", "about"), [("sex", "", "test by sex"), ("", "noise 3", "test under noise 3")]
)
def test_a_request_arrives_as_it_was_meant(by: str, condition: str, about: str) -> None:
    made = protocol.seal(protocol.EvaluateRequest(protocol.Task(STUDY), "test", fed.weights(0), by, condition))
    came = protocol.open_request(fed.request(made.content, made.kind))
    assert isinstance(came, protocol.EvaluateRequest)
    assert (came.by, came.condition, came.about) == (by, condition, about)


def test_a_policy_must_name_subgroups_and_people_are_told() -> None:
    asking = STUDY.derive(**{"evaluation.min_cell": 10})
    assert not Policy.decode(TEMPLATE.encode()).objections(asking)
    older = TEMPLATE.replace(" subgroups,", "")
    (objection,) = Policy.decode(older.encode()).objections(asking)
    assert "subgroups by sex, age, finding" in objection.text
    words = examined_words(asking)
    assert "by sex, age, finding" in words
    assert "10 patients or more" in words
    assert "5 more passes" in words
    assert "of nearly the same patients" in words
    assert examined_words(fed.study()) == ""


# --- values ----------------------------------------------------------------------------------------------------------


def an_image(attributes: dict[str, str], labels: tuple[str, ...] = ()) -> Row:
    return Row(1, "", "p", {"finding": labels}, "test", attributes, (8, 8), "uint8", False)


@pytest.mark.parametrize(
    ("by", "attributes", "labels", "value"),
    [
        ("sex", {"sex": "F"}, (), "F"),
        ("sex", {}, (), NOT_RECORDED),
        ("age", {"age": "52"}, (), "40-59"),
        ("age", {"age": "40.0"}, (), "40-59"),
        ("age", {"age": "50-59"}, (), "40-59"),
        ("age", {"age": "90+"}, (), "80 and over"),
        ("age", {"age": "7"}, (), "under 20"),
        ("age", {"age": "414"}, (), NOT_RECORDED),
        ("age", {"age": "Meyer"}, (), NOT_RECORDED),
        ("finding", {}, ("virus",), "virus"),
        ("finding", {}, ("virus", "bacteria"), SEVERAL),
        ("device", {"device": "GE Discovery XR656"}, (), "GE Discovery XR656"),
        ("device", {"device": "x" * (MOST_CHARACTERS + 1)}, (), OTHER),
        ("device", {"device": "Meyer^Anna"}, (), OTHER),
        ("device", {"device": "serial 123456"}, (), OTHER),
        ("device", {"device": "1962-03-04"}, (), OTHER),
        ("device", {"device": "<b>\u202e"}, (), OTHER),
    ],
)
def test_a_value_is_told_where_it_is_plain_and_short(by: str, attributes: Any, labels: Any, value: str) -> None:
    assert value_of(an_image(attributes, labels), STUDY, by) == value


# --- worse images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_is_repeatable_in_range_and_worse_with_each_level(condition: str) -> None:
    random = np.random.default_rng(0)
    ramp = np.linspace(0.05, 0.95, 48, dtype=np.float32)
    image = np.clip(ramp[None, :, None] * 0.5 + 0.25 + 0.2 * random.random((1, 48, 48), dtype=np.float32), 0, 1)
    before, distances = image.copy(), []
    for level in LEVELS:
        found = corrupted(image, condition, level, 7)
        assert found.shape == image.shape
        assert found.dtype == np.float32
        assert 0.0 <= found.min() <= found.max() <= 1.0
        assert np.array_equal(found, corrupted(image, condition, level, 7))
        distances.append(float(np.abs(found - image).mean()))
        assert setting(condition, level)
    assert np.array_equal(image, before)
    assert distances == sorted(distances)
    assert distances[-1] > 1.3 * distances[0] > 0.0
    assert len(SETTINGS[condition]) == len(LEVELS)


def test_noise_is_an_images_own_and_unknown_conditions_are_refused() -> None:
    image = np.full((3, 16, 16), 0.5, dtype=np.float32)
    found = corrupted(image, "noise", 3, 1)
    assert not np.array_equal(found, corrupted(image, "noise", 3, 2))
    assert np.array_equal(found[0], found[1])
    for condition, level in (("rain", 1), ("noise", 0), ("noise", 6)):
        with pytest.raises(ValueError, match="conditions are"):
            corrupted(image, condition, level, 0)


def test_the_reference_must_hold_the_sites_images() -> None:
    scores, targets, patients, sex = drawn(7, 60)
    groups = Subgroups.of(scores, targets, patients, sex, LAYOUT)
    less = replace(groups, counts={"F": groups.counts["F"]})
    with pytest.raises(ProtocolError, match="lack this site's images"):
        measure(scores, targets, patients, sex, less, HALF)
