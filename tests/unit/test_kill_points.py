"""Where the crash tests strike still exists: a function that moved would leave each process of theirs dead at birth."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest

from tests.integration.kill_points import POINTS, SECURE


@pytest.mark.parametrize("where", sorted({point.where for point in (POINTS | SECURE).values()}))
def test_every_place_is_a_function_of_its_owner(where: str) -> None:
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    assert callable(vars(owner)[name])
