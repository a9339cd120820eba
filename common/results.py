"""What is known of a tested model, as it stands in ``results.json`` and in a package's summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.metrics import Summary, Thresholds
from common.study import Study


def thresholds_json(thresholds: Thresholds, study: Study) -> dict[str, float]:
    """Class -> the score from which an image counts as positive; empty for multiclass (argmax)."""
    return dict(zip(study.scored_classes, thresholds.edges.tolist(), strict=False))


def summary_json(summary: Summary, study: Study) -> dict[str, Any]:
    """A summary as it stands in ``results.json``."""
    names = study.scored_classes
    found: dict[str, Any] = {
        "test": {metric: interval.to_dict() for metric, interval in summary.overall.items()},
        "per_class": {
            name: {metric: interval.to_dict() for metric, interval in summary.per_class[index].items()}
            for index, name in enumerate(names)
        },
        "roc": {},
    }
    for index, name in enumerate(names):
        curve = summary.roc(index)
        if curve is not None:
            fpr, tpr = (np.round(axis, 5).tolist() for axis in curve)
            found["roc"][name] = {"fpr": fpr, "tpr": tpr}
    if summary.confusion is not None:
        if study.task == "multiclass":
            found["confusion_matrix"] = summary.confusion.tolist()
        else:
            tables = summary.confusion.reshape(-1, 2, 2).tolist()
            found["confusion"] = dict(zip(names, tables, strict=True))
    return found
