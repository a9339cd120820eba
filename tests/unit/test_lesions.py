"""Lesions: which outlines find them, how many are drawn in vain, and what of it leaves a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.evaluation import first_pass, predict
from client.lesions import find, second_pass
from common.errors import ProtocolError
from common.metrics import GRID, Found, Lesions, Question, Reference, SecondPass, Thresholds
from common.metrics.lesions import PLACES, box_iou, matched, pieces
from common.models import build
from common.study_outlines import LesionSpec
from tests.unit.test_outlines import SIZE, study, view

SPEC = LesionSpec(overlap=0.5, smallest=2, sizes=(0.05, 0.2))
HALF = GRID.index(0.5)


def image(*boxes: tuple[int, int, int, int], value: float = 1.0, side: int = 12) -> NDArray[Any]:
    drawn = np.zeros((side, side))
    for top, left, bottom, right in boxes:
        drawn[top:bottom, left:right] = value
    return drawn


def found(truth: list[NDArray[Any]], drawn: list[NDArray[Any]], spec: LesionSpec = SPEC) -> Found:
    return Found.of(np.stack(drawn), np.stack(truth).astype(np.uint8), np.arange(len(truth)), spec)


def drawn_at_random(seed: int, count: int) -> Found:
    draw = np.random.default_rng(seed)
    truth, said = [], []
    for _ in range(count):
        one = image()
        for _ in range(draw.integers(0, 3)):
            top, left = draw.integers(0, 8, 2)
            one[top : top + draw.integers(1, 5), left : left + draw.integers(1, 5)] = 1
        truth.append(one)
        moved = np.roll(one, draw.integers(-1, 2), axis=0)
        said.append(np.clip(moved * draw.uniform(0.1, 1) + (draw.random(one.shape) < 0.05) * draw.random(), 0, 1))
    return found(truth, said)


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_pieces_touch_at_corners_and_small_ones_are_none() -> None:
    drawn = image((0, 0, 2, 2), (2, 2, 4, 4), (6, 6, 7, 7), (9, 0, 10, 2)) > 0
    boxes, areas = pieces(drawn, 2)
    assert boxes.tolist() == [[0, 0, 4, 4], [9, 0, 10, 2]]
    assert areas.tolist() == [8, 2]
    assert len(pieces(drawn & False, 2)[0]) == 0


def test_iou_of_boxes_by_hand() -> None:
    a, b = np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [0, 1, 2, 3], [5, 5, 6, 6], [0, 0, 4, 4]])
    assert box_iou(a, b).tolist() == [[1.0, 2 / 6, 0.0, 4 / 16]]


def test_each_box_counts_once_and_as_many_as_can_be_have_a_partner() -> None:
    true = np.array([[0.0, 0, 10, 10], [0, 2, 10, 12]])
    assert matched(true, np.array([[0.0, 1, 10, 11]]), 0.5).sum() == 1
    # The first drawn box fits both, the second only the first true one: taken greedily one would stay alone.
    both = np.array([[0.0, 1, 10, 11], [0, -3, 10, 7]])
    assert box_iou(true, both)[1, 1] < 0.5 < box_iou(true, both)[0, 1]
    assert matched(true, both, 0.5).all()
    assert matched(np.zeros((0, 4)), both, 0.5).tolist() == []
    assert matched(true, np.zeros((0, 4)), 0.5).tolist() == [False, False]


def test_hits_and_false_lesions_by_hand() -> None:
    truth = image((0, 0, 4, 4), (8, 8, 12, 12))
    said = image((0, 0, 4, 3), value=0.9) + image((6, 0, 9, 3), value=0.6)
    one = found([truth, image()], [said, image((0, 0, 3, 3), value=0.3)])
    assert one.hit[:, HALF].tolist() == [True, False]
    assert one.false[:, HALF].tolist() == [1, 0]
    high, low = GRID.index(0.7), GRID.index(0.2)
    assert one.false[:, high].tolist() == [0, 0]
    assert one.false[:, low].tolist() == [1, 1]
    assert not one.hit[:, GRID.index(0.95)].any()
    assert one.empty.tolist() == [False, True]
    sums = Lesions.of(one, np.arange(2), HALF)
    assert sums.found.value[HALF] == 0.5
    assert sums.false.value[HALF] == 0.5
    assert sums.clean.value.tolist() == [1.0]
    assert Lesions.of(one, np.arange(2), low).clean.value.tolist() == [0.0]


def test_sizes_and_places() -> None:
    truth = [image((0, 0, 2, 2)), image((5, 8, 8, 12)), image((6, 0, 12, 6)), image((10, 10, 12, 12))]
    one = found(truth, truth)
    assert one.size.tolist() == [0, 1, 2, 0]  # of 144 pixels 4, 12, 36 and 4
    assert [PLACES[place] for place in one.place] == ["upper left", "middle right", "lower left", "lower right"]
    sums = Lesions.of(one, np.arange(4), HALF)
    assert sums.by_size.denominator.tolist() == [2, 1, 1]
    assert sums.by_size.value.tolist() == [1, 1, 1]


# --- sums ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.integers(0, 100))
def test_sites_add_up_to_what_all_would_count(owner: list[int], seed: int) -> None:
    one, patients = drawn_at_random(seed, len(owner)), np.array(owner)
    whole = Lesions.of(one, patients, HALF).to_arrays()
    merged = Lesions.zero()
    for site in (1, 0):
        merged += Lesions.of(part(one, np.flatnonzero(patients % 2 == site)), patients, HALF)
    for name, value in merged.to_arrays().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    assert Lesions.from_arrays(whole).to_arrays().keys() == whole.keys()


def part(one: Found, rows: NDArray[np.int64]) -> Found:
    """The images ``rows`` of it."""
    lesions = np.isin(one.image, rows)
    return Found(
        one.rows[rows],
        one.false[rows],
        one.empty[rows],
        np.searchsorted(rows, one.image[lesions]),
        one.size[lesions],
        one.place[lesions],
        one.hit[lesions],
    )


@given(st.lists(st.integers(0, 6), min_size=1, max_size=14), st.integers(0, 100), st.integers(2, 4))
def test_no_number_is_of_few_patients(owner: list[int], seed: int, least: int) -> None:
    """Whoever has a lesion that was found, one that was missed, a false one, or none, is one of many or of nobody."""
    one, patients = drawn_at_random(seed, len(owner)), np.array(owner)
    told = Lesions.of(one, patients, HALF, least)
    of_lesion = patients[one.image]

    def fine(yes: NDArray[np.bool_], who: NDArray[Any]) -> bool:
        return all(len(set(who[side].tolist())) in (0, *range(least, 99)) for side in (yes, ~yes))

    assert not told.found.patients[np.arange(len(GRID)) != HALF].any()  # nor is the curve told
    if told.found.patients[HALF]:
        assert fine(one.hit[:, HALF], of_lesion)
    if told.false.patients[HALF]:
        assert fine(one.false[:, HALF] > 0, patients)
    for group, ratio in ((one.size, told.by_size), (one.place, told.by_place)):
        silent = set()
        for number, shown in enumerate(ratio.patients.tolist()):
            members = group == number
            if shown:
                assert fine(one.hit[members, HALF], of_lesion[members])
            else:
                silent |= set(of_lesion[members].tolist())
        assert len(silent) == 0 or len(silent) >= least or not ratio.patients.any()
    everything = Lesions.of(one, patients, HALF)
    if not told.found.patients[HALF] and everything.found.patients[HALF]:
        assert told.found.withheld[HALF] == 1


@pytest.mark.parametrize(
    ("field", "bend"),
    [
        ("found_above", lambda v: v + (1 << 40)),
        ("found_below", lambda v: v * np.arange(1, len(v) + 1)),
        ("false_patients", lambda v: v * 0),
        ("by_size_above", lambda v: v[:2]),
        ("clean_below", lambda v: -v - 1),
        ("by_place_squares", lambda v: v.astype(np.float64)),
        ("more", lambda v: v),
    ],
)
def test_sums_that_no_site_could_have_are_refused(field: str, bend: Any) -> None:
    arrays = Lesions.of(drawn_at_random(3, 12), np.arange(12), HALF).to_arrays()
    with pytest.raises(ProtocolError):
        Lesions.from_arrays(arrays | {field: bend(arrays.get(field, np.zeros(1)))})


def test_sums_do_not_overflow_unseen() -> None:
    arrays = dict(Lesions.of(drawn_at_random(3, 12), np.arange(12), HALF).to_arrays())
    arrays["false_above"] = np.full(len(GRID), 1 << 61)
    lying = Lesions.from_arrays(arrays)
    with pytest.raises(ProtocolError, match="greater than any patients"):
        lying + lying


# --- the second pass -------------------------------------------------------------------------------------------------


def test_a_site_answers_the_second_pass() -> None:
    made, data = study(), view(12)
    model = build(made, 1)
    scores = predict(model, data, made)
    lesions = find(model, data, made)
    counts = first_pass(scores, made).counts
    question = Question(Reference(counts, Thresholds.at([0.5], made.evaluation.bins)), HALF)
    again = Question.from_arrays(question.to_arrays(), made)
    assert again.outline == HALF
    sums = second_pass(scores, lesions, again)
    assert SecondPass.from_arrays(sums.to_arrays(), made, question).lesions is not None
    assert lesions.false.shape == (12, len(GRID))
    assert len(lesions.image) == 8  # of each square one
    plain = second_pass(scores, None, Question(question.reference))
    assert plain.lesions is None
    with pytest.raises(ProtocolError):
        SecondPass.from_arrays(plain.to_arrays(), made, question)
    for wrong in (np.array([len(GRID)]), np.array([-1]), np.array([0.5])):
        with pytest.raises(ProtocolError):
            Question.from_arrays(question.to_arrays() | {"outline_at": wrong}, made)


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    made, data = study(), view(10)
    model = build(made, 1)
    with torch.no_grad():
        model.last.bias += 0.2  # type: ignore[union-attr,operator,arg-type]
    whole = Lesions.of(find(model, data, made), data.patients.numpy(), HALF).to_arrays()
    monkeypatch.setattr("client.evaluation.OUTLINED_PIXELS", 3 * SIZE**2)
    pieces_ = Lesions.of(find(model, data, made), data.patients.numpy(), HALF).to_arrays()
    for name, value in whole.items():
        np.testing.assert_array_equal(pieces_[name], value, err_msg=name)
