"""Which images a study is about: the data part of a study, and the phantoms it draws where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.frozen_dict import FrozenDict
from common.study_fields import Fraction, Labels, Part, Positive

MOST_FOLDS = 20


class PhantomSpec(Part):
    """The embedded synthetic images (``simulations.phantoms``).

    ``chest``: radiographs with pneumonia. ``ct_lung``: slices in Hounsfield units with nodules, which need
    ``preprocess.window``. ``mri_brain``: T1, T2 and diffusion as three channels, with tumours. ``fracture``: wrists
    and forearms. ``mixed``: 40% lung CT (in a lung window), 30% brain MRI, 30% fracture.
    """

    kind: Literal["chest", "ct_lung", "mri_brain", "fracture", "mixed"] = "chest"
    images: Annotated[int, Field(ge=10)] = 1000
    size: Annotated[int, Field(ge=32, le=1024)] = 96
    difficulty: Fraction = 0.5
    images_per_patient: Annotated[float, Field(ge=1.0)] = 1.3


class FoldSpec(Part):
    """One fold of a cross-validation by patient (``common.folds``).

    At each site the patients of the splits train and val are dealt anew to ``of`` folds; those of fold ``number``
    validate, the others train.
    """

    number: Positive
    of: Annotated[int, Field(ge=2, le=MOST_FOLDS)]

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.number > self.of:
            raise ValueError(f"number must be 1 to {self.of}, got {self.number}")
        return self


def _unordered(value: Mapping[str, Mapping[str, int]]) -> FrozenDict[FrozenDict[int]]:
    for source, classes in value.items():
        if not classes:
            raise ValueError(f"{source!r} takes nothing; name a class and how many images of it, or leave it out")
    return FrozenDict.sorted((source, FrozenDict.sorted(classes.items())) for source, classes in value.items())


Take = Annotated[Mapping[str, Mapping[str, Positive]], AfterValidator(_unordered)]


class DataSpec(Part):
    """Which labels are read, and what is done with images that cannot be.

    ``uncertain`` values mask an image. ``other`` values belong to no class: an image
    that has only these is left out (binary, multiclass, segmentation) or negative for
    every class (multilabel, for example "No Finding"). A simulation's own are ``take``, of a
    source (by its name) at most so many images of each class that is named, and no others, and
    ``group_duplicates``: near-duplicate images count as one patient (``simulations.datasets.duplicates``).
    """

    label_column: Annotated[str, Field(min_length=1)] = "label"
    uncertain: Labels = ("uncertain", "unknown", "-1")
    other: Labels = ()
    max_unreadable: Fraction = 0.01
    split: tuple[Fraction, Fraction, Fraction] = (0.7, 0.15, 0.15)
    fold: FoldSpec | None = None
    phantoms: PhantomSpec = PhantomSpec()
    take: Take = Field(default_factory=FrozenDict)
    group_duplicates: bool = False

    @field_validator("split")
    @classmethod
    def _sums_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(value) - 1.0) > 1e-6 or min(value) <= 0.0:
            raise ValueError(f"must be three positive fractions (train, val, test) that sum to 1, got {list(value)}")
        return value
