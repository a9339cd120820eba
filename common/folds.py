"""Cross-validation by patient: which of a site's patients validate in which fold.

The patients of the splits train and val are dealt to ``of`` folds, inside each site, class by class. In fold number k
the patients of fold k validate and the others train; test patients stay test patients. Kohavi (1995), "A study of
cross-validation and bootstrap for accuracy estimation and model selection", recommends stratified folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.randomness import seed_for
from common.study import Study

DEALT = ("train", "val")
"""Splits whose patients are dealt to folds."""


def strata(labelled: NDArray[np.int64], has_label: NDArray[np.bool_], *, one_each: bool) -> NDArray[np.int64]:
    """The class ``(P,)`` that each patient counts as, from its images of each class, ``labelled`` ``(P, C)``.

    That of most of its images, ties to the later class; in a multi-label cohort the rarest class it has, because common
    ones come along by themselves. C: labelled, but of no class; C + 1: without a label.
    """
    classes = labelled.shape[1]
    weight = labelled.astype(np.float64)
    if not one_each:
        weight = (labelled > 0) / np.maximum(labelled.sum(axis=0), 1)
    leading = classes - 1 - np.argmax(weight[:, ::-1], axis=1)
    stratum: NDArray[np.int64] = np.where(labelled.any(axis=1), leading, classes)
    stratum[~has_label] = classes + 1
    return stratum


def deal(
    stratum: NDArray[np.int64], images: NDArray[np.int64], rank: NDArray[np.int64], folds: int
) -> NDArray[np.int64]:
    """The fold ``(P,)``, from 0, of each patient; by stratum, number of images and a random ``rank``, each ``(P,)``.

    Dealt like cards, stratum after stratum, those with most images first: the numbers of patients of two folds differ
    by at most one, in each stratum and over all.
    """
    order = np.lexsort((rank, -images, stratum))
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


class Image(Protocol):
    """What is needed of an image to deal its patient."""

    @property
    def digest(self) -> str: ...

    @property
    def patient(self) -> str: ...

    @property
    def split(self) -> str: ...


def assign(study: Study, images: Sequence[Image], targets: NDArray[np.float32]) -> list[str]:
    """The split of each labelled image of one vault as ``study`` sees it: as it was given, or by ``data.fold``.

    ``targets`` ``(N, C)`` are the images', none masked. The result depends on the images and the study's seed, not on
    the order or the names of patients, which differ from vault to vault: any copy of a hospital's images is dealt
    alike.
    """
    splits = [image.split for image in images]
    fold = study.data.fold
    rows = [number for number, split in enumerate(splits) if split in DEALT]
    if fold is None or not rows:
        return splits
    first: dict[str, str] = {}
    for row in rows:
        image = images[row]
        first[image.patient] = min(image.digest, first.get(image.patient, image.digest))
    names = sorted(first, key=lambda patient: (first[patient], patient))
    number = {patient: index for index, patient in enumerate(names)}
    owner = np.array([number[images[row].patient] for row in rows])
    present = targets[rows] > 0.5
    labelled = np.stack([np.bincount(owner[column], minlength=len(names)) for column in present.T], axis=1)
    everyone = np.ones(len(names), dtype=np.bool_)
    stratum = strata(labelled, everyone, one_each=bool((present.sum(axis=1) == 1).all()))
    rank = np.array([seed_for(study.seed, "fold", first[patient]) for patient in names])
    validates = deal(stratum, np.bincount(owner), rank, fold.of) == fold.number - 1
    for row, who in zip(rows, owner.tolist(), strict=True):
        splits[row] = "val" if validates[who] else "train"
    return splits
