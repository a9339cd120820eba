"""What a study compares its model with on the same test images, and what cannot be combined with that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from common.study import Study

Other = Literal["start", "last"]
"""A second model that a study's sites know of: the one that round 1 begins with, or the last round's."""
MOST_READERS = 8
Reader = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]


def check_compared(study: Study) -> None:
    """Raises ``ValueError`` for a comparison that cannot be made."""
    others, readers = study.evaluation.compare, study.evaluation.readers
    for key, names in (("compare", others), ("readers", readers)):
        if not names:
            continue
        if len(set(names)) != len(names):
            raise ValueError(f"evaluation.{key}: names something twice; keep one")
        if study.metrics_suppressed:
            raise ValueError(
                f"evaluation.{key}: needs counts of test patients, which evaluation: suppressed keeps at the sites; "
                "leave one of them out"
            )
        if study.outlines:
            raise ValueError(f"evaluation.{key}: compares what is said of whole images; leave it out in segmentation")
    if others and study.personalisation is not None and study.personalisation.split:
        raise ValueError(
            f"evaluation.compare: under personalisation.method {study.personalisation.method} each site has its own "
            "part of the model, which a second one lacks; leave compare out"
        )
    if "last" in others and study.federation.keep != "best":
        raise ValueError(
            "evaluation.compare: the kept model is the last round's unless federation.keep is best; leave last out"
        )
    if study.data.label_column in readers:
        raise ValueError(
            f"evaluation.readers: {study.data.label_column} is the truth that readers are held against; name their "
            "own columns"
        )
