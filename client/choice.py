"""Which model a hospital would run, judged on its own validation patients alone.

The model of all is the default. Another takes its place only where its validation loss is lower by more than the
standard error of the difference, paired by patient: the one-standard-error rule (Breiman et al. 1984, section 3.4.3;
Hastie et al. 2009, section 7.10), with Student's t in place of 1, so that ten patients must show more than a thousand.
Where two models are alike, the default is left in one case of six, whatever the number of patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from client.evaluation import Scores

FEWEST = 10
"""Validation patients below which the default stays: their spread says too little of itself."""
_ONE_DEVIATION = 0.8413447460685429
"""Share of a normal distribution below one standard deviation."""


@dataclass(frozen=True)
class Lead:
    """By how much a model's validation loss is below the default's."""

    mean: float
    """Over patients, in nats."""
    needed: float
    """What ``mean`` has to exceed."""
    patients: int

    @property
    def convinces(self) -> bool:
        return self.mean > self.needed


def lead(default: Scores, other: Scores, *, fewest: int = FEWEST) -> Lead:
    """How far ``other`` leads ``default``, both on the same validation images in the same order."""
    gains = _by_patient(default.loss - other.loss, default.patients)
    count = len(gains)
    if count < max(fewest, 2):
        return Lead(float(gains.mean()) if count else 0.0, float("inf"), count)
    error = float(gains.std(ddof=1)) / count**0.5
    return Lead(float(gains.mean()), float(t.ppf(_ONE_DEVIATION, count - 1)) * error, count)


def choose(default: str, scores: Mapping[str, Scores], *, fewest: int = FEWEST) -> str:
    """The name in ``scores`` of the model to run: of those that convince the one with the largest lead.

    ``fewest``: patients that must stand behind any choice but the default's, at least :data:`FEWEST`.
    """
    least = max(fewest, FEWEST)
    leads = {name: lead(scores[default], one, fewest=least) for name, one in scores.items() if name != default}
    convincing = {name: found.mean for name, found in leads.items() if found.convinces}
    return max(convincing, key=lambda name: convincing[name], default=default)


def _by_patient(values: NDArray[np.float64], patients: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each patient's mean of ``values``."""
    places = np.unique(patients, return_inverse=True)[1].reshape(-1)
    return np.asarray(np.bincount(places, values) / np.bincount(places))
