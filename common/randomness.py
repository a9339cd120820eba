"""Randomness has a name: every seed is derived from what it is for.

No global seeding anywhere. Noise and sampling for differential privacy never
come from here; they use the system's entropy.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_for(*parts: str | int) -> int:
    """A 63-bit seed for the purpose that ``parts`` name.

    Equal parts give equal seeds on every machine; any other part gives an
    independent one (SHA-256), e.g. ``seed_for(study.seed, "site-3", 7, "shuffle")``.
    """
    text = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(*parts: str | int) -> np.random.Generator:
    """NumPy generator seeded with ``seed_for(*parts)``."""
    return np.random.default_rng(seed_for(*parts))
