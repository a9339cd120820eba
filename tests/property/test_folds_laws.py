"""Cross-validation by patient: nobody twice, nobody left out, alike in every fold."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.folds import assign
from common.study import Study

BASE = {"name": "folds", "task": "binary", "classes": ["normal", "pneumonia"]}
KINDS = {"binary": 2, "multiclass": 3, "multilabel": 3}


class Image(NamedTuple):
    digest: str
    patient: str
    split: str


@st.composite
def sites(draw: st.DrawFn) -> tuple[str, list[Image], np.ndarray]:
    """A site's images: some patients with several, of several classes, of every split."""
    task = draw(st.sampled_from(sorted(KINDS)))
    classes = KINDS[task]
    patients = draw(st.integers(1, 40))
    images, targets = [], []
    for patient in range(patients):
        split = draw(st.sampled_from(["train", "train", "val", "test"]))
        for number in range(draw(st.integers(1, 3))):
            images.append(Image(f"{patient * 7919 % 1009:04d}-{number}", f"p{patient}", split))
            row = np.zeros(classes, dtype=np.float32)
            if task == "multilabel":
                row[:] = draw(st.lists(st.booleans(), min_size=classes, max_size=classes))
            else:
                row[draw(st.integers(0, classes - 1))] = 1
            targets.append(row)
    return task, images, np.stack(targets)


def study(task: str, number: int, of: int, seed: int = 0) -> Study:
    classes = ["normal", "pneumonia", "effusion"][: KINDS[task]]
    raw = {"name": "folds", "task": task, "classes": classes, "seed": seed}
    return Study.parse(str({**raw, "data": {"fold": {"number": number, "of": of}}}).replace("'", '"'))


def folds(task: str, images: list[Image], targets: np.ndarray, of: int) -> list[list[str]]:
    return [assign(study(task, number, of), images, targets) for number in range(1, of + 1)]


@given(sites(), st.integers(2, 6))
def test_every_patient_validates_once_and_is_in_no_two_parts(site, of):
    task, images, targets = site
    validated: dict[str, int] = defaultdict(int)
    for parts in folds(task, images, targets, of):
        by_patient: dict[str, set[str]] = defaultdict(set)
        for image, part in zip(images, parts, strict=True):
            assert (part == "test") == (image.split == "test")
            by_patient[image.patient].add(part)
        for patient, found in by_patient.items():
            assert len(found) == 1
            validated[patient] += found == {"val"}
    for image in images:
        assert validated[image.patient] == (image.split != "test")


@given(sites(), st.integers(2, 6))
def test_folds_differ_by_at_most_one_patient_in_every_class_and_over_all(site, of):
    task, images, targets = site
    if task == "multilabel":  # its strata are of the rarest class, which the other tests' patients do not show
        targets = np.eye(3, dtype=np.float32)[targets.argmax(1)]
    whole = {}
    for image, row in zip(images, targets, strict=True):
        whole.setdefault(image.patient, []).append(row)
    one_class = {patient: rows[0] for patient, rows in whole.items()}
    targets = np.stack([one_class[image.patient] for image in images])
    per_class: dict[int, list[int]] = defaultdict(list)
    sizes = []
    for parts in folds(task, images, targets, of):
        val = {image.patient for image, part in zip(images, parts, strict=True) if part == "val"}
        sizes.append(len(val))
        for column in range(targets.shape[1]):
            per_class[column].append(sum(bool(one_class[patient][column]) for patient in val))
    assert max(sizes) - min(sizes) <= 1
    for counts in per_class.values():
        assert max(counts) - min(counts) <= 1


@given(sites(), st.integers(2, 6), st.randoms())
def test_neither_order_nor_names_of_patients_matter(site, of, random):
    task, images, targets = site
    order = list(range(len(images)))
    random.shuffle(order)
    renamed = [images[i]._replace(patient=f"other-{hash(images[i].patient) % 10**9}") for i in order]
    mixed = [images[i] for i in order]
    for number in range(1, of + 1):
        plan = study(task, number, of)
        before = assign(plan, images, targets)
        assert assign(plan, mixed, targets[order]) == [before[i] for i in order]
        assert assign(plan, renamed, targets[order]) == [before[i] for i in order]


@given(sites())
def test_without_a_fold_images_keep_their_splits(site):
    task, images, targets = site
    plan = study(task, 1, 2).derive(**{"data.fold": None})
    assert assign(plan, images, targets) == [image.split for image in images]


def test_the_seed_deals_anew():
    images = [Image(f"{number:03d}", f"p{number}", "train") for number in range(40)]
    targets = np.tile(np.eye(2, dtype=np.float32), (20, 1))
    dealt = {tuple(assign(study("binary", 1, 4, seed), images, targets)) for seed in range(4)}
    assert len(dealt) == 4
