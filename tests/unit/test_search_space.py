"""Space files: what they may say, and what is said of mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import StudyError
from common.study import Study
from simulations.search.files import study_yaml, with_weights_from
from simulations.search.proposals import grid, trials_of
from simulations.search.run import check_study
from simulations.search.space import SearchSpec, check_fields

STUDY = Study.load(Path("configs/quickstart.yaml"))


def parse(**raw: object) -> SearchSpec:
    return SearchSpec.parse(raw, "space.yaml")


def test_the_shipped_space_is_good_for_the_quick_start():
    spec = SearchSpec.load(Path("configs/search.yaml"))
    check_fields(spec, "configs/search.yaml")
    check_study(STUDY, spec, "configs/search.yaml")
    assert trials_of(spec, "x") == 20
    assert trials_of(spec.changed("x", method="grid", trials=None), "x") == 3 * 6 * 3 * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {training.optimizer.lr: [1, 2]}", "a study has no training.optimizer; did you mean 'optimiser'"),
        ("space: {training.batch_size.x: [1]}", "training.batch_size is a single value"),
        ("space: {seed: [1, 2]}", "seed is not searched: choosing a seed is choosing luck"),
        ("space: {data.split: [1]}", "data is not searched: all trials share one set of vaults"),
        ("space: {privacy.epsilon: [1, 8]}", "what patients are promised"),
        ("space: {model.params: [{}], model.params.filters: [[4]]}", "model.params.filters is a part of it"),
        ("space: {model.dropout: {low: 0.5, high: 0.1}}", "low must be below high"),
        ("space: {model.dropout: {low: 0.0, high: 0.1, log: true}}", "log: true needs low above 0"),
        ("space: {model.dropout: {lo: 0.0, high: 0.1}}", "did you mean 'low'"),
        ("space: {model.dropout: 0.5}", "give a list of values, or low: and high:"),
        ("space: {model.dropout: [0.1, 0.1]}", "0.1 is given twice"),
        ("space: {model.dropout: []}", "space.model.dropout"),
        ("space: {}", "names no field"),
        ("method: bayes\nspace: {model.dropout: [0.1]}", "is not known here; one of: grid, random, tpe"),
        ("methd: tpe\nspace: {model.dropout: [0.1]}", "methd: unknown key; did you mean 'method'"),
        ("folds: 1\nspace: {model.dropout: [0.1]}", "folds"),
        ("folds: 2\nfolds: 3\nspace: {model.dropout: [0.1]}", "given twice"),
        ("- 1", "a space file is a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(tmp_path, text, said):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as error:
        check_fields(SearchSpec.load(path), str(path))
    assert str(path) in str(error.value) and said in str(error.value)


def test_no_file_is_said_so(tmp_path):
    with pytest.raises(StudyError, match="no such space file"):
        SearchSpec.load(tmp_path / "none.yaml")


def test_a_grid_is_every_combination_once():
    spec = parse(
        method="grid",
        space={"model.dropout": {"low": 0.0, "high": 0.5, "points": 3}, "training.batch_size": [8, 16]},
    )
    found = [tuple(params.values()) for params in grid(spec, "x")]
    assert found == [(0.0, 8), (0.0, 16), (0.25, 8), (0.25, 16), (0.5, 8), (0.5, 16)]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ({"low": 1e-4, "high": 1e-2, "log": True, "points": 3}, [1e-4, 1e-3, 1e-2]),
        ({"low": 32, "high": 256, "log": True, "points": 4}, [32, 64, 128, 256]),
        ({"low": 1, "high": 10, "step": 4}, [1, 5, 9]),
        ({"low": 1, "high": 10, "step": 3, "points": 2}, [1, 10]),
        ({"low": 0.0, "high": 0.35, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_the_values_of_a_range_in_a_grid(axis, values):
    assert parse(method="grid", space={"x": axis}).space["x"].grid() == pytest.approx(values)


def test_a_grid_needs_values_and_is_not_cut_short():
    open_ = parse(method="grid", space={"model.dropout": {"low": 0.0, "high": 0.5}})
    with pytest.raises(StudyError, match=r"space.model.dropout: a grid needs values"):
        trials_of(open_, "x")
    with pytest.raises(StudyError, match="6 combinations"):
        trials_of(parse(method="grid", trials=5, space={"a": [1, 2], "b": [1, 2, 3]}), "x")


def test_a_space_smaller_than_the_trials_ends_earlier():
    assert trials_of(parse(method="random", trials=50, space={"a": [1, 2], "b": [1, 2, 3]}), "x") == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation.min_cell": 5}, "use min_cell: 1"),
        ({"federation.secure_aggregation": {}}, "search without federation.secure_aggregation"),
        ({"data.fold": {"number": 1, "of": 2}}, "take it out of the study"),
    ],
)
def test_a_study_whose_validation_cannot_choose_is_refused(changes, said):
    with pytest.raises(StudyError, match=said):
        check_study(STUDY.derive(**changes), parse(folds=3, space={"a": [1]}), "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": {"no": ["no", "007"], "1e3": ["1e3", "true", "~", "x: y", "#"]}},
        {"training.optimiser.lr": 1e-05, "training.optimiser.weight_decay": 1e-12},
        {"governance.contact": "a 'b' \"c\" — 1:30", "governance.purpose": "one\ntwo\n", "description": " "},
        {"model.params.filters": [4, 8], "data.other": ["null", "2024-01-01"]},
    ],
)
def test_a_written_study_is_read_back_the_same(tmp_path, changes):
    study = STUDY.derive(**changes)
    path = tmp_path / "best.yaml"
    path.write_text(study_yaml(study, ["one line", "a\nsecond: [line"]))
    assert Study.load(path) == study


def test_start_weights_are_found_from_where_the_best_study_lies(tmp_path):
    study = STUDY.derive(**{"model.weights": "weights/start.safetensors"})
    moved = with_weights_from(study, tmp_path / "studies", tmp_path / "runs" / "search")
    assert moved.model.weights == "../../studies/weights/start.safetensors"
    assert with_weights_from(STUDY, tmp_path, tmp_path) is STUDY
