"""SCAFFOLD's control variates (Karimireddy et al. 2020, arXiv:1910.06378): the arithmetic that both sides share.

A site's variate cᵢ is the mean gradient of its last fit. It follows from what travels anyway, how far the weights
moved, and the *pace*, the sum of the learning rates of its steps (option II of algorithm 1):
cᵢ⁺ − cᵢ = (x − yᵢ)/pace − c. Both sides compute the same floats, so that no variate of a site has to leave it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.weights import Weights


def change(sent: Weights, after: Weights, pace: float, all_sites: Weights) -> dict[str, NDArray[Any]]:
    """How a fit from ``sent`` to ``after`` changes its site's variate; ``all_sites`` is c, by trained name."""
    scale = np.float32(pace)
    return {name: (sent[name] - after[name]) / scale - all_sites[name] for name in all_sites}
