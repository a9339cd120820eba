"""How well a model outlines, as it stands in ``results.json``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from common.metrics import GRID, Summary
from common.metrics.clustered import Ratio
from common.metrics.lesions import PLACES, SIZES, Lesions
from common.study import Study

_DIGITS = 6


def outlines_json(at: int | None, summary: Summary, study: Study) -> dict[str, Any]:
    """The threshold of outlines, ``GRID[at]``, pixels, lesions and the FROC curve; nothing in a study without them."""
    outlines, lesions = summary.outlines, summary.lesions
    if at is None or outlines is None or lesions is None:
        return {}
    pooled, confidence = float(outlines.pooled[at]), study.evaluation.confidence
    found = int(lesions.found.denominator.max(initial=0.0))
    return {
        "outline_threshold": GRID[at],
        "outlines": {
            "images": dict(zip(("empty", "outlined"), outlines.images.tolist(), strict=True)),
            "pixels": {
                "truth": outlines.truth,
                "predicted": int(outlines.predicted[at]),
                "both": int(outlines.both[at]),
                "dice": None if math.isnan(pooled) else round(pooled, _DIGITS),
            },
            "lesions": found,
            "clean": lesions.clean.intervals(confidence)[0].to_dict(),
            "by_size": _groups(SIZES, lesions.by_size, confidence),
            "by_place": _groups(PLACES, lesions.by_place, confidence),
            "froc": _froc(lesions),
        },
    }


def _groups(names: tuple[str, ...], ratio: Ratio, confidence: float) -> dict[str, Any]:
    """Of each group the share found with its interval, and lesions; without those that were withheld somewhere."""
    counts = ratio.denominator.tolist()
    return {
        name: {**interval.to_dict(), "lesions": int(count), "withheld": int(sites)}
        for name, interval, count, sites in zip(
            names, ratio.intervals(confidence), counts, ratio.withheld.tolist(), strict=True
        )
    }


def _froc(lesions: Lesions) -> dict[str, list[float]]:
    """Thresholds from high to low at which both axes are known."""
    found, false = lesions.found.value, lesions.false.value
    known = np.flatnonzero(~np.isnan(found) & ~np.isnan(false))[::-1]
    return {
        "threshold": [GRID[at] for at in known.tolist()],
        "false_lesions": np.round(false[known], _DIGITS).tolist(),
        "lesions_found": np.round(found[known], _DIGITS).tolist(),
    }
