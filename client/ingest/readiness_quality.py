"""Images whose brightness, contrast or sharpness is unlike that of the others of their modality.

Modified z-scores, (x - median) / (1.4826 · MAD): B. Iglewicz and D. C. Hoaglin, "How to Detect and Handle Outliers",
1993. Their limit of 3.5 is for normal data; measures of images have longer tails, hence a higher one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.readiness_columns import Codes, Words

LIMIT = 6.0
FEWEST = 20
"""A modality with fewer images has no usual value."""
LISTED = 20
_NORMAL = 1.4826  # makes the MAD of normal data their standard deviation
_LEAST = {"mean": 0.01, "spread": 0.01, "dark": 0.05, "bright": 0.05, "sharpness": 0.1}
"""The least standard deviation that is taken for true: where most images agree to the last digit, all others would be
odd. Shares of the grey range; of sharpness, octaves."""
_SHARPEST_BLUR = 1e-4  # below it differences are rounding


@dataclass(frozen=True)
class Outlier:
    """An image (its number in the vault) and its most unusual measure."""

    image: int
    modality: str
    measure: str
    value: float
    median: float
    score: float


def outliers(
    measures: Iterable[tuple[str, NDArray[np.float64]]], modalities: Words, ids: Codes
) -> tuple[int, tuple[Outlier, ...]]:
    """How many images have a measure more than :data:`LIMIT` from the usual, and the :data:`LISTED` furthest off.

    ``measures`` and ``ids`` are ``(N,)`` each; NaN is a measure that was not taken.
    """
    codes = modalities.codes
    worst: dict[int, Outlier] = {}
    for name, values in measures:
        for code, word in enumerate(modalities.words):
            group = np.flatnonzero((codes == code) & np.isfinite(values))
            if len(group) < FEWEST:
                continue
            # Sharpness is compared by ratio: half as sharp is as far off as twice as sharp.
            scaled = np.log2(np.maximum(values[group], _SHARPEST_BLUR)) if name == "sharpness" else values[group]
            middle = np.median(scaled)
            scores = (scaled - middle) / max(_LEAST[name], _NORMAL * float(np.median(np.abs(scaled - middle))))
            usual = float(np.median(values[group]))
            for at in np.flatnonzero(np.abs(scores) > LIMIT):
                image, score = int(ids[group[at]]), float(scores[at])
                if image not in worst or abs(score) > abs(worst[image].score):
                    value = float(values[group[at]])
                    worst[image] = Outlier(image, "".join(word), name, value, usual, score)
    listed = sorted(worst.values(), key=lambda odd: (-abs(odd.score), odd.image))[:LISTED]
    return len(worst), tuple(listed)
