"""How well scores are probabilities, as it stands in ``results.json``: from test counts, scaled by validation's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.metrics import Counts
from common.metrics.calibration import Scale, temperature
from common.metrics.layout import Floats

_THRESHOLDS = np.arange(1, 50) / 50
_DIGITS = 6


def calibration_json(test: Counts, validation: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """Name (``classes``: of each score column) -> what is known; nothing where small cells are hidden or a side lacks.

    ``scaled`` is after temperature scaling on validation. Of multiclass scores it is left out: their temperature
    belongs to all classes' logits together, which the classes' histograms do not tell.
    """
    found: dict[str, Any] = {}
    for column, name in enumerate(classes):
        scale, chosen = Scale.of(test, column), Scale.of(validation, column)
        if scale is None:
            continue
        images, score, observed = scale.groups()
        some = images > 0
        benefit, always = scale.net_benefit(_THRESHOLDS)
        shares = _rounded(score=score[some], observed=observed[some])
        found[name] = {
            **_errors(scale),
            "groups": {"images": images[some].astype(int).tolist(), **shares},
            "benefit": _rounded(threshold=_THRESHOLDS, model=benefit, always=always),
        }
        if chosen is not None and test.layout.task != "multiclass":
            by = temperature(chosen)
            found[name]["scaled"] = {"temperature": round(by, _DIGITS), **_errors(scale.at(by))}
    return found


def _errors(scale: Scale) -> dict[str, float]:
    values = {"brier": scale.brier, "log_loss": scale.log_loss, "expected_error": scale.expected_error()}
    return {name: round(value, _DIGITS) for name, value in values.items()}


def _rounded(**axes: Floats) -> dict[str, list[float]]:
    return {name: np.round(values, _DIGITS).tolist() for name, values in axes.items()}
