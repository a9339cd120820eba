"""From a label sheet's words to targets."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import DataError
from common.labels import Labels, targets
from common.study import Study

NAN = float("nan")


def study(task: str, classes: str, data: str = "{}") -> Study:
    return Study.parse(f"name: x\ntask: {task}\nclasses: {classes}\ndata: {data}\n")


def sheet(*cells: tuple[str, ...], column: str = "label") -> list[Labels]:
    return [{column: cell} for cell in cells]


def check(found: np.ndarray, expected: list[list[float]]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))


def test_binary_targets_are_one_hot_in_the_order_of_the_classes() -> None:
    binary = study("binary", "{pneumonia: [bacteria, virus], normal: [normal]}")
    check(targets(binary, sheet(("normal",), ("virus",), ("bacteria",))), [[0, 1], [1, 0], [1, 0]])


def test_several_labels_of_one_class_are_that_class() -> None:
    binary = study("binary", "{normal: [normal], pneumonia: [bacteria, virus]}")
    check(targets(binary, sheet(("bacteria", "virus"))), [[0, 1]])


def test_missing_and_uncertain_labels_are_masked() -> None:
    binary = study("binary", "[normal, pneumonia]", "{uncertain: [uncertain, maybe]}")
    found = targets(binary, [*sheet((), ("maybe",), ("pneumonia", "uncertain"), ("pneumonia",)), {"finding": ("x",)}])
    check(found, [[NAN, NAN], [NAN, NAN], [NAN, NAN], [0, 1], [NAN, NAN]])


def test_a_negative_number_means_uncertain_by_default() -> None:
    check(targets(study("binary", "[0, 1]"), sheet(("-1",), ("1",), ("0",))), [[NAN, NAN], [0, 1], [1, 0]])


def test_other_labels_are_left_out_or_negative_for_every_class() -> None:
    multiclass = study("multiclass", "[a, b, c]", "{other: [z]}")
    check(targets(multiclass, sheet(("z",), ("z", "b"))), [[NAN] * 3, [0, 1, 0]])
    multilabel = study("multilabel", "[a, b, c]", "{other: [z]}")
    check(targets(multilabel, sheet(("z",), ("z", "b"), ("c", "a"))), [[0, 0, 0], [0, 1, 0], [1, 0, 1]])


def test_the_study_names_its_column() -> None:
    by_finding = study("multiclass", "[a, b, c]", "{label_column: finding}")
    check(targets(by_finding, [{"label": ("x",), "finding": ("c",)}]), [[0, 0, 1]])


def test_a_column_that_no_image_has_is_named_with_those_there_are() -> None:
    by_grade = study("binary", "[a, b]", "{label_column: grade}")
    with pytest.raises(
        DataError, match=r"no image has a label column 'grade'; set data.label_column to one of: finding, label"
    ):
        targets(by_grade, [{"label": ("a",)}, {"finding": ("b",)}])  # fmt: skip


def test_no_images_are_no_rows() -> None:
    assert targets(study("multiclass", "[a, b, c]"), []).shape == (0, 3)
    check(targets(study("binary", "[a, b]"), [{}]), [[NAN, NAN]])


def test_labels_outside_the_classes_are_counted_by_image() -> None:
    cells = sheet(("x", "x"), ("x",), ("y",), ("a",))
    with pytest.raises(
        DataError, match=r"labels outside the study's classes: 'x' \(2 images\), 'y' \(1 image\); map them"
    ):
        targets(study("multilabel", "[a, b]"), cells)  # fmt: skip


def test_a_long_list_of_foreign_labels_is_cut() -> None:
    with pytest.raises(DataError, match=r"'w07' \(1 image\) and 12 more; map them"):
        targets(study("binary", "[a, b]"), sheet(*((f"w{number:02d}",) for number in range(20))))


def test_two_classes_on_one_image_need_multilabel() -> None:
    with pytest.raises(DataError, match=r"labels of 2 classes \(a, b\); task binary takes one: use task: multilabel"):
        targets(study("binary", "[a, b]"), sheet(("b", "a")))
    check(targets(study("multilabel", "[a, b]"), sheet(("b", "a"))), [[1, 1]])


def test_letter_case_counts() -> None:
    with pytest.raises(DataError, match="'Normal'"):
        targets(study("binary", "[normal, pneumonia]"), sheet(("Normal",)))
