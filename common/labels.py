"""From the words on a label sheet to a study's targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.study import Study

Labels = Mapping[str, tuple[str, ...]]
"""Column of the label sheet -> the values in its cell, e.g. ``{"label": ("pneumonia",)}``."""


def targets(study: Study, labels: Sequence[Labels]) -> NDArray[np.float32]:
    """Targets ``(N, C)`` float32 in {0, 1}; a masked image (missing or uncertain label) is a row of NaN.

    ``C`` is the number of classes (two for a binary task). Raises :class:`DataError`
    for a label that the study's classes do not map, for two classes on one image
    where the task allows one, or where no image has the study's label column.
    """
    columns = {name for cells in labels for name in cells}
    if columns and study.data.label_column not in columns:
        raise DataError(
            f"no image has a label column {study.data.label_column!r}; set data.label_column to one of: "
            + ", ".join(sorted(columns))
        )
    column = {value: index for index, values in enumerate(study.classes.values()) for value in values}
    uncertain, other = set(study.data.uncertain), set(study.data.other)
    result = np.full((len(labels), len(study.classes)), np.nan, dtype=np.float32)
    unknown: dict[str, int] = {}
    for row, cells in enumerate(labels):
        values = cells.get(study.data.label_column, ())
        if not values or any(value in uncertain for value in values):
            continue
        for value in dict.fromkeys(values):
            if value not in column and value not in other:
                unknown[value] = unknown.get(value, 0) + 1
        found = sorted({column[value] for value in values if value in column})
        if study.task != "multilabel":
            if len(found) > 1:
                names = ", ".join(study.class_names[index] for index in found)
                raise DataError(
                    f"an image has labels of {len(found)} classes ({names}); task {study.task} takes one: "
                    "use task: multilabel, or mend the label sheet"
                )
            if not found:
                continue
        result[row] = 0.0
        result[row, found] = 1.0
    if unknown:
        listed = ", ".join(
            f"{value!r} ({count} image{'s' * (count > 1)})" for value, count in sorted(unknown.items())[:8]
        )
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DataError(
            f"labels outside the study's classes: {listed}{more}; map them under classes:, "
            "or list them under data.other or data.uncertain"
        )
    return result
