"""Named seeds: the same on every machine, different for every purpose."""

from __future__ import annotations

import random

import numpy as np

from common.randomness import generator, seed_for


def test_seeds_are_fixed() -> None:
    """Golden: a change here changes every published result."""
    assert seed_for(1, "site-3", 7, "shuffle") == 9176831706853715248
    assert generator(1, "split").integers(0, 1000, 4).tolist() == [386, 725, 623, 863]


def test_every_part_counts_and_its_kind_and_place_too() -> None:
    names = [(1,), ("1",), (1, 2), (2, 1), (12,), ("1", "2"), ("1,2",), (1, "site-1", 2), (1, "site-12"), ("",), ()]
    seeds = [seed_for(*parts) for parts in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_nothing_is_seeded_globally() -> None:
    before, numpy_before = random.getstate(), np.random.get_state()[1].copy()
    generator("x").random(10)
    assert random.getstate() == before
    assert (np.random.get_state()[1] == numpy_before).all()
