"""What a study asks of its kept model beyond the test: for whom it works, what it gets wrong, and on worse images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

if TYPE_CHECKING:
    from common.study import Study

CONDITIONS = ("noise", "blur", "gain", "gamma", "resolution", "jpeg")
"""What can be wrong with an image, in the order of a report; ``common.corruptions`` says how wrong at each level."""
LEVELS = (1, 2, 3, 4, 5)
MOST_BY = 8
SITE = "site"
"""The attribute that every image has: the hospital it lies in."""

ConditionName = Literal["noise", "blur", "gain", "gamma", "resolution", "jpeg"]


def _each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("names something twice; keep one")
    return value


def _edges(value: tuple[int, ...]) -> tuple[int, ...]:
    rising = all(low < high for low, high in itertools.pairwise(value))
    if not value or not rising or any(edge % 10 or not 10 <= edge <= 90 for edge in value):
        raise ValueError(
            "are rising tens between 10 and 90, for example [20, 40, 60, 80]: hospitals keep a patient's age in tens"
        )
    return value


Column = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _.-]{0,39}$")]
"""Name of an attribute, or of a column of labels."""
Columns = Annotated[tuple[Column, ...], Field(max_length=MOST_BY), AfterValidator(_each_once)]
AgeBands = Annotated[tuple[int, ...], AfterValidator(_edges)]
Robustness = Annotated[tuple[ConditionName, ...], AfterValidator(_each_once)]


def check_examined(study: Study) -> None:
    """Raises ``ValueError`` where what is asked could not be answered."""
    asked = study.evaluation
    for key, value in (
        ("subgroups", asked.subgroups),
        ("errors_by", asked.errors_by),
        ("robustness", asked.robustness),
    ):
        if not value:
            continue
        if study.task == "segmentation":
            raise ValueError(f"evaluation.{key}: counts images that are called rightly; segmentation calls none")
        if study.metrics_suppressed:
            raise ValueError(
                f"evaluation.{key}: the study's privacy lets no counts of test patients leave; leave it out, or set "
                "evaluation: exact there, which no epsilon covers"
            )


def band_names(edges: Sequence[int]) -> tuple[str, ...]:
    """``under 20``, ``20-39``, … ``80 and over``."""
    middle = (f"{low}-{high - 1}" for low, high in itertools.pairwise(edges))
    return (f"under {edges[0]}", *middle, f"{edges[-1]} and over")
