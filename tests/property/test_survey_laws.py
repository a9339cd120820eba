"""Laws of the survey: sums are exact and know no order; what is withheld cannot be worked out; nonsense is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.utils.class_weight import compute_class_weight

from common.basis import Basis
from common.errors import DataError, ProtocolError
from common.study import Study
from common.survey import SPLITS, ClassCounts, PixelSums, Rows, Survey
from tests.unit.survey_fixtures import SIZE, sums_of, survey_study


@st.composite
def sites(draw: st.DrawFn, task: str, classes: int, k: int) -> tuple[Study, list[dict[str, Rows]]]:
    """Up to four sites' targets and patients by split; a patient may have images of several classes."""
    made = survey_study(task, classes, k)
    found = []
    for _ in range(draw(st.integers(1, 4))):
        rows = {}
        for split in SPLITS:
            count = draw(st.integers(0, 25))
            seed = draw(st.integers(0, 1 << 20))
            generator = np.random.default_rng(seed)
            if task == "multilabel":
                targets = (generator.random((count, classes)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(
                    np.float32
                )
            else:
                odds = generator.dirichlet([draw(st.sampled_from([0.3, 3.0]))] * classes)
                targets = np.eye(classes, dtype=np.float32)[generator.choice(classes, count, p=odds)]
            rows[split] = (targets, generator.integers(0, 12, count).astype(np.int64))
        found.append(rows)
    return made, found


TASKS = [("binary", 2), ("multiclass", 4), ("multilabel", 3)]


@pytest.mark.parametrize(("task", "classes"), TASKS)
@given(data=st.data())
def test_sums_know_no_order_and_what_travels_comes_back(task: str, classes: int, data: st.DataObject) -> None:
    made, rows = data.draw(sites(task, classes, data.draw(st.sampled_from([1, 3]))))
    pictures = data.draw(st.lists(hnp.arrays(np.uint8, (3, 1, SIZE, SIZE)), min_size=len(rows), max_size=len(rows)))
    told = [
        Survey(ClassCounts.of(made, own), sums_of(own_pixels)) for own, own_pixels in zip(rows, pictures, strict=True)
    ]
    orders = [told, random.Random(data.draw(st.integers())).sample(told, len(told))]
    totals = []
    for order in orders:
        total = Survey.zero(made)
        for one in order:
            total += one
        totals.append({name: array.tolist() for name, array in total.to_arrays().items()})
    assert totals[0] == totals[1]
    for one, own in zip(told, rows, strict=True):
        images = {split: len(own[split][0]) for split in SPLITS} | {"train": 3}
        if len(own["train"][0]) <= 3:
            again = Survey.from_arrays(one.to_arrays(), made, images)
            assert {name: array.tolist() for name, array in again.to_arrays().items()} == {
                name: array.tolist() for name, array in one.to_arrays().items()
            }


@given(
    st.lists(
        hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(3), st.just(SIZE), st.just(SIZE))),
        min_size=1,
        max_size=5,
    )
)
def test_pooled_moments_are_those_of_the_pooled_images(pictures: list[np.ndarray[Any, Any]]) -> None:
    total = PixelSums.zero(survey_study("binary", 2, 1, channels=3))
    for own in pictures:
        total += sums_of(own)
    together = np.concatenate(pictures) / 255.0
    np.testing.assert_allclose(total.mean, together.mean(axis=(0, 2, 3)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total.deviation, together.std(axis=(0, 2, 3)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("task", "classes"), TASKS)
@given(data=st.data())
def test_weights_are_scikit_learns_of_the_pooled_labels(task: str, classes: int, data: st.DataObject) -> None:
    made, rows = data.draw(sites(task, classes, 1))
    total = Survey.zero(made)
    for own in rows:
        total += Survey(ClassCounts.of(made, own), PixelSums(1, SIZE**2, (SIZE**2 * 100,), (SIZE**2 * 20000,)))
    targets = np.concatenate([own["train"][0] for own in rows])
    columns = (
        [targets.argmax(axis=1)] if task == "multiclass" else list((targets[:, 1:] if task == "binary" else targets).T)
    )
    values = np.arange(classes) if task == "multiclass" else np.array([0.0, 1.0])
    assume(len(targets) and all(set(column.tolist()) == set(values.tolist()) for column in columns))
    found = Basis.of(made, total)
    assert found is not None
    found.check(made)
    expected = np.array([compute_class_weight("balanced", classes=values, y=column) for column in columns])
    np.testing.assert_allclose(
        found.class_weights, expected[0] if task == "multiclass" else expected.T.ravel(), rtol=1e-12
    )


@pytest.mark.parametrize(("task", "classes"), TASKS)
@given(data=st.data())
def test_no_small_group_is_told_nor_follows_from_the_splits_total(task: str, classes: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(2, 8))
    made, (own, *_) = data.draw(sites(task, classes, k))
    found = ClassCounts.of(made, own)
    assert not ((found.patients > 0) & (found.patients < k)).any()
    for split, name in enumerate(SPLITS):
        targets, patients = own[name]
        for column in range(classes):
            for sign in (0, 1):
                members = np.unique(patients[targets[:, column] == sign])
                if found.withheld[split, column, sign]:
                    assert not found.images[split, column, sign]
                elif sign or task == "multilabel":
                    assert found.patients[split, column, sign] == len(members), (
                        "what is large enough, and empty, is told"
                    )
        if task == "multilabel":
            told = found.patients[split].min(axis=1) > 0
            for column in np.flatnonzero(found.withheld[split].any(axis=1)).tolist():
                assert not told[column], "with and without are withheld together"
                # The total less what is told of this column: nothing is told of it, so the group is everybody.
                assert not found.images[split, column].any()
        else:
            rest = found.withheld[split, :, 1].astype(bool)
            hidden = np.unique(patients[targets[:, rest].any(axis=1)]) if rest.any() else np.zeros(0)
            everybody = len(np.unique(patients))
            assert len(hidden) == 0 or len(hidden) >= min(k, everybody), "what the total less the told leaves"


@given(
    st.dictionaries(
        st.sampled_from(["images", "patients", "withheld", "pixels", "more"]),
        hnp.arrays(st.sampled_from([np.int64, np.float64]), st.sampled_from([(3, 2, 2), (3,), (2, 2), ()])),
    ),
    st.dictionaries(st.sampled_from(SPLITS), st.integers(0, 100)),
)
def test_any_arrays_are_a_survey_or_refused(arrays: dict[str, np.ndarray[Any, Any]], images: dict[str, int]) -> None:
    made = survey_study("binary", 2, 3)
    try:
        found = Survey.from_arrays(arrays, made, images)
    except ProtocolError as error:
        assert "\n" not in str(error)
        return
    try:
        basis = Basis.of(made, found)
    except DataError:
        return
    assert basis is not None
    basis.check(made)


numbers = st.lists(st.floats() | st.floats(0, 1), max_size=3).map(tuple)


@given(numbers, numbers, numbers)
def test_numbers_of_a_request_are_in_range_or_refused(mean: Any, deviation: Any, weights: Any) -> None:
    made = survey_study("binary", 2, 1)
    basis = Basis(mean, deviation, weights)
    try:
        basis.check(made)
    except ProtocolError:
        return
    assert 0 <= mean[0] <= 1 and 1 / 255 <= deviation[0] <= 0.5000001 and len(mean) == len(deviation) == 1
    assert len(weights) == 2 and all(0.499 < weight <= 1e4 for weight in weights)
    assert Basis.from_json(basis.json(), made) == basis
